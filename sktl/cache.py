"""Features by image content.

A key is the hash of all that a row of features depends on: the image, the preprocessing,
the frozen prefix with its weights, and the number format. So the rows of a fold, a
shuffled or a cloned fit are found again, and anything that changes the numbers misses.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor

from .hardware import physical_memory

_FILE = "sktl-features-1.sqlite"
_PATIENCE = 60.0  # seconds to wait for another process's transaction
_PER_QUERY = 500  # SQLite allows 999 variables a statement


class FeatureCache(Protocol):
    """Where rows of features are kept."""

    def get(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """Give the row of each key, None where there is none."""

    def put(self, keys: Sequence[bytes], rows: Tensor) -> None:
        """Keep rows; the first axis runs over the keys."""


class MemoryCache:
    """Rows in this process's memory; the least recently used ones make room.

    Parameters
    ----------
    max_bytes : int
        Bound on the bytes of all rows together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._rows: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """See :class:`FeatureCache`."""
        with self._lock:
            found = []
            for key in keys:
                row = self._rows.get(key)
                if row is not None:
                    self._rows.move_to_end(key)
                found.append(row)
            return found

    def put(self, keys: Sequence[bytes], rows: Tensor) -> None:
        """See :class:`FeatureCache`."""
        with self._lock:
            for key, row in zip(keys, rows, strict=True):
                if key not in self._rows:
                    self._rows[key] = row.clone()  # a view would keep the whole batch alive
                    self.n_bytes += row.nbytes
            while self.n_bytes > self.max_bytes:
                self.n_bytes -= self._rows.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Forget all rows."""
        with self._lock:
            self._rows.clear()
            self.n_bytes = 0


class DirectoryCache:
    """Rows in an SQLite file that processes share and that survives them.

    A write is one transaction, so a killed process loses the batch in flight and nothing
    else. Each row has a checksum; a damaged one counts as missing.

    Parameters
    ----------
    directory : path
        Made if it doesn't exist.

    Raises
    ------
    OSError
        If nothing can be kept there.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        folder = Path(directory).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / _FILE
        try:
            self._set_up()
        except sqlite3.Error as error:
            raise OSError(f"{self.path}: {error}") from error

    def _set_up(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with self._connect() as connection:
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.execute(
                        "CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, dtype TEXT,"
                        " shape TEXT, checksum BLOB, data BLOB) WITHOUT ROWID"
                    )
                return
            except sqlite3.OperationalError as error:
                # SQLite doesn't wait while another process changes the journal's mode.
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _connect(self) -> sqlite3.Connection:
        # A connection of its own for each call: none is carried through fork or to a thread.
        return sqlite3.connect(self.path, timeout=_PATIENCE)

    def get(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """See :class:`FeatureCache`."""
        found: dict[bytes, Tensor] = {}
        try:
            with self._connect() as connection:
                for start in range(0, len(keys), _PER_QUERY):
                    part = list(keys[start : start + _PER_QUERY])
                    marks = ",".join("?" * len(part))
                    query = (
                        f"SELECT key, dtype, shape, checksum, data FROM rows WHERE key IN ({marks})"
                    )
                    for key, dtype, shape, checksum, data in connection.execute(query, part):
                        if xxhash.xxh3_128_digest(key + data) == checksum:
                            found[key] = _to_row(data, dtype, shape)
        except sqlite3.Error as error:
            self._warn("read", error)
        return [found.get(key) for key in keys]

    def put(self, keys: Sequence[bytes], rows: Tensor) -> None:
        """See :class:`FeatureCache`."""
        array = rows.numpy()
        shape = ",".join(map(str, array.shape[1:]))
        entries = []
        for key, row in zip(keys, array, strict=True):
            data = row.tobytes()
            checksum = xxhash.xxh3_128_digest(key + data)
            entries.append((key, str(array.dtype), shape, checksum, data))
        try:
            with self._connect() as connection:
                connection.executemany("INSERT OR REPLACE INTO rows VALUES (?,?,?,?,?)", entries)
        except sqlite3.Error as error:
            self._warn("written", error)

    def _warn(self, what: str, error: Exception) -> None:
        warnings.warn(
            f"The feature cache {self.path} could not be {what} ({error}); going on without it.",
            UserWarning,
            stacklevel=4,
        )


def _to_row(data: bytes, dtype: str, shape: str) -> Tensor:
    array = np.frombuffer(data, dtype=dtype).copy()  # torch must not see read-only memory
    return torch.from_numpy(array.reshape([int(n) for n in shape.split(",") if n]))


# One for the process, so that clones and folds share it; a quarter of the memory at most.
_memory_cache = MemoryCache(physical_memory() // 4)


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
