"""ImageNet accuracy of all backbones against their speed."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

sys.path.insert(0, str(Path.cwd()))

from site_pages import front, read_backbones  # noqa: E402

_, rows = read_backbones()
best = sorted(front(rows), key=[row["backbone"] for row in rows].index)
places = {row["backbone"]: (float(row["relative"]), float(row["top1"])) for row in rows}

figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
axes.scatter(*zip(*places.values(), strict=True), s=14, color="0.6")
line = sorted(places[name] for name in best)
axes.plot(*zip(*line, strict=True), "o-", markersize=5, color="tab:blue")
for name in best:
    if name != "efficientnet_lite0":
        axes.annotate(name, places[name], (4, 5), textcoords="offset points", fontsize=8)
axes.plot(*places["efficientnet_lite0"], "o", markersize=8, color="tab:orange")
axes.annotate(
    "efficientnet_lite0",
    places["efficientnet_lite0"],
    (-6, -14),
    textcoords="offset points",
    fontsize=8,
    ha="right",
    color="tab:orange",
)
axes.set(xscale="log", xlabel="speed, relative to efficientnet_lite0", ylabel="ImageNet top-1, %")
axes.grid(alpha=0.3)
