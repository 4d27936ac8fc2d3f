"""Any X as a lazy sequence of uint8 RGB images, read in the way that fit learned."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xxhash
from PIL import Image

from .bands import BandChoice
from .decoding import (
    decode_bands,
    decode_file,
    is_about_the_image,
    over_white,
    pillow_bands,
    pillow_to_rgb,
    scale_to_uint8,
    why_unreadable,
)
from .depth import may_be_deep
from .errors import Unreadable, UnreadableImagesError
from .format import EIGHT_BIT, ImageFormat, Range, check_width
from .kinds import (
    Array,
    File,
    channel_axis,
    checked_samples,
    kind_of,
    one_picture_message,
    shape_of,
)

Pixels = torch.Tensor | list[torch.Tensor]


class Images(ABC):
    """A sequence of images, read only when asked for."""

    @abstractmethod
    def __len__(self) -> int:
        """Give the number of images."""

    @abstractmethod
    def digest(self, i: int) -> bytes:
        """Hash what image i is made of, in 16 bytes: never its place, path or container.

        Raises
        ------
        UnreadableImagesError
        """

    @abstractmethod
    def read(self, indices: Sequence[int], size: int | None = None) -> tuple[Pixels, Unreadable]:
        """Read images as uint8 RGB, and say which can't be read.

        Parameters
        ----------
        indices : sequence of int
        size : int or None, default=None
            To how many pixels the shorter sides will be resized. Files of far more may be read at
            a fraction of their size.

        Returns
        -------
        images : Tensor of shape (b, 3, h, w), or list of Tensor of shape (3, h, w)
            A list where the sizes differ. Any strides; the memory is the caller's own. In the
            place of an image that can't be read there is one black pixel, for the caller to drop.
        unreadable : dict of int to str
            Their rows, and why they can't be read.
        """

    def batch(self, indices: Sequence[int], size: int | None = None) -> Pixels:
        """Read images as :meth:`read` does, all of which must be readable.

        Raises
        ------
        UnreadableImagesError
        """
        images, unreadable = self.read(indices, size)
        self.refuse(unreadable)
        return images

    def missing(self, indices: Sequence[int]) -> Unreadable:
        """Those of which it shows without reading that they can't be read."""
        return {}

    def path(self, i: int) -> str | None:
        """Path of the file that image i was read from, if it was given by one."""
        return None

    def name(self, i: int) -> str:
        """Say which image i is."""
        return self.path(i) or f"X[{i}]"

    def refuse(self, unreadable: Unreadable) -> None:
        """Raise one error that names all images that can't be read, if there are such.

        Raises
        ------
        UnreadableImagesError
        """
        if unreadable:
            raise self.error_of(unreadable)

    def error_of(self, unreadable: Unreadable) -> UnreadableImagesError:
        """Make the error that names images that can't be read."""
        rows = sorted(unreadable)
        named = {self.name(i): unreadable[i] for i in rows}
        return UnreadableImagesError(list(named.items()), rows)


def open_images(X: Any, fmt: ImageFormat) -> Images:
    """Open X for reading, in the way that fit learned.

    Parameters
    ----------
    X : object
        Any kind of images; it may be another kind than fit saw.
    fmt : ImageFormat
        What `learn_format` gave.

    Returns
    -------
    images : Images
    """
    kind = kind_of(X)
    if kind == "arrays" and fmt.in_colour:
        _refuse_one_picture(shape_of(X))
    samples = checked_samples(X, kind, fmt.choice)
    if isinstance(samples, np.ndarray):
        if kind == "rows":
            samples = samples.reshape(len(samples), *_known_row_shape(samples, fmt))
        return _ArrayImages(samples, fmt.range_of(samples.dtype), fmt.choice)
    if kind == "paths" and fmt.choice is not None:
        return _BandFiles(samples, fmt, fmt.choice)  # type: ignore[arg-type]
    if kind == "paths":
        return _FileImages(samples, fmt)  # type: ignore[arg-type]
    return _ListImages(samples, fmt)  # type: ignore[arg-type]


