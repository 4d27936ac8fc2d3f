"""From a file or a PIL image to upright uint8 RGB pixels."""

from __future__ import annotations

import errno
import functools
import io
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, BinaryIO, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from . import jpeg
from .depth import DeepValues, deep_values, depth_of
from .orientation import upright

# Makes grey levels of values of more than 8 bits, or says by a ValueError why it can't.
Scale: TypeAlias = Callable[[npt.NDArray[Any]], npt.NDArray[np.uint8]]

_CHUNK = 65536  # values scaled at once: what stays in the cache goes through it 2.5 times as fast

_JPEG_FORMATS = ("JPEG", "MPO")  # an MPO file is a JPEG file with others behind it, as of phones
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # what a file begins with; also BigTIFF


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


def _from_16_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return scale_to_uint8(values, (0.0, 65535.0))


def decode_file(
    file: str | bytes, size: int | None = None, scale: Scale = _from_16_bits
) -> npt.NDArray[np.uint8]:
    """Decode a file, to (h, w, 3); raises nearly anything on a bad file.

    Plain JPEG files, by their header, are for :mod:`sktl.images.jpeg`, all others for Pillow.

    Parameters
    ----------
    file : str or bytes
        Its path, or what it holds.
    size : int or None, default=None
        To how many pixels the shorter side will be resized. A JPEG file of more than four times as
        many is decoded at a half, quarter or eighth of its size, which takes a fraction of the
        time and leaves twice as many pixels at least, so that resizing blurs as it should.
    scale : callable, default=from 0 to 65535
        For values of more than 8 bits.
    """
    with _opened(file) as opened:
        if opened.read(len(jpeg.BEGINNING)) == jpeg.BEGINNING:
            opened.seek(0)
            pixels = jpeg.decode_plain(opened.read(), size)
            if pixels is not None:
                return pixels
        opened.seek(0)
        return _decode_by_pillow(opened, size, scale)


def _decode_by_pillow(opened: BinaryIO, size: int | None, scale: Scale) -> npt.NDArray[np.uint8]:
    with _identified(opened) as image:
        if image.format in _JPEG_FORMATS:
            fraction = jpeg.fraction_of(min(image.size), size)
            image.draft(None, (image.width // fraction, image.height // fraction))
        deep = deep_values(image, in_file=True)
        return pillow_to_rgb(image, scale) if deep is None else _deep_to_rgb(deep, scale)


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
                "bands=(red, green, blue) chooses three, and bands='all' takes all"
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


def has_deep_bands(file: str | bytes) -> bool:
    """Whether a header says that `decode_bands` may give more than 8 bits; False for a bad file."""
    return bool(_of_file(_has_deep_bands, file))


def _has_deep_bands(file: str | bytes) -> bool:
    with _opened(file) as opened:
        if opened.read(4) not in _TIFF:
            return depth_of(file).is_deep
        opened.seek(0)
        with _tifffile().TiffFile(opened) as tiff:
            return tiff.series[0].dtype not in (np.uint8, np.bool_)


def bounds_of_bands(file: str | bytes, numbers: tuple[int, ...]) -> tuple[float, float] | None:
    """The least and the greatest value in some bands; None for 8 bits and for a bad file."""
    return _of_file(_bounds_of_bands, file, numbers)


def _bounds_of_bands(file: str | bytes, numbers: tuple[int, ...]) -> tuple[float, float] | None:
    values = decode_bands(file)[..., sorted(set(numbers))]
    if values.dtype in (np.uint8, np.bool_):
        return None
    return float(values.min()), float(values.max())


_Found = TypeVar("_Found")


def _of_file(look: Callable[..., _Found], file: str | bytes, *how: Any) -> _Found | None:
    """Look at a file, once until it changes; None if it is bad, which is told when it is read."""
    try:
        if isinstance(file, bytes):
            return look(file, *how)
        status = os.stat(file)
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        return cast("_Found", _of_path(look, file, how, stamp))
    except Exception:
        return None


@functools.lru_cache(maxsize=2**16)
def _of_path(look: Callable[..., Any], path: str, how: tuple[Any, ...], stamp: object) -> Any:
    return look(path, *how)


def _tifffile() -> ModuleType:
    try:
        import tifffile
    except ImportError as error:
        raise ImportError(
            "Reading the bands of TIFF files needs tifffile: pip install sktl[tiff]"
        ) from error
    return tifffile


def _tiff_bands(opened: BinaryIO) -> npt.NDArray[Any]:
    with _tifffile().TiffFile(opened) as tiff:
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
    image = upright(image)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, np.newaxis]


def pillow_to_rgb(image: Image.Image, scale: Scale) -> npt.NDArray[np.uint8]:
    """Give the upright pixels of a PIL image as (h, w, 3), in memory of their own.

    Parameters
    ----------
    image : PIL.Image.Image
    scale : callable
        For values of more than 8 bits.
    """
    image.load()  # so that what is wrong with the pixels is raised here, not swallowed below
    deep = deep_values(upright(image), in_file=False)
    if deep is not None:
        return _deep_to_rgb(deep, scale)
    is_transparent = image.has_transparency_data
    image = upright(image)
    if is_transparent or image.mode in ("RGBa", "La"):
        return _over_white(np.array(_with_alpha(image)))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # a palette may have transparent colours that Pillow warns of
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _with_alpha(image: Image.Image) -> Image.Image:
    """Convert to RGBA; Pillow can't do so straight from all modes."""
    if image.mode == "La":
        image = image.convert("LA")
    return image if image.mode == "RGBA" else image.convert("RGBA")


def _deep_to_rgb(deep: DeepValues, scale: Scale) -> npt.NDArray[np.uint8]:
    pixels = scale(deep.values)
    if deep.is_inverted:
        pixels = 255 - pixels
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, np.newaxis], 3, axis=2)
    if deep.alpha is None:
        return pixels
    return _over_white(np.dstack([pixels, deep.alpha]))


def _over_white(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    laid: npt.NDArray[np.uint8] = over_white(pixels[np.newaxis])[0]
    return laid


def over_white(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Lay transparent pictures on white, as browsers show them.

    Parameters
    ----------
    pixels : uint8 array of shape (n, h, w, 4)
        The last channel is opacity. Where it is the same all over a picture, nothing would be set
        off by it, and it is left out of account.

    Returns
    -------
    uint8 array of shape (n, h, w, 3)
    """
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    flat = alpha.reshape(len(pixels), -1)
    varies = flat.min(axis=1) < flat.max(axis=1)
    if not varies.any():
        return colours
    opacity = np.where(varies[:, np.newaxis, np.newaxis, np.newaxis], alpha, 255).astype(np.uint16)
    mixed = colours * opacity + 255 * (255 - opacity) + 127  # at most 65152
    return (mixed // 255).astype(np.uint8)


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
