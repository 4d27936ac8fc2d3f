"""Transfer learning for images in scikit-learn."""

from importlib.metadata import version

from .adaptation import DomainShiftWarning
from .backbones import list_backbones
from .classifier import PretrainedImageClassifier
from .datasets import load_image_folder
from .features import PretrainedImageFeatures

__version__ = version("sktl")

__all__ = [
    "DomainShiftWarning",
    "PretrainedImageClassifier",
    "PretrainedImageFeatures",
    "list_backbones",
    "load_image_folder",
]
