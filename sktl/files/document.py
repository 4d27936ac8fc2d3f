"""The document of a saved file, read as far as it can be checked; and the weights it may leave out.

Each value is checked before anything is made of it. docs/saving.md describes the format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..backbones import load_backbone
from ..images.preprocessing import Recipe
from .container import FileFormatError, NotSavableError, dtype_name, raw_bytes
from .layout import Layout, Tensors, tensors_of
from .readers import integer, mapping_of, record, text
from .values import image_format, scalar
from .weights import Stored, store_weights

FORMAT = 1
_PARTS = ("frozen", "trained", "sample", "validation_indices_")

_Class = TypeVar("_Class", bound=type)
_savable: dict[str, tuple[type[Any], Layout]] = {}


def savable(layout: Layout) -> Callable[[_Class], _Class]:
    """Let the instances of a class be saved and loaded."""

    def register(cls: _Class) -> _Class:
        _savable[cls.__name__] = (cls, layout)
        return cls

    return register


def layout_of(cls: type[Any]) -> Layout:
    """How instances of a class are laid out; of no other, its subclasses included.

    Raises
    ------
    NotSavableError
    """
    known, layout = _savable.get(cls.__name__, (None, None))
    if layout is None or known is not cls:
        raise NotSavableError(
            f"Only sktl's own classes can be saved, and {cls.__qualname__} is none of them. Use "
            "joblib.dump."
        )
    return layout


def class_of(document: Any) -> tuple[type[Any], Layout]:
    """The class, if this version can read the document at all."""
    heads = document if isinstance(document, dict) else {}
    written = integer(1)(heads.get("format"), "format")
    if written > FORMAT:
        raise FileFormatError(
            f"It was written by a later version of sktl, in format {written}; this version reads "
            f"formats up to {FORMAT}. Upgrade sktl."
        )
    name = text(heads.get("estimator"), "estimator")
    if name not in _savable:
        raise FileFormatError(f"estimator must be one of {sorted(_savable)}.")
    return _savable[name]


def read_document(document: Any, layout: Layout) -> Stored:
    """Check a document, and give it with tuples and arrays in it."""
    cls = next(cls for cls, known in _savable.values() if known is layout)
    parameters = dict.fromkeys(cls().get_params(deep=False), scalar) | layout.parameters
    reader = record(
        {
            "format": integer(FORMAT, FORMAT),
            "estimator": text,
            "versions": mapping_of(text),
            # Later versions may have parameters of which an old file knows nothing.
            "parameters": record({"weights": scalar}, parameters),
            "images": image_format,
            "attributes": layout.attributes,
            "model": layout.model,
        }
    )
    read: Stored = reader(document, "document")
    layout.check(read)
    return read


def check_tensors(read: Stored, tensors: Tensors, layout: Layout) -> None:
    """Check tensors, each by itself and beside what the document says."""
    for name, tensor in tensors.items():
        if name.partition("/")[0] not in _PARTS:
            raise FileFormatError(f"There is no place for the tensor {name[:100]!r}.")
        dtype_name(tensor)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FileFormatError(f"The tensor {name[:100]} holds values that are not finite.")
    layout.check_tensors(read, tensors)


def frozen_again(read: Stored, layout: Layout) -> Tensors:
    """The frozen weights, from where a fit takes them."""
    model = read["model"]
    network = model["backbone"]
    weights = read["parameters"]["weights"]
    recipe = Recipe(**model["recipe"])
    backbone = load_backbone(
        network["name"],
        weights,
        network["image_size"],
        resize_mode=recipe.resize_mode,
        preprocessing=read["parameters"].get("preprocessing"),
    )
    if backbone.recipe != recipe:
        raise ValueError("they belong to images that are prepared otherwise.")
    if list(backbone.stages) != read["attributes"]["stages_"]:
        raise ValueError("their network has other stages.")
    return tensors_of(store_weights(layout.frozen_part(backbone, model), {}), "frozen")


def digest_of(tensors: Tensors) -> str:
    """SHA-256 of names, dtypes, shapes and values, in the order of the names."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        shape = ",".join(map(str, tensor.shape))
        hasher.update(f"{name} {dtype_name(tensor)} {shape}\n".encode())
        hasher.update(raw_bytes(tensor))
    return hasher.hexdigest()
