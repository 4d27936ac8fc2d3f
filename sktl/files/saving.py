"""Fitted estimators in files that hold no code.

A file has one JSON document for the settings and tensors for the rest. On the way back each value
is checked before anything is made of it. docs/saving.md describes the format.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torchvision.models import WeightsEnum

from ..atomic import Path
from ..backbones import LITES, default_weights, list_backbones, load_backbone
from ..frozen.prefix import named_tensors
from ..images.descriptions import read_recipe
from ..images.preprocessing import Recipe
from ..version import __version__
from .container import (
    FileFormatError,
    NotSavableError,
    dtype_name,
    raw_bytes,
    read_sealed,
    write_sealed,
)
from .layout import Layout, Tensors, images, plain, scalar, tensors_of
from .readers import integer, mapping_of, record, text
from .state import BEFORE, Stored, store_weights, to_settings

FORMAT = 1
_TUPLES = ("bands", "head", "image_shape", "image_size", "pixel_range", "stage")  # parameters
_PARTS = ("frozen", "trained", "sample", "validation_indices_")

_Class = TypeVar("_Class", bound=type)
_savable: dict[str, tuple[type[Any], Layout]] = {}


class MissingWeightsError(FileFormatError, OSError):
    """The weights that a file leaves out are not to be had here, or are others."""


def savable(layout: Layout) -> Callable[[_Class], _Class]:
    """Let the instances of a class be saved and loaded."""

    def register(cls: _Class) -> _Class:
        _savable[cls.__name__] = (cls, layout)
        return cls

    return register


# Saving ------------------------------------------------------------------------------


def save(estimator: Any, path: Path, *, include_backbone: bool) -> None:
    """Write a fitted estimator to a file; see :meth:`sktl.PretrainedImageClassifier.save`."""
    cls = type(estimator)
    known, layout = _savable.get(cls.__name__, (None, None))
    if layout is None or known is not cls:
        raise NotSavableError(
            f"Only sktl's own classes can be saved, and {cls.__qualname__} is none of them. Use "
            "joblib.dump."
        )
    check_is_fitted(estimator)
    document, tensors = _to_document(estimator, layout)
    try:
        read = _read(document, layout)
        _check_tensors(read, tensors, layout)
        if not include_backbone:
            _leave_out_frozen(document, read, tensors, layout)
    except FileFormatError as error:
        raise NotSavableError(f"The estimator can't be saved: {error} Use joblib.dump.") from error
    write_sealed(path, document, tensors)


def _to_document(estimator: Any, layout: Layout) -> tuple[Stored, Tensors]:
    parameters = estimator.get_params(deep=False)
    encoded = {name: _encode(name, value) for name, value in parameters.items()}
    state = estimator.__getstate__()
    image_format = state.pop("_format")
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
        "images": image_format,
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
    digest = _digest(frozen)
    weights = read["parameters"]["weights"]
    if weights is None:
        raise NotSavableError(
            "include_backbone=False leaves out weights that can be had again, but weights=None are "
            "random ones. Save with include_backbone=True."
        )
    try:
        again = _frozen_again(read, layout)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        raise NotSavableError(
            f"include_backbone=False leaves out weights that can be had again, but {error} Save "
            "with include_backbone=True."
        ) from error
    if _digest(again) != digest:
        raise NotSavableError(
            "include_backbone=False leaves out weights that can be had again, but those of "
            f"weights={weights!r} are not the ones that the estimator was fitted with. Save with "
            "include_backbone=True, or fit again."
        )
    document["model"]["frozen_sha256"] = digest


def _digest(tensors: Tensors) -> str:
    """SHA-256 of names, dtypes, shapes and values, in the order of the names."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        shape = ",".join(map(str, tensor.shape))
        hasher.update(f"{name} {dtype_name(tensor)} {shape}\n".encode())
        hasher.update(raw_bytes(tensor))
    return hasher.hexdigest()


# Loading -----------------------------------------------------------------------------


def load(path: Path) -> Any:
    """Load an estimator that its method `save` has written.

    No code of the file is run, and what it says is checked before anything is made of it.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    PretrainedImageClassifier, PretrainedImageRegressor or PretrainedImageFeatures

    Raises
    ------
    FileFormatError
        If the file is damaged or cut off, is none that sktl saved, or is of a later version.
    MissingWeightsError
        If the file leaves out the weights of the frozen stages, and they are not to be had here
        or are others. It is a FileFormatError and an OSError.
    OSError
        If the file can't be read.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_digits
    >>> import sktl
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> clf = sktl.PretrainedImageClassifier(image_size=64).fit(X[:20], y[:20])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     clf.save(f"{folder}/digits.sktl", include_backbone=False)
    ...     loaded = sktl.load(f"{folder}/digits.sktl")
    >>> loaded.predict(X[20:24])
    array([1, 1, 1, 0])
    """
    document, tensors = read_sealed(path)
    try:
        return _restore(document, tensors)
    except FileFormatError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error


