"""What the saved files of all estimators have in common: document, tensors, and their checks.

A state as :mod:`sktl.files.state` makes it goes in, and comes out again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones import Backbone
from ..compat import OUTPUT_CONFIG
from ..hardware import PRECISIONS
from ..images.preprocessing import height_width
from .container import FileFormatError
from .readers import (
    Reader,
    either,
    flag,
    integer,
    list_of,
    number,
    one_of,
    optional,
    record,
    text,
    tuple_of,
)
from .state import FORMAT
from .values import (
    LARGEST_IMAGE,
    backbone_name,
    band_choice,
    device_name,
    pixels,
    plain,
    recipe_of_parameter,
    recipe_record,
)
from .weights import Stored, to_array

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """How the fitted state of one class is laid out in a file.

    Attributes
    ----------
    parameters : dict of str to Reader
        Those that aren't a plain number, text, true, false or null.
    attributes, model : Reader
    to_parts : callable
        Takes a state apart, into attributes, model and tensors; leaves in it what it doesn't know.
    to_state : callable
        Puts it together again.
    check, check_tensors : callable
        Raise a FileFormatError if parts of the document, or the tensors and it, don't go together.
    frozen_part : callable
        The frozen part of a backbone.
    """

    parameters: dict[str, Reader]
    attributes: Reader
    model: Reader
    to_parts: Callable[[Stored], tuple[Stored, Stored, Tensors]]
    to_state: Callable[[Stored, Stored, Tensors], Stored]
    check: Callable[[Stored], None]
    check_tensors: Callable[[Stored, Tensors], None]
    frozen_part: Callable[[Backbone, Stored], nn.Module]


_backbone = record(
    {
        "name": backbone_name,
        "image_size": pixels(LARGEST_IMAGE),
        "transform_input": flag,
    }
)


NETWORK = {
    "backbone": _backbone,
    "recipe": recipe_record,
    "pooling": one_of("auto", "avg", "flatten"),
    "precision": one_of(*PRECISIONS),
    "asked_precision": one_of("auto", *PRECISIONS),
    "device": device_name,
    "frozen_sha256": optional(text),
}
MAY_LACK = {
    "n_features_in_": integer(1, 2**31),
    "feature_names_in_": list_of(text),
    "output": one_of("default", "pandas", "polars"),
}
PARAMETERS = {
    "backbone": backbone_name,
    "image_shape": optional(tuple_of(integer(1, 2**20), 2, 3)),
    "image_size": optional(pixels(2**31)),
    "pixel_range": optional(tuple_of(number(), 2)),
    "preprocessing": optional(recipe_of_parameter),
    "bands": optional(either(one_of("all"), band_choice)),
    "cache": one_of("memory", None),
    "device": device_name,
    "n_jobs": optional(integer(-1024, 1024)),
    "on_error": one_of("raise", "skip"),
}


def network_to_json(stored: Stored) -> Stored:
    """What both estimators' models begin with; `stored` is of `store_backbone` and hardware."""
    architecture = stored["architecture"]
    return {
        "backbone": {
            "name": plain("backbone", architecture["source"]),
            "image_size": architecture["image_size"],
            "transform_input": architecture["transform_input"],
        },
        "recipe": stored["recipe"],
        "precision": stored["precision"],
        "asked_precision": stored["asked_precision"],
        "device": stored["device"],
        "frozen_sha256": None,
    }


def network_to_state(model: Stored) -> Stored:
    """Undo `network_to_json`."""
    backbone = model["backbone"]
    return {
        "format": FORMAT,
        "architecture": {
            "source": backbone["name"],
            "image_size": backbone["image_size"],
            "transform_input": backbone["transform_input"],
        },
        # A file's word for what its weights are would decide which features a cache gives out.
        "identity": None,
        **{k: model[k] for k in ("recipe", "precision", "asked_precision", "device")},
    }


def tensors_of(stored: Stored, prefix: str) -> Tensors:
    """Stored weights as tensors for a file."""
    tensors = {}
    for name, array in stored["arrays"].items():
        tensor, dtype = torch.from_numpy(array), stored["dtypes"].get(name)
        tensors[f"{prefix}/{name}"] = (
            tensor if dtype is None else tensor.view(getattr(torch, dtype))
        )
    return tensors


def weights_of(tensors: Tensors, prefix: str, same: dict[str, str]) -> Stored:
    """Undo `tensors_of`."""
    stored: Stored = {"arrays": {}, "dtypes": {}, "given": {}, "same": same}
    for path, tensor in tensors.items():
        part, _, name = path.partition("/")
        if part != prefix:
            continue
        stored["arrays"][name], foreign = to_array(tensor)
        if foreign:
            stored["dtypes"][name] = str(tensor.dtype).removeprefix("torch.")
    return stored


def shared_attributes(state: Stored) -> Stored:
    """What both estimators may have."""
    attributes: Stored = {}
    if "n_features_in_" in state:
        attributes["n_features_in_"] = int(state.pop("n_features_in_"))
    if "feature_names_in_" in state:
        attributes["feature_names_in_"] = state.pop("feature_names_in_").tolist()
    if OUTPUT_CONFIG in state:
        attributes["output"] = state.pop(OUTPUT_CONFIG).get("transform", "default")
    state.pop("pixel_range_")  # "images" has it
    return attributes


def shared_state(attributes: Stored) -> Stored:
    """Undo `shared_attributes`."""
    state = dict(attributes)
    if "feature_names_in_" in state:
        state["feature_names_in_"] = np.array(state["feature_names_in_"], dtype=object)
    if "output" in state:
        state[OUTPUT_CONFIG] = {"transform": state.pop("output")}
    return state


def check_columns(read: Stored) -> None:
    """See whether what is known of columns goes with what the images are."""
    attributes, rows = read["attributes"], read["images"]["kind"] == "rows"
    width, shape = attributes.get("n_features_in_"), read["images"]["image_shape"]
    names = attributes.get("feature_names_in_")
    if rows != (width is not None) or (rows and (shape is None or math.prod(shape) != width)):
        raise FileFormatError(f"n_features_in_={width} does not go with image_shape={shape}.")
    if names is not None and len(names) != width:
        raise FileFormatError(f"There are {len(names)} feature_names_in_ for {width} features.")


def check_network(read: Stored) -> None:
    """See whether the network and its recipe are for the same images."""
    model = read["model"]
    if model["backbone"]["image_size"] != model["recipe"]["crop"]:
        raise FileFormatError("The network and its recipe are for images of different sizes.")
    sides = (height_width(model["recipe"][name]) for name in ("crop", "resize"))
    if any(crop > resize for crop, resize in zip(*sides, strict=True)):
        raise FileFormatError("The recipe crops more than it resizes to.")


def check_same(read: Stored, tensors: Tensors) -> None:
    """See whether each tensor is there that others are said to be the same as."""
    for part, same in read["model"]["same"].items():
        if not {f"{part}/{first}" for first in same.values()} <= tensors.keys():
            raise FileFormatError(f"There are no tensors that those of same.{part} could be.")
