"""What X may be, and how it becomes uint8 RGB images.

`learn_format` looks at X once, in fit, and decides how its numbers are to be read;
`open_images` reads any later X the same way, as a lazy sequence of images.
"""

from __future__ import annotations

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from numbers import Integral, Number, Real
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from PIL import Image
from sklearn.utils import assert_all_finite, check_array
from torch.utils.data import DataLoader, Dataset

from ..messages import shown, shown_path, shown_several
from .bands import BandChoice, Bands, axis_of_bands, checked_bands
from .decoding import (
    bounds_of_bands,
    decode_bands,
    decode_file,
    has_deep_bands,
    is_about_the_image,
    over_white,
    pillow_bands,
    pillow_to_rgb,
    scale_to_uint8,
    why_unreadable,
)
from .depth import bounds_of, bounds_of_image, depth_of, may_be_deep

Kind: TypeAlias = Literal["rows", "arrays", "images", "paths"]
Range: TypeAlias = tuple[float, float]
Array: TypeAlias = npt.NDArray[Any]

EIGHT_BIT: Range = (0.0, 255.0)
COMMON_HIGHS = (1.0, 16.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
CHANNELS = (1, 3, 4)
_DARK = 0.25  # share of a range below which values are less than those of the next smaller depth
_LOOKED_AT = 64  # rows of 8-bit arrays at a time
_SAMPLED = 32  # files of more than 8 bits that tell of their range
_SLACK = 0.1  # of a range; resampled pictures overshoot somewhat
STRIP_BELOW = 32  # rows narrower than this are seldom pictures, so any width will do


# What X is ---------------------------------------------------------------------------


def kind_of(X: Any) -> Kind:
    """Say what X holds, from its type and shape alone.

    Parameters
    ----------
    X : object
        What a user passed to fit or predict.

    Returns
    -------
    kind : {"rows", "arrays", "images", "paths"}
        "paths" and "images" are listings (list, tuple, Series, one-dimensional or (n, 1)
        array or frame) of paths or the bytes of files, or of PIL images, arrays and tensors.
        "arrays" is one three- or four-dimensional array. "rows" is all else, for scikit-learn to
        validate.

    Raises
    ------
    TypeError
        If X is a torch Dataset, or holds pairs of images and labels, or samples of several kinds.
    ValueError
        If X is a single sample, lacks some, or is a table with a column of pictures among others.
    """
    if isinstance(X, str | bytes | bytearray | os.PathLike | Image.Image):
        raise ValueError(f"X is a single sample, {shown(X)}. Put it in a list.")
    if isinstance(X, Dataset | DataLoader):
        raise TypeError(_dataset_message(X))
    elements = _elements(X)
    if elements is not None:
        return _kind_of_elements(elements, _name_of_column(X))
    shape = _shape_of(X)
    if len(shape) == 2:
        _refuse_column_of_pictures(X)
    return "arrays" if len(shape) in (3, 4) else "rows"


def _shape_of(X: Any) -> tuple[int, ...]:
    shape = getattr(X, "shape", None)
    if shape is None and hasattr(X, "__array__"):
        shape = np.asarray(X).shape
    return tuple(shape) if shape is not None else ()


def _elements(X: Any) -> Sequence[Any] | None:
    """Give the samples of X where it is a listing of objects, else None."""
    if isinstance(X, Sequence) and not isinstance(X, str | bytes | bytearray | memoryview):
        return X  # a list, a tuple, or a lazy column such as those of Hugging Face's datasets
    shape = _shape_of(X)
    one_column = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    if not one_column or isinstance(X, torch.Tensor):
        return None
    column = np.asarray(X)
    if column.dtype.kind == "S":
        raise TypeError(
            f"X is an array of NumPy's bytes ({column.dtype}), which lose zeros at their end. Pass "
            "a list of the files' bytes, or an array with dtype=object."
        )
    if column.shape != shape or column.dtype.kind not in "OUT":
        return None  # numbers, or a sparse matrix
    return list(column.reshape(-1).tolist())


def _kind_of_elements(elements: Sequence[Any], column: str) -> Kind:
    if not elements:
        return "paths"  # refused as empty later, in the words that fit a listing
    _refuse_pairs(elements)
    missing = [i for i, element in enumerate(elements) if _is_missing(element)]
    kinds = [_kind_of_element(element) for element in elements]
    if missing and (len(missing) == len(elements) or set(kinds) & {"paths", "images"}):
        raise ValueError(_missing_message(missing, elements, column))
    for i, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise TypeError(
                f"X mixes kinds of samples{column}: X[0] is {_describe(elements[0])} and X[{i}] is "
                f"{_describe(elements[i])}. Pass paths only, or images only."
            )
    if kinds[0] == "rows" and _is_unknown(elements[0]):
        raise TypeError(
            f"X[0]{column} is {_describe(elements[0])}, which is no image. Pass arrays, PIL "
            "images, paths or the bytes of image files."
        )
    return kinds[0]


def _is_unknown(element: Any) -> bool:
    """Whether scikit-learn could make no row of this."""
    if isinstance(element, Mapping):
        return True
    return not (isinstance(element, Number) or hasattr(element, "__len__"))


def _kind_of_element(element: Any) -> Kind:
    if isinstance(element, str | os.PathLike | bytes | bytearray) or _is_record(element):
        return "paths"
    if isinstance(element, Image.Image):
        return "images"
    if isinstance(element, np.ndarray | torch.Tensor) and element.ndim in (2, 3):
        return "images"
    return "rows"


def _is_record(element: Any) -> bool:
    """Whether this is a file as Hugging Face's datasets and parquet files hold it."""
    return isinstance(element, Mapping) and "bytes" in element


def _is_missing(element: Any) -> bool:
    if _is_record(element):
        return element["bytes"] is None and element.get("path") is None
    is_nan = isinstance(element, float) and math.isnan(element)
    return element is None or is_nan or type(element).__name__ in ("NAType", "NaTType")


def _missing_message(rows: list[int], elements: Sequence[Any], column: str) -> str:
    named = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
    return (
        f"X{column} has no image, but {shown(elements[rows[0]])}, in {len(rows)} of "
        f"{len(elements)} rows: {named} (counted from 0). Leave those rows out, in y as well, or "
        "pass their paths."
    )


def _name_of_column(X: Any) -> str:
    """How messages tell which column X is, where it has a name."""
    columns = getattr(X, "columns", None)
    name = getattr(X, "name", None) if columns is None else next(iter(columns), None)
    return "" if name is None or callable(name) else f" (column {shown(name)})"


def _refuse_column_of_pictures(X: Any) -> None:
    """Refuse a table in which one column of several holds paths, files or pictures."""
    try:
        first = np.asarray(X[:1])
    except Exception:  # no table that can be sliced
        return
    if first.dtype.kind not in "OUT" or first.ndim != 2 or not len(first):
        return
    row, columns = first[0].tolist(), getattr(X, "columns", None)
    found = [j for j, value in enumerate(row) if _kind_of_element(value) != "rows"]
    if not found or (columns is None and len(found) == len(row)):
        return
    names = list(range(first.shape[1])) if columns is None else list(columns)
    name = names[found[0]]
    alone = f"X[:, {name}]" if columns is None else f"X[{shown(name)}]"
    raise ValueError(
        f"X has {len(names)} columns, {shown_several(names)}, and column {shown(name)} holds "
        f"{_describe(row[found[0]])} in row 0. Pass the column of the pictures alone, "
        f"such as {alone}, and the labels as y."
    )


def _refuse_pairs(elements: Sequence[Any]) -> None:
    """Refuse a list of (image, label), as what iterates over a torch Dataset gives."""
    first = elements[0]
    if not isinstance(first, list | tuple) or len(first) != 2:
        return
    if _kind_of_element(first[0]) != "rows":
        raise TypeError(
            f"X[0] is a pair of {_describe(first[0])} and {_describe(first[1])}. Pass images and "
            "labels apart: [image for image, _ in X] as X, [label for _, label in X] as y."
        )


def _dataset_message(X: Any) -> str:
    if isinstance(X, DataLoader):
        return (
            "X is a torch DataLoader. Pass the images of its dataset, [image for image, _ in ds] "
            "with ds = loader.dataset, and their labels as y."
        )
    if isinstance(getattr(X, "samples", None), list):
        return (
            f"X is a torch Dataset ({type(X).__name__}). Pass its files, [path for path, _ in "
            "ds.samples], as X and ds.targets as y; or the images, [image for image, _ in ds]."
        )
    return (
        f"X is a torch Dataset ({type(X).__name__}). Pass its images, [image for image, _ in ds], "
        "as X and its labels, [label for _, label in ds], as y."
    )


def _describe(element: Any) -> str:
    text = f"a {type(element).__name__}"
    if isinstance(element, np.ndarray | torch.Tensor):
        text += f" of shape {tuple(element.shape)}"
    elif isinstance(element, str | bytes | Real):
        text += f" ({shown(element)})"
    return text


def _channel_axis(shape: tuple[int, ...], name: str) -> int | None:
    """Find the channels of one image: the last axis wins, then the first; None for grey."""
    if len(shape) == 2:
        return None
    for axis in (-1, 0):
        if shape[axis] in CHANNELS:
            return axis
    raise ValueError(
        f"{name} has no axis of 1, 3 or 4 channels. An image is (h, w), (h, w, c) or "
        f"(c, h, w), an array of n images (n, h, w), (n, h, w, c) or (n, c, h, w), "
        f"with c of 1, 3 or 4. Of pictures with other channels, bands=(red, green, blue) chooses "
        "three by their numbers, counted from 0, and bands='all' takes the means of all in turn."
    )


# Checking X --------------------------------------------------------------------------

File: TypeAlias = str | bytes  # a path, or what the file holds
Samples: TypeAlias = "Array | list[Array | Image.Image] | list[File]"


def _checked_samples(X: Any, kind: Kind, choice: BandChoice | None) -> Samples:
    """Check X and bring it to the plainest type for its kind, copying nothing large."""
    if kind == "rows":
        return np.asarray(check_array(X, input_name="X"))
    if kind == "arrays":
        return _checked_array(X, "X", "samples", choice)
    elements = _elements(X) or []
    if not elements:
        raise ValueError(_empty_message((0,)))
    if kind == "paths":
        return [_checked_file(element) for element in elements]
    return [_checked_image(image, f"X[{i}]", choice) for i, image in enumerate(elements)]


def _checked_file(element: Any) -> File:
    if _is_record(element):
        element = element["path"] if element["bytes"] is None else element["bytes"]
    return bytes(element) if isinstance(element, bytes | bytearray) else os.fsdecode(element)


def _empty_message(shape: tuple[int, ...]) -> str:
    return f"Found array with 0 sample(s) (shape={shape}) while a minimum of 1 is required."


def _checked_image(image: Any, name: str, choice: BandChoice | None) -> Array | Image.Image:
    if not isinstance(image, Image.Image):
        return _checked_array(image, name, "pixels", choice)
    if 0 in image.size:
        raise ValueError(f"{name} has no pixels: its size is {image.size}.")
    return image


def _checked_array(
    X: Any, name: str, first_axis: Literal["samples", "pixels"], choice: BandChoice | None
) -> Array:
    array = _to_numpy(X)
    image_shape, whole = array.shape, f"{name} of shape {array.shape}"
    if first_axis == "samples":
        if len(array) == 0:
            raise ValueError(_empty_message(array.shape))
        name, image_shape = "X[0]", array.shape[1:]
    if 0 in image_shape:
        raise ValueError(f"{name} has no pixels: its shape is {image_shape}.")
    if choice is None:
        _channel_axis(image_shape, whole)
    else:
        choice.axis(image_shape, whole)
    if array.dtype.kind == "c":
        raise ValueError("Complex data not supported")
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} has dtype {array.dtype}; images are of numbers or bool.")
    if array.dtype.kind == "f":
        assert_all_finite(array, input_name="X")
    return array


