"""What X is, from its type and shape, and the plainest type for what it holds."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from numbers import Number, Real
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sklearn.utils import assert_all_finite, check_array
from torch.utils.data import DataLoader, Dataset

from ..messages import shown, shown_several
from .bands import BandChoice

Kind: TypeAlias = Literal["rows", "arrays", "images", "paths"]
Array: TypeAlias = npt.NDArray[Any]
File: TypeAlias = str | bytes  # a path, or what the file holds
Samples: TypeAlias = "Array | list[Array | Image.Image] | list[File]"

CHANNELS = (1, 3, 4)


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
    elements = elements_of(X)
    if elements is not None:
        return _kind_of_elements(elements, _name_of_column(X))
    shape = shape_of(X)
    if len(shape) == 2:
        _refuse_column_of_pictures(X)
    return "arrays" if len(shape) in (3, 4) else "rows"


def shape_of(X: Any) -> tuple[int, ...]:
    """Return the shape of an array or a table; () of all else."""
    shape = getattr(X, "shape", None)
    if shape is None and hasattr(X, "__array__"):
        shape = np.asarray(X).shape
    return tuple(shape) if shape is not None else ()


def elements_of(X: Any) -> Sequence[Any] | None:
    """Give the samples of X where it is a listing of objects, else None."""
    if isinstance(X, Sequence) and not isinstance(X, str | bytes | bytearray | memoryview):
        return X  # a list, a tuple, or a lazy column such as those of Hugging Face's datasets
    shape = shape_of(X)
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


def channel_axis(shape: tuple[int, ...], name: str) -> int | None:
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


def looks_like_one_picture(X: Any) -> bool:
    """Whether X is an array (h, w, 3) or (h, w, 4): one picture, or h grey ones of that width."""
    shape = shape_of(X)
    return len(shape) == 3 and shape[-1] in (3, 4) and elements_of(X) is None


def one_picture_message(shape: tuple[int, ...]) -> str:
    """Say how an array (h, w, 3) or (3, h, w) is read, and what to pass instead."""
    n, *size = shape
    return (
        f"X of shape {shape} is read as {n} grey pictures of {size[0]} x {size[1]} pixels. If it "
        "is one picture in colour, put it into a list: [image]."
    )


# Checking X --------------------------------------------------------------------------


def checked_samples(X: Any, kind: Kind, choice: BandChoice | None) -> Samples:
    """Check X and bring it to the plainest type for its kind, copying nothing large."""
    if kind == "rows":
        return np.asarray(check_array(X, input_name="X"))
    if kind == "arrays":
        return _checked_array(X, "X", "samples", choice)
    elements = elements_of(X) or []
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
        channel_axis(image_shape, whole)
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
