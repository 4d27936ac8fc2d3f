"""Images that can't be read, and how they are named."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from ..messages import shown_path

# Rows of X whose image can't be read, and why.
Unreadable = dict[int, str]


class UnreadableImageWarning(UserWarning):
    """Some images can't be decoded, and were left out."""


class UnreadableImagesError(ValueError):
    """Some images can't be decoded.

    Parameters
    ----------
    files : list of (str, str)
        Every path that can't be decoded, and why.
    rows : list of int, default=()
        Where they stand in X; a path may stand there twice.
    """

    def __init__(self, files: list[tuple[str, str]], rows: Sequence[int] = ()) -> None:
        super().__init__(files, rows)  # the args, so that it survives pickling
        self.files = files
        self.rows = rows

    def __str__(self) -> str:
        """Name up to ten of them."""
        count = "1 image" if len(self.files) == 1 else f"{len(self.files)} images"
        named = name_files(self.files)
        return f"{count} in X can't be read:\n{named}\nMend them or leave them out."


def name_files(files: Sequence[tuple[str, str]]) -> str:
    """Name up to ten files and what is wrong with them, one a line."""
    return listed([path for path, _ in files], [f": {reason}" for _, reason in files[:10]])


def listed(paths: Sequence[str], remarks: Sequence[str] = ()) -> str:
    """List up to ten paths, one a line, and count the others.

    A name with a line feed, or with bytes that are no text, is shown as Python writes it.
    """
    named = [shown_path(path) for path in paths[:10]]
    lines = [f"  {a}{b}" for a, b in zip_longest(named, remarks, fillvalue="")]
    if len(paths) > 10:
        lines.append(f"  and {len(paths) - 10} more")
    return "\n".join(lines)