def _restore(document: Any, tensors: Tensors) -> Any:
    cls, layout = _class_of(document)
    read = _read(document, layout)
    digest = read["model"]["frozen_sha256"]
    if digest is not None:
        tensors = tensors | _frozen_as_then(read, layout, digest)
    _check_tensors(read, tensors, layout)
    parameters = BEFORE | read["parameters"]
    if isinstance(parameters.get("class_weight"), list):
        parameters["class_weight"] = dict(parameters["class_weight"])
    with _as_format_error():
        estimator = cls(**parameters)
        estimator._validate_params()
        state = estimator.get_params(deep=False) | {
            "_format": read["images"],
            "pixel_range_": read["images"]["pixel_range"],
            "_sktl_version": __version__,  # the format says what can be read
        }
        estimator.__setstate__(state | layout.to_state(read["attributes"], read["model"], tensors))
        _check_path(estimator, read)
    return estimator


def _class_of(document: Any) -> tuple[type[Any], Layout]:
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


def _read(document: Any, layout: Layout) -> Stored:
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
            "images": images,
            "attributes": layout.attributes,
            "model": layout.model,
        }
    )
    read: Stored = reader(document, "document")
    layout.check(read)
    return read


def _check_tensors(read: Stored, tensors: Tensors, layout: Layout) -> None:
    for name, tensor in tensors.items():
        if name.partition("/")[0] not in _PARTS:
            raise FileFormatError(f"There is no place for the tensor {name[:100]!r}.")
        dtype_name(tensor)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FileFormatError(f"The tensor {name[:100]} holds values that are not finite.")
    layout.check_tensors(read, tensors)


def _frozen_as_then(read: Stored, layout: Layout, digest: str) -> Tensors:
    """The weights that the file leaves out, as its hash tells."""
    name, weights = read["model"]["backbone"]["name"], read["parameters"]["weights"]
    try:
        frozen = _frozen_again(read, layout)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        raise MissingWeightsError(
            f"The file leaves out the weights {weights!r} of {name}, which are not to be had here "
            f"({error}). Bring them, or save with include_backbone=True."
        ) from error
    if _digest(frozen) != digest:
        raise MissingWeightsError(
            f"The file leaves out the weights {weights!r} of {name}, and those found here are not "
            "the ones that the estimator was fitted with. Bring those, or save with "
            "include_backbone=True."
        )
    return frozen


def _frozen_again(read: Stored, layout: Layout) -> Tensors:
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


@contextmanager
def _as_format_error() -> Iterator[None]:
    """What is wrong with a network shows when it is built, in torch's own words."""
    try:
        yield
    except (FileFormatError, Warning, MemoryError):
        raise
    except Exception as error:
        raise FileFormatError(f"It describes no model that can be built: {error}") from error


def _check_path(estimator: Any, read: Stored) -> None:
    """See whether an image finds its way through the network to the head."""
    modules, width = estimator.__sktl_path__()
    size = Recipe(**read["model"]["recipe"]).size
    shape = _shape_of_features(modules, size)
    if shape != (1, width):
        raise FileFormatError(
            f"The network makes {math.prod(shape[1:])} features, and {width} are expected."
        )
    if list(estimator.__sktl_backbone__().stages) != estimator.stages_:
        raise FileFormatError("stages_ are not those of the network.")


@torch.no_grad()
def _shape_of_features(modules: Sequence[nn.Module], size: tuple[int, int]) -> tuple[int, ...]:
    features = torch.zeros((1, 3, *size), dtype=torch.uint8, device="meta")
    try:
        for module in modules:
            features = _without_values(module).eval()(features)
    except Exception:  # a forward that makes tensors of its own can only be run
        features = torch.zeros((1, 3, *size), dtype=torch.uint8)
        for module in modules:
            features = module.eval()(features)
    return tuple(features.shape)


def _without_values(module: nn.Module) -> nn.Module:
    """A copy that computes shapes and nothing else."""
    memo: dict[int, Any] = {}
    for tensor in named_tensors(module).values():
        empty = tensor.detach().to("meta")
        parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if parameter else empty
    return copy.deepcopy(module, memo)
