"""Fitted estimators from files: nothing of a file is run."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..atomic import Path
from ..images.preprocessing import Recipe
from ..tensors import without_values
from ..version import __version__
from .container import FileFormatError, read_sealed
from .document import check_tensors, class_of, digest_of, frozen_again, read_document
from .layout import Layout, Tensors
from .state import BEFORE
from .weights import Stored


class MissingWeightsError(FileFormatError, OSError):
    """The weights that a file leaves out are not to be had here, or are others."""


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
    cls, layout = class_of(document)
    read = read_document(document, layout)
    digest = read["model"]["frozen_sha256"]
    if digest is not None:
        tensors = tensors | _frozen_as_then(read, layout, digest)
    check_tensors(read, tensors, layout)
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


def _frozen_as_then(read: Stored, layout: Layout, digest: str) -> Tensors:
    """The weights that the file leaves out, as its hash tells."""
    name, weights = read["model"]["backbone"]["name"], read["parameters"]["weights"]
    try:
        frozen = frozen_again(read, layout)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        raise MissingWeightsError(
            f"The file leaves out the weights {weights!r} of {name}, which are not to be had here "
            f"({error}). Bring them, or save with include_backbone=True."
        ) from error
    if digest_of(frozen) != digest:
        raise MissingWeightsError(
            f"The file leaves out the weights {weights!r} of {name}, and those found here are not "
            "the ones that the estimator was fitted with. Bring those, or save with "
            "include_backbone=True."
        )
    return frozen


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
            features = without_values(module).eval()(features)
    except Exception:  # a forward that makes tensors of its own can only be run
        features = torch.zeros((1, 3, *size), dtype=torch.uint8)
        for module in modules:
            features = module.eval()(features)
    return tuple(features.shape)
