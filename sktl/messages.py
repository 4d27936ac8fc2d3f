"""How messages show the values that users pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_LONGEST = 60  # characters
_LONGEST_PATH = 260  # longer ones are most likely pictures that were taken for paths


def shown(value: Any) -> str:
    """Give a value as Python writes it, cut to 60 characters.

    Parameters
    ----------
    value : object
        A picture's bytes and a network have representations of many megabytes and lines.

    Returns
    -------
    str
    """
    if isinstance(value, str | bytes | bytearray) and len(value) > _LONGEST:
        value = value[:_LONGEST]  # what quotes and escapes add is cut below
        return cut(repr(value)[: _LONGEST + 1] + "...")
    try:
        return cut(repr(value))
    except Exception:  # whatever a class of the user's does
        return f"<{type(value).__name__}>"


def cut(text: str) -> str:
    """Shorten a text to 60 characters."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def shown_several(values: Sequence[Any], most: int = 10) -> str:
    """Give the first of some values, each cut to 60 characters, and count the others."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return f"[{', '.join(map(shown, values[:most]))}]{more}"


def shown_path(path: str) -> str:
    """Give a path on one line, whole if it is of a usual length.

    One with a line feed, or with bytes that are no text, is shown as Python writes it.
    """
    text = path if len(path) <= _LONGEST_PATH else f"{path[:_LONGEST]}...{path[-_LONGEST:]}"
    return text if text.isprintable() else repr(text)
