"""Which bands of a picture become red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..messages import shown

Band: TypeAlias = "int | tuple[int, ...]"  # a number, or those of which the mean is taken
Bands: TypeAlias = tuple[Band, Band, Band]
Array: TypeAlias = npt.NDArray[Any]


def checked_bands(bands: Any) -> Bands | Literal["all"]:
    """Check the parameter `bands`, and bring it to tuples."""
    if isinstance(bands, str) and bands == "all":
        return "all"
    if _is_listing(bands) and len(bands) == 3:
        found = [_checked_band(band) for band in bands]
        if None not in found:
            red, green, blue = found
            return red, green, blue  # type: ignore[return-value]
    raise ValueError(
        "bands must be three numbers of channels, those of red, green and blue, counted from 0, or "
        "tuples of such to take the mean of, or 'all', such as (3, 2, 1); got "
        f"{shown(bands)}."
    )


def _checked_band(band: Any) -> Band | None:
    if _is_number(band):
        return int(band)
    if not _is_listing(band) or not len(band) or not all(map(_is_number, band)):
        return None
    numbers = tuple(map(int, band))
    return numbers if len(numbers) > 1 else numbers[0]


def _is_listing(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def _is_number(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def axis_of_bands(shape: tuple[int, int, int]) -> int:
    """Find the bands of one image: the odd axis of a square one, else the shorter end."""
    first, middle, last = shape
    return 0 if first != middle and (middle == last or first < last) else -1


@dataclass(frozen=True)
class BandChoice:
    """What becomes of a picture's bands.

    Parameters
    ----------
    bands : tuple
        What red, green and blue are: a number, or several of which the mean is taken.
    n : int or None, default=None
        How many bands a picture must have; None where that doesn't matter.
    """

    bands: Bands
    n: int | None = None

    @classmethod
    def of_all(cls, n: int) -> BandChoice:
        """Take all bands in turn: 0, 3, 6, ... as red, 1, 4, 7, ... as green, and so on."""
        every = tuple(range(max(n, 1)))
        groups = [every[0::3], every[1::3] or every, every[2::3] or every]
        red, green, blue = (g if len(g) > 1 else g[0] for g in groups)
        return cls((red, green, blue), len(every))

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The numbers that make red, green and blue."""
        return tuple(band if isinstance(band, tuple) else (band,) for band in self.bands)

    @property
    def numbers(self) -> tuple[int, ...]:
        """All of them, in that order."""
        return tuple(number for group in self.groups for number in group)

    @property
    def meaning(self) -> str:
        """What the numbers alone don't tell; "" where each colour is one band."""
        lengths = tuple(map(len, self.groups))
        return "" if lengths == (1, 1, 1) else f" means of {lengths}"

    def axis(self, shape: tuple[int, ...], name: str) -> int:
        """Find the bands of an image of this shape; ValueError if it lacks some."""
        if len(shape) != 3:
            raise ValueError(
                f"{name} has no bands, of which bands={self._named()} could choose. An image is "
                "(h, w, c) or (c, h, w), an array of n images (n, h, w, c) or (n, c, h, w)."
            )
        axis = axis_of_bands(shape)
        self.check(shape[axis], f"{name} has")
        return axis

    def check(self, n: int, subject: str) -> None:
        """Raise a ValueError if a picture of n bands isn't to be read."""
        have = f"{subject} {n} {'band' if n == 1 else 'bands'}"
        if self.n not in (None, n):
            raise ValueError(
                f"{have}, but with bands='all' pictures must have {self.n}, as the first in fit"
            )
        if n <= max(self.numbers):
            raise ValueError(
                f"{have}, which are numbered from 0, but bands={self._named()} asks for number "
                f"{max(self.numbers)}"
            )

    def _named(self) -> str:
        return "'all'" if self.n is not None else str(self.bands)

    def take(self, block: Array) -> Array:
        """Choose the bands of images of one shape, (b, h, w, c) or (b, c, h, w).

        Returns
        -------
        ndarray of shape (b, h, w, n_numbers)
            For :meth:`mix`, once it is of 8 bits.
        """
        axis = self.axis(block.shape[1:], "X")
        last = np.moveaxis(block, 1 if axis == 0 else -1, -1)
        return np.stack([last[..., number] for number in self.numbers], axis=-1)

    def take_of_one(self, pixels: Array) -> Array:
        """Choose the bands of one picture (h, w, c), as :meth:`take` does."""
        self.check(pixels.shape[-1], "it has")
        return np.stack([pixels[..., number] for number in self.numbers], axis=-1)

    def views(self, block: Array) -> list[Array]:
        """View each band that is looked at, of images of one shape."""
        axis = self.axis(block.shape[1:], "X")
        last = np.moveaxis(block, 1 if axis == 0 else -1, -1)
        return [last[..., number] for number in sorted(set(self.numbers))]

    def mix(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Make red, green and blue of the bands that were taken, (..., n_numbers)."""
        if not self.meaning:
            return pixels
        mixed = np.empty((*pixels.shape[:-1], 3), dtype=np.uint8)
        start = 0
        for colour, group in enumerate(self.groups):
            n = len(group)
            total = pixels[..., start : start + n].sum(axis=-1, dtype=np.uint32)
            mixed[..., colour] = (2 * total + n) // (2 * n)  # to the nearest, halves up
            start += n
        return mixed
