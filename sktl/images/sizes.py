"""Height and width of images in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeAlias

from ..messages import shown

# Height and width in pixels; one number where they are the same.
Size: TypeAlias = int | tuple[int, int]


def height_width(size: Size) -> tuple[int, int]:
    """Both sides of a size."""
    return size if isinstance(size, tuple) else (size, size)


def checked_size(image_size: Any) -> Size | None:
    """Read the parameter `image_size`.

    Raises
    ------
    ValueError
        If it is neither None, nor a number of at least 2, nor two of these.
    """
    if image_size is None:
        return None
    sides = image_size if isinstance(image_size, tuple | list) else (image_size,) * 2
    if len(sides) == 2 and all(isinstance(n, Integral) and int(n) >= 2 for n in sides):
        return as_size(tuple(sides))
    raise ValueError(
        "image_size must be a number of pixels or (height, width), each at least 2; "
        f"got {shown(image_size)}."
    )


def checked_sides(name: str, size: Any) -> Size:
    """Read a size of a recipe; a ValueError if it is none."""
    sides = size if isinstance(size, tuple | list) else (size,) * 2
    if len(sides) != 2 or not all(isinstance(n, Integral) and int(n) >= 1 for n in sides):
        raise ValueError(
            f"{name} must be a number of pixels or (height, width), each at least 1; got "
            f"{shown(size)}."
        )
    return as_size(tuple(sides))


def in_pixels(size: Size) -> str:
    """A size in words."""
    height, width = height_width(size)
    return f"{height} x {width} pixels"


def as_size(size: Any) -> Size:
    """A size in its one form: a number where both sides are the same."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return int(height) if height == width else (int(height), int(width))
