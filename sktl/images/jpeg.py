"""Plain JPEG files, decoded by libjpeg-turbo straight into an array; Pillow copies it twice."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from .orientation import UPRIGHT, orientation_of, turned

try:
    import simplejpeg
except ImportError:  # no wheel for this Python or processor: Pillow decodes all files
    simplejpeg = None

BEGINNING = b"\xff\xd8\xff"  # of every JPEG file

# Pixels that are decoded for each one that is wanted, at least, as in Pillow's thumbnail.
_SPARE = 2
_FRACTIONS = (8, 4, 2)  # what Pillow lets libjpeg divide sides by

# Segments, by the second byte of their markers.
_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive, in Huffman's codes
_SCAN = 0xDA  # after which come the pixels
_EXIF_OR_XMP, _ADOBE = 0xE1, 0xEE
# Tables, restarts, comments, and what applications add.
_OTHERS = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}

_YCBCR = 1  # as Adobe numbers colours
_RGB = b"RGB"  # as some files name their components, of which libjpeg takes note
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_ORIENTATION = (b"\x01\x12", b"\x12\x01")  # the tag's number, in either order of bytes
_ORIENTATION_IN_XMP = b"tiff:Orientation"


def decoder() -> str:
    """Name what decodes plain JPEG files: others may differ by a level here and there."""
    return "Pillow" if simplejpeg is None else "libjpeg-turbo"


def fraction_of(shorter: int, size: int | None) -> int:
    """By what the sides of a JPEG file are divided as it is decoded.

    Parameters
    ----------
    shorter : int
        Length of its shorter side.
    size : int or None
        To what that will be resized.
    """
    spare = 1 if size is None else shorter // (_SPARE * size)
    return next((fraction for fraction in _FRACTIONS if fraction <= spare), 1)


@dataclass(frozen=True)
class Header:
    """What a plain JPEG file says of itself.

    Attributes
    ----------
    width, height : int
        As the picture is stored, which may not be upright.
    may_be_turned : bool
        Whether there may be an orientation in its metadata.
    """

    width: int
    height: int
    may_be_turned: bool


def plain_header(content: bytes) -> Header | None:
    """Read a header; None of a file that isn't plain.

    Plain are files of 8 bits, grey or YCbCr, baseline or progressive, in which nothing but whole
    segments of known kinds stands before the pixels.
    """
    segments = list(_segments(content))
    frames = [segment for marker, segment in segments if marker in _FRAMES]
    if len(frames) != 1 or segments[-1][0] != _SCAN or not all(map(_is_plain, segments)):
        return None
    notes = [segment for marker, segment in segments if marker == _EXIF_OR_XMP]
    height, width = (int.from_bytes(frames[0][i : i + 2], "big") for i in (1, 3))
    return Header(width, height, _may_tell_orientation(notes)) if height and width else None


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Give the markers and contents of whole segments, up to the first scan."""
    at, marker = 2, 0
    while marker != _SCAN and content[at : at + 1] == b"\xff":
        head = content[at + 1 : at + 4]
        end = at + 2 + int.from_bytes(head[1:], "big")
        if end < at + 4 or end > len(content):
            return
        marker = head[0]
        yield marker, content[at + 4 : end]
        at = end


def _is_plain(marked: tuple[int, bytes]) -> bool:
    marker, segment = marked
    if marker in _FRAMES:
        bits, n_components = segment[:1], segment[5:6]
        is_whole = len(segment) == 6 + 3 * int.from_bytes(n_components)
        return (
            is_whole
            and bits == b"\x08"
            and n_components in (b"\1", b"\3")
            and segment[6::3] != _RGB
        )
    if marker == _ADOBE and segment.startswith(b"Adobe"):
        return segment[11:12] == bytes([_YCBCR])
    return marker == _SCAN or marker in _OTHERS


def _may_tell_orientation(notes: list[bytes]) -> bool:
    """Whether the tag's number stands anywhere: then Pillow is asked what it means."""
    exif = [note for note in notes if note.startswith(_EXIF)]
    xmp = [note for note in notes if note.startswith(_XMP)]
    return (
        len(exif) > 1  # parts of one, which may cut the number in two
        or any(number in note for note in exif for number in _ORIENTATION)
        or any(_ORIENTATION_IN_XMP in note for note in xmp)
    )


def decode_plain(content: bytes, size: int | None = None) -> npt.NDArray[np.uint8] | None:
    """Decode a plain JPEG file, upright; None of any other file, which is for Pillow.

    The interpreter's lock is released meanwhile.

    Parameters
    ----------
    content : bytes
        The whole file.
    size : int or None, default=None
        To how many pixels the shorter side will be resized; see :func:`fraction_of`.

    Returns
    -------
    uint8 array of shape (h, w, 3) or None
        Also None if the file is broken: Pillow's word on that is final, and its message known.
    """
    header = None if simplejpeg is None else plain_header(content)
    if header is None or _is_too_large(header):
        return None
    fraction = fraction_of(min(header.width, header.height), size)
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            content,
            "RGB",
            min_height=-(-header.height // fraction),
            min_width=-(-header.width // fraction),
        )
    except ValueError:  # of anything that libjpeg-turbo warns of
        return None
    return _upright(pixels, content) if header.may_be_turned else pixels


def _is_too_large(header: Header) -> bool:
    """Whether Pillow warns of so many pixels, or refuses them."""
    most = Image.MAX_IMAGE_PIXELS
    return most is not None and header.width * header.height > most


def _upright(pixels: npt.NDArray[np.uint8], content: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(content)) as image:
        orientation = orientation_of(image)
    if orientation == UPRIGHT:
        return pixels
    return np.array(turned(Image.fromarray(pixels), orientation))
