"""How the numbers of X are to be read: decided once, in fit, and the same for any later X."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..messages import shown
from .bands import BandChoice, Bands, axis_of_bands, checked_bands
from .decoding import (
    bounds_of_bands,
    decode_bands,
    has_deep_bands,
    is_about_the_image,
    pillow_bands,
    scale_to_uint8,
)
from .depth import bounds_of, bounds_of_image, depth_of
from .errors import listed
from .kinds import Array, File, Kind, Samples, channel_axis, checked_samples, kind_of

Range: TypeAlias = tuple[float, float]

EIGHT_BIT: Range = (0.0, 255.0)
COMMON_HIGHS = (1.0, 16.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
_DARK = 0.25  # share of a range below which values are less than those of the next smaller depth
_LOOKED_AT = 64  # rows of 8-bit arrays at a time
_SAMPLED = 32  # files of more than 8 bits that tell of their range
_SLACK = 0.1  # of a range; resampled pictures overshoot somewhat
STRIP_BELOW = 32  # rows narrower than this are seldom pictures, so any width will do


@dataclass(frozen=True)
class ImageFormat:
    """How to read X: learned in fit, kept by the estimator, used again in predict.

    Parameters
    ----------
    kind : {"rows", "arrays", "images", "paths"}
        What fit was given.
    image_shape : tuple of int or None
        Shape of the image in one row; None where no rows were seen and none was given.
    pixel_range : tuple of (float, float)
        The values that become 0 and 255.
    learned_from : {"given", "8-bit", "values"}
        Whether `pixel_range` is the user's, what 8-bit images mean, or was decided from
        the values of other arrays, files and PIL images.
    in_colour : bool, default=False
        Whether fit saw files or pictures with colours, so that an array (h, w, 3) is most likely
        one of them, and not h grey pictures.
    bands : tuple or None, default=None
        Numbers of the channels that are red, green and blue, or tuples of those of which the mean
        is; None where there are no others.
    n_bands : int or None, default=None
        How many bands pictures must have, where the parameter `bands` is "all".
    """

    kind: Kind
    image_shape: tuple[int, ...] | None
    pixel_range: Range
    learned_from: Literal["given", "8-bit", "values"]
    in_colour: bool = False
    bands: Bands | None = None
    n_bands: int | None = None

    @property
    def choice(self) -> BandChoice | None:
        """What becomes of bands."""
        return None if self.bands is None else BandChoice(self.bands, self.n_bands)

    def range_of(self, dtype: np.dtype[Any]) -> Range:
        """Give the range of an array of this dtype; ValueError if fit could not know it."""
        if self.learned_from == "given":
            return self.pixel_range
        if dtype == np.uint8:
            return self._range_of_uint8()
        if dtype == np.bool_:
            return (0.0, 1.0)
        if self.learned_from == "values":
            return self.pixel_range
        raise ValueError(
            f"X holds {dtype} images, but fit saw only 8-bit ones, so which values are black "
            "and white is not known. Pass uint8 images, or set pixel_range (such as (0, 1)) "
            "and fit again."
        )

    def scale(self, values: Array) -> npt.NDArray[np.uint8]:
        """Make grey levels of the values of a file or PIL image of more than 8 bits.

        Raises
        ------
        ValueError
            If fit could not know what they mean, or took them for much smaller ones.
        """
        if self.learned_from == "8-bit":
            raise ValueError(
                f"its values are of {values.dtype}, and fit saw pictures of 8 bits only, so which "
                "values are black and white is not known; set pixel_range=(black, white), such as "
                "(0, 65535), and fit again"
            )
        low, high = self.pixel_range
        if self.learned_from == "values" and low == 0 and high in COMMON_HIGHS:
            least, greatest = float(values.min()), float(values.max())
            if least < -_SLACK * high or greatest > (1 + _SLACK) * high:
                raise ValueError(
                    f"its values go from {least:g} to {greatest:g}, but fit took {low:g} for black "
                    f"and {high:g} for white; set pixel_range=(black, white) and fit again"
                )
        return scale_to_uint8(values, self.pixel_range)

    def _range_of_uint8(self) -> Range:
        # After digits' 0 to 16, uint8 may be the same digits in another dtype.
        if self.learned_from == "values" and self.pixel_range[1] not in (1.0, *COMMON_HIGHS[2:]):
            raise ValueError(
                f"X holds uint8 images, which mean 0 to 255, but fit saw values from "
                f"{self.pixel_range[0]:g} to {self.pixel_range[1]:g}. Pass X with the dtype that "
                "fit saw, or set pixel_range and fit again."
            )
        return EIGHT_BIT


def learn_format(
    X: Any,
    *,
    image_shape: Sequence[int] | None = None,
    pixel_range: Sequence[float] | None = None,
    bands: Sequence[int | Sequence[int]] | Literal["all"] | None = None,
    rows: npt.ArrayLike | None = None,
) -> ImageFormat:
    """Decide how X and what comes after it are to be read.

    Parameters
    ----------
    X : object
        What fit was given; where `kind_of` says "rows", the validated array.
    image_shape : sequence of int, default=None
        Shape of the image in one row, (h, w), (h, w, c) or (c, h, w).
    pixel_range : (low, high), default=None
        The values that become 0 and 255. Counts for all arrays, and for files and PIL images of
        more than 8 bits.
    bands : (red, green, blue) or "all", default=None
        Numbers of the channels to take, where arrays and files have others; a tuple of numbers is
        their mean. "all" takes those of the first picture in turn.
    rows : array-like of bool of shape (n_samples,), default=None
        The samples to look at when deciding the range.

    Returns
    -------
    fmt : ImageFormat
    """
    given_bands = None if bands is None else checked_bands(bands)
    given_shape = None if image_shape is None else _checked_image_shape(image_shape, given_bands)
    given_range = None if pixel_range is None else _checked_range(pixel_range)
    kind = kind_of(X)
    choice = None
    if given_bands is not None:
        choice = BandChoice((0, 0, 0) if given_bands == "all" else given_bands)
    samples = checked_samples(X, kind, choice)
    if kind == "rows":
        assert isinstance(samples, np.ndarray)
        given_shape = _row_shape(samples, given_shape)
        if choice is not None:
            choice.axis(given_shape, f"image_shape={given_shape}")
            samples = samples.reshape(len(samples), *given_shape)
    if given_bands == "all":
        choice = BandChoice.of_all(_number_of_bands(samples))
        if kind == "images":
            checked_samples(samples, kind, choice)
    in_colour = choice is not None or _in_colour(samples, given_shape)
    learned: tuple[Range, Literal["given", "8-bit", "values"]]
    if given_range is not None:
        learned = (given_range, "given")
    else:
        learned = _learn_range(_counted(samples, rows), choice)
    made = ImageFormat(kind, given_shape, learned[0], learned[1], in_colour)
    return made if choice is None else replace(made, bands=choice.bands, n_bands=choice.n)


def _number_of_bands(samples: Samples) -> int:
    """How many bands the first picture has that can be read; 1 if none can."""
    if isinstance(samples, np.ndarray):
        return int(samples.shape[1:][axis_of_bands(samples.shape[1:])])
    for sample in samples:
        if isinstance(sample, np.ndarray):
            return int(sample.shape[axis_of_bands(sample.shape)])
        try:
            is_picture = isinstance(sample, Image.Image)
            bands = pillow_bands(sample) if is_picture else decode_bands(sample)  # type: ignore[arg-type]
            return int(bands.shape[-1])
        except Exception as error:
            if not is_about_the_image(error):
                raise
    return 1  # each is named when it is read


def _in_colour(samples: Samples, row_shape: tuple[int, ...] | None) -> bool:
    if isinstance(samples, np.ndarray):
        shapes = [samples.shape[1:] if samples.ndim > 2 else row_shape or ()]
    elif any(isinstance(sample, str | bytes) for sample in samples):
        return True
    else:
        shapes = [s.shape for s in samples if isinstance(s, np.ndarray)]
        if any(isinstance(s, Image.Image) and len(s.getbands()) > 2 for s in samples):
            return True
    return any(len(shape) == 3 and shape[channel_axis(shape, "X") or 0] > 1 for shape in shapes)


def _checked_image_shape(image_shape: Any, bands: Bands | str | None) -> tuple[int, ...]:
    valid = isinstance(image_shape, Sequence | np.ndarray) and len(image_shape) in (2, 3)
    if not valid or not all(_is_integer(n) and int(n) > 0 for n in image_shape):
        raise ValueError(
            f"image_shape must be (h, w), (h, w, c) or (c, h, w); got {shown(image_shape)}."
        )
    shape = tuple(int(n) for n in image_shape)
    if bands is None:
        channel_axis(shape, f"image_shape={shape}")
    return shape


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _checked_range(pixel_range: Any) -> Range:
    valid = isinstance(pixel_range, Sequence | np.ndarray) and len(pixel_range) == 2
    if valid and all(isinstance(v, Real) and not isinstance(v, bool) for v in pixel_range):
        low, high = (float(value) for value in pixel_range)
        if low < high and math.isfinite(high - low):
            return low, high
    raise ValueError(
        f"pixel_range must be two finite numbers, low < high, the values of black and white; "
        f"got {shown(pixel_range)}."
    )


def _row_shape(X: Array, given: tuple[int, ...] | None) -> tuple[int, ...]:
    width = X.shape[1]
    if given is not None:
        check_width(width, given)
        return given
    side = math.isqrt(width)
    if side**2 == width:
        return (side, side)
    if width < STRIP_BELOW:
        return (1, width)
    side = math.isqrt(width // 3)
    if 3 * side**2 == width:
        _warn_of_planes(X, side)
        return (side, side, 3)
    raise ValueError(
        f"X has rows of {width} values, the pixels of neither a square grey nor a square RGB "
        "image. Pass image_shape, as (62, 47) for the 2914 values of fetch_lfw_people. (If a "
        "ClassifierChain or StackingClassifier has put columns beside the pixels: these can't be "
        "told apart. Chain estimators on the features of PretrainedImageFeatures.)"
    )


def check_width(width: int, image_shape: tuple[int, ...]) -> None:
    """Refuse rows that don't hold one image of that shape."""
    if width != math.prod(image_shape):
        raise ValueError(
            f"image_shape={image_shape} has {math.prod(image_shape)} values, but the rows of X "
            f"have {width}."
        )


