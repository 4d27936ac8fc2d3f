"""Fit a head on a frozen ResNet-18, ten epochs: sktl, skorch, and one bare forward pass."""

from __future__ import annotations

import torch
from common import (
    N_CLASSES,
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
from skorch import NeuralNetClassifier
from skorch.callbacks import Freezer

from sktl import PretrainedImageClassifier

EPOCHS = 10


def with_new_head() -> torch.nn.Module:
    """As in skorch's tutorial on transfer learning."""
    network = plain_network("resnet18")
    network.fc = torch.nn.Linear(512, N_CLASSES)
    return network


def skorch_net(trained: tuple[str, ...] = ("fc",), **settings: object) -> NeuralNetClassifier:
    """Make a skorch net in which only these parts of the network train."""
    return NeuralNetClassifier(
        with_new_head(),
        criterion=torch.nn.CrossEntropyLoss,
        lr=1e-3,
        batch_size=32,
        train_split=None,
        callbacks=[Freezer(lambda name: not name.startswith(trained))],
        verbose=0,
        **settings,
    )


def main() -> None:
    """Run all sides and print how they compare."""
    args = arguments(__doc__, images=1000, repeats=3, skorch_epochs=1)
    X, y = pictures(args.images)
    images = normalised(X)
    network = plain_network("resnet18").eval()

    def sktl_fit(**settings: object) -> None:
        forget()
        PretrainedImageClassifier("resnet18", weights=weights_file("resnet18"), **settings).fit(
            X, y
        )

    def skorch_fit() -> float:
        net = skorch_net(
            max_epochs=args.skorch_epochs,
            optimizer=torch.optim.SGD,
            optimizer__momentum=0.9,
            iterator_train__shuffle=True,
        )
        net.fit(images, torch.from_numpy(y))
        return float(sum(net.history[:, "dur"])) * EPOCHS / args.skorch_epochs

    sktl_fit()  # once for the first calls of everything
    medians = take_turns(
        {
            "one bare pass": lambda: bare_pass(network, images),
            "sktl, AdamW, 10 epochs": lambda: sktl_fit(optimizer="adamw", max_epochs=EPOCHS),
            "sktl, the default, to the optimum": sktl_fit,
            f"skorch, {EPOCHS} epochs ({args.skorch_epochs} timed)": skorch_fit,
        },
        args.repeats,
    )
    report(medians, "one bare pass")


if __name__ == "__main__":
    main()
