"""Rows of features in an SQLite file that processes share and that survives them."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from .leases import CLAIMS_TABLE, Claims
from .protocol import SHARE_KEPT

_FILE = "sktl-features-2.sqlite"
_PAGE = 16384  # bytes; SQLite is fastest here with rows of 1 KB as with rows of 400 KB
_PER_QUERY = 500  # SQLite allows 999 variables a statement
_PATIENCE = 60.0  # seconds to wait for another process's transaction
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.uint8)}


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
            goal = int(self.max_bytes * SHARE_KEPT)
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


class TemporaryCache(DirectoryCache):
    """A directory that goes with the process."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(
            prefix="sktl-features-",
            ignore_cleanup_errors=True,  # Windows keeps files that a thread has open
        )
        super().__init__(self._folder.name)
