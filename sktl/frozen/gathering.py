"""Rows of features, gathered from a cache, from this process and from others that compute them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..cache import FeatureCache, empty_rows
from ..cache.leases import Claims

PER_LOOKUP = 128  # rows that are looked for, or held, at a time


class Rows:
    """Features of some images, gathered in one tensor."""

    def __init__(self, n: int, tell: Callable[[int], object] | None = None) -> None:
        self._n = n
        self._tell = tell
        self._tensor: Tensor | None = None

    def put(self, places: Sequence[int], features: Tensor) -> None:
        """Fill in rows."""
        if self._tensor is None:
            self._tensor = empty_rows(self._n, features)
        self._tensor[torch.as_tensor(places)] = features
        if self._tell is not None:
            self._tell(len(places))

    def copy(self, source: int, target: int) -> None:
        """Fill in a row that equals another."""
        self.tensor[target] = self.tensor[source]
        if self._tell is not None:
            self._tell(1)

    def clear(self, places: Sequence[int]) -> None:
        """Fill in zeros."""
        if places:
            self.tensor[torch.as_tensor(places)] = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been filled in."""
        return self._tensor is None

    @property
    def tensor(self) -> Tensor:
        """All rows."""
        if self._tensor is None:
            raise ValueError("There are no images to compute features of.")
        return self._tensor


class Share:
    """The rows that this process finds or computes, where others may compute the rest.

    Attributes
    ----------
    done : set of int
        Places of the rows that are there.
    """

    def __init__(
        self,
        key: bytes,
        cache: FeatureCache,
        claims: Claims | None,
        digests: Sequence[bytes],
        rows: Rows,
        is_bad: Callable[[int], bool],
    ) -> None:
        self._key = key
        self._cache = cache
        self._claims = claims
        self._digests = digests
        self._rows = rows
        self._is_bad = is_bad
        self.done: set[int] = set()

    def _keys(self, places: Sequence[int], key: bytes | None = None) -> list[bytes]:
        return [(key or self._key) + self._digests[i] for i in places]

    def find(self, places: Sequence[int], key: bytes | None = None) -> dict[int, Tensor]:
        """Give the rows that the cache has, of this prefix or of another."""
        found = self._cache.get(self._keys(places, key))
        return {i: row for i, row in zip(places, found, strict=True) if row is not None}

    def look_up(self, places: Sequence[int]) -> list[int]:
        """Take what the cache has; give the places of what it lacks."""
        for start in range(0, len(places), PER_LOOKUP):
            held = self.find(places[start : start + PER_LOOKUP])
            if held:
                self._rows.put(list(held), torch.stack(list(held.values())))
                self.done.update(held)
        return [i for i in places if i not in self.done]

    def take(self, places: Sequence[int]) -> Sequence[int]:
        """Claim rows; give the places of those to compute."""
        if self._claims is None:
            return places
        taken = self._claims.take(self._keys(places))
        ours = [i for i, is_ours in zip(places, taken, strict=True) if is_ours]
        if self._claims.any_there(self._keys(ours)):  # others may have finished some meanwhile
            return self.look_up(ours)
        return ours

    def put(self, places: Sequence[int], features: Tensor) -> None:
        """Keep rows that have been computed, those of images that can be read in the cache, too."""
        good = [n for n, i in enumerate(places) if not self._is_bad(i)]
        if good:
            kept = features if len(good) == len(places) else features[torch.as_tensor(good)]
            self._cache.put(self._keys([places[n] for n in good]), kept)
        self._rows.put(places, features)
        self.done.update(places)


def first_of_each(digests: Sequence[bytes], places: Sequence[int]) -> dict[bytes, int]:
    """The first of these places that has each digest."""
    first: dict[bytes, int] = {}
    for i in places:
        first.setdefault(digests[i], i)
    return first
