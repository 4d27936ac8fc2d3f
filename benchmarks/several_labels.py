"""Several labels a picture: sktl, and scikit-learn's OneVsRestClassifier on the same features.

With ``--stages``, all of the network trains: sktl beside a loop written by hand, at each of several
rates, of as many epochs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from by_hand import fine_tuned
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.multiclass import OneVsRestClassifier
from torch.nn import functional as F

from sktl import PretrainedImageClassifier, load_image_folder

DECAY = 1e-3
N_FOLDS = 5
RATES = 3e-4, 1e-3


def digits() -> tuple[Any, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """scikit-learn's digits: even, above four, with a loop; each a group of its own."""
    X, y = load_digits(return_X_y=True)
    Y = np.stack([y % 2 == 0, y > 4, np.isin(y, [0, 6, 8, 9])], axis=1)
    return X, Y.astype(np.int64), np.arange(len(X))


def stamps(folder: Path) -> tuple[Any, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pictures of a folder, upright and turned by 90 degrees: a label a class, and one of turns."""
    found = load_image_folder(folder)
    upright = [Image.open(path).convert("RGB") for path in found.data]
    X = [*upright, *(picture.transpose(Image.Transpose.ROTATE_90) for picture in upright)]
    n = len(upright)
    turned = np.repeat([0, 1], n)[:, None]
    Y = np.hstack(
        [np.tile(np.eye(len(found.target_names), dtype=int)[found.target], (2, 1)), turned]
    )
    return X, Y, np.tile(np.arange(n), 2)


def timed(call: Callable[[], Any]) -> float:
    """Give the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(name: str, X: Any, Y: npt.NDArray[np.int64], groups: Any, size: int) -> None:
    """Cross-validate both on the same features, and print what they come to."""
    clf = PretrainedImageClassifier(image_size=size, weight_decay=DECAY, random_state=0)
    rows: list[Any] = list(X)
    features = clf.fit(X, Y).transform(X).astype(np.float64)
    features = np.sign(features) * np.sqrt(np.abs(features))  # what its head reads
    single = Y @ (1 << np.arange(Y.shape[1]))  # combinations of labels, as classes
    results = []
    for train, test in GroupKFold(N_FOLDS).split(features, groups=groups):
        some, others = ([rows[i] for i in part] for part in (train, test))
        if isinstance(X, np.ndarray):
            some, others = X[train], X[test]
        C = 1 / (len(train) * DECAY)
        peer = OneVsRestClassifier(LogisticRegression(C=C, max_iter=1000))
        seconds = [
            timed(lambda some=some, train=train: clf.fit(some, Y[train])),
            timed(lambda peer=peer, train=train: peer.fit(features[train], Y[train])),
        ]
        predicted = clf.predict(others), peer.predict(features[test])
        seconds.append(timed(lambda some=some, train=train: clf.fit(some, single[train])))
        results.append(
            [
                *((p == Y[test]).mean() for p in predicted),
                *((p == Y[test]).all(axis=1).mean() for p in predicted),
                *seconds,
            ]
        )
    mean, error = np.mean(results, 0), np.std(results, 0, ddof=1) / np.sqrt(N_FOLDS)
    print(f"{name}: {len(Y)} pictures, {Y.shape[1]} labels")
    for at, side in enumerate(("sktl", "OneVsRestClassifier")):
        print(
            f"  {side}: {mean[at]:.4f} +- {error[at]:.4f} of the labels right, "
            f"{mean[2 + at]:.4f} +- {error[2 + at]:.4f} of the pictures"
        )
    times = np.array(results)[:, 4:]
    peer_ratio = np.median(times[:, 1] / times[:, 0])
    print(
        f"  fit: {np.median(times[:, 0]):.3f} s; OneVsRestClassifier takes {peer_ratio:.1f} times "
        f"that, a fit to the {len(np.unique(single))} combinations as classes "
        f"{np.median(times[:, 2] / times[:, 0]):.1f} times"
    )


def compare_stages(
    name: str, X: Any, Y: npt.NDArray[np.int64], groups: Any, args: argparse.Namespace
) -> None:
    """Cross-validate networks that are trained, and a frozen one."""
    if not isinstance(X, np.ndarray):
        X = np.stack([np.asarray(picture.resize((args.size, args.size))) for picture in X])
    settings: dict[str, Any] = {"image_size": args.size, "random_state": 0}
    sides = {
        "sktl, frozen": PretrainedImageClassifier(**settings),
        "sktl": PretrainedImageClassifier(**settings, freeze="none", max_epochs=args.epochs),
    }
    right: dict[str, list[float]] = {}
    for some, others in GroupKFold(args.folds).split(Y, groups=groups):
        for side, clf in sides.items():
            found = clf.fit(X[some], Y[some]).predict(X[others])
            right.setdefault(side, []).append(float((found == Y[others]).mean()))
        for rate in RATES:
            predict = fine_tuned(
                X[some],
                Y[some],
                F.binary_cross_entropy_with_logits,
                size=args.size,
                epochs=args.epochs,
                lr=rate,
            )
            found = predict(X[others]) > 0
            side = f"by hand, {rate:.0e}"
            right.setdefault(side, []).append(float((found == Y[others]).mean()))
    print(f"{name}: {len(Y)} pictures, {Y.shape[1]} labels, {args.epochs} epochs of all stages")
    for side, shares in right.items():
        error = np.std(shares, ddof=1) / len(shares) ** 0.5
        print(f"  {side:<14} {np.mean(shares):.4f} +- {error:.4f} of the labels right")


def main() -> None:
    """Run both data sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="pictures in folders by class")
    parser.add_argument("--size", type=int, default=64, help="of pictures, for the network")
    parser.add_argument("--rows", type=int, help="as many digits")
    parser.add_argument("--stages", action="store_true", help="train all of the network")
    parser.add_argument("--epochs", type=int, default=10, help="with --stages")
    parser.add_argument("--folds", type=int, default=2, help="with --stages")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    X, Y, groups = digits()
    some = slice(args.rows)
    if args.stages:
        compare_stages("digits", X[some].reshape(-1, 8, 8), Y[some], groups[some], args)
        return
    compare("digits", X[some], Y[some], groups[some], args.size)
    if args.folder is not None:
        compare(args.folder.name, *stamps(args.folder), args.size)


if __name__ == "__main__":
    main()
