"""From a file or a PIL image to upright uint8 RGB pixels."""

from __future__ import annotations

import errno
import io
import os
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

_SPARE = (
    2  # pixels that are decoded for each one that is wanted, at least, as in Pillow's thumbnail
)
_CHUNK = 65536  # values scaled at once: what stays in the cache goes through it 2.5 times as fast

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # what a file begins with; also BigTIFF

# Pillow's own conversion of these to RGB warns, keeps the premultiplied values or fails.
_BY_WAY_OF = {"P": "RGBA", "PA": "RGBA", "RGBa": "RGBA", "La": "LA"}


# What the system says of one file; all else, as of a failing disk or too many open files, is not
# the file's fault.
_OF_ONE_FILE = {
    errno.EACCES,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENODEV,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENXIO,
    errno.EPERM,
}


def decode_file(file: str | bytes, size: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode a file with Pillow, to (h, w, 3); raises nearly anything on a bad file.

    Parameters
    ----------
    file : str or bytes
        Its path, or what it holds.
    size : int or None, default=None
        To how many pixels the shorter side will be resized. A JPEG file of more than four times as
        many is decoded at a half, quarter or eighth of its size, which takes a fraction of the
        time and leaves twice as many pixels at least, so that resizing blurs as it should.
    """
    with _opened(file) as opened, _identified(opened) as image:
        if size is not None and image.format == "JPEG":
            fraction = max(1, min(image.size) // (_SPARE * size))
            image.draft(None, (image.width // fraction, image.height // fraction))
        return pillow_to_rgb(image)


def _opened(file: str | bytes) -> BinaryIO:
    if isinstance(file, bytes):
        return io.BytesIO(file)
    if os.path.exists(file) and not os.path.isfile(file):
        # Checked first, since opening a named pipe would wait for ever.
        raise OSError("is a directory" if os.path.isdir(file) else "is not a regular file")
    return open(file, "rb")


def _identified(opened: BinaryIO) -> Image.Image:
    try:
        return Image.open(opened)
    except UnidentifiedImageError as error:
        opened.seek(0)
        if opened.read(4) in _TIFF:
            raise ValueError(
                "a TIFF file of a kind that Pillow doesn't read, as with more than four bands: "
                "bands=(red, green, blue) chooses three"
            ) from error
        raise


def decode_bands(file: str | bytes) -> npt.NDArray[Any]:
    """Decode all bands of a file, as they stand in it; raises nearly anything on a bad file.

    Parameters
    ----------
    file : str or bytes
        Its path, or what it holds. Of TIFF files, the pages or the samples of a pixel are the
        bands, of any number and dtype.

    Returns
    -------
    ndarray of shape (h, w, n_bands)

    Raises
    ------
    ImportError
        If it is a TIFF file, and tifffile isn't installed.
    """
    with _opened(file) as opened:
        start = opened.read(4)
        opened.seek(0)
        if start in _TIFF:
            return _tiff_bands(opened)
        with Image.open(opened) as image:
            return pillow_bands(image)


def _tiff_bands(opened: BinaryIO) -> npt.NDArray[Any]:
    try:
        import tifffile
    except ImportError as error:
        raise ImportError(
            "Reading the bands of TIFF files needs tifffile: pip install sktl[tiff]"
        ) from error
    with tifffile.TiffFile(opened) as tiff:
        first = tiff.series[0]
        alike = [s for s in tiff.series if (s.shape, s.dtype) == (first.shape, first.dtype)]
        values, axes = np.stack([series.asarray() for series in alike]), f"?{first.axes}"
    # What isn't a row or a column is a band: samples, pages, channels.
    values = np.moveaxis(values, (axes.index("Y"), axes.index("X")), (0, 1))
    values = values.reshape(*values.shape[:2], -1)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("some of its values are NaN or infinite")
    return values


def pillow_bands(image: Image.Image) -> npt.NDArray[Any]:
    """Give the upright pixels of a PIL image with its own bands, as (h, w, n_bands)."""
    image.load()
    image = _upright(image)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, np.newaxis]


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


def is_about_the_image(error: Exception) -> bool:
    """Whether decoding failed for what the image is, and not for want of memory or a disk."""
    if isinstance(error, OSError):
        return error.errno is None or error.errno in _OF_ONE_FILE  # Pillow's own have none
    return not isinstance(error, MemoryError | ImportError)


def why_unreadable(error: Exception) -> str:
    """Say in a few words what is wrong with a file."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
