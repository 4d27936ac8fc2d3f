"""Search over weight decays and learning rates in 5 folds, and refit: 61 fits, frozen ResNet-18.

A solved head doesn't use the learning rate, so 4 rates x 3 weight decays are 15 solutions, where 12
weight decays are 60. With AdamW's steps both count.
"""

from __future__ import annotations

from typing import Any

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

    def sktl_fit() -> None:
        forget()
        PretrainedImageClassifier("resnet18", weights=weights_file("resnet18")).fit(X, y)

    def sktl_search(grid: dict[str, Any], **settings: Any) -> None:
        forget()
        clf = PretrainedImageClassifier(
            "resnet18", weights=weights_file("resnet18"), max_epochs=EPOCHS, **settings
        )
        GridSearchCV(clf, grid, cv=FOLDS).fit(X, y)

    def skorch_search() -> float:
        """One epoch on some images, scaled to all epochs, images and fits."""
        part = images[: args.skorch_images], torch.from_numpy(y[: args.skorch_images])
        net = skorch_net(max_epochs=1, optimizer=torch.optim.SGD, optimizer__momentum=0.9)
        net.fit(*part)
        epoch = net.history[-1, "dur"] / args.skorch_images
        trained = FITS * (1 - 1 / FOLDS) + 1  # in units of all images
        return float(epoch * args.images * EPOCHS * trained)

    sktl_fit()
    decays = {"weight_decay": np.logspace(-4, 0, FITS // FOLDS)}
    medians = take_turns(
        {
            "one bare pass": lambda: bare_pass(network, images),
            "sktl, one frozen fit": sktl_fit,
            f"sktl, {FITS + 1} fits over lr and weight_decay": lambda: sktl_search(GRID),
            f"sktl, {FITS + 1} fits over weight_decay": lambda: sktl_search(decays),
            f"sktl, {FITS + 1} fits by AdamW": lambda: sktl_search(GRID, optimizer="adamw"),
            "skorch (a part, scaled; predictions left out)": skorch_search,
        },
        args.repeats,
    )
    report(medians, "one bare pass")


if __name__ == "__main__":
    main()