def _to_numpy(X: Any) -> Array:
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu()
        if X.is_floating_point() and X.dtype not in (torch.float16, torch.float32, torch.float64):
            X = X.float()  # NumPy has no bfloat16
        X = X.numpy()
    array = np.asarray(X)
    # np.array(images, dtype=object) unpacks images of one size into single objects.
    return np.array(array.tolist()) if array.dtype == object else array


# What fit learns ---------------------------------------------------------------------


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
    samples = _checked_samples(X, kind, choice)
    if kind == "rows":
        assert isinstance(samples, np.ndarray)
        given_shape = _row_shape(samples, given_shape)
        if choice is not None:
            choice.axis(given_shape, f"image_shape={given_shape}")
            samples = samples.reshape(len(samples), *given_shape)
    if given_bands == "all":
        choice = BandChoice.of_all(_number_of_bands(samples))
        if kind == "images":
            _checked_samples(samples, kind, choice)
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
    return any(len(shape) == 3 and shape[_channel_axis(shape, "X") or 0] > 1 for shape in shapes)


def _checked_image_shape(image_shape: Any, bands: Bands | str | None) -> tuple[int, ...]:
    valid = isinstance(image_shape, Sequence | np.ndarray) and len(image_shape) in (2, 3)
    if not valid or not all(_is_integer(n) and int(n) > 0 for n in image_shape):
        raise ValueError(
            f"image_shape must be (h, w), (h, w, c) or (c, h, w); got {shown(image_shape)}."
        )
    shape = tuple(int(n) for n in image_shape)
    if bands is None:
        _channel_axis(shape, f"image_shape={shape}")
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
        _check_width(width, given)
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
        "image. Pass image_shape, as (62, 47) for the 2914 values of fetch_lfw_people."
    )


