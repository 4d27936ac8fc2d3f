"""Numbers of pictures: sktl's regressor, and scikit-learn's RidgeCV on the same features."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold

from sktl import PretrainedImageRegressor

ALPHAS = np.logspace(-4, 6, 21)


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
    features = np.sqrt(reg.fit(X, y).transform(X).astype(np.float64))  # what its head reads
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


def main() -> None:
    """Run all targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64, help="of pictures, for the network")
    parser.add_argument("--rows", type=int, help="as many digits")
    parser.add_argument("--folds", type=int, default=5)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    digits = load_digits()
    X = digits.images[: args.rows]
    for name, y in targets(digits.target[: args.rows], X).items():
        compare(name, X, y, args.size, args.folds)


if __name__ == "__main__":
    main()
