"""Features in one tensor, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from skorch.dataset import Dataset
from torch import Tensor

from ..backbones.split import spatial_axes


class FeatureRows(Dataset):
    """Features in one tensor, with labels and weights.

    Parameters
    ----------
    features : tensor of shape (n_views * n, ...)
        Views of the n images, one view of all of them after the other.
    y : tensor with a row for each image, or None
        Encoded, as :mod:`sktl.training.targets` says; None is zeros.
    weights : tensor of shape (n,), or None
    """

    def __init__(
        self, features: Tensor, labels: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        self.features = features
        n = len(features)
        self.labels = torch.zeros(n, dtype=torch.int64) if labels is None else labels
        self.weights = torch.ones(len(self.labels)) if weights is None else weights
        self.n_views = max(1, n // max(1, len(self.labels)))

    @property
    def X(self) -> Tensor:  # noqa: N802 skorch's name
        """Features in the first view, under the name by which skorch's callbacks ask for them."""
        return self.features[: len(self)]

    @property
    def y(self) -> Tensor:
        """Labels, likewise."""
        return self.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Images by anything that indexes a tensor, each as it is in the first view."""
        return self.features[index], (self.labels[index], self.weights[index])

    def all_views(self) -> FeatureRows:
        """Each view of an image as an image of its own."""
        n = self.n_views
        return FeatureRows(self.features, torch.cat([self.labels] * n), self.weights.repeat(n))

    def subset(self, index: Tensor) -> FeatureRows:
        """Some of the images, in all views."""
        place = (index + torch.arange(self.n_views)[:, None] * len(self)).reshape(-1)
        return FeatureRows(self.features[place], self.labels[index], self.weights[index])


class TensorBatches:
    """Iterate over slices of a dataset's tensors, with no workers and no collation.

    Parameters
    ----------
    dataset : FeatureRows
    batch_size : int
        A last batch of one row is merged into the one before it: batch norm can't train on it.
    generator : torch.Generator or None
        Shuffles anew in each epoch, and draws a view of each image.
    """

    def __init__(
        self, dataset: FeatureRows, batch_size: int, generator: torch.Generator | None = None
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.generator = generator

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
        dataset = self.dataset
        if self.generator is None:
            start = 0
            for size in self.sizes:
                yield dataset[start : start + size]
                start += size
            return
        order, places = (torch.split(part, self.sizes) for part in self.draw())
        for images, rows in zip(order, places, strict=True):
            yield dataset.features[rows], (dataset.labels[images], dataset.weights[images])

    def draw(self) -> tuple[Tensor, Tensor]:
        """Draw an epoch: its images in their order, and the row of each one's features."""
        n, n_views = len(self.dataset), self.dataset.n_views
        places = torch.zeros((), dtype=torch.int64)
        if n_views > 1:
            places = n * torch.randint(n_views, (n,), generator=self.generator)
        order = torch.arange(n)
        if self.batch_size < n or n_views > 1:
            order = torch.randperm(n, generator=self.generator)
        return order, places + order

    @property
    def sizes(self) -> list[int]:
        """How many rows each batch has."""
        n, size = len(self.dataset), self.batch_size
        sizes = [size] * (n // size) + [n % size] * (n % size > 0)
        if len(sizes) > 1 and sizes[-1] == 1:
            sizes[-2:] = [size + 1]
        return sizes


class Mixer:
    """Blend the images of a batch in pairs: mixup and cutmix.

    Parameters
    ----------
    mixup, cutmix : float
        Of the Beta(a, a) that a pair's shares are drawn from; 0 is without. With both, each
        batch draws one of them.

    References
    ----------
    H. Zhang et al., mixup: Beyond Empirical Risk Minimization (2018), arXiv:1710.09412;
    S. Yun et al., CutMix (2019), arXiv:1905.04899. On features they blend what the frozen
    stages give: V. Verma et al., Manifold Mixup (2019), arXiv:1806.05236.
    """

    def __init__(self, mixup: float, cutmix: float) -> None:
        self.mixup = mixup
        self.cutmix = cutmix

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor, float]:
        """Blend.

        Parameters
        ----------
        features : tensor of shape (n, ...)

        Returns
        -------
        features : tensor of shape (n, ...)
        partner : int64 tensor of shape (n,)
            The place of each image's other half in the batch.
        share : float
            Of the image itself.
        """
        partner = torch.randperm(len(features))
        # numpy has the Beta distribution as one number; its seed comes from torch's generator.
        draw = np.random.default_rng(int(torch.randint(2**31, ())))
        cuts = self.cutmix > 0 and features.ndim == 4
        if cuts and (not self.mixup or draw.random() < 0.5):
            mixed, share = _paste(features, features[partner], draw.beta(self.cutmix, self.cutmix))
            return mixed, partner, share
        share = float(draw.beta(self.mixup, self.mixup))
        mixed = torch.lerp(features[partner].float(), features.float(), share)
        whole = not features.is_floating_point()
        return (mixed.round() if whole else mixed).to(features.dtype), partner, share


def _paste(features: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    """Put a rectangle of the others over features; it takes 1 - share of the area."""
    window = [slice(None)] * features.ndim
    area = 1.0
    for axis in spatial_axes(features.shape):
        length = features.shape[axis]
        side = round(length * (1 - share) ** 0.5)
        start = int(torch.randint(length - side + 1, ()))
        window[axis] = slice(start, start + side)
        area *= side / length
    mixed = features.clone()
    mixed[tuple(window)] = others[tuple(window)]
    return mixed, 1 - area
