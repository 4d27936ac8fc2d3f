"""What a saved file says of each estimator: its document, its tensors, and how they are checked.

A state as :mod:`sktl.files.state` makes it goes in, and comes out again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils import Bunch
from torch import Tensor, nn

from ..backbones import Backbone, check_name
from ..compat import OUTPUT_CONFIG
from ..hardware import PRECISIONS
from ..images.bands import Band, BandChoice
from ..images.kinds import CHANNELS
from ..images.preprocessing import RECIPE_MODES, Recipe, Size, as_size, height_width
from ..model.adapt import METHODS
from ..training.heads import HEADS, ONE_LAYER
from ..training.optimization import OPTIMIZERS, SCHEDULES, UNFREEZING
from ..training.targets import Classes, Indicators, Numbers
from .container import FileFormatError, NotSavableError
from .readers import (
    Reader,
    either,
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
from .state import FORMAT, Stored, to_array

Tensors = dict[str, Tensor]

_SAMPLE_BYTES = 8 * 2**20  # a larger sample of features isn't saved
_LARGEST_IMAGE = 4096  # pixels a side: a short document must not ask for much memory
_LARGEST_LABELS = 2**26  # bytes
_NOT_FINITE = ("nan", "inf", "-inf")
_LABEL_DTYPES = {
    np.dtype(f"{order}{kind}").str
    for kind in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
    for order in "<>"
}


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


# Values ------------------------------------------------------------------------------


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


def _to_cells(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: _to_cell(name, value) for name, value in row.items()} for row in rows]


def _to_cell(name: str, value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return plain(f"history_[...][{name!r}]", value)


def _backbone_name(value: Any, where: str) -> str:
    try:
        check_name(text(value, where))
    except (ValueError, ImportError) as error:
        raise FileFormatError(f"{where} must be a name that sktl knows. {error}") from error
    return str(value)


def _one_or_several(reader: Reader) -> Reader:
    """A value that isn't a list, or a tuple of such."""
    several = tuple_of(reader)
    return lambda value, where: (several if isinstance(value, list) else reader)(value, where)


def _device(value: Any, where: str) -> str:
    if value == "auto":
        return str(value)
    try:
        torch.device(text(value, where))
    except RuntimeError:
        refuse(value, where, "a device of torch")
    return str(value)


def _labels_to_json(labels: npt.NDArray[Any]) -> dict[str, Any]:
    dtype = "object" if labels.dtype == object else labels.dtype.str
    return {"dtype": dtype, "values": [plain("classes_", label) for label in labels.tolist()]}


def _labels(value: Any, where: str) -> npt.NDArray[Any]:
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


def _adaptation(value: Any, where: str) -> Bunch:
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


_bands = tuple_of(_band, 3)


