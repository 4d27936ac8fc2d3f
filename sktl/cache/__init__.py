"""Features by image content.

A key is the hash of all that a row of features depends on: the image, the preprocessing,
the frozen prefix with its weights, and the number format. So the rows of a fold, a
shuffled or a cloned fit are found again, and anything that changes the numbers misses.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor

from ..hardware import physical_memory
from .leases import CLAIMS_TABLE, Claims

_FILE = "sktl-features-2.sqlite"
_PAGE = 16384  # bytes; SQLite is fastest here with rows of 1 KB as with rows of 400 KB
_PER_QUERY = 500  # SQLite allows 999 variables a statement
_PATIENCE = 60.0  # seconds to wait for another process's transaction
_BLOCK = 2**20  # bytes of a block of rows in memory, unless one row is larger
_MIN_BLOCKS = 16  # that the bound of the memory has room for
_SHARE_KEPT = 0.9  # of a full cache, when the oldest rows make room
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.uint8)}


class FeatureCache(Protocol):
    """Where rows of features are kept."""

    def get(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """Give the row of each key, None where there is none."""

    def put(self, keys: Sequence[bytes], rows: Tensor) -> None:
        """Keep rows; the first axis runs over the keys."""

    def claims(self) -> AbstractContextManager[Claims | None]:
        """Share the computing of rows with others; None where nobody else computes them."""


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
                goal = self.max_bytes * (1.0 if self._open_spill is None else _SHARE_KEPT)
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


class DirectoryCache:
    """Rows in an SQLite file that processes share and that survives them.

    A write is one transaction, so a killed process loses the batch in flight and nothing
    else. Each row has a checksum; a damaged one counts as missing. A directory that can't be
    written is read.

    Parameters
    ----------
    directory : path
        Made if it doesn't exist.
    max_bytes : int or None, default=None
        Beyond it the oldest rows make room for new ones. None is what the rows take now, and
        half of what is free on the disk.

    Raises
    ------
    OSError
        If nothing can be kept there and nothing is.
    """

    def __init__(self, directory: str | os.PathLike[str], max_bytes: int | None = None) -> None:
        folder = Path(directory).expanduser()
        self.path = folder / _FILE
        self._read_only = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._set_up()
        except (sqlite3.Error, PermissionError) as error:
            self._read_only = True
            if not self._is_readable():
                raise OSError(f"{self.path}: {error}") from error
        if max_bytes is None:
            max_bytes = self.path.stat().st_size + shutil.disk_usage(folder).free // 2
        self.max_bytes = max_bytes

    def _set_up(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with closing(self._connect()) as connection, connection:
                    connection.execute(f"PRAGMA page_size={_PAGE}")
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.execute(
                        "CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY,"
                        " key BLOB UNIQUE, dtype TEXT, shape TEXT, checksum BLOB, data BLOB)"
                    )
                    connection.execute(CLAIMS_TABLE)
                return
            except sqlite3.OperationalError as error:
                # SQLite doesn't wait while another process changes the journal's mode.
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _is_readable(self) -> bool:
        try:
            with closing(self._connect()) as connection, connection:
                connection.execute("SELECT key FROM rows LIMIT 1")
        except sqlite3.Error:
            return False
        return True

    def _connect(self) -> sqlite3.Connection:
        # A new connection for each call: none is carried through fork or to a thread.
        if self._read_only:
            address = f"{self.path.absolute().as_uri()}?mode=ro&immutable=1"
            return sqlite3.connect(address, uri=True)
        connection = sqlite3.connect(self.path, timeout=_PATIENCE)
        connection.execute("PRAGMA synchronous=NORMAL")  # with WAL this never damages the file
        return connection

    def get(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """See :class:`FeatureCache`."""
        found: dict[bytes, Tensor] = {}
        try:
            with closing(self._connect()) as connection, connection:
                for start in range(0, len(keys), _PER_QUERY):
                    part = list(keys[start : start + _PER_QUERY])
                    marks = ",".join("?" * len(part))
                    query = (
                        f"SELECT key, dtype, shape, checksum, data FROM rows WHERE key IN ({marks})"
                    )
                    for key, dtype, shape, checksum, data in connection.execute(query, part):
                        if _checksum(key, dtype, shape, data) == checksum:
                            found[key] = _to_row(data, dtype, shape)
        except sqlite3.Error as error:
            self._warn("read", error)
        return [found.get(key) for key in keys]

    def put(self, keys: Sequence[bytes], rows: Tensor) -> None:
        """See :class:`FeatureCache`."""
        if self._read_only:
            return
        dtype, shape = str(rows.dtype), ",".join(map(str, rows.shape[1:]))
        entries = []
        for key, row in zip(keys, rows.contiguous(), strict=True):
            data = row.reshape(-1).view(torch.uint8).numpy().tobytes()
            entries.append((key, dtype, shape, _checksum(key, dtype, shape, data), data))
        try:
            with closing(self._connect()) as connection, connection:
                connection.executemany(
                    "INSERT OR REPLACE INTO rows (key, dtype, shape, checksum, data)"
                    " VALUES (?,?,?,?,?)",
                    entries,
                )
                connection.executemany("DELETE FROM claims WHERE key = ?", [(k,) for k in keys])
                self._make_room(connection)
        except sqlite3.Error as error:
            self._warn("written", error)

    def claims(self) -> AbstractContextManager[Claims | None]:
        """See :class:`FeatureCache`."""
        return nullcontext() if self._read_only else Claims(self._connect)

    def _make_room(self, connection: sqlite3.Connection) -> None:
        """Drop the oldest rows of a full cache; SQLite uses their pages again."""

        def n_bytes() -> int:
            pages, free = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count")
            )
            return int((pages - free) * _PAGE)

        goal = self.max_bytes
        while n_bytes() > goal:
            goal = int(self.max_bytes * _SHARE_KEPT)
            dropped = connection.execute(
                "DELETE FROM rows WHERE id IN (SELECT id FROM rows ORDER BY id LIMIT"
                " (SELECT count(*) / 20 + 1 FROM rows))"
            )
            if dropped.rowcount < 1:
                break

    def _warn(self, what: str, error: Exception) -> None:
        warnings.warn(
            f"The feature cache {self.path} could not be {what} ({error}); going on without it.",
            UserWarning,
            stacklevel=4,
        )


def _checksum(key: bytes, dtype: str, shape: str, data: bytes) -> bytes:
    hasher = xxhash.xxh3_128(key)
    hasher.update(f"{dtype} {shape}".encode())
    hasher.update(data)
    return hasher.digest()


def _to_row(data: bytes, dtype: str, shape: str) -> Tensor:
    values = torch.frombuffer(bytearray(data), dtype=_DTYPES[dtype])
    return values.reshape([int(n) for n in shape.split(",") if n])


class _TemporaryCache(DirectoryCache):
    """A directory that goes with the process."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(
            prefix="sktl-features-",
            ignore_cleanup_errors=True,  # Windows keeps files that a thread has open
        )
        super().__init__(self._folder.name)


