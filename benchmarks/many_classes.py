"""Fit a head to many classes: sktl, and scikit-learn's LogisticRegression on the features."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import arguments
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktl import PretrainedImageClassifier

SIZE = 64
SHAKE = 16  # pixels by which pictures of a class are shifted, at most


def pictures_of_places(n: int, n_classes: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Crops of two photographs; a class is a place in one, shaken, scaled and under a light.

    Returns
    -------
    X : uint8 array of shape (n, 64, 64, 3)
    y : array of shape (n,)
    """
    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    height, width = photographs[0].shape[:2]
    reach = 2 * SIZE + SHAKE
    places = [
        (rng.integers(2), rng.integers(height - reach), rng.integers(width - reach))
        for _ in range(n_classes)
    ]
    X, y = np.empty((n, SIZE, SIZE, 3), np.uint8), np.arange(n) % n_classes
    for i in range(n):
        photograph, top, left = places[y[i]]
        step = rng.integers(1, 3)  # every pixel, or every second
        top, left = top + rng.integers(SHAKE), left + rng.integers(SHAKE)
        rows = slice(top, top + step * SIZE, step), slice(left, left + step * SIZE, step)
        X[i] = photographs[photograph][rows] * rng.uniform(0.4, 1.0, 3)
    return X, y


def timed(call: Callable[[], Any]) -> float:
    """Give the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Run both sides on the same features and print how they compare."""
    args = arguments(__doc__, rows=2160, classes=100, test_rows=1000, max_iter=200)
    X, y = pictures_of_places(args.rows + args.test_rows, args.classes)
    train, test = slice(args.rows), slice(args.rows, None)
    clf = PretrainedImageClassifier(image_size=SIZE)
    features = clf.fit(X, y % 2).transform(X)  # all features are in the cache from here on
    peer = make_pipeline(StandardScaler(), LogisticRegression(max_iter=args.max_iter))

    fit = timed(lambda: clf.fit(X[train], y[train]))
    peer_fit = timed(lambda: peer.fit(features[train], y[train]))
    clf.predict(X[test][:8])
    predict = timed(lambda: clf.predict(X[test]))
    peer_predict = timed(lambda: peer.predict(features[test]))
    accuracy, peer_accuracy = clf.score(X[test], y[test]), peer.score(features[test], y[test])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clf.sktl")
        clf.save(path, include_backbone=False)
        size = path.stat().st_size / 2**20

    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{args.rows:,} rows, {args.classes:,} classes, {features.shape[1]:,} features")
    print(
        f"  sktl               fit {fit:7.2f} s   accuracy {accuracy:.3f}   predict {predict:.3f} s"
    )
    print(
        f"  LogisticRegression fit {peer_fit:7.2f} s   accuracy {peer_accuracy:.3f}   "
        f"predict {peer_predict:.3f} s"
    )
    print(f"  sktl's fit took {fit / peer_fit:.3f} of LogisticRegression's; file {size:.1f} MB")


if __name__ == "__main__":
    main()
