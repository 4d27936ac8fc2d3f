"""Random variations of prepared images, so that few of them teach more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from ..messages import shown
from ..randomness import seeded

Augment = str | Callable[[Tensor], Tensor] | None
AUGMENTATIONS = ("light", "trivialaugment", "randaugment")


class LightAugmentation(nn.Module):
    """Small changes that leave most pictures what they are, all images of a batch at once.

    Zoom and shift by what :class:`torchvision.transforms.v2.RandomResizedCrop` of 60 to 100 % of
    the area does, turn by up to 10 degrees, mirror half of the images, change brightness and
    contrast by up to 20 %. Pixels from outside repeat the border.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Vary a batch.

        Parameters
        ----------
        images : uint8 tensor of shape (n, 3, h, w)

        Returns
        -------
        uint8 tensor of shape (n, 3, h, w)
        """
        n = len(images)

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(n).uniform_(low, high)

        scale = uniform(0.6, 1.0).sqrt()
        stretch = uniform(-0.15, 0.15).exp()
        angle = uniform(-10, 10).deg2rad()
        mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
        width, height = (scale * stretch).clamp(max=1), (scale / stretch).clamp(max=1)
        matrix = torch.zeros(n, 2, 3)
        matrix[:, 0, 0], matrix[:, 0, 1] = width * angle.cos() * mirror, -height * angle.sin()
        matrix[:, 1, 0], matrix[:, 1, 1] = width * angle.sin() * mirror, height * angle.cos()
        matrix[:, 0, 2], matrix[:, 1, 2] = (
            uniform(-1, 1) * (1 - width),
            uniform(-1, 1) * (1 - height),
        )
        pixels = images.float()
        grid = F.affine_grid(matrix.to(images.device), list(images.shape), align_corners=False)
        pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        brightness, contrast = (uniform(0.8, 1.2).to(pixels)[:, None, None, None] for _ in "bc")
        mean = pixels.mean((1, 2, 3), keepdim=True)
        pixels = (pixels - mean) * contrast + mean * brightness
        return pixels.round_().clamp_(0, 255).to(torch.uint8)


class _EachImage(nn.Module):
    """Apply to each image alone what would change a batch in one way."""

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, images: Tensor) -> Tensor:
        made = [self.transform(image) for image in images]
        for one in made:
            if not isinstance(one, Tensor) or one.shape != images.shape[1:]:
                got = tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__
                raise ValueError(
                    f"augment must turn an image of shape {tuple(images.shape[1:])} into one of "
                    f"the same shape, got {got}. It comes after the images have been resized."
                )
            if one.dtype is not torch.uint8:
                raise ValueError(
                    f"augment must turn uint8 images into uint8 images, got {one.dtype}: leave "
                    "out ToDtype and Normalize, which sktl does itself."
                )
        return torch.stack(made)


def make_augmentation(augment: Augment) -> Callable[[Tensor], Tensor] | None:
    """Find what the parameter `augment` means.

    Parameters
    ----------
    augment : str, callable or None
        One of `AUGMENTATIONS`, or a function of one uint8 image of shape (3, h, w), such as a
        transform of :mod:`torchvision.transforms.v2`.

    Returns
    -------
    callable or None
        From a uint8 batch of shape (n, 3, h, w) to another.

    References
    ----------
    S. Müller and F. Hutter, TrivialAugment (2021), arXiv:2103.10158; E. Cubuk et al.,
    RandAugment (2020), arXiv:1909.13719. Both as torchvision has them.
    """
    if augment is None:
        return None
    if augment == "light":
        return LightAugmentation()
    if augment == "trivialaugment":
        return _EachImage(v2.TrivialAugmentWide())
    if augment == "randaugment":
        return _EachImage(v2.RandAugment())
    if isinstance(augment, str):
        raise ValueError(f"augment={shown(augment)} is not known. Choose one of {AUGMENTATIONS}.")
    return _EachImage(augment)


@dataclass(frozen=True)
class View:
    """One random variation of each image, the same each time it is asked for.

    Parameters
    ----------
    augment : str or callable
        See :func:`make_augmentation`.
    number : int
    """

    augment: Any
    number: int

    def digests(self, digests: Sequence[bytes]) -> list[bytes]:
        """Hashes of the varied images, from those of the images."""
        key = xxhash.xxh3_128(cloudpickle.dumps((self.augment, self.number, torch.__version__)))
        # A function of a module is pickled by its name, but may have been rewritten since.
        code = getattr(self.augment, "__code__", None)
        key.update(b"" if code is None else code.co_code + repr(code.co_consts).encode())
        mark = key.digest()
        return [xxhash.xxh3_128_digest(digest + mark) for digest in digests]

    def apply(self, images: Tensor, digests: Sequence[bytes]) -> Tensor:
        """Vary prepared images; a digest is the seed of what happens to its image."""
        transform = make_augmentation(self.augment)
        if transform is None:
            return images
        made = []
        for image, digest in zip(images, digests, strict=True):
            with seeded(int.from_bytes(digest[:8], "little")):
                made.append(transform(image[None]))
        return torch.cat(made)