def _check_width(width: int, image_shape: tuple[int, ...]) -> None:
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


# Images ------------------------------------------------------------------------------


class UnreadableImageWarning(UserWarning):
    """Some images can't be decoded, and were left out."""


class UnreadableImagesError(ValueError):
    """Some images can't be decoded.

    Parameters
    ----------
    files : list of (str, str)
        Every path that can't be decoded, and why.
    rows : list of int, default=()
        Where they stand in X; a path may stand there twice.
    """

    def __init__(self, files: list[tuple[str, str]], rows: Sequence[int] = ()) -> None:
        super().__init__(files, rows)  # the args, so that it survives pickling
        self.files = files
        self.rows = rows

    def __str__(self) -> str:
        """Name up to ten of them."""
        count = "1 image" if len(self.files) == 1 else f"{len(self.files)} images"
        named = name_files(self.files)
        return f"{count} in X can't be read:\n{named}\nMend them or leave them out."


def name_files(files: Sequence[tuple[str, str]]) -> str:
    """Name up to ten files and what is wrong with them, one a line."""
    return listed([path for path, _ in files], [f": {reason}" for _, reason in files[:10]])


def listed(paths: Sequence[str], remarks: Sequence[str] = ()) -> str:
    """List up to ten paths, one a line, and count the others.

    A name with a line feed, or with bytes that are no text, is shown as Python writes it.
    """
    named = [shown_path(path) for path in paths[:10]]
    lines = [f"  {a}{b}" for a, b in zip_longest(named, remarks, fillvalue="")]
    if len(paths) > 10:
        lines.append(f"  and {len(paths) - 10} more")
    return "\n".join(lines)


