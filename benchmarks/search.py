"""Search 4 learning rates x 3 weight decays in 5 folds, and refit: 61 fits, frozen ResNet-18."""

from __future__ import annotations

import numpy as np
import torch
from common import (
    arguments,
    bare_pass,
    forget,
    normalised,
    pictures,
    plain_network,
    report,
    take_turns,
    weights_file,
)
from frozen_fit import skorch_net
from sklearn.model_selection import GridSearchCV

from sktl import PretrainedImageClassifier

EPOCHS, FOLDS = 10, 5
GRID = {"lr": [1e-3, 3e-3, 1e-2, 3e-2], "weight_decay": [0.0, 1e-4, 1e-2]}
FITS = len(GRID["lr"]) * len(GRID["weight_decay"]) * FOLDS


def main() -> None:
    """Run all sides and print how they compare."""
    args = arguments(__doc__, images=1000, repeats=3, skorch_images=100)
    X, y = pictures(args.images)
    images = normalised(X)
    network = plain_network("resnet18").eval()

    def sktl_search() -> None:
        forget()
        clf = PretrainedImageClassifier(
            "resnet18", weights=weights_file("resnet18"), max_epochs=EPOCHS
        )
        GridSearchCV(clf, GRID, cv=FOLDS).fit(X, y)

    def sktl_search_of_optima() -> None:
        forget()
        clf = PretrainedImageClassifier("resnet18", weights=weights_file("resnet18"))
        grid = {"weight_decay": np.logspace(-4, 0, FITS // FOLDS)}
        GridSearchCV(clf, grid, cv=FOLDS).fit(X, y)

    def skorch_search() -> float:
        """One epoch on some images, scaled to all epochs, images and fits."""
        part = images[: args.skorch_images], torch.from_numpy(y[: args.skorch_images])
        net = skorch_net(max_epochs=1, optimizer=torch.optim.SGD, optimizer__momentum=0.9)
        net.fit(*part)
        epoch = net.history[-1, "dur"] / args.skorch_images
        trained = FITS * (1 - 1 / FOLDS) + 1  # in units of all images
        return float(epoch * args.images * EPOCHS * trained)

    sktl_search()
    medians = take_turns(
        {
            "one bare pass": lambda: bare_pass(network, images),
            f"sktl, {FITS + 1} fits by AdamW": sktl_search,
            f"sktl, {FITS + 1} fits to the optimum": sktl_search_of_optima,
            "skorch (a part, scaled; predictions left out)": skorch_search,
        },
        args.repeats,
    )
    report(medians, "one bare pass")


if __name__ == "__main__":
    main()
