"""Image data sets from disk."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile
from sklearn.utils import Bunch


def load_image_folder(path: str | os.PathLike[str]) -> Bunch:
    """Load the paths and labels of a folder with one sub-folder of images per class.

    As in :func:`sklearn.datasets.load_files`, the name of a sub-folder is the name of its
    class. The images are not read.

    Parameters
    ----------
    path : str or path-like
        The folder. Sub-folders of a class are searched too. Hidden files and folders, and
        files whose extension is not that of an image, are passed over.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Dictionary-like object, with the following attributes.

        data : ndarray of str objects of shape (n_samples,)
            The paths of the images, sorted by class and path.
        target : ndarray of int of shape (n_samples,)
            The class of each image, as an index into `target_names`.
        target_names : ndarray of str of shape (n_classes,)
            The names of the classes, sorted.

    Examples
    --------
    >>> from sktl import PretrainedImageClassifier, load_image_folder
    >>> flowers = load_image_folder("flowers")  # doctest: +SKIP
    >>> y = flowers.target_names[flowers.target]  # doctest: +SKIP
    >>> PretrainedImageClassifier().fit(flowers.data, y)  # doctest: +SKIP
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(root))
    if not root.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(root))
    classes = [folder for folder in _visible(root) if folder.is_dir()]
    if not classes:
        raise ValueError(f"{root} has no sub-folders; it needs one for each class of images.")
    images = {folder.name: _images_below(folder, (root.resolve(),)) for folder in classes}
    names = sorted(name for name, found in images.items() if found)
    if not names:
        raise ValueError(f"The sub-folders of {root} hold no files with an image's extension.")
    _warn_of_empty_classes(root, sorted(images.keys() - set(names)))
    return Bunch(
        data=np.array([file for name in names for file in images[name]], dtype=object),
        target=np.repeat(np.arange(len(names)), [len(images[name]) for name in names]),
        target_names=np.array(names),
    )


def _warn_of_empty_classes(root: Path, names: list[str]) -> None:
    if names:
        warnings.warn(
            f"Left out classes without images in {root}: {', '.join(names)}.",
            UserWarning,
            stacklevel=3,
        )


def _images_below(folder: Path, ancestors: tuple[Path, ...]) -> list[str]:
    return sorted(str(file) for file in _walk(folder, ancestors, _image_extensions()))


def _walk(folder: Path, ancestors: tuple[Path, ...], extensions: set[str]) -> Iterator[Path]:
    """Yield the image files in and below a folder, following links but not in circles."""
    real = folder.resolve()
    if real in ancestors:
        return
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _walk(entry, (*ancestors, real), extensions)
        elif entry.is_file() and entry.suffix.lower() in extensions:
            yield entry


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _image_extensions() -> set[str]:
    """List the extensions of the formats that Pillow reads, and not only knows or writes."""
    extensions = Image.registered_extensions()
    return {extension for extension, name in extensions.items() if _can_read(name)}


def _can_read(name: str) -> bool:
    if name not in Image.OPEN or name == "MPEG":  # of a film, Pillow reads the size alone
        return False
    opener = Image.OPEN[name][0]
    return not (isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile))