class Images(ABC):
    """A sequence of images, read only when asked for."""

    _noted: dict[int, str] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Give the number of images."""

    @abstractmethod
    def digest(self, i: int) -> bytes:
        """Hash what image i is made of, in 16 bytes: never its place, path or container."""

    @abstractmethod
    def batch(
        self, indices: Sequence[int], size: int | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """Read images as uint8 RGB.

        Parameters
        ----------
        indices : sequence of int
        size : int or None, default=None
            To how many pixels the shorter sides will be resized. Files of far more may be read at
            a fraction of their size.

        Returns
        -------
        images : Tensor of shape (b, 3, h, w), or list of Tensor of shape (3, h, w)
            A list where the sizes differ. Any strides; the memory is the caller's own.

        Raises
        ------
        UnreadableImagesError
            If one can't be read, and this isn't within :meth:`noting`.
        """

    def path(self, i: int) -> str | None:
        """Path of the file that image i was read from, if it was given by one."""
        return None

    def name(self, i: int) -> str:
        """Say which image i is."""
        return self.path(i) or f"X[{i}]"

    @property
    def noted(self) -> Mapping[int, str]:
        """Images that have been found to be unreadable within :meth:`noting`, and why."""
        return {} if self._noted is None else self._noted

    def note(self, i: int, reason: str) -> None:
        """Note that an image can't be read; an error where nobody takes notes."""
        if self._noted is None:
            raise self.unreadable({i: reason})
        self._noted[i] = reason

    @contextmanager
    def noting(self) -> Iterator[Mapping[int, str]]:
        """Within, images that can't be read are noted, and each is read as one black pixel.

        What becomes of them means nothing, and is for the caller to drop.

        Yields
        ------
        dict of int to str
            What has been noted so far.
        """
        self._noted = {}
        try:
            yield self._noted
        finally:
            self._noted = None

    @contextmanager
    def naming_all(self) -> Iterator[None]:
        """Within, go on past images that can't be read; then raise one error for all of them."""
        with self.noting() as bad:
            yield
        if bad:
            raise self.unreadable(bad)

    def unreadable(self, bad: Mapping[int, str]) -> UnreadableImagesError:
        """Make the error that names some images."""
        rows = sorted(bad)
        return UnreadableImagesError(list({self.name(i): bad[i] for i in rows}.items()), rows)


