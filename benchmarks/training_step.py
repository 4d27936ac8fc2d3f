"""An epoch of fine-tuning a whole network: sktl beside a hand-written loop that does the same."""

from __future__ import annotations

import argparse
import time

import torch
from common import (
    N_CLASSES,
    arguments,
    normalised,
    pictures,
    plain_network,
    report,
    take_turns,
    weights_file,
)
from torch import nn

from sktl import PretrainedImageClassifier


def compare(name: str, args: argparse.Namespace) -> None:
    """Run both sides in turns and print how they compare."""
    X, y = pictures(args.images)
    clf = PretrainedImageClassifier(
        name,
        weights=weights_file(name),
        freeze="none",
        unfreeze="at_once",
        max_epochs=2,
        batch_size=args.batch_size,
    )

    def sktl_epoch() -> float:
        return float(clf.fit(X, y).history_[-1]["seconds"])

    images, labels = normalised(X), torch.from_numpy(y)
    network = plain_network(name)
    *_, (last, layer) = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear))
    network.set_submodule(last, nn.Linear(layer.in_features, N_CLASSES))
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4, fused=True)

    def hand_written_epoch() -> float:
        start = time.perf_counter()
        network.train()
        for layer in network.modules():
            layer.training = layer.training and not isinstance(layer, nn.BatchNorm2d)
        for batch in torch.randperm(args.images).split(args.batch_size):
            with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
                logits = network(images[batch].contiguous(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(logits.float(), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return time.perf_counter() - start

    low_precision = clf.fit(X[:64], y[:64]).precision_ == "bfloat16"
    medians = take_turns({"sktl": sktl_epoch, "hand-written": hand_written_epoch}, args.repeats)
    print(name)
    report(medians, "hand-written")


def main() -> None:
    """Compare on two networks, of which the second has depthwise convolutions."""
    args = arguments(__doc__, images=192, batch_size=32, repeats=3)
    for name in ("resnet18", "mobilenet_v2"):
        compare(name, args)


if __name__ == "__main__":
    main()
