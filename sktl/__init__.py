"""Transfer learning for images in scikit-learn."""

from importlib.metadata import version

from .backbones import list_backbones
from .classifier import PretrainedImageClassifier
from .datasets import load_image_folder
from .features import PretrainedImageFeatures

__version__ = version("sktl")

__all__ = [
    "PretrainedImageClassifier",
    "PretrainedImageFeatures",
    "list_backbones",
    "load_image_folder",
]
