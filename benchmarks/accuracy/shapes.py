"""Accuracy of the ways in which pictures get the network's shape, on the frozen default.

python shapes.py stamps=/path/to/stamps food=/path/to/food --digits 10 50
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit
from study import digit_files, table

from sktl import PretrainedImageClassifier, load_image_folder

MODES = ("crop", "squash", "pad")
Splits = list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]


def splits_of(y: Any, n_folds: int, n_seeds: int, per_class: int | None) -> Splits:
    """Stratified folds of several seeds, or as many splits with so many images a class."""
    if per_class is not None:
        n = per_class * len(np.unique(y))
        shuffled = StratifiedShuffleSplit(
            n_folds * n_seeds, train_size=n, test_size=500, random_state=0
        )
        return list(shuffled.split(y, y))
    found: Splits = []
    for seed in range(n_seeds):
        found += StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(y, y)
    return found


def scores_of(X: Any, y: Any, splits: Splits, **parameters: Any) -> list[float]:
    """Accuracy on each test part; the folds share the features by the cache."""
    clf = PretrainedImageClassifier(random_state=0, pooling="network", **parameters)
    return [float(clf.fit(X[a], y[a]).score(X[b], y[b])) for a, b in splits]


def summary(scores: list[float], n_seeds: int) -> dict[str, Any]:
    """Give the mean, and its standard error over the folds of one seed.

    Folds of other seeds hold the same pictures, so they don't make the error smaller.
    """
    error = np.std(scores, ddof=1) / (len(scores) / n_seeds) ** 0.5
    return {"mean": float(np.mean(scores)), "error": float(error), "scores": scores}


def proportions(paths: Any) -> str:
    """How far the pictures are from squares."""
    sizes = []
    for path in paths:
        with Image.open(path) as image:
            sizes.append(image.size)
    aspects = np.array([max(size) / min(size) for size in sizes])
    return f"{len(aspects)} pictures, aspect above 1.5: {np.mean(aspects > 1.5):.0%}"


def main() -> None:
    """Print a table of accuracies and one of differences from "crop", and write all scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", help="NAME=FOLDER, one folder of pictures a class")
    parser.add_argument("--digits", nargs="*", type=int, default=[10, 50])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--modes", nargs="*", default=MODES)
    parser.add_argument("--output", default="shapes.json")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    results: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        sets: list[tuple[str, Any, Any, int | None]] = []
        for given in args.sets:
            name, _, path = given.partition("=")
            pictures = load_image_folder(path)
            sets.append((name, np.asarray(pictures.data), pictures.target.astype(str), None))
        if args.digits:
            X, y = digit_files(Path(folder))
            sets += [(f"digits, {n}", X, y, n) for n in args.digits]
        for name, X, y, per_class in sets:
            print(f"{name}: {proportions(X)}", flush=True)
            splits = splits_of(y, args.folds, args.seeds, per_class)
            found = {
                mode: scores_of(X, y, splits, image_size=args.size, resize_mode=mode)
                for mode in args.modes
            }
            results[name] = {mode: summary(found[mode], args.seeds) for mode in found}
            differences[name] = {
                mode: summary(list(np.subtract(found[mode], found[args.modes[0]])), args.seeds)
                for mode in args.modes[1:]
            }
            print(table({name: results[name]}), flush=True)
            Path(args.output).write_text(json.dumps(results, indent=1))
    print(table(results), table(differences), sep="\n\n")


if __name__ == "__main__":
    main()
