"""Which way up a picture lies, and how it is turned upright."""

from __future__ import annotations

from PIL import ExifTags, Image

UPRIGHT = 1  # of the values that EXIF knows
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(image: Image.Image) -> int:
    """Read the EXIF orientation; what can't be read, or means nothing, is upright."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
        return found if found in _TURNS else UPRIGHT
    except MemoryError:
        raise
    except Exception:  # broken metadata does not make the pixels unreadable
        return UPRIGHT


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Turn a picture of this orientation upright; the same picture where it is."""
    return image if orientation == UPRIGHT else image.transpose(_TURNS[orientation])


def upright(image: Image.Image) -> Image.Image:
    """Turn a picture upright by its own metadata."""
    return turned(image, orientation_of(image))
