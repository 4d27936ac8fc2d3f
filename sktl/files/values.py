"""The values that a saved file's document may hold: how each is written, and read with a check."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils import Bunch

from ..backbones import check_name
from ..images.bands import Band, BandChoice
from ..images.kinds import CHANNELS
from ..images.preprocessing import RECIPE_MODES, Recipe, Size, as_size
from ..model.adapt import METHODS
from .container import FileFormatError, NotSavableError
from .readers import (
    Reader,
    flag,
    integer,
    list_of,
    mapping_of,
    number,
    one_of,
    optional,
    record,
    refuse,
    text,
    tuple_of,
)

LARGEST_IMAGE = 4096  # pixels a side: a short document must not ask for much memory
_LARGEST_LABELS = 2**26  # bytes
_NOT_FINITE = ("nan", "inf", "-inf")
_LABEL_DTYPES = {
    np.dtype(f"{order}{kind}").str
    for kind in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
    for order in "<>"
}


def plain(name: str, value: Any) -> Any:
    """Refuse what JSON can't say.

    Parameters
    ----------
    name : str
        The parameter, for the message.
    value : object

    Raises
    ------
    NotSavableError
    """
    finite = isinstance(value, float) and math.isfinite(value)
    if value is None or finite or type(value) in (bool, int, str):
        return value
    shown = getattr(value, "__qualname__", None) or (
        repr(value) if isinstance(value, float) else f"{type(value).__name__}(...)"
    )
    instead = (
        "Give the backbone by its name and its weights as the path of a state dict"
        if name == "backbone"
        else "Choose what has a name, or the default, and fit again"
    )
    raise NotSavableError(
        f"{name}={shown} can't be saved: a file holds numbers and names, but no code. {instead}; "
        "or use joblib.dump."
    )


def scalar(value: Any, where: str) -> Any:
    """A number, text, true, false or null."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return (number() if isinstance(value, float) else integer())(value, where)
    return value if isinstance(value, str | bool | None) else refuse(value, where, "a plain value")


def _anything(value: Any, where: str) -> Any:
    """What is checked later."""
    return value


def _cell(value: Any, where: str) -> Any:
    """A value of a history, which may be infinite or not a number."""
    if isinstance(value, dict):
        return float(record({"float": one_of(*_NOT_FINITE)})(value, where)["float"])
    return scalar(value, where)


