"""Image data sets from disk."""

from .folders import load_image_folder
from .tables import load_image_table

__all__ = ["load_image_folder", "load_image_table"]
