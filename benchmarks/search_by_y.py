"""The search of search.py, 61 fits, with several labels and with numbers beside single labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from common import N_CLASSES, arguments, forget, pictures, report, take_turns, weights_file
from search import EPOCHS, FITS, FOLDS, GRID
from sklearn.model_selection import GridSearchCV, KFold

from sktl import PretrainedImageClassifier, PretrainedImageRegressor


def main() -> None:
    """Run all sides, each from an empty cache, and print how they compare."""
    args = arguments(__doc__, images=1000, size=224, repeats=1)
    X, y = pictures(args.images, args.size)
    labels = np.c_[y % 2 == 0, y > 4, np.isin(y, [0, 6, 8, 9]), np.eye(N_CLASSES)[y]].astype(int)
    numbers = np.c_[y, X.mean((1, 2, 3))]
    kinds: dict[str, tuple[Any, Any]] = {
        "single labels": (PretrainedImageClassifier, y),
        "3 labels": (PretrainedImageClassifier, labels[:, :3]),
        f"{labels.shape[1]} labels": (PretrainedImageClassifier, labels),
        "a number": (PretrainedImageRegressor, numbers[:, 0]),
        "2 numbers": (PretrainedImageRegressor, numbers),
    }
    grids: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "lr and weight_decay": (GRID, {}),
        "weight_decay": ({"weight_decay": np.logspace(-4, 0, FITS // FOLDS)}, {}),
        "lr and weight_decay, by AdamW": (GRID, {"optimizer": "adamw"}),
    }
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    settings = {"weights": weights_file("resnet18"), "image_size": args.size, "random_state": 0}

    def search(kind: str, grid: str) -> None:
        forget()
        estimator, target = kinds[kind]
        values, further = grids[grid]
        made = estimator("resnet18", max_epochs=EPOCHS, **settings, **further)
        GridSearchCV(made, values, cv=folds).fit(X, target)

    PretrainedImageClassifier("resnet18", **settings).fit(X, y)  # the first calls of everything
    for grid in grids:
        sides = {kind: lambda kind=kind, grid=grid: search(kind, grid) for kind in kinds}
        print(f"{FITS + 1} fits over {grid}:")
        report(take_turns(sides, args.repeats), "single labels")


if __name__ == "__main__":
    main()