def open_images(X: Any, fmt: ImageFormat) -> Images:
    """Open X for reading, in the way that fit learned.

    Parameters
    ----------
    X : object
        Any kind of images; it may be another kind than fit saw.
    fmt : ImageFormat
        What `learn_format` gave.

    Returns
    -------
    images : Images
    """
    kind = kind_of(X)
    if kind == "arrays" and fmt.in_colour:
        _refuse_one_picture(_shape_of(X))
    samples = _checked_samples(X, kind, fmt.choice)
    if isinstance(samples, np.ndarray):
        if kind == "rows":
            samples = samples.reshape(len(samples), *_known_row_shape(samples, fmt))
        return _ArrayImages(samples, fmt.range_of(samples.dtype), fmt.choice)
    if kind == "paths" and fmt.choice is not None:
        return _BandFiles(samples, fmt, fmt.choice)  # type: ignore[arg-type]
    if kind == "paths":
        return _FileImages(samples, fmt)  # type: ignore[arg-type]
    return _ListImages(samples, fmt)  # type: ignore[arg-type]


def looks_like_one_picture(X: Any) -> bool:
    """Whether X is an array (h, w, 3) or (h, w, 4): one picture, or h grey ones of that width."""
    shape = _shape_of(X)
    return len(shape) == 3 and shape[-1] in (3, 4) and _elements(X) is None


def one_picture_message(shape: tuple[int, ...]) -> str:
    """Say how an array (h, w, 3) or (3, h, w) is read, and what to pass instead."""
    n, *size = shape
    return (
        f"X of shape {shape} is read as {n} grey pictures of {size[0]} x {size[1]} pixels. If it "
        "is one picture in colour, put it into a list: [image]."
    )


def _refuse_one_picture(shape: tuple[int, ...]) -> None:
    """Refuse or doubt what is most likely one picture, where fit saw pictures in colour."""
    if len(shape) != 3:
        return
    if shape[-1] in (3, 4):
        raise ValueError(
            f"{one_picture_message(shape)} If they are grey pictures, pass them in another shape, "
            f"{(*shape, 1)}."
        )
    if shape[0] in (3, 4):  # of torch; but there may as well be three grey pictures
        warnings.warn(one_picture_message(shape), UserWarning, stacklevel=4)


