"""Who computes which row: processes that fill one cache share the work and do none of it twice."""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Self

CLAIMS_TABLE = (
    "CREATE TABLE IF NOT EXISTS claims"
    " (key BLOB PRIMARY KEY, owner BLOB, renewed REAL) WITHOUT ROWID"
)
_LEASE = 20.0  # seconds; the owner of a claim that is older has died
_RENEWAL = 2.0  # seconds between two renewals of what is claimed


class Claims:
    """Claims on rows in the SQLite file of a cache, and a thread that renews them.

    A claim ends when its row is put into the cache, with this context, or some seconds after its
    process was killed. Where a claim can't be written the row counts as claimed: to compute a row
    twice is better than not to compute it.

    Parameters
    ----------
    connect : callable
        Opens the file.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._owner = uuid.uuid4().bytes
        self._connection: sqlite3.Connection | None = None  # kept, since opening takes longest
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._thread is None:
            return
        self._over.set()
        self._thread.join()
        self._execute("DELETE FROM claims WHERE owner = ?", self._owner)

    def take(self, keys: Sequence[bytes]) -> list[bool]:
        """Claim rows.

        Parameters
        ----------
        keys : sequence of bytes

        Returns
        -------
        list of bool
            Whether each row is ours to compute; others compute the rest.
        """
        now = time.time()
        try:
            with self._open() as connection:
                connection.execute(
                    "DELETE FROM claims WHERE renewed NOT BETWEEN ? AND ?",
                    (now - _LEASE, now + _LEASE),
                )
                taken = [
                    connection.execute(
                        "INSERT OR IGNORE INTO claims VALUES (?,?,?)", (key, self._owner, now)
                    ).rowcount
                    == 1
                    for key in keys
                ]
        except sqlite3.Error:
            return [True] * len(keys)
        if self._thread is None and any(taken):
            self._thread = threading.Thread(target=self._renew, name="sktl-claims", daemon=True)
            self._thread.start()
        return taken

    def any_there(self, keys: Sequence[bytes]) -> bool:
        """Whether the cache has some of the rows by now."""
        try:
            with self._open() as connection:
                return any(
                    connection.execute("SELECT 1 FROM rows WHERE key = ?", (key,)).fetchone()
                    for key in keys
                )
        except sqlite3.Error:
            return False

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _renew(self) -> None:
        while not self._over.wait(_RENEWAL):
            self._execute("UPDATE claims SET renewed = ? WHERE owner = ?", time.time(), self._owner)

    def _execute(self, statement: str, *values: object) -> None:
        with suppress(sqlite3.Error), closing(self._connect()) as connection, connection:
            connection.execute(statement, values)
