"""Image data sets from disk."""

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
import numpy.typing as npt
from PIL import Image, ImageFile
from sklearn.preprocessing import MultiLabelBinarizer
from sklearn.utils import Bunch

from .images.errors import listed
from .messages import shown, shown_several

if TYPE_CHECKING:
    from pandas import DataFrame, Series

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
_PATH_NAMES = {
    *("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "imagename"),
    *("img", "imgpath", "imgfile", "imgname", "picture", "photo"),
}
_COLLECTIONS = (list, tuple, set, frozenset, np.ndarray)  # of labels, in a cell
_LABEL_NAMES = {"label", "class", "classname", "classlabel", "target", "category", "y"}


# Folders -----------------------------------------------------------------------------


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
    return _bunch([file for _, file in pairs], [label for label, _ in pairs], search.skipped)


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


# Tables ------------------------------------------------------------------------------


def load_image_table(
    table: str | os.PathLike[str] | DataFrame,
    *,
    path_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Bunch:
    """Load the paths and labels of images from a table.

    The images are not read, but must be there.

    Parameters
    ----------
    table : str, path-like or pandas DataFrame
        A table, or its file: .csv, .tsv or .parquet.
    path_column : str or None, default=None
        Name of the column of paths. None takes the only column with a usual name, such as "path",
        "file_name" or "image"; of two columns the other one is known as well.
    label_column : str, list of str or None, default=None
        Name of the column of labels; None takes the only "label", "class" or "target". Several
        labels an image are a list of columns that hold 0 and 1 each, or one column of lists.
    root : str, path-like or None, default=None
        The folder that relative paths begin in. None is the folder of the table's file, and the
        working directory for a DataFrame.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Dictionary-like object, with the following attributes, in the order of the table.

        data : ndarray of str objects of shape (n_samples,)
            The paths of the images, joined to `root`.
        target : ndarray of int of shape (n_samples,)
            The class of each image, as an index into `target_names`. With several labels an
            image, (n_samples, n_labels): 1 where it has the label, and 0.
        target_names : ndarray of shape (n_classes,)
            The labels as they stand in the table, sorted, each once; of a list of columns, their
            names.

    Raises
    ------
    ValueError
        If the columns can't be told, or paths or labels are missing; the message names the rows.
    FileNotFoundError
        If images aren't there; the message counts and names them.
    ImportError
        If a file shall be read without pandas; ``pip install sktl[pandas]`` brings it.

    See Also
    --------
    load_image_folder : The same from a folder with one sub-folder a class.

    Examples
    --------
    >>> from sktl import PretrainedImageClassifier, load_image_table
    >>> flowers = load_image_table("flowers/labels.csv")  # doctest: +SKIP
    >>> y = flowers.target_names[flowers.target]  # doctest: +SKIP
    >>> PretrainedImageClassifier().fit(flowers.data, y)  # doctest: +SKIP
    """
    if isinstance(table, str | os.PathLike):
        root = Path(table).parent if root is None else root
        table = _read_table(Path(table))
    if not hasattr(table, "columns") or not hasattr(table, "iloc"):
        raise TypeError(
            f"table must be a pandas DataFrame or the path of a table, got {type(table).__name__}."
        )
    if not len(table):
        raise ValueError("The table has no rows.")
    path_name, label_name = _choose_columns(list(table.columns), path_column, label_column)
    paths = _without_gaps(table, path_name)
    if not all(isinstance(path, str | os.PathLike) for path in paths):
        raise TypeError(
            f"The column {shown(path_name)} doesn't hold paths, but {shown(paths[0])}. Set "
            f"path_column to another of {shown_several(list(table.columns))}."
        )
    files = [os.path.join(os.fspath(root or ""), path) for path in paths]
    if isinstance(label_name, list):
        names, target = label_name, _indicator_columns(table, label_name)
    else:
        labels = _without_gaps(table, label_name)
        several = [isinstance(label, _COLLECTIONS) for label in labels]
        if not any(several):
            _check_text(labels, label_name)
            _check_files(files, path_name)
            return _bunch(files, labels)
        if not all(several):
            raise TypeError(
                f"The column {shown(label_name)} holds lists of labels and "
                f"{shown(labels[several.index(False)])}. Make all lists."
            )
        _check_text([label for row in labels for label in row], label_name)
        binarizer = MultiLabelBinarizer()
        target = binarizer.fit_transform(labels)
        names = binarizer.classes_
    _check_files(files, path_name)
    return Bunch(data=np.array(files, dtype=object), target=target, target_names=np.asarray(names))


def _check_text(labels: Sequence[Any], column: Any) -> None:
    of_text = [isinstance(label, str) for label in labels]
    if any(of_text) and not all(of_text):
        raise TypeError(f"The column {shown(column)} mixes text with other labels. Make all text.")


def _indicator_columns(table: DataFrame, columns: list[Any]) -> npt.NDArray[np.int64]:
    values = []
    for column in columns:
        cells = _without_gaps(table, column)
        others = [cell for cell in cells if isinstance(cell, str) or cell not in (0, 1)]
        if others:
            raise ValueError(
                f"The column {shown(column)} must tell by 0 and 1 which image has the label; it "
                f"holds {shown(others[0])}."
            )
        values.append([int(cell) for cell in cells])
    return np.array(values, dtype=np.int64).T


def _read_table(path: Path) -> DataFrame:
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".parquet"):
        raise ValueError(
            f"{path} is not a .csv, .tsv or .parquet file. Read it with pandas and pass the "
            "DataFrame."
        )
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            f"Reading {path} needs pandas: pip install sktl[pandas], or pass lists of paths and "
            "labels to the estimator."
        ) from error
    if kind == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path, sep="\t" if kind == ".tsv" else ",")


