"""Fitted estimators to files that hold no code: a JSON document for settings, and tensors."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torchvision.models import WeightsEnum

from ..atomic import Path
from ..backbones import LITES, default_weights, list_backbones
from ..images.descriptions import read_recipe
from ..version import __version__
from .container import FileFormatError, NotSavableError, write_sealed
from .document import FORMAT, check_tensors, digest_of, frozen_again, layout_of, read_document
from .layout import Layout, Tensors
from .pickling import to_settings
from .values import plain
from .weights import Stored

_TUPLES = ("bands", "head", "image_shape", "image_size", "pixel_range", "stage")  # parameters


def save(estimator: Any, path: Path, *, include_backbone: bool) -> None:
    """Write a fitted estimator to a file; see :meth:`sktl.PretrainedImageClassifier.save`."""
    layout = layout_of(type(estimator))
    check_is_fitted(estimator)
    document, tensors = _to_document(estimator, layout)
    try:
        read = read_document(document, layout)
        check_tensors(read, tensors, layout)
        if not include_backbone:
            _leave_out_frozen(document, read, tensors, layout)
    except FileFormatError as error:
        raise NotSavableError(f"The estimator can't be saved: {error} Use joblib.dump.") from error
    write_sealed(path, document, tensors)


def _to_document(estimator: Any, layout: Layout) -> tuple[Stored, Tensors]:
    parameters = estimator.get_params(deep=False)
    encoded = {name: _encode(name, value) for name, value in parameters.items()}
    state = estimator.__getstate__()
    fmt = state.pop("_format")
    for name in ("_sktl_version", *parameters):
        del state[name]
    attributes, model, tensors = layout.to_parts(state)
    if state:
        raise NotSavableError(
            f"The estimator has the attributes {sorted(state)}, which can't be saved; they may "
            "come from set_callbacks or set_fit_request. Delete them, or use joblib.dump."
        )
    document = {
        "format": FORMAT,
        "estimator": type(estimator).__name__,
        "versions": {"sktl": __version__}
        | {name: version(name) for name in ("torch", "torchvision")},
        "parameters": encoded,
        "images": fmt,
        "attributes": attributes,
        "model": model,
    }
    return _with_lists(document), tensors


def _encode(name: str, value: Any) -> Any:
    """A parameter as JSON says it."""
    if isinstance(value, np.generic):
        value = value.item()
    if name == "cache":  # a folder belongs to a machine, and isn't for a file to choose
        return None if value is None else "memory"
    if name == "callbacks" and isinstance(value, list | tuple) and not value:
        return None
    if name == "class_weight" and isinstance(value, dict):
        return [[_encode(name, label), _encode(name, weight)] for label, weight in value.items()]
    if name == "preprocessing" and value is not None:
        return to_settings(read_recipe(value))
    if name == "dtype" and isinstance(value, type):
        return value.__name__
    if name in _TUPLES and isinstance(value, list | tuple):
        return [_encode(name, item) for item in value]
    if isinstance(value, WeightsEnum):
        return _name_of_member(value)
    if isinstance(value, os.PathLike):  # with a folder, so that it isn't taken for a name
        return os.path.join(os.curdir, os.fsdecode(value))
    return str(value) if isinstance(value, torch.device) else plain(name, value)


def _name_of_member(member: WeightsEnum) -> str:
    name = f"{type(member).__name__}.{member.name}"
    if type(member) not in {type(default_weights(n)) for n in list_backbones() if n not in LITES}:
        raise NotSavableError(
            f"weights={name} can't be saved, since torchvision has no weights of that name. Give "
            "the path of a state dict, or use joblib.dump."
        )
    return name


def _with_lists(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, dict):
        return {name: _with_lists(item) for name, item in value.items()}
    return [_with_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _leave_out_frozen(document: Stored, read: Stored, tensors: Tensors, layout: Layout) -> None:
    """Put a hash in the place of the frozen weights."""
    for name in [name for name in tensors if name.startswith("sample/")]:
        del tensors[name]
    frozen = {name: tensors.pop(name) for name in list(tensors) if name.startswith("frozen/")}
    if not frozen:
        return
    digest = digest_of(frozen)
    weights = read["parameters"]["weights"]
    if weights is None:
        raise NotSavableError(
            "include_backbone=False leaves out weights that can be had again, but weights=None are "
            "random ones. Save with include_backbone=True."
        )
    try:
        again = frozen_again(read, layout)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        raise NotSavableError(
            f"include_backbone=False leaves out weights that can be had again, but {error} Save "
            "with include_backbone=True."
        ) from error
    if digest_of(again) != digest:
        raise NotSavableError(
            "include_backbone=False leaves out weights that can be had again, but those of "
            f"weights={weights!r} are not the ones that the estimator was fitted with. Save with "
            "include_backbone=True, or fit again."
        )
    document["model"]["frozen_sha256"] = digest
