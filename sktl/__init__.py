"""Transfer learning for images in scikit-learn."""

from importlib import import_module
from typing import Any

from .backbones import list_backbones
from .classifier import PretrainedImageClassifier
from .datasets import load_image_folder, load_image_table
from .features import PretrainedImageFeatures
from .files.container import FileFormatError, NotSavableError
from .files.loading import MissingWeightsError, load
from .images.errors import UnreadableImagesError, UnreadableImageWarning
from .images.preprocessing import Recipe
from .model.adapt import DomainShiftWarning, NoDomainShiftWarning
from .parallel import data_parallel
from .regressor import PretrainedImageRegressor
from .version import __version__ as __version__

__all__ = [
    "DomainShiftWarning",
    "FileFormatError",
    "MissingWeightsError",
    "NoDomainShiftWarning",
    "NotSavableError",
    "PretrainedImageClassifier",
    "PretrainedImageFeatures",
    "PretrainedImageRegressor",
    "Recipe",
    "UnreadableImageWarning",
    "UnreadableImagesError",
    "data_parallel",
    "list_backbones",
    "load",
    "load_image_folder",
    "load_image_table",
]

_LAZY = ("plotting",)  # matplotlib is slow to import, and not needed by most


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LAZY, "__version__"])