def _refuse_one_picture(shape: tuple[int, ...]) -> None:
    """Refuse or doubt what is most likely one picture, where fit saw pictures in colour."""
    if len(shape) != 3:
        return
    if shape[-1] in (3, 4):
        raise ValueError(
            f"{one_picture_message(shape)} If they are grey pictures, pass them in another shape, "
            f"{(*shape, 1)}."
        )
    if shape[0] in (3, 4):  # of torch; but there may as well be three grey pictures
        warnings.warn(one_picture_message(shape), UserWarning, stacklevel=4)


def _known_row_shape(X: Array, fmt: ImageFormat) -> tuple[int, ...]:
    if fmt.image_shape is None:
        raise ValueError(
            f"X has two dimensions, one flattened image a row, but fit saw {fmt.kind}, so the "
            "shape of a row's image is not known. Set image_shape and fit again, or reshape X."
        )
    check_width(X.shape[1], fmt.image_shape)
    return fmt.image_shape


class _ArrayImages(Images):
    """Images of one shape in one array, never copied as a whole."""

    def __init__(self, array: Array, pixel_range: Range, choice: BandChoice | None) -> None:
        self._array = array
        self._range = pixel_range
        self._choice = choice

    def __len__(self) -> int:
        return len(self._array)

    def digest(self, i: int) -> bytes:
        image = self._array[i : i + 1]
        taken = image if self._choice is None else self._choice.take(image)
        return _digest(taken[0], self._range, self._choice)

    def read(
        self, indices: Sequence[int], size: int | None = None
    ) -> tuple[torch.Tensor, Unreadable]:
        block = self._array[np.asarray(indices, dtype=np.intp)]
        taken = block if self._choice is None else self._choice.take(block)
        return _to_rgb(taken, self._range, self._choice), {}


class _Listing(Images):
    """Images that are read one by one, any of which may turn out to be bad."""

    _n_channels = 3

    @abstractmethod
    def _decode(self, i: int, size: int | None) -> Array:
        """The pixels of image i; raises what the decoder raises: nearly anything."""

    @abstractmethod
    def _to_rgb(self, i: int, pixels: Array) -> torch.Tensor:
        """Bring the pixels of image i to uint8 RGB of shape (3, h, w)."""

    def read(self, indices: Sequence[int], size: int | None = None) -> tuple[Pixels, Unreadable]:
        images, unreadable = [], {}
        for i in indices:
            try:
                pixels = self._decode(i, size)
            except Exception as error:
                unreadable[i] = _reason(error)
                pixels = np.zeros((1, 1, self._n_channels), dtype=np.uint8)
            images.append(self._to_rgb(i, pixels))
        return _stack(images), unreadable

    @contextmanager
    def _naming(self, i: int) -> Iterator[None]:
        """An error that image i is to blame for says so."""
        try:
            yield
        except Exception as error:
            raise self.error_of({i: _reason(error)}) from error


def _reason(error: Exception) -> str:
    """Why an image can't be read; what it isn't to blame for is raised again."""
    if not is_about_the_image(error):
        raise error
    return why_unreadable(error)


class _ListImages(_Listing):
    """Arrays and PIL images, of sizes that may differ."""

    def __init__(self, images: list[Array | Image.Image], fmt: ImageFormat) -> None:
        self._images = images
        self._format = fmt
        self._choice = fmt.choice
        self._ranges = [
            fmt.range_of(image.dtype) if isinstance(image, np.ndarray) else EIGHT_BIT
            for image in images
        ]
        if self._choice is not None:
            self._n_channels = len(self._choice.numbers)

    def __len__(self) -> int:
        return len(self._images)

    def digest(self, i: int) -> bytes:
        with self._naming(i):
            pixels = self._decode(i, None)
        return _digest(pixels, self._ranges[i], self._choice)

    def _to_rgb(self, i: int, pixels: Array) -> torch.Tensor:
        # np.array copies: torch must never share memory with X.
        return _to_rgb(np.array(pixels)[np.newaxis], self._ranges[i], self._choice)[0]

    def _decode(self, i: int, size: int | None) -> Array:
        image = self._images[i]
        if isinstance(image, np.ndarray):
            return image if self._choice is None else self._choice.take(image[np.newaxis])[0]
        if self._choice is None:
            return pillow_to_rgb(image, self._format.scale)
        taken = self._choice.take_of_one(pillow_bands(image))
        return taken if taken.dtype == np.uint8 else self._format.scale(taken)


