"""Transfer learning for images in scikit-learn."""

from importlib.metadata import version

from .adaptation import DomainShiftWarning, NoDomainShiftWarning
from .backbones import list_backbones
from .classifier import PretrainedImageClassifier
from .datasets import load_image_folder, load_image_table
from .features import PretrainedImageFeatures
from .images import UnreadableImagesError, UnreadableImageWarning
from .parallel import data_parallel
from .saving import MissingWeightsError, load
from .sealed import FileFormatError, NotSavableError

__version__ = version("sktl")

__all__ = [
    "DomainShiftWarning",
    "FileFormatError",
    "MissingWeightsError",
    "NoDomainShiftWarning",
    "NotSavableError",
    "PretrainedImageClassifier",
    "PretrainedImageFeatures",
    "UnreadableImageWarning",
    "UnreadableImagesError",
    "data_parallel",
    "list_backbones",
    "load",
    "load_image_folder",
    "load_image_table",
]
