"""Image data sets from folders."""

from __future__ import annotations

import errno
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFile
from sklearn.utils import Bunch

from ..images.errors import listed
from ..messages import shown

if TYPE_CHECKING:
    pass


_HIDDEN = "hidden"


# What lies beside pictures and is no picture that somebody may miss.
_COMPANIONS = {
    *(_HIDDEN, ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".pdf", ".py"),
    *(".rst", ".sha256", ".toml", ".tsv", ".txt", ".xml", ".yaml", ".yml", ".zip"),
}


# What systems and programs keep beside people's own folders and files.
_OF_SYSTEMS = {
    *("__macosx", "__pycache__", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin"),
    *("system volume information", "lost+found", "lost.dir", "found.000", "recycler", "icon\r"),
}


_WITHOUT_EXTENSION = {"CITATION", "COPYING", "LICENCE", "LICENSE", "MANIFEST", "NOTICE", "README"}


def load_image_folder(path: str | os.PathLike[str], *, pattern: str | None = None) -> Bunch:
    r"""Load the paths and labels of a folder of images.

    As in :func:`sklearn.datasets.load_files`, there is a sub-folder for each class, whose name is
    that of the class; or a pattern finds the class in the file's name. The images are not read.

    Parameters
    ----------
    path : str or path-like
        The folder. Sub-folders of a class are searched too. Hidden files and folders, those that
        systems and programs leave there (such as `__MACOSX`, `@eaDir`, `Thumbs.db`), and files
        whose extension is not that of an image, are passed over.
    pattern : str or None, default=None
        A regular expression with one group, the class. It is searched for in the names of the
        files, whatever the sub-folder: ``r"(.+)_\d+"`` finds "beagle" in "beagle_12.jpg", and
        ``r"^(\w+)\."`` "cat" in "cat.123.jpg".

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
        skipped : dict of str to int
            How many files were passed over, by their extension in lower case; hidden files and
            folders under "hidden".

    Raises
    ------
    ValueError
        If there are no images, or the pattern has no single group or doesn't fit all names.
    OSError
        If there is no such folder.

    Warns
    -----
    UserWarning
        If a class has no images, or files were passed over that may well be images: of formats
        that Pillow doesn't read, without an extension, or beside the folders of the classes. Text,
        tables, hidden files and the like are passed over in silence.

    See Also
    --------
    load_image_table : The same from a table of paths and labels.

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
    expression = None if pattern is None else _compiled(pattern)
    search = _Search(root)
    if expression is None:
        files, labels = _by_folder(root, search)
    else:
        files, labels = _by_name(root, search, expression)
    search.warn()
    pairs = sorted(zip(labels, files, strict=True))
    return bunch_of([file for _, file in pairs], [label for label, _ in pairs], search.skipped)


def _by_folder(root: Path, search: _Search) -> tuple[list[str], list[str]]:
    entries = search.visible(root)
    classes = [entry for entry in entries if entry.is_dir()]
    if not classes:
        raise ValueError(
            f"{root} has no sub-folders; it needs one for each class of images. If the files' "
            "names tell the classes, pass a pattern."
        )
    search.pass_over(entry for entry in entries if not entry.is_dir())
    images = {folder.name: search.images_below(folder, (root.resolve(),)) for folder in classes}
    if not any(images.values()):
        raise ValueError(f"The sub-folders of {root} hold no files with an image's extension.")
    _warn_of_empty_classes(root, sorted(name for name, found in images.items() if not found))
    pairs = [(file, name) for name, found in images.items() for file in found]
    return [file for file, _ in pairs], [name for _, name in pairs]


def _by_name(
    root: Path, search: _Search, expression: re.Pattern[str]
) -> tuple[list[str], list[str]]:
    files = search.images_below(root, ())
    if not files:
        raise ValueError(f"{root} holds no files with an image's extension.")
    matches = [expression.search(os.path.basename(file)) for file in files]
    labels = [match.group(1) if match else None for match in matches]
    others = [file for file, label in zip(files, labels, strict=True) if not label]
    if others:
        raise ValueError(
            f"The pattern {shown(expression.pattern)} finds no class in the names of {len(others)} "
            f"of {len(files)} files:\n{listed(others)}"
        )
    return files, [label for label in labels if label]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern={shown(pattern)} is no regular expression: {error}.") from error
    if expression.groups != 1:
        raise ValueError(
            f"pattern={shown(pattern)} must have one group, the class, as in r'(.+)_\\d+'; it has "
            f"{expression.groups}."
        )
    return expression


class _Search:
    """Looks for images below a folder, and counts what it passes over."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skipped: dict[str, int] = {}
        self._missed: Counter[str] = Counter()
        self._extensions = _image_extensions()

    def visible(self, folder: Path) -> list[Path]:
        """List what is neither hidden nor put there by a system, and count what is."""
        entries = list(folder.iterdir())
        visible = [entry for entry in entries if not _is_hidden(entry.name)]
        self._count(_HIDDEN, len(entries) - len(visible))
        return visible

    def images_below(self, folder: Path, ancestors: tuple[Path, ...]) -> list[str]:
        """List the image files in and below a folder, following links but not in circles."""
        found: list[str] = []
        real = folder.resolve()
        if real in ancestors:
            return found
        for entry in self.visible(folder):
            if entry.is_dir():
                found += self.images_below(entry, (*ancestors, real))
            elif entry.is_file() and entry.suffix.lower() in self._extensions:
                found.append(str(entry))
            else:
                self.pass_over([entry])
        return found

    def pass_over(self, entries: Iterable[Path]) -> None:
        """Count files that aren't taken."""
        for entry in entries:
            extension = entry.suffix.lower()
            self._count(extension, 1)
            known = extension in _COMPANIONS or entry.stem.upper() in _WITHOUT_EXTENSION
            if not known:
                self._missed[extension or "without an extension"] += 1

    def _count(self, extension: str, n: int) -> None:
        if n:
            self.skipped[extension] = self.skipped.get(extension, 0) + n

    def warn(self) -> None:
        """Warn of files that may well be images."""
        if self._missed:
            kinds = sorted(self._missed.items(), key=lambda pair: (-pair[1], pair[0]))
            counts = ", ".join(f"{n} {kind}" for kind, n in kinds)
            warnings.warn(
                f"Passed over files in {self.root}: {counts}. Only regular files with the "
                "extension of a format that Pillow reads are loaded; without a pattern, they must "
                "lie in the folder of a class.",
                UserWarning,
                stacklevel=3,
            )


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is no one's own: .DS_Store, __MACOSX, ~$table.xlsx and the like."""
    return name.startswith((".", "~$")) or name.lower() in _OF_SYSTEMS


def _warn_of_empty_classes(root: Path, names: list[str]) -> None:
    if names:
        warnings.warn(
            f"Left out classes without images in {root}: {', '.join(names)}.",
            UserWarning,
            stacklevel=4,
        )


def _image_extensions() -> set[str]:
    """List the extensions of the formats that Pillow reads, and not only knows or writes."""
    extensions = Image.registered_extensions()
    return {extension for extension, name in extensions.items() if _can_read(name)}


def _can_read(name: str) -> bool:
    if name not in Image.OPEN or name == "MPEG":  # of a film, Pillow reads the size alone
        return False
    opener = Image.OPEN[name][0]
    return not (isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile))


def bunch_of(
    files: Sequence[str], labels: Sequence[Any], skipped: dict[str, int] | None = None
) -> Bunch:
    """Files and labels as scikit-learn's loaders return them."""
    names, target = np.unique(np.array(labels), return_inverse=True)
    bunch = Bunch(data=np.array(files, dtype=object), target=target, target_names=names)
    return bunch if skipped is None else Bunch(**bunch, skipped=skipped)
