"""Passes over images of which nothing is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..images.errors import Unreadable
from ..images.preprocessing import Recipe
from ..images.reading import Images
from .gathering import Rows
from .module import FrozenModule, ahead

_PREPARED = 32  # images a thread prepares at a time


def run_on_images(
    module: FrozenModule,
    recipe: Recipe,
    images: Images,
    indices: Sequence[int] | None = None,
    n_jobs: int = 1,
) -> tuple[Tensor, Unreadable]:
    """Run a module on images; None is all of them.

    Returns
    -------
    rows : tensor of shape (n_images, ...)
        Of images that can't be read they mean nothing.
    unreadable : dict of int to str
        See :meth:`sktl.images.reading.Images.read`.
    """
    wanted = range(len(images)) if indices is None else indices
    unreadable: Unreadable = {}

    def load(places: Sequence[int]) -> Tensor:
        prepared, bad = recipe.read(images, [wanted[i] for i in places])
        unreadable.update(bad)
        return prepared

    parts = [rows for _, rows in module.map(load, range(len(wanted)), n_jobs)]
    return torch.cat(parts), unreadable


def prepare_all(
    images: Images, recipe: Recipe, n_jobs: int, tell: Callable[[int], object] | None = None
) -> Tensor:
    """Prepare all images without running a network on them.

    Returns
    -------
    uint8 tensor of shape (n, 3, crop, crop)

    Raises
    ------
    UnreadableImagesError
        It names all images that can't be read.
    """
    n = len(images)
    rows = Rows(n, tell)
    batches = [range(i, min(i + _PREPARED, n)) for i in range(0, n, _PREPARED)]

    unreadable = images.missing(range(n))

    def load(batch: Sequence[int]) -> Tensor:
        prepared, bad = recipe.read(images, batch)
        unreadable.update(bad)
        return prepared

    for batch, prepared in ahead(load, batches, max(n_jobs, torch.get_num_threads())):
        rows.put(batch, prepared)
    images.refuse(unreadable)
    return rows.tensor
