"""Predict with a fitted ResNet-18: 1,000 images, and one."""

from __future__ import annotations

import torch
from common import (
    arguments,
    bare_pass,
    normalised,
    pictures,
    plain_network,
    report,
    take_turns,
    weights_file,
)
from frozen_fit import with_new_head
from skorch import NeuralNetClassifier

from sktl import PretrainedImageClassifier

CALLS = 50


def main() -> None:
    """Run all sides and print how they compare."""
    args = arguments(__doc__, images=1000, repeats=3)
    X, y = pictures(args.images)
    images = normalised(X)
    network = plain_network("resnet18").eval()
    clf = PretrainedImageClassifier("resnet18", weights=weights_file("resnet18"), cache=None)
    clf.fit(X[:100], y[:100])
    trained = tuned(X, y)
    net = NeuralNetClassifier(with_new_head(), batch_size=32).initialize()

    def latency(predict: object, what: object) -> float:
        medians = take_turns({"": lambda: predict(what)}, CALLS)  # type: ignore[operator]
        return medians[""]

    def one_bare(image: torch.Tensor) -> None:
        bare_pass(network, image)

    clf.predict(X[:1])
    many = take_turns(
        {
            "skorch, many": lambda: net.predict(images),
            "sktl, many": lambda: clf.predict(X),
            "sktl, last stage trained, many": lambda: trained.predict(X),
        },
        args.repeats,
    )
    report(many, "skorch, many")
    one = take_turns(
        {
            "bare network, one": lambda: latency(one_bare, images[:1]),
            "sktl, one": lambda: latency(clf.predict, X[:1]),
        },
        args.repeats,
    )
    report(one, "bare network, one")


def tuned(X: object, y: object) -> PretrainedImageClassifier:
    """Fit a classifier whose last stage trains."""
    weights = weights_file("resnet18")
    clf = PretrainedImageClassifier(
        "resnet18", weights=weights, freeze=-1, max_epochs=1, cache=None
    )
    return clf.fit(X[:50], y[:50])  # type: ignore[index]


if __name__ == "__main__":
    main()