def _known_row_shape(X: Array, fmt: ImageFormat) -> tuple[int, ...]:
    if fmt.image_shape is None:
        raise ValueError(
            f"X has two dimensions, one flattened image a row, but fit saw {fmt.kind}, so the "
            "shape of a row's image is not known. Set image_shape and fit again, or reshape X."
        )
    _check_width(X.shape[1], fmt.image_shape)
    return fmt.image_shape


class _ArrayImages(Images):
    """Images of one shape in one array, never copied as a whole."""

    def __init__(self, array: Array, pixel_range: Range, choice: BandChoice | None) -> None:
        self._array = array
        self._range = pixel_range
        self._choice = choice

    def __len__(self) -> int:
        return len(self._array)

    def digest(self, i: int) -> bytes:
        image = self._array[i : i + 1]
        taken = image if self._choice is None else self._choice.take(image)
        return _digest(taken[0], self._range, self._choice)

    def batch(self, indices: Sequence[int], size: int | None = None) -> torch.Tensor:
        block = self._array[np.asarray(indices, dtype=np.intp)]
        taken = block if self._choice is None else self._choice.take(block)
        return _to_rgb(taken, self._range, self._choice)


class _Listing(Images):
    """Images that are read one by one, any of which may turn out to be bad."""

    _n_channels = 3

    @abstractmethod
    def _read(self, i: int, size: int | None) -> Array:
        """Give the pixels of image i, or raise what the decoder raises: nearly anything."""

    def _pixels(self, i: int, size: int | None = None) -> Array:
        if i not in self.noted:
            try:
                return self._read(i, size)
            except Exception as error:
                self._note_error(i, error)
        return np.zeros((1, 1, self._n_channels), dtype=np.uint8)

    def _note_error(self, i: int, error: Exception) -> None:
        """Note an error that the image is to blame for; any other is raised again."""
        if not is_about_the_image(error):
            raise error
        try:
            self.note(i, why_unreadable(error))
        except UnreadableImagesError as refusal:
            raise refusal from error


