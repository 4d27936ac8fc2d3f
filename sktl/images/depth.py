"""Pictures whose values have more than 8 bits, in files and PIL images."""

from __future__ import annotations

import functools
import io
import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

Values = npt.NDArray[np.generic]

_HEAD = 26  # bytes that tell how a PNG file holds its values, and what other files are
_PNG = b"\x89PNG\r\n\x1a\n"
# Pillow makes 8 bits of whatever these hold; of others their header must be read.
_EIGHT_BIT = (b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED = 0, 1, 2
_FEWEST_LEVELS = 64  # of the upper 8 bits, below which the lower ones matter


def may_be_deep(head: bytes) -> bool:
    """Whether a file that begins like this may hold values of more than 8 bits.

    Parameters
    ----------
    head : bytes
        The first 26, or more.
    """
    if head.startswith(_PNG):
        return head[24:25] == b"\x10"
    return not head.startswith(_EIGHT_BIT)


@dataclass(frozen=True)
class Depth:
    """What a file's header says of its values.

    Attributes
    ----------
    is_deep : bool
        Whether they have more than 8 bits, or are signed or floats.
    has_pages : bool
        Whether a TIFF file has a second page.
    """

    is_deep: bool
    has_pages: bool


def depth_of(file: str | bytes) -> Depth:
    """Read a header; a file that can't be read is taken for one of 8 bits, and fails later.

    Parameters
    ----------
    file : str or bytes
        Its path, or what it holds.
    """
    if isinstance(file, bytes):
        return _depth_of_bytes(file)
    try:
        status = os.stat(file)
        return _depth_of_path(file, status.st_mtime_ns, status.st_size, status.st_ino)
    except OSError:
        return Depth(False, False)


@functools.lru_cache(maxsize=2**16)
def _depth_of_path(path: str, *stamp: int) -> Depth:
    """Searches fit the same files many times; the stamp tells that one has changed."""
    if not os.path.isfile(path):
        return Depth(False, False)
    with open(path, "rb") as opened:
        if not may_be_deep(opened.read(_HEAD)):
            return Depth(False, False)
        opened.seek(0)
        return _depth_of_opened(opened)


def _depth_of_bytes(content: bytes) -> Depth:
    return _depth_of_opened(io.BytesIO(content)) if may_be_deep(content) else Depth(False, False)


def _depth_of_opened(opened: BinaryIO) -> Depth:
    try:
        with Image.open(opened) as image:
            is_deep = _has_deep_mode(image) or _holds_more_than_pillow_gives(image)
            return Depth(is_deep, image.format == "TIFF" and _has_second_page(image))
    except Exception:  # whatever a decoder raises on a bad file
        return Depth(False, False)


def _has_second_page(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def _has_deep_mode(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _holds_more_than_pillow_gives(image: Image.Image) -> bool:
    """Whether a file has 16-bit colours, of which Pillow gives the upper 8 bits, or a sign."""
    if image.format == "TIFF":
        bits = _tag(image, _BITS)
        is_signed = image.mode == "L" and _tag(image, _SAMPLE_FORMAT)[:1] == (_SIGNED,)
        return is_signed or (len(bits) > 1 and max(bits) > 8 and not _has_deep_mode(image))
    return _has_deep_png_colours(image)


def _has_deep_png_colours(image: Image.Image) -> bool:
    if image.format != "PNG" or _has_deep_mode(image):
        return False
    return any(str(tile[3]).endswith(";16B") for tile in getattr(image, "tile", ()))


def _tag(image: Image.Image, number: int) -> tuple[int, ...]:
    value = getattr(image, "tag_v2", {}).get(number, ())
    return value if isinstance(value, tuple) else (value,)


@functools.lru_cache(maxsize=2**16)
def _bounds_of_path(path: str, *stamp: int) -> tuple[float, float] | None:
    return _bounds_of_opened(path)


def bounds_of(file: str | bytes) -> tuple[float, float] | None:
    """The least and the greatest value in a file; None if it can't be read."""
    if isinstance(file, bytes):
        return _bounds_of_opened(io.BytesIO(file))
    try:
        status = os.stat(file)
    except OSError:
        return None
    return _bounds_of_path(file, status.st_mtime_ns, status.st_size, status.st_ino)


def _bounds_of_opened(file: str | io.BytesIO) -> tuple[float, float] | None:
    try:
        with Image.open(file) as image:
            return bounds_of_image(image, in_file=True)
    except Exception:  # it will be named when it is read
        return None


def bounds_of_image(image: Image.Image, *, in_file: bool = False) -> tuple[float, float] | None:
    """The least and the greatest value of a picture, if it has more than 8 bits."""
    found = deep_values(image, in_file=in_file)
    if found is None:
        return None
    values = found.values
    return float(values.min()), float(values.max())


@dataclass(frozen=True)
class DeepValues:
    """Values of more than 8 bits.

    Attributes
    ----------
    values : array of shape (h, w) or (h, w, 3)
    alpha : uint8 array of shape (h, w) or None
    is_inverted : bool
        Whether the least is white.
    """

    values: npt.NDArray[np.generic]
    alpha: npt.NDArray[np.uint8] | None = None
    is_inverted: bool = False


def deep_values(image: Image.Image, *, in_file: bool) -> DeepValues | None:
    """Read a picture of more than 8 bits; None if it has no more.

    Parameters
    ----------
    image : PIL.Image.Image
    in_file : bool
        Whether it has just been opened, so that what Pillow leaves out can be read from the file.
        Such values aren't turned upright.

    Raises
    ------
    ValueError
        If some values are no numbers, or Pillow gives too few of their bits.
    """
    if in_file and _has_deep_png_colours(image):
        return _png_colours(image)
    if in_file and _holds_more_than_pillow_gives(image):
        return _tiff_values(image)
    if not _has_deep_mode(image):
        return None
    values = np.asarray(image)
    if _tag(image, _SAMPLE_FORMAT)[:1] in ((), (_UNSIGNED,)) and _tag(image, _BITS) == (32,):
        values = values.view(np.uint32) if values.dtype == np.int32 else values
    return DeepValues(_finite(values), None, _tag(image, _PHOTOMETRIC)[:1] == (_WHITE_IS_ZERO,))


def _finite(values: Values) -> Values:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("some of its values are NaN or infinite")
    return values


def _content(image: Image.Image) -> bytes:
    file = getattr(image, "fp", None)
    assert file is not None
    file.seek(0)
    return bytes(file.read())


def _png_colours(image: Image.Image) -> DeepValues:
    """Read 16-bit colours by torchvision, which keeps them, while it has decoders."""
    try:
        from torchvision.io import ImageReadMode, decode_image
    except ImportError:
        return _upper_bits(image)
    content = torch.frombuffer(bytearray(_content(image)), dtype=torch.uint8)
    pixels = decode_image(content, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    alpha = None
    if pixels.shape[2] in (2, 4):  # the last channel is opacity
        alpha = (pixels[..., -1] >> 8).astype(np.uint8)
        pixels = pixels[..., :-1]
    return DeepValues(pixels if pixels.shape[2] == 3 else pixels[..., 0], alpha)


def _tiff_values(image: Image.Image) -> DeepValues:
    if image.mode == "L":
        return DeepValues(np.asarray(image).view(np.int8))
    return _upper_bits(image)


def _upper_bits(image: Image.Image) -> DeepValues:
    """What Pillow gives of 16-bit colours, if that is enough."""
    upper = np.asarray(image)
    alpha = upper[..., -1] if image.mode in ("RGBA", "LA") else None
    colours = np.asarray(image.convert("RGB"))
    if colours.max() < _FEWEST_LEVELS:
        raise ValueError(
            "its colours have 16 bits, of which Pillow reads the upper 8, too few where values "
            "stay below 16384; read it with tifffile or OpenCV and pass arrays"
        )
    return DeepValues(colours.astype(np.uint16) * 257, alpha)
