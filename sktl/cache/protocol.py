"""What a place to keep features can do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from .leases import Claims

SHARE_KEPT = 0.9  # of a full cache, when the oldest rows make room


class FeatureCache(Protocol):
    """Where rows of features are kept."""

    def get(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """Give the row of each key, None where there is none."""

    def put(self, keys: Sequence[bytes], rows: Tensor) -> None:
        """Keep rows; the first axis runs over the keys."""

    def claims(self) -> AbstractContextManager[Claims | None]:
        """Share the computing of rows with others; None where nobody else computes them."""