def _warn_of_planes(X: Array, side: int) -> None:
    """Warn where rows read as (h, w, 3) look like colour planes, as CIFAR-10's on OpenML."""
    some = X[:64].astype(np.float64)
    pixels = _roughness(some.reshape(-1, side, side, 3), axes=(1, 2))
    planes = _roughness(some.reshape(-1, 3, side, side), axes=(2, 3))
    # Of 64 crops of photographs, planes had 0.4 to 0.73 times the roughness, pixels 1.06 and up.
    if planes < 0.75 * pixels:
        warnings.warn(
            f"The rows of X were read as images of shape ({side}, {side}, 3), but they look like "
            f"three colour planes. If they are, pass image_shape=(3, {side}, {side}).",
            UserWarning,
            stacklevel=4,
        )


def _roughness(images: Array, axes: tuple[int, int]) -> float:
    return float(sum(np.abs(np.diff(images, axis=axis)).mean() for axis in axes))


def _counted(samples: Samples, rows: npt.ArrayLike | None) -> Samples:
    """List the samples that count, which tell of the pixel range."""
    mask = np.ones(len(samples), dtype=bool) if rows is None else np.asarray(rows, dtype=bool)
    if not mask.any() or mask.all():  # none counts: better a range from all than none
        return samples
    if isinstance(samples, np.ndarray):
        kept: Array = samples[mask]
        return kept
    return [sample for sample, counts in zip(samples, mask, strict=True) if counts]  # type: ignore[return-value]


