"""Compare weight_decay="auto" with the default and with a tuned LogisticRegression.

python penalty.py stamps=stamps food=food clipart=clipart emoji=google --digits 5 10 50

Accuracy and log loss of the frozen default on the folds of study.py, and how long the fits take
with all features in the cache.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from study import Fold, Paths, digit_files, folds_of

from sktl import PretrainedImageClassifier, PretrainedImageFeatures, load_image_folder


def methods(size: int) -> dict[str, Any]:
    """Estimators by the names that the table gives them."""
    settings: dict[str, Any] = {"image_size": size, "random_state": 0, "pooling": "network"}
    logistic = GridSearchCV(
        LogisticRegression(max_iter=2000),
        {"C": np.logspace(-4, 2, 7)},
        cv=3,
        scoring="neg_log_loss",
    )
    return {
        "default": PretrainedImageClassifier(**settings),
        'weight_decay="auto"': PretrainedImageClassifier(weight_decay="auto", **settings),
        "LogisticRegression, C by cross-validation": make_pipeline(
            PretrainedImageFeatures(image_size=size), logistic
        ),
    }


def run(name: str, X: Paths, y: npt.NDArray[Any], folds: list[Fold], size: int) -> None:
    """Print mean and standard error of each method, and of its gain on the default."""
    PretrainedImageFeatures(image_size=size).fit_transform(X)  # all features are in the cache
    usual: npt.NDArray[Any] | None = None
    for method, estimator in methods(size).items():
        start = time.perf_counter()
        scores = []
        for train, test in folds:
            proba = estimator.fit(X[train], y[train]).predict_proba(X[test])
            right = estimator.classes_[proba.argmax(1)] == y[test]
            loss = log_loss(y[test], proba, labels=estimator.classes_)
            scores.append((float(right.mean()), loss))
        seconds = time.perf_counter() - start
        found = np.array(scores)
        usual = found if usual is None else usual
        means, gains = found.mean(0), (found - usual).mean(0)
        error = (found - usual).std(0, ddof=1) / len(folds) ** 0.5
        print(
            f"{name:<12}{method:<44}accuracy {means[0]:.3f} ({gains[0]:+.3f} +- {error[0]:.3f})  "
            f"log loss {means[1]:.3f} ({gains[1]:+.3f} +- {error[1]:.3f})  {seconds:.1f} s",
            flush=True,
        )


def main() -> None:
    """Print a line for each set and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", help="NAME=FOLDER, one folder of pictures a class")
    parser.add_argument("--digits", nargs="*", type=int, default=[5, 10, 50])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--folds", type=int, default=5)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for given in args.sets:
        name, _, path = given.partition("=")
        pictures = load_image_folder(path)
        y = pictures.target.astype(str)
        X = np.asarray(pictures.data)
        run(name, X, y, folds_of(y, args.folds, None), args.size)
    with tempfile.TemporaryDirectory() as folder:
        X, y = digit_files(Path(folder))
        for n in args.digits:
            run(f"digits, {n}", X, y, folds_of(y, args.folds, n), args.size)


if __name__ == "__main__":
    main()
