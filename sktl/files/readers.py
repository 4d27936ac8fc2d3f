"""What a document may say: readers that check a value of JSON and make a value of Python of it.

A reader takes the value and where it stands, and raises a FileFormatError if it is not as expected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

from .container import FileFormatError

Reader = Callable[[Any, str], Any]

_LARGEST = 2**63 - 1


def refuse(value: Any, where: str, wanted: str) -> NoReturn:
    """Raise the error for a value that isn't as expected."""
    found = repr(value) if isinstance(value, bool | float | None) else type(value).__name__
    if isinstance(value, str | int):
        found = repr(value) if len(str(value)) <= 60 else f"{str(value)[:60]!r}..."
    raise FileFormatError(f"{where} must be {wanted}, got {found}.")


def flag(value: Any, where: str) -> bool:
    """True or false."""
    return value if isinstance(value, bool) else refuse(value, where, "true or false")


def text(value: Any, where: str) -> str:
    """Any text."""
    return value if isinstance(value, str) else refuse(value, where, "text")


def integer(low: int = -_LARGEST, high: int = _LARGEST) -> Reader:
    """An integer between two, themselves included."""

    def read(value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            refuse(value, where, f"an integer from {low} to {high}")
        return value

    return read


def number(
    low: float = -math.inf, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Reader:
    """A finite number between two; with `above` and `below`, other than the bounds."""

    def read(value: Any, where: str) -> float:
        plain = isinstance(value, float) or (isinstance(value, int) and abs(value) <= _LARGEST)
        fits = plain and not isinstance(value, bool) and math.isfinite(value)
        if (
            not fits
            or not low <= value <= high
            or (above and value == low)
            or (below and value == high)
        ):
            bounds = f"{'above' if above else 'from'} {low} {'and below' if below else 'to'} {high}"
            refuse(value, where, f"a finite number {bounds}")
        return value  # type: ignore[no-any-return]

    return read


def one_of(*choices: Any) -> Reader:
    """One of some texts, or null."""

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, str | None) or value not in choices:
            refuse(value, where, f"one of {list(choices)}")
        return value

    return read


def optional(reader: Reader) -> Reader:
    """Something or null."""
    return lambda value, where: None if value is None else reader(value, where)


def either(as_text: Reader, else_: Reader) -> Reader:
    """A text, or something else."""
    return lambda value, where: (as_text if isinstance(value, str) else else_)(value, where)


def list_of(reader: Reader, least: int = 0) -> Reader:
    """A list of any number of the same."""

    def read(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list) or len(value) < least:
            refuse(value, where, f"a list of at least {least}")
        return [reader(item, f"{where}[{i}]") for i, item in enumerate(value)]

    return read


def tuple_of(reader: Reader, *lengths: int) -> Reader:
    """A list of one of these lengths (any but zero, if none is given), as a tuple."""

    def read(value: Any, where: str) -> tuple[Any, ...]:
        found = list_of(reader, least=1)(value, where)
        if lengths and len(found) not in lengths:
            refuse(value, where, f"a list of {' or '.join(map(str, lengths))}")
        return tuple(found)

    return read


def mapping_of(reader: Reader) -> Reader:
    """An object with any names."""

    def read(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            refuse(value, where, "an object")
        return {name: reader(item, f"{where}.{name[:60]}") for name, item in value.items()}

    return read


def record(required: dict[str, Reader], left_out: dict[str, Reader] | None = None) -> Reader:
    """An object with known names, of which some may be left out."""
    known = required | (left_out or {})

    def read(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            refuse(value, where, "an object")
        missing = sorted(required.keys() - value.keys())
        unknown = sorted(value.keys() - known.keys())
        if missing or unknown:
            what = f"lacks {missing[:5]}" if missing else f"has the unknown names {unknown[:5]}"
            raise FileFormatError(f"{where} {what}.")
        return {name: known[name](item, f"{where}.{name}") for name, item in value.items()}

    return read