def _learn_range(
    samples: Samples, choice: BandChoice | None
) -> tuple[Range, Literal["8-bit", "values"]]:
    arrays = _arrays_in(samples, choice)
    pictures = [] if isinstance(samples, np.ndarray) else _of_type(samples, Image.Image)
    files = [] if isinstance(samples, np.ndarray) else _of_type(samples, str | bytes)
    bounds = [
        (float(array.min()), float(array.max()))
        for array in arrays
        if array.dtype not in (np.uint8, np.bool_)
    ]
    if choice is None:
        found = [*map(_bounds_of_picture, pictures), *_bounds_of_files(files)]
    else:
        found = [_bounds_of_bands(picture, choice) for picture in pictures]
        found += _bounds_of_band_files(files, choice)
    bounds += [pair for pair in found if pair is not None]
    if not bounds:
        if any(array.dtype == np.bool_ for array in arrays):
            return (0.0, 1.0), "values"
        _warn_of_dark_bytes(arrays)
        return EIGHT_BIT, "8-bit"
    return _range_within(min(low for low, _ in bounds), max(high for _, high in bounds)), "values"


def _arrays_in(samples: Samples, choice: BandChoice | None) -> list[Array]:
    """List the arrays; of bands those that are chosen: the others don't tell of the range."""
    is_one = isinstance(samples, np.ndarray)
    arrays: list[Array] = [samples] if is_one else _of_type(samples, np.ndarray)  # type: ignore[list-item]
    if choice is None:
        return arrays
    blocks = arrays if is_one else [array[np.newaxis] for array in arrays]
    return [view for block in blocks for view in choice.views(block)]


