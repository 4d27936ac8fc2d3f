"""From uint8 images of any size to the square, normalised images a network was trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .images import Images, stack_channels_last

# The modes that a tensor can be resized with, and how many source pixels each reaches to a side
# (times the scale, when an antialiased filter shrinks an image).
REACH = {"nearest": 1, "nearest-exact": 1, "bilinear": 1, "bicubic": 2}

# A picture whose long side is up to this many times its short side is resized whole.
STRIP_ASPECT = 3

# Images of a list are stacked up to this many bytes: small ones share a call, and large ones,
# which would gain little by it, aren't copied.
_STACK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Recipe:
    """The preparation that a network's weights were trained with.

    Resize the shorter side, cut a square out of the centre, normalise. :meth:`apply` does the
    first two, in uint8; :class:`Normalize` the third, on the network's device.

    Parameters
    ----------
    resize : int
        Length of the shorter side in pixels, before the crop. At least `crop`.
    crop : int
        Side of the square centre crop.
    interpolation : {"nearest", "nearest-exact", "bilinear", "bicubic"}
        A value of :class:`torchvision.transforms.InterpolationMode`.
    mean, std : tuple of 3 floats
        What each channel of a [0, 1] image is centred by and divided by.
    antialias : bool, default=True
        Whether shrinking averages over all source pixels (as PIL does) or samples a few.
    """

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    antialias: bool = True

    def __post_init__(self) -> None:
        """Refuse a recipe that can't be followed."""
        if self.interpolation not in REACH:
            raise ValueError(
                f"interpolation must be one of {sorted(REACH)}, got {self.interpolation!r}."
            )
        if not 1 <= self.crop <= self.resize:
            raise ValueError(
                f"crop must be between 1 and resize={self.resize} pixels, got {self.crop}."
            )

    @classmethod
    def from_transforms(cls, transforms: Any) -> Recipe:
        """Read the recipe of torchvision's weights.

        Parameters
        ----------
        transforms : torchvision.transforms._presets.ImageClassification
            What ``weights.transforms()`` gives for a classification model.

        Returns
        -------
        recipe : Recipe
        """
        red, green, blue = transforms.mean
        std_red, std_green, std_blue = transforms.std
        return cls(
            resize=_single(transforms.resize_size),
            crop=_single(transforms.crop_size),
            interpolation=InterpolationMode(transforms.interpolation).value,
            mean=(float(red), float(green), float(blue)),
            std=(float(std_red), float(std_green), float(std_blue)),
            antialias=bool(transforms.antialias),
        )

    def at(self, image_size: int) -> Recipe:
        """Give the same recipe for another crop.

        Parameters
        ----------
        image_size : int
            The new `crop`; `resize` keeps its proportion to it, to the nearest pixel.

        Returns
        -------
        recipe : Recipe
        """
        resize = max(image_size, round(self.resize * image_size / self.crop))
        return Recipe(resize, image_size, self.interpolation, self.mean, self.std, self.antialias)

    def read(self, images: Images, indices: Sequence[int]) -> Tensor:
        """Read some images, resize and crop them.

        Returns
        -------
        cropped : uint8 tensor of shape (len(indices), 3, crop, crop)
            In channels-last memory format.
        """
        # Without antialiasing, pixels are dropped that decoding at a fraction would blend.
        return self.apply(images.batch(indices, self.resize if self.antialias else None))

    def apply(self, images: Tensor | list[Tensor]) -> Tensor:
        """Resize and crop.

        Agrees with torchvision's own transforms of the same image. Images laid out as
        (h, w, 3) in memory, whatever the order of their axes, are the fastest.

        Parameters
        ----------
        images : uint8 tensor of shape (n, 3, h, w), or list of uint8 tensors (3, h, w)
            The images of a list may differ in size.

        Returns
        -------
        cropped : uint8 tensor of shape (n, 3, crop, crop)
            In channels-last memory format.
        """
        if isinstance(images, Tensor):
            return self._apply_to_batch(images)
        if not images:
            return torch.empty((0, 3, self.crop, self.crop), dtype=torch.uint8)
        order, batches = _group_by_size(images)
        # Few calls on much data: each call waits for all of torch's threads.
        return _take(torch.cat([self._apply_to_batch(batch) for batch in batches]), order)

    def _apply_to_batch(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        short = min(height, width)
        # As torchvision rounds: the longer side down.
        rows = self._span(height, self.resize * height // short)
        columns = self._span(width, self.resize * width // short)
        window = images[..., rows.source, columns.source]
        if rows.resized > window.shape[-2]:
            # torch resizes uint8 faster when the channels are innermost. Where images shrink,
            # moving them there first costs more than it saves.
            window = window.contiguous(memory_format=torch.channels_last)
        resized = F.resize(
            window,
            [rows.resized, columns.resized],
            interpolation=InterpolationMode(self.interpolation),
            antialias=self.antialias,
        )
        cropped: Tensor = resized[..., rows.crop, columns.crop]
        return cropped.contiguous(memory_format=torch.channels_last)

    def _span(self, length: int, resized: int) -> _Span:
        """Say which pixels of an axis to resize, to how many, and which of those to keep."""
        start = round((resized - self.crop) / 2)
        if resized <= STRIP_ASPECT * self.resize:
            return _Span(slice(0, length), resized, slice(start, start + self.crop))

        # A strip: resized whole it could have millions of pixels, of which the crop keeps
        # hundreds. Resize only a window, with margins that hide its borders from the crop.
        scale = length / resized
        margin = int((REACH[self.interpolation] + 1) * max(1.0, 1 / scale)) + 1
        left = _anchor(start - margin, -1, self.resize, resized, scale)
        right = _anchor(start + self.crop + margin, 1, self.resize, resized, scale)
        return _Span(
            source=slice(round(left * scale), round(right * scale)),
            resized=right - left,
            crop=slice(start - left, start - left + self.crop),
        )


@dataclass(frozen=True)
class _Span:
    """How one axis is resized and cropped."""

    source: slice
    resized: int
    crop: slice


def _anchor(nearest: int, step: int, tries: int, resized: int, scale: float) -> int:
    """Find a position in the resized axis that lies on a pixel border of the source.

    The window between two such positions is resized by the scale of the whole axis, so its
    pixels are those of the whole. Candidates are `tries` positions outward from `nearest`;
    either end of the axis is a border as well. With `tries` the length of the resized short
    side, one candidate is exact but for the rounding of the resized long side.
    """

    def distance(position: int) -> float:
        return abs(position * scale - round(position * scale))

    candidates = (nearest + step * i for i in range(tries))
    return min((min(max(c, 0), resized) for c in candidates), key=distance)


def _single(size: Any) -> int:
    """Read a size that torchvision may keep as an int or a list of one."""
    return int(size) if isinstance(size, int) else int(size[0])


def _group_by_size(images: list[Tensor]) -> tuple[list[int], Iterator[Tensor]]:
    """Give the rows of the list in the order of the batches, and the batches."""
    rows_of_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for row, image in enumerate(images):
        rows_of_shape[image.shape].append(row)
    runs = []
    for shape, rows in rows_of_shape.items():
        step = max(1, _STACK_BYTES // shape.numel())
        runs += [rows[first : first + step] for first in range(0, len(rows), step)]
    return [row for run in runs for row in run], (
        stack_channels_last([images[row] for row in run]) for run in runs
    )


def _take(images: Tensor, order: list[int]) -> Tensor:
    """Put the image at position i in row order[i]."""
    if order == sorted(order):
        return images
    rows = torch.tensor(order, device=images.device).argsort()
    # With the channels last each image is one run of memory, which index_select copies fast.
    return images.movedim(1, -1).index_select(0, rows).movedim(-1, 1)


class Normalize(nn.Module):
    """Normalise uint8 images: the first layer of every network here.

    Computes ``(x / 255 - mean) / std`` as one multiply-add, ``x * scale + shift``, in the dtype
    of its buffers, so ``module.to(torch.bfloat16)`` gives bfloat16 images. Keeps the memory
    format. Traceable with :mod:`torch.fx`.

    Parameters
    ----------
    mean, std : tuple of 3 floats
        As in :class:`Recipe`.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        # In double precision, rounded once.
        wide_mean = torch.tensor(mean, dtype=torch.float64).reshape(3, 1, 1)
        wide_std = torch.tensor(std, dtype=torch.float64).reshape(3, 1, 1)
        dtype = torch.get_default_dtype()
        self.register_buffer("scale", (1 / (255 * wide_std)).to(dtype))
        self.register_buffer("shift", (-wide_mean / wide_std).to(dtype))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise a batch.

        Parameters
        ----------
        images : uint8 tensor of shape (n, 3, h, w)

        Returns
        -------
        normalized : floating tensor of shape (n, 3, h, w)
        """
        # .to(a tensor), since a dtype read here would be frozen into a traced graph.
        return torch.addcmul(self.shift, images.to(self.scale), self.scale)
