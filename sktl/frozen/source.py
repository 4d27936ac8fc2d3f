"""The images of one pass: how they are hashed and read, and which of them can't be."""

from __future__ import annotations

from collections.abc import Sequence

import xxhash
from torch import Tensor

from ..images.augmentation import View
from ..images.errors import Unreadable, UnreadableImagesError
from ..images.preprocessing import Recipe
from ..images.reading import Images


class Source:
    """Some rows of X by their places in a result.

    Parameters
    ----------
    images : Images
    recipe : Recipe
    rows : sequence of int
        Those of X that are wanted.
    view : View or None
        A variation of them.
    hashed : bool
        Whether to know them by their content, as a variation must.

    Attributes
    ----------
    digests : list of bytes
        By places.
    unreadable : dict of int to str
        By rows of X. It grows while images are read.
    """

    def __init__(
        self,
        images: Images,
        recipe: Recipe,
        rows: Sequence[int],
        view: View | None,
        *,
        hashed: bool,
    ) -> None:
        self._images = images
        self._recipe = recipe
        self._rows = rows
        self._view = view
        self.unreadable: Unreadable = images.missing(rows)
        self.digests = [self._digest(i) for i in rows] if hashed or view is not None else []
        if view is not None:
            self.digests = view.digests(self.digests)

    def __len__(self) -> int:
        return len(self._rows)

    def _digest(self, row: int) -> bytes:
        if row not in self.unreadable:
            try:
                return self._images.digest(row)
            except UnreadableImagesError as error:
                self.unreadable[row] = error.files[0][1]
        # Stands in for a digest; nothing is kept under it.
        return xxhash.xxh3_128_digest(f"unreadable {row}".encode())

    def load(self, places: Sequence[int]) -> Tensor:
        """Read and prepare images; it may be called in threads."""
        prepared, bad = self._recipe.read(self._images, [self._rows[i] for i in places])
        self.unreadable.update(bad)
        if self._view is None:
            return prepared
        return self._view.apply(prepared, [self.digests[i] for i in places])

    def is_bad(self, place: int) -> bool:
        """Whether the image has turned out to be unreadable."""
        return self._rows[place] in self.unreadable

    def bad_places(self) -> list[int]:
        """Places of the images that have turned out to be unreadable."""
        return [i for i in range(len(self)) if self.is_bad(i)] if self.unreadable else []

    def is_like(self, place: int, other: int) -> None:
        """Say of an image that can't be read if another of the same content can't."""
        if self.is_bad(other):
            self.unreadable[self._rows[place]] = self.unreadable[self._rows[other]]
