"""Weights over the course of training: their moving average, and copies to go back to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The exponential moving average of a module's weights and statistics.

    Parameters
    ----------
    module : torch.nn.Module
    decay : float
        What the average keeps of itself in a step, once there have been many.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._n = 0
        tensors = [*module.parameters(), *module.buffers()]
        self._current = [t.detach() for t in tensors if t.is_floating_point()]
        self._average = [t.clone() for t in self._current]

    @torch.no_grad()
    def update(self) -> None:
        """Count in the weights as they are now."""
        self._n += 1
        decay = min(self.decay, (1 + self._n) / (10 + self._n))  # else the start would stay long
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(self._average, self._current, self._n)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the average in the module for a while."""
        kept = [t.clone() for t in self._current]
        self.keep()
        try:
            yield
        finally:
            _copy(kept, self._current)

    def keep(self) -> None:
        """Put the average into the module."""
        _copy(self._average, self._current)


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)


class Snapshot:
    """A copy of a module's weights and statistics, to go back to."""

    def __init__(self, module: nn.Module) -> None:
        self._tensors = [*module.parameters(), *module.buffers()]
        self._values = [t.detach().clone() for t in self._tensors]

    def restore(self) -> None:
        """Go back."""
        _copy(self._values, [t.detach() for t in self._tensors])
