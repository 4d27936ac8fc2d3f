"""Compare what the head reads: what the network's classifier reads, or several stages.

python stages.py stamps=stamps food=food clipart=clipart emoji=google --digits 5 10 50

Accuracy and log loss of the frozen classifier on the folds of study.py, with mean and standard
error of each fold's gain on pooling="network".
"""

from __future__ import annotations

import argparse
import tempfile
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

SIDES = [-4, -3, -2, None]


def methods(backbone: str, size: int | None) -> dict[str, Any]:
    """Estimators by the names that the table gives them."""
    settings: dict[str, Any] = {"backbone": backbone, "image_size": size}

    def logistic(stage: Any) -> Any:
        grid = {"C": np.logspace(-4, 2, 7)}
        search = GridSearchCV(LogisticRegression(max_iter=2000), grid, cv=3)
        return make_pipeline(PretrainedImageFeatures(stage=stage, **settings), search)

    return {
        "network": PretrainedImageClassifier(pooling="network", **settings),
        "stages": PretrainedImageClassifier(pooling="stages", **settings),
        "stages, penalty by choice": PretrainedImageClassifier(
            pooling="stages", weight_decay="auto", **settings
        ),
        "LogisticRegression": logistic(None),
        "LogisticRegression, stages": logistic(SIDES),
    }


def run(
    name: str, X: Paths, y: npt.NDArray[Any], folds: list[Fold], estimators: dict[str, Any]
) -> dict[str, npt.NDArray[np.float64]]:
    """Print accuracy, log loss and gains of each method; give them for each fold."""
    results: dict[str, npt.NDArray[np.float64]] = {}
    for method, estimator in estimators.items():
        scores = []
        for train, test in folds:
            proba = estimator.fit(X[train], y[train]).predict_proba(X[test])
            right = estimator.classes_[proba.argmax(1)] == y[test]
            scores.append((right.mean(), log_loss(y[test], proba, labels=estimator.classes_)))
        results[method] = np.array(scores)
        gains = results[method] - results["network"]
        errors = gains.std(0, ddof=1) / len(folds) ** 0.5
        accuracy, loss = results[method].mean(0)
        print(
            f"{name:<12}{method:<28}accuracy {accuracy:.3f} ({gains[:, 0].mean():+.3f} +- "
            f"{errors[0]:.3f})  log loss {loss:.3f} ({gains[:, 1].mean():+.3f} +- {errors[1]:.3f})",
            flush=True,
        )
    return results


def main() -> None:
    """Print a line for each set and method, and means over the sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", help="NAME=FOLDER, one folder of pictures a class")
    parser.add_argument("--digits", nargs="*", type=int, default=[5, 10, 50])
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", help="parts of the names of methods beside network")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    estimators = {
        name: made
        for name, made in methods(args.backbone, args.size).items()
        if name == "network" or not args.methods or any(part in name for part in args.methods)
    }
    found = []
    for given in args.sets:
        name, _, path = given.partition("=")
        pictures = load_image_folder(path)
        y = pictures.target.astype(str)
        X = np.asarray(pictures.data)
        found.append(run(name, X, y, folds_of(y, args.folds, None), estimators))
    with tempfile.TemporaryDirectory() as folder:
        X, y = digit_files(Path(folder))
        for n in args.digits:
            found.append(run(f"digits, {n}", X, y, folds_of(y, args.folds, n), estimators))
    for method in estimators:
        accuracy, loss = np.mean([results[method].mean(0) for results in found], axis=0)
        print(f"{'mean':<12}{method:<28}accuracy {accuracy:.3f}  log loss {loss:.3f}")


if __name__ == "__main__":
    main()
