"""Image data sets from tables."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.preprocessing import MultiLabelBinarizer
from sklearn.utils import Bunch

from ..images.errors import listed
from ..messages import shown, shown_several

if TYPE_CHECKING:
    from pandas import DataFrame, Series
from .folders import bunch_of

_PATH_NAMES = {
    *("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "imagename"),
    *("img", "imgpath", "imgfile", "imgname", "picture", "photo"),
}


_COLLECTIONS = (list, tuple, set, frozenset, np.ndarray)  # of labels, in a cell


_LABEL_NAMES = {"label", "class", "classname", "classlabel", "target", "category", "y"}


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
            return bunch_of(files, labels)
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
