"""ImageNet accuracy of all backbones against their speed."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

sys.path.insert(0, str(Path.cwd()))

from site_pages import front, read_backbones  # noqa: E402

_, rows = read_backbones()
best = sorted(front(rows), key=[row["backbone"] for row in rows].index)
places = {row["backbone"]: (float(row["relative"]), float(row["top1"])) for row in rows}

figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
axes.scatter(*zip(*places.values(), strict=True), s=12, color="0.65")
line = sorted((places[name], name) for name in best)
axes.plot(*zip(*(place for place, _ in line), strict=True), "o-", markersize=5, color="tab:blue")
axes.set(xscale="log", xlabel="speed, relative to efficientnet_lite0", ylabel="ImageNet top-1, %")
axes.set_xlim(right=40)
axes.grid(alpha=0.3)

# Where points lie close to each other, the first name stands for those beside it.
above = float("inf")
for (_, accuracy), name in line:
    if above - accuracy > 1:
        axes.annotate(name, places[name], (6, 4), textcoords="offset points", fontsize=9)
        above = accuracy
axes.plot(*places["efficientnet_lite0"], "o", markersize=8, color="tab:orange")
axes.annotate(
    "efficientnet_lite0",
    places["efficientnet_lite0"],
    (-8, -14),
    textcoords="offset points",
    fontsize=9,
    ha="right",
    color="tab:orange",
)
