"""Search freeze "all", -1, -2 x 2 learning rates in 3 folds, ResNet-18: sktl and skorch."""

from __future__ import annotations

import torch
from common import arguments, forget, normalised, pictures, report, take_turns, weights_file
from frozen_fit import skorch_net
from sklearn.model_selection import GridSearchCV

from sktl import PretrainedImageClassifier

FREEZE, LR, FOLDS = ["all", -1, -2], [1e-3, 3e-3], 3
TRAINED = {"all": (), -1: ("layer4",), -2: ("layer3", "layer4")}


def main() -> None:
    """Run all sides and print how they compare."""
    args = arguments(__doc__, images=1000, epochs=10, repeats=1, skorch_images=192)
    X, y = pictures(args.images)
    part = normalised(X[: args.skorch_images]), torch.from_numpy(y[: args.skorch_images])

    def sktl_search() -> None:
        forget()
        clf = PretrainedImageClassifier(
            "resnet18", weights=weights_file("resnet18"), max_epochs=args.epochs
        )
        search = GridSearchCV(clf, {"freeze": FREEZE, "lr": LR}, cv=FOLDS, refit=False)
        search.fit(X, y)

    def skorch_search() -> float:
        """One epoch and one prediction for each freeze depth on some images, scaled to all."""
        total = 0.0
        for freeze in FREEZE:
            trained = ("fc", *TRAINED[freeze])
            net = skorch_net(trained, max_epochs=1, optimizer=torch.optim.AdamW)
            net.fit(*part)
            epoch = net.history[-1, "dur"] / len(part[0])
            predicted = take_turns({"": lambda net=net: net.predict(part[0])}, 1)[""]
            per_fold = epoch * args.epochs * (1 - 1 / FOLDS) + predicted / len(part[0]) / FOLDS
            total += per_fold * args.images * FOLDS * len(LR)
        return total

    medians = take_turns(
        {"sktl": sktl_search, "skorch with Freezer (a part, scaled)": skorch_search}, args.repeats
    )
    report(medians, "sktl")


if __name__ == "__main__":
    main()