def _choose_columns(
    columns: list[Any], path_column: str | None, label_column: str | Sequence[str] | None
) -> tuple[Any, Any]:
    if label_column is not None and not isinstance(label_column, str):
        return _choose_several(columns, path_column, list(label_column))
    path = _only_column(columns, path_column, _PATH_NAMES)
    label = _only_column(columns, label_column, _LABEL_NAMES)
    if len(columns) == 2 and (path is None) != (label is None):
        other = next(column for column in columns if column not in (path, label))
        path, label = (other, label) if path is None else (path, other)
    for name, chosen in (("path_column", path), ("label_column", label)):
        if chosen is None:
            raise ValueError(
                f"Which column is the {name} can't be told from their names. Set {name} to one of "
                f"{shown_several(columns)}."
            )
    if path == label:
        raise ValueError(f"path_column and label_column are both {shown(path)}.")
    return path, label


def _choose_several(
    columns: list[Any], path_column: str | None, label_columns: list[str]
) -> tuple[Any, list[Any]]:
    """The column of paths beside those of labels, each once."""
    if len(set(label_columns)) < max(2, len(label_columns)):
        raise ValueError(
            f"label_column={shown(label_columns)} must name several columns, each once, or be the "
            "name of one."
        )
    labels = [_only_column(columns, name, set()) for name in label_columns]
    others = [column for column in columns if column not in labels]
    path = _only_column(columns, path_column, _PATH_NAMES)
    if path is None and len(others) == 1:
        path = others[0]
    if path is None or path in labels:
        raise ValueError(
            "Which column is the path_column can't be told from their names. Set path_column to "
            f"one of {shown_several(others)}."
        )
    return path, labels


def _only_column(columns: list[Any], given: str | None, usual: set[str]) -> Any:
    """Find the column that is given, or the only one with a usual name; else None."""
    if given is not None:
        if columns.count(given) != 1:
            raise ValueError(
                f"The table has {columns.count(given)} columns {shown(given)}. Its columns are "
                f"{shown_several(columns)}."
            )
        return given
    found = [c for c in columns if re.sub(r"[\W_]", "", str(c)).lower() in usual]
    return found[0] if len(found) == 1 else None


def _without_gaps(table: DataFrame, column: Any) -> list[Any]:
    series: Series[Any] = table[column]
    rows = np.flatnonzero(series.isna())
    if len(rows):
        named = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
        raise ValueError(
            f"The column {shown(column)} is empty in {len(rows)} of {len(table)} rows: {named} "
            "(counted from 0). Fill them or leave them out. If 'NA' or 'None' is a class, read the "
            "table with pandas.read_csv(..., keep_default_na=False) and pass the DataFrame."
        )
    values: list[Any] = series.tolist()
    return values


def _check_files(files: Sequence[str], column: Any) -> None:
    missing = list(dict.fromkeys(file for file in files if not os.path.isfile(file)))
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(files)} files in the column {shown(column)} are not "
            f"there:\n{listed(missing)}\nRelative paths begin in the table's folder, or in root."
        )


def _bunch(
    files: Sequence[str], labels: Sequence[Any], skipped: dict[str, int] | None = None
) -> Bunch:
    names, target = np.unique(np.array(labels), return_inverse=True)
    bunch = Bunch(data=np.array(files, dtype=object), target=target, target_names=names)
    return bunch if skipped is None else Bunch(**bunch, skipped=skipped)
