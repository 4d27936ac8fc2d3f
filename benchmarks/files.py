"""A frozen fit from JPEG files beside one from the same pictures as arrays, and its trace."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import N_CLASSES, arguments, forget, report, take_turns
from PIL import Image
from sklearn.datasets import load_sample_images

from sktl import PretrainedImageClassifier
from sktl.frozen.module import FrozenModule
from sktl.images import jpeg
from sktl.images.decoding import decode_file
from sktl.images.preprocessing import Recipe

SIDES = ((640, 480), (1200, 900))
Spans = dict[str, list[tuple[int, float, float]]]  # of each part: thread, begin and end


def write(folder: str, n: int, sides: tuple[int, int]) -> list[str]:
    """Save pieces of two photographs, of which no two are the same."""
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    paths = []
    for i in range(n):
        left, top = rng.integers(0, 240), rng.integers(0, 127)
        piece = photographs[i % 2].resize(sides, box=(left, top, left + 400, top + 300))
        paths.append(str(Path(folder, f"{i:05}.jpg")))
        piece.save(paths[-1], quality=90)
    return paths


@contextmanager
def pillow_alone() -> Iterator[None]:
    """Within, Pillow reads all files, as where simplejpeg isn't installed."""
    library, jpeg.simplejpeg = jpeg.simplejpeg, None
    try:
        yield
    finally:
        jpeg.simplejpeg = library


@contextmanager
def traced() -> Iterator[Spans]:
    """Within, write down when which thread reads files, and when it runs the network."""
    spans: Spans = {"read": [], "run": []}
    read, run = Recipe.read, FrozenModule.__call__

    def watched(work: Callable[..., Any], part: str) -> Callable[..., Any]:
        @wraps(work)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                spans[part].append((threading.get_ident(), start, time.perf_counter()))

        return wrapper

    Recipe.read, FrozenModule.__call__ = watched(read, "read"), watched(run, "run")
    try:
        yield spans
    finally:
        Recipe.read, FrozenModule.__call__ = read, run


def overlap(spans: Spans) -> float:
    """Give the part of the time of reading in which another thread runs the network."""
    total = met = 0.0
    for thread, start, end in spans["read"]:
        total += end - start
        others = [(max(a, start), min(b, end)) for t, a, b in spans["run"] if t != thread]
        at = start
        for a, b in sorted(others):
            met += max(0.0, b - max(a, at))
            at = max(at, b)
    return met / total


def main() -> None:
    """Print how long each takes, and what reading goes on beside."""
    args = arguments(__doc__, images=100, image_size=224, repeats=3)
    y: npt.NDArray[np.int64] = np.arange(args.images) % N_CLASSES

    def fit(X: Any) -> None:
        forget()
        PretrainedImageClassifier(image_size=args.image_size).fit(X, y)

    def fit_by_pillow(X: Any) -> None:
        with pillow_alone():
            fit(X)

    for sides in SIDES:
        with tempfile.TemporaryDirectory() as folder:
            paths = write(folder, args.images, sides)
            arrays = np.stack([decode_file(path) for path in paths])
            fit(paths)
            print(f"{sides[0]} x {sides[1]} pixels")
            ways = {
                "arrays": lambda X=arrays: fit(X),
                "files": lambda X=paths: fit(X),
                "files, by Pillow alone": lambda X=paths: fit_by_pillow(X),
            }
            report(take_turns(ways, args.repeats), "arrays")
            with traced() as spans:
                fit(paths)
            print(f"  {overlap(spans):.2f} of the time of reading, another thread runs the network")


if __name__ == "__main__":
    main()