class _FileImages(_Listing):
    """Files, by their paths or as bytes, decoded each time they are asked for."""

    def __init__(self, files: list[File], fmt: ImageFormat) -> None:
        self._files = files
        self._format = fmt

    def __len__(self) -> int:
        return len(self._files)

    def path(self, i: int) -> str | None:
        file = self._files[i]
        return file if isinstance(file, str) else None

    def digest(self, i: int) -> bytes:
        content = self._files[i]
        with self._naming(i):
            if isinstance(content, str):
                with open(content, "rb") as opened:
                    content = opened.read()
            meaning = self._meaning(content)
        return xxhash.xxh3_128_digest(content + meaning)

    def _meaning(self, content: bytes) -> bytes:
        """What the values of a file mean, if 8 bits don't tell."""
        if not may_be_deep(content):
            return b""
        return f" {self._format.pixel_range} {self._format.learned_from}".encode()

    def missing(self, indices: Sequence[int]) -> Unreadable:
        found = {}
        for i in indices:
            file = self._files[i]
            if isinstance(file, str) and not os.path.isfile(file):
                try:
                    self._decode(i, None)
                except Exception as error:
                    found[i] = _reason(error)
        return found

    def _to_rgb(self, i: int, pixels: Array) -> torch.Tensor:
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _decode(self, i: int, size: int | None) -> Array:
        return decode_file(self._files[i], size, self._format.scale)


class _BandFiles(_FileImages):
    """Files with several bands, of which red, green and blue are made."""

    def __init__(self, files: list[File], fmt: ImageFormat, choice: BandChoice) -> None:
        super().__init__(files, fmt)
        self._choice = choice

    def digest(self, i: int) -> bytes:
        """See :meth:`Images.digest`; the same file with other bands is another image."""
        fmt = self._format
        how = f" {fmt.bands} {fmt.pixel_range} {fmt.learned_from}"
        if fmt.n_bands is not None:  # what has others isn't read, whoever has read it before
            how += f" of {fmt.n_bands}"
        return xxhash.xxh3_128_digest(super().digest(i) + how.encode())

    def _decode(self, i: int, size: int | None) -> Array:
        taken = self._choice.take_of_one(decode_bands(self._files[i]))
        if taken.dtype in (np.uint8, np.bool_):
            return self._choice.mix(scale_to_uint8(taken, self._format.range_of(taken.dtype)))
        return self._choice.mix(self._format.scale(taken))


def _digest(image: Array, pixel_range: Range, choice: BandChoice | None) -> bytes:
    head = f"{image.dtype.str} {image.shape} {pixel_range}"
    if choice is not None:
        head += choice.meaning
    hasher = xxhash.xxh3_128(head.encode())
    hasher.update(np.ascontiguousarray(image).data)
    return hasher.digest()


def _to_rgb(block: Array, pixel_range: Range, choice: BandChoice | None) -> torch.Tensor:
    """Bring images of one shape, in a block that is ours, to (b, 3, h, w)."""
    pixels = scale_to_uint8(block, pixel_range)
    if choice is not None:
        return torch.from_numpy(choice.mix(pixels)).permute(0, 3, 1, 2)
    axis = channel_axis(block.shape[1:], "X")
    if axis is not None and block.shape[1:][axis] == 4:
        pixels = over_white(np.moveaxis(pixels, 1, -1) if axis == 0 else pixels)
        axis = -1
    images = torch.from_numpy(pixels)
    if axis is None:
        images = images.unsqueeze(1)
    elif axis == -1:
        images = images.permute(0, 3, 1, 2)
    return images.repeat(1, 3, 1, 1) if images.shape[1] == 1 else images


def _stack(images: list[torch.Tensor]) -> Pixels:
    return images if len({image.shape for image in images}) > 1 else stack_channels_last(images)


def stack_channels_last(images: list[torch.Tensor]) -> torch.Tensor:
    """Stack images (3, h, w), to (n, 3, h, w) in channels-last memory; one is only viewed."""
    if len(images) == 1:
        return images[0][None]
    # torch.stack knows no memory format: stack with the channels last, then move them back.
    return torch.stack([image.movedim(0, -1) for image in images]).movedim(-1, 1)