# One for the process, so that clones and folds share it; a quarter of the memory at most.
_memory_cache = MemoryCache(physical_memory() // 4, _TemporaryCache)


def open_cache(cache: str | os.PathLike[str] | None) -> FeatureCache | None:
    """Open what the parameter `cache` names.

    Parameters
    ----------
    cache : "memory", path or None

    Returns
    -------
    FeatureCache or None
        A directory that can't be used is replaced by memory, with a warning.
    """
    if cache is None:
        return None
    if cache == "memory":
        return _memory_cache
    try:
        return DirectoryCache(cache)
    except OSError as error:
        warnings.warn(
            f"cache={os.fspath(cache)!r} can't be used ({error}); features are kept in memory.",
            UserWarning,
            stacklevel=3,
        )
        return _memory_cache


def empty_rows(n: int, like: Tensor) -> Tensor:
    """Make room for n rows; on disk, in a file without a name, if they would fill the memory.

    Parameters
    ----------
    n : int
    like : tensor of shape (m, ...)

    Returns
    -------
    tensor of shape (n, ...)
        Not initialised.
    """
    shape = (n, *like.shape[1:])
    n_bytes = n * like[0].nbytes
    if n_bytes <= physical_memory() // 4:
        return torch.empty(shape, dtype=like.dtype)
    with tempfile.TemporaryFile(prefix="sktl-features-") as file:
        memory = np.memmap(file, np.uint8, "w+", shape=(n_bytes,))
    return torch.from_numpy(memory).view(like.dtype).reshape(shape)