def _of_type(samples: Any, kind: Any) -> list[Any]:
    return [sample for sample in samples if isinstance(sample, kind)]


def _bounds_of_picture(image: Image.Image) -> Range | None:
    try:
        return bounds_of_image(image)
    except Exception:  # whatever a decoder raises; it is named when the picture is read
        return None


def _bounds_of_files(files: list[File]) -> list[Range | None]:
    """The least and greatest values of some files of more than 8 bits, evenly spread over X."""
    _warn_of_pages([file for file in files if isinstance(file, str) and depth_of(file).has_pages])
    return [bounds_of(file) for file in _some(files, lambda file: depth_of(file).is_deep)]


def _bounds_of_bands(image: Image.Image, choice: BandChoice) -> Range | None:
    try:
        taken = choice.take_of_one(pillow_bands(image))
    except Exception:  # whatever a decoder raises; it is named when the picture is read
        return None
    return None if taken.dtype == np.uint8 else (float(taken.min()), float(taken.max()))


def _bounds_of_band_files(files: list[File], choice: BandChoice) -> list[Range | None]:
    """As `_bounds_of_files`, of the chosen bands."""
    return [bounds_of_bands(file, choice.numbers) for file in _some(files, has_deep_bands)]


def _some(files: list[File], is_deep: Callable[[File], bool]) -> list[File]:
    """Choose some of the files of more than 8 bits, evenly spread over X."""
    deep = [file for file in files if is_deep(file)]
    n = min(_SAMPLED, len(deep))
    return [deep[i * len(deep) // n] for i in range(n)]


def _warn_of_pages(files: list[str]) -> None:
    if files:
        warnings.warn(
            f"TIFF files with several pages are read as their first page:\n{listed(files)}\nPass "
            "the pages as arrays or PIL images if each is a picture.",
            UserWarning,
            stacklevel=6,
        )


def _range_within(low: float, high: float) -> Range:
    """The nearest common range that holds all values, or else the values' own."""
    if low >= 0 and high <= COMMON_HIGHS[-1]:
        white = next(common for common in COMMON_HIGHS if high <= common)
        if 0 < high < _DARK * white:
            _warn_of_darkness(high, white)
        return (0.0, white)
    if not math.isfinite(high - low):
        raise ValueError(f"The values of X, {low} to {high}, span more than a float64 holds.")
    warnings.warn(
        f"The values of X fit no common range of pixels: {low:g}, the least seen, was taken as "
        f"black and {high:g}, the greatest, as white. Pass pixel_range=(low, high) to choose.",
        UserWarning,
        stacklevel=4,
    )
    return (low, high)


def _warn_of_dark_bytes(arrays: list[Array]) -> None:
    """Warn where 8-bit values are those of digits or masks; any other ends the search."""
    highest = 0
    for array in arrays:
        for start in range(0, len(array), _LOOKED_AT):
            highest = max(highest, int(array[start : start + _LOOKED_AT].max()))
            if highest > COMMON_HIGHS[1]:
                return
    if highest:
        _warn_of_darkness(highest, EIGHT_BIT[1])


def _warn_of_darkness(high: float, white: float) -> None:
    warnings.warn(
        f"The greatest value of X is {high:g}, and 0 to {white:g} was taken as black to white, so "
        f"all pictures are dark. If {high:g} is white, pass pixel_range=(0, {high:g}).",
        UserWarning,
        stacklevel=5,
    )