def history_to_json(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a history as JSON says them; it has no word for what is not finite."""
    return [{name: _to_cell(name, value) for name, value in row.items()} for row in rows]


def _to_cell(name: str, value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return plain(f"history_[...][{name!r}]", value)


def backbone_name(value: Any, where: str) -> str:
    """A name of :func:`sktl.list_backbones` or of a hub."""
    try:
        check_name(text(value, where))
    except (ValueError, ImportError) as error:
        raise FileFormatError(f"{where} must be a name that sktl knows. {error}") from error
    return str(value)


def one_or_several(reader: Reader) -> Reader:
    """A value that isn't a list, or a tuple of such."""
    several = tuple_of(reader)
    return lambda value, where: (several if isinstance(value, list) else reader)(value, where)


def device_name(value: Any, where: str) -> str:
    """A device of torch, or "auto"."""
    if value == "auto":
        return str(value)
    try:
        torch.device(text(value, where))
    except RuntimeError:
        refuse(value, where, "a device of torch")
    return str(value)


def labels_to_json(labels: npt.NDArray[Any]) -> dict[str, Any]:
    """What :func:`class_labels` reads."""
    dtype = "object" if labels.dtype == object else labels.dtype.str
    return {"dtype": dtype, "values": [plain("classes_", label) for label in labels.tolist()]}


def class_labels(value: Any, where: str) -> npt.NDArray[Any]:
    """Class labels with their dtype, in order."""
    found = record({"dtype": text, "values": list_of(_anything, least=2)})(value, where)
    labels = _array(found["dtype"], found["values"], where)
    if not np.array_equal(np.unique(labels), labels):
        raise FileFormatError(f"{where} must be sorted and hold each label once.")
    return labels


def _array(dtype: str, values: list[Any], where: str) -> npt.NDArray[Any]:
    if dtype == "object" or re.fullmatch(r"[<>]U\d{1,6}", dtype):
        list_of(text)(values, where)
        size = 0 if dtype == "object" else np.dtype(dtype).itemsize
        if size * len(values) > _LARGEST_LABELS or (size and max(map(len, values)) > size // 4):
            refuse(dtype, f"{where}.dtype", "a dtype that suits the labels")
        return np.array(values, dtype=dtype)
    if dtype not in _LABEL_DTYPES:
        refuse(dtype, f"{where}.dtype", "the dtype of labels")
    kind = np.dtype(dtype)
    if kind.kind == "b":
        list_of(flag)(values, where)
    elif kind.kind == "f":
        list_of(number(*map(float, (np.finfo(kind).min, np.finfo(kind).max))))(values, where)
    else:
        bounds = np.iinfo(kind)
        list_of(integer(int(bounds.min), int(bounds.max)))(values, where)
    return np.array(values, dtype=kind)


def adaptation_record(value: Any, where: str) -> Bunch:
    """What `adapt` has found out."""
    share = optional(number(0, 1))
    found = record(
        {
            "method": one_of(*METHODS),
            "n_images": integer(1),
            "proportions": list_of(number(0)),
            "source_accuracy": share,
            "expected_accuracy": share,
        },
        {"adapted": flag},
    )(value, where)
    return Bunch(**found | {"proportions": np.array(found["proportions"], dtype=np.float64)})


_number_of_band = integer(0, 2**15)
_several_bands = tuple_of(_number_of_band)


def _band(value: Any, where: str) -> Band:
    """A number, or several of which the mean is taken."""
    found: Band = (_several_bands if isinstance(value, list) else _number_of_band)(value, where)
    return found


band_choice = tuple_of(_band, 3)


def image_format(value: Any, where: str) -> dict[str, Any]:
    """How X is read."""
    found: dict[str, Any] = record(
        {
            "kind": one_of("rows", "arrays", "images", "paths"),
            "image_shape": optional(tuple_of(integer(1, 2**20), 2, 3)),
            "pixel_range": tuple_of(number(), 2),
            "learned_from": one_of("given", "8-bit", "values"),
        },
        {"in_colour": flag, "bands": optional(band_choice), "n_bands": optional(integer(1, 2**15))},
    )(value, where)
    shape, (low, high) = found["image_shape"], found["pixel_range"]
    found.setdefault("in_colour", found["kind"] == "paths")  # older files lack it
    bands, n_bands = found.get("bands"), found.get("n_bands")
    largest = None if bands is None else max(BandChoice(bands).numbers)
    if largest is not None and shape and (len(shape) != 3 or largest >= max(shape)):
        refuse(str(shape), f"{where}.image_shape", f"an image with the bands {bands}")
    if n_bands is not None and (largest is None or largest >= n_bands):
        refuse(n_bands, f"{where}.n_bands", f"null, or more than the bands {bands} ask for")
    if bands is None and shape and len(shape) == 3 and not {shape[0], shape[2]} & set(CHANNELS):
        refuse(str(shape), f"{where}.image_shape", f"an image of {CHANNELS} channels")
    if not low < high or not math.isfinite(high - low):
        refuse(str((low, high)), f"{where}.pixel_range", "two numbers, of which the first is less")
    return found


def pixels(largest: int) -> Reader:
    """A number of pixels, or a height and a width that differ."""
    one = integer(1, largest)
    two = tuple_of(one, 2)

    def read(value: Any, where: str) -> Size:
        return as_size(two(value, where)) if isinstance(value, list) else one(value, where)

    return read


history = list_of(mapping_of(_cell))
_backbone = record(
    {
        "name": backbone_name,
        "image_size": pixels(LARGEST_IMAGE),
        "transform_input": flag,
    }
)
_three = tuple_of(number(-1e6, 1e6), 3)
recipe_record = record(
    {
        "resize": pixels(4 * LARGEST_IMAGE),
        "crop": pixels(LARGEST_IMAGE),
        "interpolation": one_of("nearest", "nearest-exact", "bilinear", "bicubic"),
        "mean": _three,
        "std": tuple_of(number(1e-6, 1e6), 3),
        "antialias": flag,
    },
    {"resize_mode": one_of(*RECIPE_MODES)},  # older files are of "crop"
)


def recipe_of_parameter(value: Any, where: str) -> Recipe:
    """The parameter `preprocessing`."""
    found = recipe_record(value, where)
    try:
        return Recipe(**found)
    except ValueError as error:
        raise FileFormatError(f"{where}: {error}") from error
