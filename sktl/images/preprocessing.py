"""From uint8 images of any size to the normalised images of one size that a network takes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..messages import shown
from .errors import Unreadable
from .reading import Images, stack_channels_last
from .sizes import Size, as_size, checked_sides, height_width

# What becomes of a picture whose shape isn't the network's; the last is for recipes alone.
RESIZE_MODES = ("crop", "squash", "pad")
RECIPE_MODES = (*RESIZE_MODES, "squash_crop")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

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
    """How pictures are prepared for a network: brought to its size, and normalised.

    The defaults are those of ImageNet. Pass one as the parameter `preprocessing` of an estimator
    for a network that doesn't bring its own.

    Parameters
    ----------
    resize : int or (int, int), default=256
        The size, at least `crop`, to which a picture is resized before it is cropped; "squash" and
        "pad" don't use it. Of "crop", a picture covers it: one number is the length of its shorter
        side.
    crop : int or (int, int), default=224
        The size that the network sees: its side, or its height and width.
    interpolation : {"nearest", "nearest-exact", "bilinear", "bicubic"}, default="bilinear"
        A value of :class:`torchvision.transforms.InterpolationMode`.
    mean, std : tuple of 3 floats
        What each channel of a [0, 1] image is centred by and divided by. The default is ImageNet's,
        (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225).
    antialias : bool, default=True
        Whether shrinking averages over all source pixels (as PIL does) or samples a few.
    resize_mode : {"crop", "squash", "pad", "squash_crop"}, default="crop"
        "crop" cuts the centre out of a picture that covers `resize`, as most weights were
        evaluated. "squash" resizes the whole picture to `crop`, whatever that does to its shape.
        "pad" resizes it into `crop`, and fills the rest with the mean colour. "squash_crop" resizes
        the whole picture to `resize`, and cuts out the centre.

    Examples
    --------
    >>> from sktl import Recipe
    >>> Recipe(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).at(384).resize
    439
    """

    resize: Size = 256
    crop: Size = 224
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    antialias: bool = True
    resize_mode: str = "crop"

    def __post_init__(self) -> None:
        """Refuse a recipe that can't be followed."""
        for name, value, known in (
            ("interpolation", self.interpolation, sorted(REACH)),
            ("resize_mode", self.resize_mode, RECIPE_MODES),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {list(known)}, got {shown(value)}.")
        for name in ("resize", "crop"):
            object.__setattr__(self, name, checked_sides(name, getattr(self, name)))
        for name, least in (("mean", -math.inf), ("std", 0.0)):
            object.__setattr__(self, name, _checked_channels(name, getattr(self, name), least))
        if any(c > r for c, r in zip(self.size, height_width(self.resize), strict=True)):
            raise ValueError(
                f"crop must be between 1 and resize={self.resize} pixels, got {self.crop}."
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        return height_width(self.crop)

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

    def at(self, image_size: Size) -> Recipe:
        """Give the same recipe for another size.

        Parameters
        ----------
        image_size : int or (int, int)
            The new `crop`; `resize` keeps its proportion to it, to the nearest pixel.

        Returns
        -------
        recipe : Recipe
        """
        sides = zip(
            height_width(image_size),
            height_width(self.resize),
            height_width(self.crop),
            strict=True,
        )
        height, width = (max(new, round(resize * new / crop)) for new, resize, crop in sides)
        resize = height if height == width else (height, width)
        return replace(self, resize=resize, crop=as_size(image_size))

    def read(self, images: Images, indices: Sequence[int]) -> tuple[Tensor, Unreadable]:
        """Read some images and bring them to the network's size.

        Returns
        -------
        prepared : uint8 tensor of shape (len(indices), 3, h, w)
            In channels-last memory format. Of an image that can't be read it means nothing.
        unreadable : dict of int to str
            See ``Images.read``.
        """
        # Without antialiasing, pixels are dropped that decoding at a fraction would blend.
        size = max(self._sides()) if self.antialias else None
        pixels, unreadable = images.read(indices, size)
        return self.apply(pixels), unreadable

    def batch(self, images: Images, indices: Sequence[int]) -> Tensor:
        """Prepare images as :meth:`read` does, all of which must be readable.

        Raises
        ------
        UnreadableImagesError
        """
        prepared, unreadable = self.read(images, indices)
        images.refuse(unreadable)
        return prepared

    def _sides(self) -> tuple[int, int]:
        """The size that pictures are resized to cover, to equal or to fit into."""
        return height_width(self.resize) if self.cuts else self.size

    @property
    def cuts(self) -> bool:
        """Whether the resized picture is larger than what is kept of it."""
        return self.resize_mode in ("crop", "squash_crop")

    def apply(self, images: Tensor | list[Tensor]) -> Tensor:
        """Bring images to the network's size.

        With "crop", agrees with torchvision's own transforms of the same image. Images laid out as
        (h, w, 3) in memory, whatever the order of their axes, are the fastest.

        Parameters
        ----------
        images : uint8 tensor of shape (n, 3, h, w), or list of uint8 tensors (3, h, w)
            The images of a list may differ in size.

        Returns
        -------
        prepared : uint8 tensor of shape (n, 3, h, w)
            In channels-last memory format.
        """
        if isinstance(images, Tensor):
            return self._apply_to_batch(images)
        if not images:
            return torch.empty((0, 3, *self.size), dtype=torch.uint8)
        order, batches = _group_by_size(images)
        # Few calls on much data: each call waits for all of torch's threads.
        return _take(torch.cat([self._apply_to_batch(batch) for batch in batches]), order)

    def _apply_to_batch(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        resized = self.resized(height, width)
        rows, columns = (
            self._span(length, n, crop, side)
            for length, n, crop, side in zip(
                (height, width), resized, self.size, self._sides(), strict=True
            )
        )
        window = images[..., rows.source, columns.source]
        if rows.resized > window.shape[-2]:
            # torch resizes uint8 faster when the channels are innermost. Where images shrink,
            # moving them there first costs more than it saves.
            window = window.contiguous(memory_format=torch.channels_last)
        found = F.resize(
            window,
            [rows.resized, columns.resized],
            interpolation=InterpolationMode(self.interpolation),
            antialias=self.antialias,
        )
        if self.resize_mode == "pad":
            return self._padded(found)
        cropped: Tensor = found[..., rows.crop, columns.crop]
        return cropped.contiguous(memory_format=torch.channels_last)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """To what height and width a picture is resized, before it is cropped or padded."""
        rows, columns = self._sides()
        if self.resize_mode in ("squash", "squash_crop"):
            return rows, columns
        # Which side is kept, and that of the other the fraction is dropped, is as in torchvision.
        is_wide = height * columns <= width * rows
        if is_wide == (self.resize_mode == "crop"):
            return rows, max(1, rows * width // height)
        return max(1, columns * height // width), columns

    def place(self, height: int, width: int) -> tuple[slice, slice]:
        """Where a picture of this size lies on what the network sees: its rows and columns.

        A picture that is cropped begins before 0 and ends after the last one.
        """
        starts = (
            (-_start(n, size), n)
            for n, size in zip(self.resized(height, width), self.size, strict=True)
        )
        rows, columns = (slice(start, start + n) for start, n in starts)
        return rows, columns

    def back(self, values: Tensor, height: int, width: int) -> Tensor:
        """Lay what belongs to the pixels that the network sees on the picture they come from.

        Parameters
        ----------
        values : floating tensor of shape `size`
        height, width : int
            Of the picture, in any scale.

        Returns
        -------
        tensor of shape (height, width)
            Zero where the network sees nothing of the picture.
        """
        rows, columns = self.place(height, width)
        whole = values.new_zeros(rows.stop - rows.start, columns.stop - columns.start)
        inside, seen = zip(
            *(
                (
                    slice(max(0, -at.start), min(at.stop, n) - at.start),
                    slice(max(0, at.start), min(at.stop, n)),
                )
                for at, n in zip((rows, columns), self.size, strict=True)
            ),
            strict=True,
        )
        whole[inside] = values[seen]
        return interpolate(whole[None, None], (height, width), mode="bilinear")[0, 0]

    @property
    def fill(self) -> tuple[int, int, int]:
        """The colour beside a padded picture: the mean, which the network sees as nothing."""
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue

    def _padded(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        colour = torch.tensor(self.fill, dtype=torch.uint8, device=images.device)
        page = colour.expand(len(images), *self.size, 3).clone().movedim(-1, 1)
        top, left = (-_start(n, size) for n, size in zip((height, width), self.size, strict=True))
        page[..., top : top + height, left : left + width] = images
        return page

    def _span(self, length: int, resized: int, crop: int, side: int) -> _Span:
        """Say which pixels of an axis to resize, to how many, and which of those to keep.

        `side` is what the resized axis covers.
        """
        start = _start(resized, crop)
        if resized <= STRIP_ASPECT * side:
            return _Span(slice(0, length), resized, slice(start, start + crop))

        # A strip: resized whole it could have millions of pixels, of which the crop keeps
        # hundreds. Resize only a window, with margins that hide its borders from the crop.
        scale = length / resized
        margin = int((REACH[self.interpolation] + 1) * max(1.0, 1 / scale)) + 1
        left = _anchor(start - margin, -1, side, resized, scale)
        right = _anchor(start + crop + margin, 1, side, resized, scale)
        return _Span(
            source=slice(round(left * scale), round(right * scale)),
            resized=right - left,
            crop=slice(start - left, start - left + crop),
        )


def _start(resized: int, crop: int) -> int:
    """Where what the network sees begins on the resized axis; before it, where it is padded."""
    return round((resized - crop) / 2)


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


def _checked_channels(name: str, values: Any, least: float) -> tuple[float, ...]:
    """Three finite numbers above `least`, as floats."""
    three = isinstance(values, Sequence | np.ndarray) and len(values) == 3
    if not three or not all(isinstance(v, Real) and least < float(v) < math.inf for v in values):
        above = "" if least else " above 0"
        raise ValueError(
            f"{name} must be three numbers{above}, one for each of red, green and blue, got "
            f"{shown(values)}."
        )
    return tuple(map(float, values))


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
