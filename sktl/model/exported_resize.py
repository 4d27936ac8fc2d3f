"""Bringing images to the network's size as a layer, also for programs that leave Python."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..images.preprocessing import REACH, STRIP_ASPECT, Recipe
from ..images.sizes import height_width

_LEAST = 1e-9  # no sum of weights is less, but that of a place beside the picture, which is zero
_INT16 = 2**15  # what a weight of torch's uint8 kernels stays below


class Resize(nn.Module):
    """What :meth:`sktl.images.preprocessing.Recipe.apply` does to a batch, pixel by pixel.

    :func:`torch.export.export`, :func:`torch.jit.trace` and :func:`torch.compile` record
    elementary operations instead, which ask nothing of the images' size: each axis is resized by a
    matrix product, and rounded. The matrices hold the 16-bit weights of torch's uint8 kernels, and
    sums of their products are exact in float64, so the pixels are bitwise those of a CPU. (ONNX has
    an operator that resizes, but it rounds otherwise.)

    Parameters
    ----------
    recipe : Recipe
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe

    def forward(self, images: Tensor) -> Tensor:
        """Bring images to the network's size.

        Parameters
        ----------
        images : uint8 tensor of shape (n, 3, h, w)

        Returns
        -------
        prepared : uint8 tensor of shape (n, 3, *recipe.size)

        Raises
        ------
        ValueError
            If a program is recorded, and the recipe is not antialiased bilinear or bicubic.
        """
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if tracing or torch.compiler.is_compiling():
            return self._recorded(images)
        return self.recipe.apply(images)

    def _recorded(self, images: Tensor) -> Tensor:
        interpolation = self.recipe.interpolation
        if interpolation not in _FILTERS or not self.recipe.antialias:
            raise ValueError(
                "only antialiased bilinear and bicubic resizing can be written into a program, and "
                f"this network's images are resized with interpolation={interpolation!r}, "
                f"antialias={self.recipe.antialias}."
            )
        axes = [
            torch.arange(images.shape[axis], dtype=torch.float64, device=images.device)
            for axis in (-2, -1)
        ]
        # Lengths are read from tensors, which a trace doesn't take for constants.
        lengths = [pixels[-1] + 1 for pixels in axes]
        # The size to cover, equal or fit into; of squares these are the same.
        sides = height_width(self.recipe.resize) if self.recipe.cuts else self.recipe.size
        resized = self._resized(lengths[0], lengths[1], sides)
        (down, unit_down, rows), (along, unit_along, columns) = (
            self._weights(*axis)
            for axis in zip(axes, resized, self.recipe.size, sides, strict=True)
        )
        wide = _rounded(torch.matmul(images.double(), along.T), unit_along)
        found = _rounded(torch.matmul(down, wide), unit_down)
        if self.recipe.resize_mode == "pad":
            colour = torch.tensor(self.recipe.fill, dtype=found.dtype, device=found.device)
            found = torch.where(rows & columns.T, found, colour[:, None, None])
        return found.to(torch.uint8)

    @property
    def _crops(self) -> bool:
        return self.recipe.resize_mode == "crop"

    def _resized(self, height: Tensor, width: Tensor, sides: tuple[int, int]) -> list[Tensor]:
        """See :meth:`sktl.images.preprocessing.Recipe.resized`."""
        rows, columns = sides
        full = [torch.full_like(height, rows), torch.full_like(width, columns)]
        if self.recipe.resize_mode in ("squash", "squash_crop"):
            return full
        is_wide = height * columns <= width * rows
        keeps_rows = is_wide if self._crops else ~is_wide
        other = [
            torch.floor(columns * height / width).clamp_min(1.0),
            torch.floor(rows * width / height).clamp_min(1.0),
        ]
        return [
            torch.where(keeps_rows, full[0], other[0]),
            torch.where(keeps_rows, other[1], full[1]),
        ]

    def _weights(
        self, pixels: Tensor, resized: Tensor, crop: int, side: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What each pixel of an axis adds to those of the crop, what stands for one, and where.

        `pixels` are counted from 0; `side` is what the resized axis covers. Where padding lies,
        the third is false.
        """
        length = pixels[-1] + 1
        start = torch.round((resized - crop) / 2)
        left, right = self._window(length, resized, start, crop, side)
        begin, end = torch.round(left * length / resized), torch.round(right * length / resized)
        inside = pixels - begin, end - begin, right - left
        # No place has a larger weight than those of the first half, or of a strip's first period.
        first = _count((3 * side + 1) // 2, pixels)
        largest = torch.where(first < right - left, self._filtered(first, *inside), 0.0).max()
        # The most powers of two by which the largest weight stays within 16 bits.
        powers = 2.0 ** torch.arange(1, 23, dtype=pixels.dtype, device=pixels.device)
        unit = torch.where(torch.floor(largest * powers + 0.5) < _INT16, powers, 1.0).max()
        places = start - left + _count(crop, pixels)
        exact = self._filtered(places, *inside) * unit
        weights = torch.where(exact < 0, torch.ceil(exact - 0.5), torch.floor(exact + 0.5))
        return weights, unit, (places >= 0) & (places < right - left)

    def _window(
        self, length: Tensor, resized: Tensor, start: Tensor, crop: int, side: int
    ) -> tuple[Tensor, Tensor]:
        """The part of the resized axis that is computed: all, except of a strip; see Recipe."""
        scale = length / resized
        reach = REACH[self.recipe.interpolation] + 1
        margin = torch.floor(reach * (1 / scale).clamp_min(1.0)) + 1
        outward = torch.arange(side, dtype=scale.dtype, device=scale.device)
        left = _anchor(start - margin - outward, resized, scale)
        right = _anchor(start + crop + margin + outward, resized, scale)
        strip = resized > STRIP_ASPECT * side
        return torch.where(strip, left, 0.0), torch.where(strip, right, resized)

    def _filtered(self, places: Tensor, pixels: Tensor, length: Tensor, resized: Tensor) -> Tensor:
        """Weights of shape (len(places), len(pixels)) that add up to 1 for each place."""
        function = _FILTERS[self.recipe.interpolation]
        scale = length / resized
        stretch = scale.clamp_min(1.0)
        reach = REACH[self.recipe.interpolation] * stretch
        centre = scale * (places + 0.5)
        first = torch.floor(centre - reach + 0.5).clamp_min(0.0)
        last = torch.minimum(torch.floor(centre + reach + 0.5), length)
        weights = function(((pixels - centre + 0.5) * (1 / stretch)).abs())
        weights = torch.where((pixels >= first) & (pixels < last), weights, 0.0)
        return weights / weights.sum(dim=1, keepdim=True).clamp_min(_LEAST)

    def extra_repr(self) -> str:
        """Show the recipe."""
        return repr(self.recipe)


def _count(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, dtype=like.dtype, device=like.device)[:, None]


def _anchor(candidates: Tensor, resized: Tensor, scale: Tensor) -> Tensor:
    """The first of the candidates nearest to a pixel border of the source."""
    candidates = torch.minimum(candidates.clamp_min(0.0), resized)
    position = candidates * scale
    nearest = torch.argmin((position - torch.round(position)).abs())
    return candidates.index_select(0, nearest.reshape(1)).reshape(())


def _rounded(sums: Tensor, unit: Tensor) -> Tensor:
    return torch.floor((sums + unit / 2) / unit).clamp(0, 255)


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp_min(0.0)


def _cubic(distance: Tensor) -> Tensor:
    """R. Keys' kernel with a = -0.5, as Pillow has it."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


_FILTERS = {"bilinear": _triangle, "bicubic": _cubic}
