"""What trains, and by which loss: the stages after the freeze depth, and the head."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..tensors import lay_out_by_places
from .targets import Target

_MIN_MOMENTUM = 0.1  # torch's default for batch norm

_DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class SuffixAndHead(nn.Module):
    """What trains: the stages after the freeze depth, and the head.

    Parameters
    ----------
    suffix, head : torch.nn.Module
    precision : {"float32", "bfloat16"}
        Of the suffix's arithmetic; its weights are float32.
    """

    def __init__(self, suffix: nn.Module, head: nn.Module, precision: str = "float32") -> None:
        super().__init__()
        lay_out_by_places(suffix)
        self.suffix = suffix
        self.head = head
        self.low_precision = precision == "bfloat16"

    def forward(self, features: Tensor) -> Tensor:
        """From features at the freeze depth to logits."""
        logits: Tensor = self.head(self._pooled(features))
        return logits

    def _pooled(self, features: Tensor) -> Tensor:
        weight = next(self.head.parameters(), None)
        if features.dtype is torch.bfloat16 and not self.low_precision:
            features = features.float()
        if features.ndim == 4:
            features = features.contiguous(memory_format=torch.channels_last)
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.low_precision):
            pooled: Tensor = self.suffix(features)
        return pooled.to(torch.float32 if weight is None else weight.dtype)


class RowLoss(nn.Module):
    """One loss for each row, so that rows can be weighted."""

    def __init__(self, target: Target, criterion: Any, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.target = target
        # skorch moves it to the net's device, and the user's own stays where it is.
        self.criterion = copy.deepcopy(criterion)
        self.label_smoothing = label_smoothing

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each row."""
        if isinstance(self.criterion, str):
            return self.target.losses(outputs, y, self.criterion, self.label_smoothing)
        losses: Tensor = self.criterion(outputs, y)
        if isinstance(losses, Tensor) and losses.ndim == 2 and losses.shape == y.shape:
            losses = losses.sum(1)  # one loss for each of several outputs
        if not isinstance(losses, Tensor) or losses.shape != (len(y),):
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"criterion must give one loss for each row, of shape {(len(y),)}, "
                f'got {got}. A torch loss does with reduction="none".'
            )
        return losses


def learned_norms(suffix: nn.Module) -> frozenset[nn.Module]:
    """Find batch norm that has learned statistics, and quicken that which has not.

    Some networks are built with a momentum for months of ImageNet; from random weights,
    evaluation would normalise by statistics of the start what training normalised by others.
    """
    learned: set[nn.Module] = set()
    for layer in suffix.modules():
        if not isinstance(layer, BATCH_NORMS):
            continue
        mean, variance = layer.running_mean, layer.running_var
        if mean is None or variance is None:
            continue
        if bool(mean.any()) or bool((variance != 1).any()):
            learned.add(layer)
        elif layer.momentum is not None:
            layer.momentum = max(layer.momentum, _MIN_MOMENTUM)
    return frozenset(learned)


def dropout_of(suffix: nn.Module) -> frozenset[nn.Module]:
    """Find the dropout that a network brings from a training of millions of images.

    The few steps of fine-tuning learn less with it.
    """
    return frozenset(layer for layer in suffix.modules() if isinstance(layer, _DROPOUTS))
