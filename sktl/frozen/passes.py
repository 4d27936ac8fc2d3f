"""Passes over images of which nothing is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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
) -> Tensor:
    """Run a module on images, of which nothing is kept; None is all of them."""
    wanted = range(len(images)) if indices is None else indices

    def load(places: Sequence[int]) -> Tensor:
        return recipe.read(images, [wanted[i] for i in places])

    return torch.cat([rows for _, rows in module.map(load, range(len(wanted)), n_jobs)])


def prepare_all(
    images: Images, recipe: Recipe, n_jobs: int, tell: Callable[[int], object] | None = None
) -> Tensor:
    """Prepare all images without running a network on them.

    Returns
    -------
    uint8 tensor of shape (n, 3, crop, crop)
    """
    n = len(images)
    rows = Rows(n, tell)
    batches = [range(i, min(i + _PREPARED, n)) for i in range(0, n, _PREPARED)]

    def load(batch: Sequence[int]) -> Tensor:
        return recipe.read(images, batch)

    for batch, prepared in ahead(load, batches, max(n_jobs, torch.get_num_threads())):
        rows.put(batch, prepared)
    return rows.tensor
