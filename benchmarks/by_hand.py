"""A training loop as people write it: all weights of a pretrained network, under a new head."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sktl.backbones import load_backbone

BATCH = 32
MEAN, STD = 127 / 255, 128 / 255  # of the embedded network's training
WEIGHT_DECAY = 1e-2  # torch's default for AdamW
HEAD_FASTER = 10  # than the pretrained weights, as it begins from nothing


def as_tensor(X: Any, size: int) -> Tensor:
    """Make normalised float32 images (n, 3, size, size) of grey arrays, or uint8 colour ones."""
    images = torch.as_tensor(np.asarray(X), dtype=torch.float32)
    if images.ndim == 3:
        images = images[..., None].expand(*images.shape, 3) * (255 / images.max())
    images = images.permute(0, 3, 1, 2)
    images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return (images / 255 - MEAN) / STD


def fine_tuned(
    X: Any,
    y: npt.NDArray[Any],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    size: int,
    epochs: int,
    lr: float,
) -> Callable[[Any], npt.NDArray[np.float32]]:
    """Fine-tune the embedded network: AdamW, warm-up and cosine, a head that learns faster.

    Batch norm keeps its statistics, without which a few hundred small pictures ruin the network.

    Parameters
    ----------
    X : array of images
    y : array of shape (n, n_outputs)
    loss : callable
        Of outputs and y.
    size, epochs : int
    lr : float
        Of the pretrained weights, at its highest.

    Returns
    -------
    callable
        From images to outputs (n, n_outputs).
    """
    torch.manual_seed(0)
    splitter = load_backbone("efficientnet_lite0").splitter
    network = copy.deepcopy(splitter.network).requires_grad_(True)
    parent, _, name = splitter.classifiers[0].rpartition(".")
    before: Any = network.get_submodule(splitter.classifiers[0])
    head = nn.Linear(int(before.in_features), y.shape[1])
    setattr(network.get_submodule(parent), name, head)
    of_head = set(head.parameters())
    groups = [
        {"params": [p for p in network.parameters() if p not in of_head], "lr": lr},
        {"params": list(of_head), "lr": HEAD_FASTER * lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    images, wanted = as_tensor(X, size), torch.as_tensor(y, dtype=torch.float32)
    n_steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], max(1, n_steps), pct_start=0.1
    )
    for _ in range(epochs):
        network.eval()
        order = torch.randperm(len(images))
        for batch in order.split(BATCH):
            if len(batch) < BATCH:
                continue
            optimizer.zero_grad()
            loss(network(images[batch]), wanted[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()

    def predict(X: Any) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            made: npt.NDArray[np.float32] = network(as_tensor(X, size)).numpy()
        return made

    return predict
