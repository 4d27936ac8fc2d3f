"""Numbers of pictures: sktl's regressor, and scikit-learn's RidgeCV on the same features.

With ``--stages``, all of the network trains: sktl beside a loop written by hand, at each of several
rates, of as many epochs.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from by_hand import fine_tuned
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from torch.nn import functional as F

from sktl import PretrainedImageRegressor

ALPHAS = np.logspace(-4, 6, 21)
RATES = 3e-4, 1e-3


def targets(digits: npt.NDArray[np.int64], X: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """Make numbers of digits: what is written, how high its middle lies, and both together."""
    ink = X.sum(2)
    height = (ink * np.arange(ink.shape[1])).sum(1) / ink.sum(1)
    return {
        "the digit": digits.astype(float),
        "height of the middle": height,
        "both": np.c_[digits, height],
    }


def compare(name: str, X: npt.NDArray[Any], y: npt.NDArray[Any], size: int, n_folds: int) -> None:
    """Cross-validate both on the same features, and print what they come to."""
    reg = PretrainedImageRegressor(image_size=size, random_state=0)
    features = reg.fit(X, y).transform(X).astype(np.float64)
    features = np.sign(features) * np.sqrt(np.abs(features))  # what its head reads
    scores, ratios = [], []
    for train, test in KFold(n_folds, shuffle=True, random_state=0).split(X):
        start = time.perf_counter()
        reg.fit(X[train], y[train])
        middle = time.perf_counter()
        peer = RidgeCV(ALPHAS).fit(features[train], y[train])
        ratios.append((time.perf_counter() - middle) / (middle - start))
        predicted = reg.predict(X[test]), peer.predict(features[test])
        scores.append([r2_score(y[test], p) for p in predicted])
    mean, error = np.mean(scores, 0), np.std(scores, 0, ddof=1) / n_folds**0.5
    print(f"{name}: {len(X)} pictures")
    for at, side in enumerate(("sktl", "RidgeCV")):
        print(f"  {side:<8} R2 {mean[at]:.4f} +- {error[at]:.4f}")
    print(f"  RidgeCV takes {np.median(ratios):.2f} times as long as sktl's fit")


def compare_stages(
    name: str, X: npt.NDArray[Any], y: npt.NDArray[Any], size: int, n_folds: int, epochs: int
) -> None:
    """Cross-validate networks that are trained, and a frozen one."""
    settings: dict[str, Any] = {"image_size": size, "random_state": 0}
    trained = settings | {"freeze": "none", "max_epochs": epochs}
    rows: dict[str, Any] = {
        "sktl, frozen": PretrainedImageRegressor(**settings),
        "sktl": PretrainedImageRegressor(**trained),
    }
    scores: dict[str, list[float]] = {}
    for some, others in KFold(n_folds, shuffle=True, random_state=0).split(X):
        for side, reg in rows.items():
            found = reg.fit(X[some], y[some]).score(X[others], y[others])
            scores.setdefault(side, []).append(found)
        mean, scale = y[some].mean(0), y[some].std(0)
        wanted = ((y[some] - mean) / scale).reshape(len(some), -1)
        for rate in RATES:
            predict = fine_tuned(X[some], wanted, F.mse_loss, size=size, epochs=epochs, lr=rate)
            predicted = predict(X[others]).reshape(y[others].shape) * scale + mean
            side = f"by hand, {rate:.0e}"
            scores.setdefault(side, []).append(r2_score(y[others], predicted))
    print(f"{name}: {len(X)} pictures, {epochs} epochs of all stages")
    for side, found in scores.items():
        error = np.std(found, ddof=1) / n_folds**0.5
        print(f"  {side:<14} R2 {np.mean(found):.4f} +- {error:.4f}")


def main() -> None:
    """Run all targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64, help="of pictures, for the network")
    parser.add_argument("--rows", type=int, help="as many digits")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--stages", action="store_true", help="train all of the network")
    parser.add_argument("--epochs", type=int, default=10, help="with --stages")
    parser.add_argument("--targets", nargs="*", help="their names; all without")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    digits = load_digits()
    X = digits.images[: args.rows]
    for name, y in targets(digits.target[: args.rows], X).items():
        if args.targets and name not in args.targets:
            continue
        if args.stages:
            compare_stages(name, X, y, args.size, args.folds, args.epochs)
        else:
            compare(name, X, y, args.size, args.folds)


if __name__ == "__main__":
    main()
