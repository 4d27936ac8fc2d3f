"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Path = str | os.PathLike[str]

_PATIENCE = 2.0  # seconds that another program may take to read a file


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of an old one when all has been written.

    Parameters
    ----------
    path : str or path
        Whoever reads it meanwhile, or kills the process, finds the old file or the new one.
    """
    target = os.path.realpath(path)  # what a link points to is replaced, and not the link
    folder, name = os.path.split(target)
    beginning = f".{name[:100]}."
    _remove_abandoned(folder, beginning)
    temporary = os.path.join(folder, f"{beginning}{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            _try_to_lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        if sys.platform != "win32":  # where it would only forbid to replace the file
            with suppress(FileNotFoundError):
                os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
        _replace(temporary, target)
    except BaseException:
        with suppress(OSError):  # the first error is what matters
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _replace(temporary: str, target: str) -> None:
    """Rename a file; on Windows, wait a little for whoever reads the one it replaces."""
    deadline = time.monotonic() + _PATIENCE
    while sys.platform == "win32" and time.monotonic() < deadline:
        try:
            os.replace(temporary, target)
            return
        except PermissionError:
            time.sleep(0.05)
    os.replace(temporary, target)


def _remove_abandoned(folder: str, beginning: str) -> None:
    """Remove temporary files of processes that were killed, and so have lost their locks.

    An empty one stays: its process may be about to lock it.
    """
    pattern = re.compile(re.escape(beginning) + r"[0-9a-f]{16}\.tmp")
    names: list[str] = []
    with suppress(OSError):  # a folder may be one to write to and not to read
        names = list(filter(pattern.fullmatch, os.listdir(folder)))
    for name in names:
        path = os.path.join(folder, name)
        with suppress(OSError), open(path, "r+b") as file:
            if os.fstat(file.fileno()).st_size and _try_to_lock(file):
                os.unlink(path)


def _try_to_lock(file: BinaryIO) -> bool:
    """Lock a file as long as this process has it open; False where that can't be had."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync_folder(folder: str) -> None:
    """Make a renaming outlast a power failure, where folders can be synchronised."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