def images(value: Any, where: str) -> dict[str, Any]:
    """How X is read."""
    found: dict[str, Any] = record(
        {
            "kind": one_of("rows", "arrays", "images", "paths"),
            "image_shape": optional(tuple_of(integer(1, 2**20), 2, 3)),
            "pixel_range": tuple_of(number(), 2),
            "learned_from": one_of("given", "8-bit", "values"),
        },
        {"in_colour": flag, "bands": optional(_bands), "n_bands": optional(integer(1, 2**15))},
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


def _size(largest: int) -> Reader:
    """A number of pixels, or a height and a width that differ."""
    one = integer(1, largest)
    two = tuple_of(one, 2)

    def read(value: Any, where: str) -> Size:
        return as_size(two(value, where)) if isinstance(value, list) else one(value, where)

    return read


_history = list_of(mapping_of(_cell))
_backbone = record(
    {
        "name": _backbone_name,
        "image_size": _size(_LARGEST_IMAGE),
        "transform_input": flag,
    }
)
_three = tuple_of(number(-1e6, 1e6), 3)
_recipe = record(
    {
        "resize": _size(4 * _LARGEST_IMAGE),
        "crop": _size(_LARGEST_IMAGE),
        "interpolation": one_of("nearest", "nearest-exact", "bilinear", "bicubic"),
        "mean": _three,
        "std": tuple_of(number(1e-6, 1e6), 3),
        "antialias": flag,
    },
    {"resize_mode": one_of(*RECIPE_MODES)},  # older files are of "crop"
)


def _recipe_of_parameter(value: Any, where: str) -> Recipe:
    found = _recipe(value, where)
    try:
        return Recipe(**found)
    except ValueError as error:
        raise FileFormatError(f"{where}: {error}") from error


_dtype = one_of("float32", "float16")
_pooling = one_of("auto", "avg", "flatten")
_share = number(0, 1, below=True)
_positive = number(0, above=True)
_least_one = integer(1)
_network = {
    "backbone": _backbone,
    "recipe": _recipe,
    "pooling": _pooling,
    "precision": one_of(*PRECISIONS),
    "asked_precision": one_of("auto", *PRECISIONS),
    "device": _device,
    "frozen_sha256": optional(text),
}
_widths = tuple_of(integer(1, 2**31))
_head = {
    "head": either(one_of(*ONE_LAYER), _widths),
    "dropout": _share,
    "in_features": integer(1, 2**31),
}
_plan = {
    "optimizer": one_of(*OPTIMIZERS),
    "lr": _positive,
    "backbone_lr": _positive,
    "layer_decay": number(0, 1, above=True),
    "schedule": one_of(*SCHEDULES),
    "warmup": optional(_share),
    "max_epochs": _least_one,
    "batch_size": _least_one,
    "accumulation_steps": _least_one,
    "max_grad_norm": optional(_positive),
    "ema_decay": optional(number(0, 1, above=True, below=True)),
    "label_smoothing": _share,
    "weight_decay": either(one_of("auto"), number(0)),
    "mixup": number(0),
    "cutmix": number(0),
    "unfreeze": one_of(*UNFREEZING),
    "n_iter_no_change": optional(_least_one),
    "seed": integer(0, 2**31 - 1),
    "verbose": integer(0, 1),
}
_plan_may_lack = {"chosen_decay": number(0)}
_may_lack = {
    "n_features_in_": integer(1, 2**31),
    "feature_names_in_": list_of(text),
    "output": one_of("default", "pandas", "polars"),
}
_parameters = {
    "backbone": _backbone_name,
    "image_shape": optional(tuple_of(integer(1, 2**20), 2, 3)),
    "image_size": optional(_size(2**31)),
    "pixel_range": optional(tuple_of(number(), 2)),
    "preprocessing": optional(_recipe_of_parameter),
    "bands": optional(either(one_of("all"), _bands)),
    "cache": one_of("memory", None),
    "device": _device,
    "n_jobs": optional(integer(-1024, 1024)),
    "on_error": one_of("raise", "skip"),
}


# States ------------------------------------------------------------------------------


def _network_to_json(stored: Stored) -> Stored:
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


def _network_to_state(model: Stored) -> Stored:
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


def _weights(tensors: Tensors, prefix: str, same: dict[str, str]) -> Stored:
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


def _shared_attributes(state: Stored) -> Stored:
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


def _shared_state(attributes: Stored) -> Stored:
    state = dict(attributes)
    if "feature_names_in_" in state:
        state["feature_names_in_"] = np.array(state["feature_names_in_"], dtype=object)
    if "output" in state:
        state[OUTPUT_CONFIG] = {"transform": state.pop("output")}
    return state


def _check_columns(read: Stored) -> None:
    attributes, rows = read["attributes"], read["images"]["kind"] == "rows"
    width, shape = attributes.get("n_features_in_"), read["images"]["image_shape"]
    names = attributes.get("feature_names_in_")
    if rows != (width is not None) or (rows and (shape is None or math.prod(shape) != width)):
        raise FileFormatError(f"n_features_in_={width} does not go with image_shape={shape}.")
    if names is not None and len(names) != width:
        raise FileFormatError(f"There are {len(names)} feature_names_in_ for {width} features.")


def _check_network(read: Stored) -> None:
    model = read["model"]
    if model["backbone"]["image_size"] != model["recipe"]["crop"]:
        raise FileFormatError("The network and its recipe are for images of different sizes.")
    sides = (height_width(model["recipe"][name]) for name in ("crop", "resize"))
    if any(crop > resize for crop, resize in zip(*sides, strict=True)):
        raise FileFormatError("The recipe crops more than it resizes to.")


def _check_same(read: Stored, tensors: Tensors) -> None:
    for part, same in read["model"]["same"].items():
        if not {f"{part}/{first}" for first in same.values()} <= tensors.keys():
            raise FileFormatError(f"There are no tensors that those of same.{part} could be.")


# What both that are trained have -------------------------------------------------------


def _trained_parts(state: Stored) -> tuple[Stored, Stored, Tensors]:
    stored = state.pop("_model")
    attributes = _shared_attributes(state) | {
        "history_": _to_cells(state.pop("history_")),
        "n_iter_": int(state.pop("n_iter_")),
        "stages_": state.pop("stages_"),
    }
    del state["freeze_"]  # the model's depth
    tensors = tensors_of(stored["frozen"], "frozen") | tensors_of(stored["trained"], "trained")
    if "best_epoch_" in state:
        attributes["best_epoch_"] = int(state.pop("best_epoch_"))
        tensors["validation_indices_"] = torch.from_numpy(state.pop("validation_indices_"))
    skipped = state.pop("skipped_", np.arange(0)).tolist()
    if skipped:
        attributes["skipped_"] = skipped
    plan = {name: plain(name, value) for name, value in stored["plan"].items()}
    if plan["chosen_decay"] is None:
        del plan["chosen_decay"]
    head = stored["head"]
    widths = [int(n) for n in head["head"]] if isinstance(head["head"], tuple) else None
    model = _network_to_json(stored) | {
        "depth": stored["depth"],
        "pooling": stored["pooling"],
        "head": {name: plain(name, v) for name, v in (head | {"head": "linear"}).items()}
        | {"head": widths or plain("head", head["head"])},
        "plan": plan,
        "history": _to_cells(stored["history"]),
        "same": {part: stored[part]["same"] for part in ("frozen", "trained")},
    }
    return attributes, model, tensors


def _trained_state(attributes: Stored, model: Stored, tensors: Tensors) -> Stored:
    state = _shared_state(attributes)
    if "validation_indices_" in tensors:
        state["validation_indices_"] = tensors["validation_indices_"].numpy()
    if "skipped_" in state:
        state["skipped_"] = np.array(state["skipped_"], dtype=np.int64)
    kept = ("depth", "pooling", "head", "plan", "history")
    weights = {part: _weights(tensors, part, model["same"][part]) for part in ("frozen", "trained")}
    return state | {
        "freeze_": model["depth"],
        "_model": _network_to_state(model) | {k: model[k] for k in kept} | weights,
    }


def _check_trained(read: Stored) -> None:
    _check_columns(read)
    _check_network(read)
    if not 0 <= read["model"]["depth"] <= len(read["attributes"]["stages_"]):
        raise FileFormatError(f"depth={read['model']['depth']} does not go with the stages.")


def _check_trained_tensors(read: Stored, tensors: Tensors, n_outputs: int) -> None:
    _check_same(read, tensors)
    _check_head(read["model"]["head"], n_outputs, tensors)
    _check_indices(read["attributes"], tensors)


def _check_head(head: Stored, n_outputs: int, tensors: Tensors) -> None:
    """Before it is built: a few digits may ask for more memory than there is."""
    hidden = () if head["head"] in ONE_LAYER else head["head"]
    widths = (head["in_features"], *hidden, n_outputs)
    wanted = [(out, into) for into, out in zip(widths, widths[1:], strict=False)]
    found = {
        tuple(tensor.shape)
        for name, tensor in tensors.items()
        if name.startswith("trained/head.") and tensor.ndim == 2
    }
    if found != set(wanted):
        raise FileFormatError(f"The head should have weights of the shapes {wanted}.")


def _check_indices(attributes: Stored, tensors: Tensors) -> None:
    indices = tensors.get("validation_indices_")
    if (indices is None) != ("best_epoch_" not in attributes):
        raise FileFormatError("best_epoch_ and validation_indices_ belong together.")
    if indices is not None and (
        indices.dtype is not torch.int64 or indices.ndim != 1 or bool((indices < 0).any())
    ):
        raise FileFormatError("validation_indices_ must be row numbers.")


_trained_attributes = {
    "history_": _history,
    "n_iter_": integer(0),
    "stages_": list_of(text, least=1),
}
_trained_may_lack = _may_lack | {
    "best_epoch_": integer(0),
    "skipped_": list_of(integer(0)),
}
_trained_model = _network | {
    "depth": integer(0, 2**15),
    "history": _history,
    "same": record({"frozen": mapping_of(text), "trained": mapping_of(text)}),
}
_trained_parameters = _parameters | {
    "head": either(one_of(*HEADS), _widths),
    "callbacks": one_of(None),
}


# PretrainedImageClassifier -------------------------------------------------------------


def _classifier_parts(state: Stored) -> tuple[Stored, Stored, Tensors]:
    sample, classes = state.pop("_sample"), state.pop("classes_")
    target = state["_model"]["target"]
    attributes, model, tensors = _trained_parts(state)
    attributes["classes_"] = _labels_to_json(classes)
    model["head"]["n_classes"] = model["head"].pop("n_outputs")
    if target["kind"] == Indicators.kind:  # without it, a file is of classes
        model["target"] = {name: target[name] for name in ("kind", "n_labels")}
    if sample is not None and sample["features"].nbytes <= _SAMPLE_BYTES:
        names = ("features", "labels", "weights")
        tensors |= {f"sample/{name}": torch.from_numpy(sample[name]) for name in names}
    if "adaptation_" in state:
        adaptation = state.pop("adaptation_")
        attributes["adaptation_"] = adaptation | {"proportions": adaptation["proportions"].tolist()}
    return attributes, model, tensors


def _classifier_state(attributes: Stored, model: Stored, tensors: Tensors) -> Stored:
    sample = None
    if "sample/features" in tensors:
        sample = {n: tensors[f"sample/{n}"].numpy() for n in ("features", "labels", "weights")}
        sample["n_classes"] = np.asarray(model["head"]["n_classes"])
    state = _trained_state(attributes, model, tensors) | {"_sample": sample}
    if "target" in model:
        state["_model"]["target"] = model["target"]
    return state


def _check_classifier(read: Stored) -> None:
    _check_trained(read)
    attributes, head = read["attributes"], read["model"]["head"]
    n_classes, adaptation = len(attributes["classes_"]), attributes.get("adaptation_")
    target = read["model"].get("target")
    if target is not None and attributes["classes_"].tolist() != [*range(target["n_labels"])]:
        raise FileFormatError(f"classes_ must be 0 to {target['n_labels'] - 1}, as labels are.")
    if target is not None and adaptation is not None:
        raise FileFormatError("A classifier of several labels has no adaptation_.")
    if head["n_classes"] != n_classes:
        raise FileFormatError(f"The head is for {head['n_classes']} classes, not {n_classes}.")
    if adaptation is not None and len(adaptation.proportions) != n_classes:
        raise FileFormatError("adaptation_ has the proportions of other classes.")


def _check_classifier_tensors(read: Stored, tensors: Tensors) -> None:
    head = read["model"]["head"]
    _check_trained_tensors(read, tensors, head["n_classes"])
    _check_sample(head, tensors)
    if "target" in read["model"] and "sample/features" in tensors:
        raise FileFormatError("A classifier of several labels has no sample.")


def _check_sample(head: Stored, tensors: Tensors) -> None:
    names = ("features", "labels", "weights")
    found = [tensors[f"sample/{name}"] for name in names if f"sample/{name}" in tensors]
    if not found:
        return
    if len(found) < len(names):
        raise FileFormatError("The sample lacks features, labels or weights.")
    features, labels, weights = found
    n = len(labels) if labels.ndim else 0
    if (
        [t.dtype for t in found] != [torch.float32, torch.int64, torch.float64]
        or [tuple(t.shape) for t in found] != [(n, head["in_features"]), (n,), (n,)]
        or not bool(((labels >= 0) & (labels < head["n_classes"])).all())
        or not bool((weights >= 0).all())
    ):
        raise FileFormatError("The sample's features, labels and weights don't go together.")


CLASSIFIER = Layout(
    parameters=_trained_parameters
    | {"class_weight": optional(either(text, list_of(tuple_of(scalar, 2))))},
    attributes=record(
        _trained_attributes | {"classes_": _labels},
        _trained_may_lack | {"adaptation_": _adaptation},
    ),
    model=record(
        _trained_model
        | {
            "head": record(_head | {"n_classes": integer(2)}),
            "plan": record(_plan | {"criterion": one_of(*Classes.criteria)}, _plan_may_lack),
        },
        {"target": record({"kind": one_of(Indicators.kind), "n_labels": integer(2)})},
    ),
    to_parts=_classifier_parts,
    to_state=_classifier_state,
    check=_check_classifier,
    check_tensors=_check_classifier_tensors,
    frozen_part=lambda backbone, model: backbone.prefix(model["depth"], model["pooling"]),
)


# PretrainedImageRegressor --------------------------------------------------------------


def _regressor_parts(state: Stored) -> tuple[Stored, Stored, Tensors]:
    target = state["_model"]["target"]
    attributes, model, tensors = _trained_parts(state)
    model["target"] = {name: target[name] for name in ("mean", "scale", "flat")}
    return attributes, model, tensors


def _regressor_state(attributes: Stored, model: Stored, tensors: Tensors) -> Stored:
    state = _trained_state(attributes, model, tensors)
    state["_model"]["target"] = {"kind": Numbers.kind} | model["target"]
    return state


def _check_regressor(read: Stored) -> None:
    _check_trained(read)
    target, n_outputs = read["model"]["target"], read["model"]["head"]["n_outputs"]
    lengths = [len(target[name]) for name in ("mean", "scale")]
    if lengths != [n_outputs, n_outputs] or (target["flat"] and n_outputs > 1):
        raise FileFormatError(f"The target does not go with a head of {n_outputs} outputs.")


def _check_regressor_tensors(read: Stored, tensors: Tensors) -> None:
    _check_trained_tensors(read, tensors, read["model"]["head"]["n_outputs"])


REGRESSOR = Layout(
    parameters=_trained_parameters,
    attributes=record(_trained_attributes, _trained_may_lack),
    model=record(
        _trained_model
        | {
            "target": record(
                {
                    "mean": tuple_of(number()),
                    "scale": tuple_of(number(0, above=True)),
                    "flat": flag,
                }
            ),
            "head": record(_head | {"n_outputs": integer(1)}),
            "plan": record(_plan | {"criterion": one_of(*Numbers.criteria)}, _plan_may_lack),
        }
    ),
    to_parts=_regressor_parts,
    to_state=_regressor_state,
    check=_check_regressor,
    check_tensors=_check_regressor_tensors,
    frozen_part=lambda backbone, model: backbone.prefix(model["depth"], model["pooling"]),
)


# PretrainedImageFeatures ---------------------------------------------------------------


def _features_parts(state: Stored) -> tuple[Stored, Stored, Tensors]:
    stored = state.pop("_backbone")
    attributes = _shared_attributes(state) | {"stages_": state.pop("stages_")}
    model = _network_to_json(stored) | {
        "stage": state.pop("_stage"),
        "pooling": state.pop("_pooling"),
        "dtype": state.pop("_dtype"),
        "n_features_out": int(state.pop("_n_features_out")),
        "same": {"frozen": stored["frozen"]["same"]},
    }
    return attributes, model, tensors_of(stored["frozen"], "frozen")


def _features_state(attributes: Stored, model: Stored, tensors: Tensors) -> Stored:
    weights = {"frozen": _weights(tensors, "frozen", model["same"]["frozen"])}
    return _shared_state(attributes) | {
        "_stage": model["stage"],
        "_pooling": model["pooling"],
        "_dtype": model["dtype"],
        "_n_features_out": model["n_features_out"],
        "_backbone": _network_to_state(model) | weights,
    }


def _check_features(read: Stored) -> None:
    _check_columns(read)
    _check_network(read)
    stage, n_stages = read["model"]["stage"], len(read["attributes"]["stages_"])
    several = stage if isinstance(stage, tuple) else (stage,)
    if any(s is not None and s >= n_stages for s in several) or len(set(several)) < len(several):
        raise FileFormatError(f"stage={stage} does not go with the stages.")


FEATURES = Layout(
    parameters=_parameters
    | {"stage": _one_or_several(scalar), "dtype": lambda v, where: getattr(np, _dtype(v, where))},
    attributes=record({"stages_": list_of(text, least=1)}, _may_lack),
    model=record(
        _network
        | {
            "stage": _one_or_several(optional(integer(0, 2**15))),
            "dtype": _dtype,
            "n_features_out": integer(1, 2**31),
            "same": record({"frozen": mapping_of(text)}),
        }
    ),
    to_parts=_features_parts,
    to_state=_features_state,
    check=_check_features,
    check_tensors=_check_same,
    frozen_part=lambda backbone, model: backbone.stage_features(model["stage"], model["pooling"]),
)
