"""Many fits of all kinds in one process: memory, open files and threads stay as they are."""

from __future__ import annotations

import gc
import itertools
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, pictures
from sklearn.base import clone

from sktl import PretrainedImageClassifier

_SIZE = 32


def settings(directory: str) -> Iterator[dict[str, Any]]:
    """Parameters of the fits, in turns; those with an lr of 1e30 diverge and raise."""
    kinds: list[dict[str, Any]] = [
        {},
        {"optimizer": "adamw"},
        {"freeze": -1},
        {"cache": directory},
        {"freeze": -1, "lr": 1e-3, "cache": directory},
        {"cache": None},
        {"lr": 1e30, "optimizer": "sgd", "cache": directory},
        {"freeze": 99},
    ]
    return itertools.cycle(kinds)


def in_use() -> tuple[float, int, int]:
    """Memory of this process in MB, open files, and threads."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(os.listdir("/proc/self/fd"))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files, threading.active_count()


def main() -> None:
    """Fit, and print what is in use every now and then."""
    args = arguments(__doc__, fits=200, images=24, every=40)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    X, y = pictures(args.images, 64)
    y %= 3
    n_failed = 0
    with tempfile.TemporaryDirectory() as directory:
        base = PretrainedImageClassifier(image_size=_SIZE, max_epochs=2, random_state=0)
        for number, kind in enumerate(itertools.islice(settings(directory), args.fits), start=1):
            # New pictures each time: features that are in the cache would spare the prefix.
            fresh = rng.integers(0, 30, X.shape, dtype=np.uint8) + X // 2
            try:
                clone(base).set_params(**kind).fit(fresh, y).predict(fresh)
            except ValueError:
                n_failed += 1
            if number == args.every:
                first = in_use()
            if number % args.every == 0:
                memory, files, threads = in_use()
                print(f"{number:5} fits: {memory:7.0f} MB {files:4} files {threads:3} threads")
    last = in_use()
    more = [round(b - a) for a, b in zip(first, last, strict=True)]
    print(
        f"after {args.every} fits and after {args.fits}, of which {n_failed} failed: "
        f"{more[0]} MB more, {more[1]} files more, {more[2]} threads more"
    )


if __name__ == "__main__":
    main()
