"""Resizing and cropping as :class:`sktl.preprocessing.Recipe` does, for programs that leave Python.

The sizes of the images are unknown when such a program is written, so neither form asks whether
a size is this or that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .preprocessing import Recipe

_INT16 = 2**15  # what a weight of torch's uint8 kernels stays below


class ResizeAndCrop(nn.Module):
    """Resize the shorter side and cut a square out of the centre, with torch's own kernels.

    For :func:`torch.export.export`, :func:`torch.jit.trace` and :func:`torch.compile`, with images
    of any size. On a CPU the pixels are those of :meth:`sktl.preprocessing.Recipe.apply`, except
    that a few of a strip's may differ by a grey level, since it is resized whole. Other devices
    compute in float32, and round.

    Parameters
    ----------
    recipe : Recipe
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.resize = recipe.resize
        self.crop = recipe.crop
        self.interpolation = recipe.interpolation
        self.antialias = recipe.antialias

    def forward(self, images: Tensor) -> Tensor:
        """Resize a batch.

        Parameters
        ----------
        images : uint8 tensor of shape (n, 3, h, w)

        Returns
        -------
        cropped : uint8 tensor of shape (n, 3, crop, crop)
        """
        cropped: Tensor = _resize_and_crop(
            images, self.resize, self.crop, self.interpolation, self.antialias
        )
        return cropped

    def extra_repr(self) -> str:
        """Show the recipe."""
        return (
            f"resize={self.resize}, crop={self.crop}, interpolation={self.interpolation!r}, "
            f"antialias={self.antialias}"
        )


# Tracing would take sizes for constants; a script computes with them.
@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def _resize_and_crop(
    images: Tensor, resize: int, crop: int, interpolation: str, antialias: bool
) -> Tensor:
    height, width = images.shape[-2], images.shape[-1]
    # min() would ask which is less, and so bind an exported program to the answer.
    short = min(height, width) if torch.jit.is_scripting() else torch.sym_min(height, width)
    rows = resize * height // short
    columns = resize * width // short
    smooth = interpolation == "bilinear" or interpolation == "bicubic"
    pixels = images if images.device.type == "cpu" or not smooth else images.float()
    resized = F.interpolate(
        pixels,
        size=[rows, columns],
        mode=interpolation,
        align_corners=False if smooth else None,
        antialias=antialias and smooth,
    )
    if resized.is_floating_point():
        resized = resized.round().clamp(0, 255).to(torch.uint8)
    places = torch.arange(crop, device=images.device)
    # round((rows - crop) / 2), with halves to the even number, in integers.
    top = (rows - crop + (rows - crop) // 2 % 2) // 2
    left = (columns - crop + (columns - crop) // 2 % 2) // 2
    return resized.index_select(-2, places + top).index_select(-1, places + left)


class ResampleAndCrop(nn.Module):
    """The same for ONNX, whose own Resize rounds otherwise than torch does.

    An image is resized by a matrix product an axis, rounded after each. The matrices hold the
    16-bit weights of torch's uint8 kernels, and sums of their products are exact in float64, so
    the pixels are bitwise those of :class:`ResizeAndCrop` on a CPU.

    Parameters
    ----------
    recipe : Recipe
        Antialiased, "bilinear" or "bicubic".

    Raises
    ------
    ValueError
        If it is another.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        if recipe.interpolation not in _FILTERS or not recipe.antialias:
            raise ValueError(
                "Only antialiased bilinear and bicubic resizing can be written as ONNX, and this "
                f"network's images are resized with interpolation={recipe.interpolation!r}, "
                f"antialias={recipe.antialias}. Use to_torch and torch.export."
            )
        self.resize = recipe.resize
        self.crop = recipe.crop
        self.interpolation = recipe.interpolation

    def forward(self, images: Tensor) -> Tensor:
        """Resize a batch; see :class:`ResizeAndCrop`."""
        height, width = (torch.scalar_tensor(n, dtype=torch.float64) for n in images.shape[-2:])
        short = torch.minimum(height, width)
        columns, unit = self._weights(images.shape[-1], width, short)
        wide = _rounded(torch.matmul(images.double(), columns.T), unit)
        rows, unit = self._weights(images.shape[-2], height, short)
        return _rounded(torch.matmul(rows, wide), unit).to(torch.uint8)

    def _weights(self, n: int, length: Tensor, short: Tensor) -> tuple[Tensor, Tensor]:
        """What each of an axis' n pixels adds to those of the crop, and what stands for one.

        `length` is n, and `short` the lesser of both axes.
        """
        resized = torch.floor(self.resize * length / short)
        # No weight is larger than those of the first half of an axis; strips repeat themselves.
        first = torch.arange((3 * self.resize + 1) // 2, dtype=torch.float64)[:, None]
        largest = torch.where(
            first < resized, self._filtered(first, n, length, resized), 0.0
        ).max()
        # Powers of two by which the largest weight stays within 16 bits.
        powers = 2.0 ** torch.arange(1, 23, dtype=torch.float64)
        fitting = torch.floor(largest * powers + 0.5) < _INT16
        unit = torch.where(fitting, powers, 1.0).max()
        start = torch.round((resized - self.crop) / 2)
        places = start + torch.arange(self.crop, dtype=torch.float64)[:, None]
        exact = self._filtered(places, n, length, resized) * unit
        return torch.where(exact < 0, torch.ceil(exact - 0.5), torch.floor(exact + 0.5)), unit

    def _filtered(self, places: Tensor, n: int, length: Tensor, resized: Tensor) -> Tensor:
        """Weights of shape (len(places), n) that add up to 1 for each place."""
        function, reach = _FILTERS[self.interpolation]
        scale = length / resized
        stretch = scale.clamp_min(1.0)
        centre = scale * (places + 0.5)
        pixels = torch.arange(n, dtype=torch.float64)
        begin = torch.floor(centre - reach * stretch + 0.5)
        end = torch.floor(centre + reach * stretch + 0.5)
        weights = function(((pixels - centre + 0.5) * (1 / stretch)).abs())
        weights = torch.where((pixels >= begin) & (pixels < end), weights, 0.0)
        return weights / weights.sum(dim=1, keepdim=True)


def _rounded(sums: Tensor, unit: Tensor) -> Tensor:
    return torch.floor((sums + unit / 2) / unit).clamp(0, 255)


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp_min(0.0)


def _cubic(distance: Tensor) -> Tensor:
    """R. Keys' kernel with a = -0.5, as Pillow has it."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


_FILTERS = {"bilinear": (_triangle, 1), "bicubic": (_cubic, 2)}