class _ListImages(_Listing):
    """Arrays and PIL images, of sizes that may differ."""

    def __init__(self, images: list[Array | Image.Image], fmt: ImageFormat) -> None:
        self._images = images
        self._format = fmt
        self._choice = fmt.choice
        self._ranges = [
            fmt.range_of(image.dtype) if isinstance(image, np.ndarray) else EIGHT_BIT
            for image in images
        ]
        if self._choice is not None:
            self._n_channels = len(self._choice.numbers)

    def __len__(self) -> int:
        return len(self._images)

    def digest(self, i: int) -> bytes:
        pixels = self._pixels(i)
        if i in self.noted:
            return _digest_of_none(i)
        return _digest(pixels, self._ranges[i], self._choice)

    def batch(
        self, indices: Sequence[int], size: int | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        # np.array copies: torch must never share memory with X.
        return _stack(
            [
                _to_rgb(np.array(self._pixels(i))[np.newaxis], self._ranges[i], self._choice)[0]
                for i in indices
            ]
        )

    def _read(self, i: int, size: int | None) -> Array:
        image = self._images[i]
        if isinstance(image, np.ndarray):
            return image if self._choice is None else self._choice.take(image[np.newaxis])[0]
        if self._choice is None:
            return pillow_to_rgb(image, self._format.scale)
        taken = self._choice.take_of_one(pillow_bands(image))
        return taken if taken.dtype == np.uint8 else self._format.scale(taken)


class _FileImages(_Listing):
    """Files, by their paths or as bytes, decoded each time they are asked for."""

    def __init__(self, files: list[File], fmt: ImageFormat) -> None:
        self._files = files
        self._format = fmt

    def __len__(self) -> int:
        return len(self._files)

    def path(self, i: int) -> str | None:
        file = self._files[i]
        return file if isinstance(file, str) else None

    def digest(self, i: int) -> bytes:
        file = self._files[i]
        if isinstance(file, bytes):
            if i in self.noted:
                return _digest_of_none(i)
            return xxhash.xxh3_128_digest(file + self._meaning(file))
        if i not in self.noted:
            try:
                with open(file, "rb") as opened:
                    content = opened.read()
                return xxhash.xxh3_128_digest(content + self._meaning(content))
            except Exception as error:
                self._note_error(i, error)
        return _digest_of_none(i)

    def _meaning(self, content: bytes) -> bytes:
        """What the values of a file mean, if 8 bits don't tell."""
        if not may_be_deep(content):
            return b""
        return f" {self._format.pixel_range} {self._format.learned_from}".encode()

    def batch(
        self, indices: Sequence[int], size: int | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        return _stack([torch.from_numpy(self._pixels(i, size)).permute(2, 0, 1) for i in indices])

    def _read(self, i: int, size: int | None) -> Array:
        return decode_file(self._files[i], size, self._format.scale)

    @contextmanager
    def noting(self) -> Iterator[Mapping[int, str]]:
        """See :meth:`Images.noting`; what is missing is noted before anything is read."""
        with super().noting() as bad:
            for i, file in enumerate(self._files):
                if isinstance(file, str) and not os.path.isfile(file):
                    self._pixels(i)
            yield bad


class _BandFiles(_FileImages):
    """Files with several bands, of which red, green and blue are made."""

    def __init__(self, files: list[File], fmt: ImageFormat, choice: BandChoice) -> None:
        super().__init__(files, fmt)
        self._choice = choice

    def digest(self, i: int) -> bytes:
        """See :meth:`Images.digest`; the same file with other bands is another image."""
        fmt = self._format
        how = f" {fmt.bands} {fmt.pixel_range} {fmt.learned_from}"
        if fmt.n_bands is not None:  # what has others isn't read, whoever has read it before
            how += f" of {fmt.n_bands}"
        return xxhash.xxh3_128_digest(super().digest(i) + how.encode())

    def _read(self, i: int, size: int | None) -> Array:
        taken = self._choice.take_of_one(decode_bands(self._files[i]))
        if taken.dtype in (np.uint8, np.bool_):
            return self._choice.mix(scale_to_uint8(taken, self._format.range_of(taken.dtype)))
        return self._choice.mix(self._format.scale(taken))


def _digest_of_none(i: int) -> bytes:
    """Stand in for the digest of an image that can't be read; nothing is kept under it."""
    return xxhash.xxh3_128_digest(f"unreadable {i}".encode())


def _digest(image: Array, pixel_range: Range, choice: BandChoice | None) -> bytes:
    head = f"{image.dtype.str} {image.shape} {pixel_range}"
    if choice is not None:
        head += choice.meaning
    hasher = xxhash.xxh3_128(head.encode())
    hasher.update(np.ascontiguousarray(image).data)
    return hasher.digest()


def _to_rgb(block: Array, pixel_range: Range, choice: BandChoice | None) -> torch.Tensor:
    """Bring images of one shape, in a block that is ours, to (b, 3, h, w)."""
    pixels = scale_to_uint8(block, pixel_range)
    if choice is not None:
        return torch.from_numpy(choice.mix(pixels)).permute(0, 3, 1, 2)
    axis = _channel_axis(block.shape[1:], "X")
    if axis is not None and block.shape[1:][axis] == 4:
        pixels = over_white(np.moveaxis(pixels, 1, -1) if axis == 0 else pixels)
        axis = -1
    images = torch.from_numpy(pixels)
    if axis is None:
        images = images.unsqueeze(1)
    elif axis == -1:
        images = images.permute(0, 3, 1, 2)
    return images.repeat(1, 3, 1, 1) if images.shape[1] == 1 else images


def _stack(images: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    return images if len({image.shape for image in images}) > 1 else stack_channels_last(images)


def stack_channels_last(images: list[torch.Tensor]) -> torch.Tensor:
    """Stack images (3, h, w), to (n, 3, h, w) in channels-last memory; one is only viewed."""
    if len(images) == 1:
        return images[0][None]
    # torch.stack knows no memory format: stack with the channels last, then move them back.
    return torch.stack([image.movedim(0, -1) for image in images]).movedim(-1, 1)
