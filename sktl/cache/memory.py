"""Rows of features in memory; the least recently used make room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .protocol import SHARE_KEPT, FeatureCache

_BLOCK = 2**20  # bytes of a block of rows in memory, unless one row is larger
_MIN_BLOCKS = 16  # that the bound of the memory has room for


@dataclass(eq=False)
class _Block:
    """Rows of one shape, side by side."""

    rows: Tensor
    keys: list[bytes] = field(default_factory=list)

    @property
    def n_free(self) -> int:
        """Rows that still fit in."""
        return len(self.rows) - len(self.keys)

    def add(self, keys: Sequence[bytes], rows: Tensor) -> None:
        """Append rows."""
        start = len(self.keys)
        self.rows[start : start + len(keys)] = rows
        self.keys += keys


class MemoryCache:
    """Rows in this process's memory; the least recently used make room.

    They are kept, and go, by the block: many small tensors that stay, among large ones that come
    and go, would leave the process's memory in pieces too small for use.

    Parameters
    ----------
    max_bytes : int
    spill : callable or None, default=None
        Opens a cache for the rows that had to make room. It is called when the first one has to;
        an OSError leaves the cache without.

    Attributes
    ----------
    n_bytes : int
        Bytes that the blocks in memory take.
    """

    def __init__(self, max_bytes: int, spill: Callable[[], FeatureCache] | None = None) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._places: dict[bytes, tuple[_Block, int]] = {}
        self._blocks: OrderedDict[_Block, None] = OrderedDict()  # the latest used come last
        self._unfilled: dict[tuple[torch.dtype, torch.Size], _Block] = {}
        self._lock = threading.Lock()
        self._open_spill = spill
        self._spill: FeatureCache | None = None

    def get(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """See :class:`FeatureCache`."""
        found: list[Tensor | None] = []
        with self._lock:
            for key in keys:
                place = self._places.get(key)
                if place is None:
                    found.append(None)
                    continue
                block, i = place
                self._blocks.move_to_end(block)
                found.append(block.rows[i])
        if self._spill is not None:
            places = [i for i, row in enumerate(found) if row is None]
            for i, row in zip(places, self._spill.get([keys[i] for i in places]), strict=True):
                found[i] = row
        return found

    def put(self, keys: Sequence[bytes], rows: Tensor) -> None:
        """See :class:`FeatureCache`."""
        evicted: list[_Block] = []
        with self._lock:
            new = {key: i for i, key in enumerate(keys) if key not in self._places}
            self._add(list(new), rows[list(new.values())])
            if self.n_bytes > self.max_bytes:
                # Some more than must go, so that rows go to disk by the batch.
                goal = self.max_bytes * (1.0 if self._open_spill is None else SHARE_KEPT)
                while self.n_bytes > goal:
                    evicted.append(self._evict())
        if evicted:
            self._keep_elsewhere(evicted)

    def claims(self) -> AbstractContextManager[None]:
        """See :class:`FeatureCache`."""
        return nullcontext()

    def _add(self, keys: Sequence[bytes], rows: Tensor) -> None:
        while keys:
            block = self._unfilled_block(rows)
            n = min(block.n_free, len(keys))
            start = len(block.keys)
            block.add(keys[:n], rows[:n])
            self._places |= {key: (block, start + i) for i, key in enumerate(keys[:n])}
            self._blocks.move_to_end(block)
            keys, rows = keys[n:], rows[n:]

    def _unfilled_block(self, rows: Tensor) -> _Block:
        """A block that has room for the first of some rows; each is twice the one before."""
        kind = rows.dtype, rows.shape[1:]
        last = self._unfilled.get(kind)
        if last is not None and last.n_free:
            return last
        most = min(_BLOCK, self.max_bytes // _MIN_BLOCKS) // max(rows[0].nbytes, 1)
        n = len(rows) if last is None else 2 * len(last.rows)
        shape = max(1, min(n, most)), *rows.shape[1:]
        with torch.inference_mode(False):  # else only calls in that mode could add to it
            block = _Block(torch.empty(shape, dtype=rows.dtype))
        self._blocks[block] = None
        self._unfilled[kind] = block
        self.n_bytes += block.rows.nbytes
        return block

    def _evict(self) -> _Block:
        block, _ = self._blocks.popitem(last=False)
        self.n_bytes -= block.rows.nbytes
        kind = block.rows.dtype, block.rows.shape[1:]
        if self._unfilled[kind] is block:
            del self._unfilled[kind]
        for key in block.keys:
            del self._places[key]
        return block

    def _keep_elsewhere(self, blocks: Sequence[_Block]) -> None:
        if self._spill is None and self._open_spill is not None:
            try:
                self._spill = self._open_spill()
            except OSError:
                self._open_spill = None
        if self._spill is not None:
            for block in blocks:
                self._spill.put(block.keys, block.rows[: len(block.keys)])

    def clear(self) -> None:
        """Forget all rows."""
        with self._lock:
            self._places.clear()
            self._blocks.clear()
            self._unfilled.clear()
            self.n_bytes = 0
            self._spill = None
