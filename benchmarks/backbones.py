"""Speed of each backbone beside the embedded one, with size and accuracy, as a table in CSV.

``python backbones.py > backbones.csv`` makes the table of docs/backbones.md, and ``--networks
3`` the rows of EfficientNet-Lite alone. The networks have random weights, which cost what
trained ones cost; sizes and accuracies are those that torchvision states for its default
weights, whose image size is used. The two networks of a row run in turns on one thread, and
what counts is the processor's time, which other processes change little.
"""

from __future__ import annotations

import csv
import functools
import gc
import platform
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from common import arguments, pictures, take_turns
from torchvision.models import get_model_weights

from sktl import PretrainedImageFeatures, list_backbones
from sktl.backbones import LITES

EMBEDDED = "efficientnet_lite0"
MEGABYTES = {"efficientnet_lite0": 18.8, "efficientnet_lite1": 21.9, "efficientnet_lite2": 24.7}
COLUMNS = ("backbone", "image_size", "parameters", "megabytes", "top1", "milliseconds", "relative")
WORK = 60.0  # GFLOP that a pass should take, where the batch allows


def described(name: str) -> dict[str, object]:
    """Look up what is known without running it."""
    if name in LITES:
        lite = LITES[name]
        n_parameters = sum(p.numel() for p in lite.build().parameters())
        size = {"image_size": lite.image_size, "parameters": n_parameters}
        return {"backbone": name, **size, "megabytes": MEGABYTES[name], "top1": lite.top1}
    weights = get_model_weights(name).DEFAULT
    return {
        "backbone": name,
        "image_size": weights.transforms().crop_size[0],
        "parameters": weights.meta["num_params"],
        "megabytes": round(weights.meta["_file_size"], 1),
        "top1": weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
    }


def n_images(name: str) -> int:
    """Fewer images for large networks, between 2 and 32."""
    flop = 0.4 if name in LITES else get_model_weights(name).DEFAULT.meta["_ops"]
    return min(32, max(2, round(WORK / flop)))


def seconds_an_image(name: str, size: int, repeats: int) -> dict[str, float]:
    """Of the frozen network and of the embedded one, each at its own image size."""

    def processor_seconds(features: PretrainedImageFeatures, X: npt.NDArray[np.uint8]) -> float:
        start = time.process_time()
        features.transform(X)
        return time.process_time() - start

    sides = {}
    for backbone, side, n in [(name, size, n_images(name)), (EMBEDDED, 224, 32)]:
        X, _ = pictures(n, size=256)
        weights = "DEFAULT" if backbone == EMBEDDED else None
        features = PretrainedImageFeatures(backbone, weights=weights, image_size=side, cache=None)
        features.fit(X).transform(X)  # the first pass prepares the network
        sides[backbone] = (functools.partial(processor_seconds, features, X), n)
    medians = take_turns({k: run for k, (run, _) in sides.items()}, repeats)
    return {k: medians[k] / n for k, (_, n) in sides.items()}


def machine() -> str:
    """Say what the figures were measured with."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    features = PretrainedImageFeatures(image_size=32, cache=None).fit(pictures(1, size=32)[0])
    processor = models[0] if models else platform.machine()
    instructions = torch.backends.cpu.get_cpu_capability()
    release = torch.__version__.split("+")[0]
    return f"{processor}, {instructions}, {features.precision_}, torch {release}"


def main() -> None:
    """Write the table, a row as soon as it is known."""
    args = arguments(__doc__, networks=len(list_backbones()), repeats=3)
    torch.set_num_threads(1)
    print(f"# {machine()}")
    table = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    table.writeheader()
    for name in list_backbones()[: args.networks]:
        row = described(name)
        seconds = seconds_an_image(name, int(str(row["image_size"])), args.repeats)
        relative = seconds[EMBEDDED] / seconds[name]
        row |= {"milliseconds": f"{1000 * seconds[name]:.2f}", "relative": f"{relative:.4f}"}
        table.writerow(row)
        sys.stdout.flush()
        gc.collect()


if __name__ == "__main__":
    main()
