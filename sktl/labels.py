"""Labels, numbers and weights: from what users pass as y to what a net learns."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number, Real
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from sklearn.utils import column_or_1d, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, check_array, check_non_negative

from .messages import shown, shown_several

_COLLECTIONS = (list, tuple, set, frozenset)
_LISTS_OF_LABELS = (
    "y holds lists of labels. sklearn.preprocessing.MultiLabelBinarizer().fit_transform(y) makes "
    "of them the columns of 0 and 1 that fit takes; for one label an image, pass labels alone."
)


def check_labels(y: Any, estimator: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Find the classes in y.

    Parameters
    ----------
    y : array-like of shape (n,)
    estimator : str
        The name to use in messages.

    Returns
    -------
    classes : ndarray of shape (n_classes,)
        Sorted, at least two.
    labels : int64 ndarray of shape (n,)
        Class numbers.

    Raises
    ------
    TypeError
        If text is mixed with numbers.
    ValueError
        If y is anything else than one label of a class for each image.
    """
    if y is None:
        raise ValueError(f"{estimator} requires y to be passed, but the target y is None.")
    given, y = y, column_or_1d(y, warn=True)
    if len(y) == 0:  # and X with it
        raise ValueError(
            "Found 0 sample(s) in X and y while a minimum of 2 is required: pass images of at "
            "least two classes."
        )
    # NumPy makes text of the numbers in a list that holds text.
    if isinstance(given, list | tuple) or y.dtype == object:
        _check_kinds(given if isinstance(given, list | tuple) else y.tolist())
    assert_all_finite(y, input_name="y")
    check_classification_targets(y)
    classes, labels = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"y holds one class only, {shown_several(classes.tolist())}; {estimator} needs at "
            "least 2 classes."
        )
    return classes, labels.astype(np.int64)


def has_several_labels(y: Any) -> bool:
    """Whether y has a column for each of several labels.

    Raises
    ------
    ValueError
        If y holds lists of labels, which have to be made indicators first.
    """
    if issparse(y):
        return bool(y.shape[1] > 1)
    if not hasattr(y, "shape"):
        y = list(y) if isinstance(y, list | tuple) else y
        lists = isinstance(y, list) and any(isinstance(row, _COLLECTIONS) for row in y)
        if lists and len({len(row) for row in y if isinstance(row, _COLLECTIONS)}) > 1:
            raise ValueError(_LISTS_OF_LABELS)
    values = np.asarray(y)
    of_objects = values.ndim == 1 and values.dtype == object
    if of_objects and any(isinstance(row, (*_COLLECTIONS, np.ndarray)) for row in values):
        raise ValueError(_LISTS_OF_LABELS)
    return values.ndim > 1 and values.shape[1] > 1


def check_indicators(y: Any, estimator: str) -> npt.NDArray[np.uint8]:
    """Read which image has which label.

    Parameters
    ----------
    y : array-like or sparse matrix of shape (n, n_labels)
        0 and 1.
    estimator : str
        The name to use in messages.

    Returns
    -------
    uint8 ndarray of shape (n, n_labels)

    Raises
    ------
    ValueError
        If y is something else.
    """
    values = y.toarray() if issparse(y) else np.asarray(y)
    if values.ndim != 2:
        raise ValueError(f"y has shape {values.shape}; it can have one or two dimensions.")
    if len(values) == 0:
        raise ValueError("Found 0 sample(s) in X and y while a minimum of 1 is required.")
    if values.dtype == object:
        kinds = (Real, np.bool_)
        if all(isinstance(value, kinds) for value in values.ravel().tolist()):
            values = values.astype(np.float64)
    if values.dtype.kind in "fc":
        assert_all_finite(values, input_name="y")
    numeric = values.dtype.kind in "biuf"
    others = np.unique(values[(values != 0) & (values != 1)]).tolist() if numeric else []
    if others or not numeric:
        held = shown_several(others) if numeric else shown(values.ravel().tolist()[0])
        raise ValueError(
            f"y has shape {values.shape}, so its columns are labels that each image has or hasn't, "
            f"and its values must be 0 or 1; it holds {held}. For several classes an image, one "
            "of each column, there is sklearn.multioutput.MultiOutputClassifier("
            f"{estimator}()); lists of labels become columns of 0 and 1 by "
            "sklearn.preprocessing.MultiLabelBinarizer."
        )
    return values.astype(np.uint8)


def weights_of_labels(
    class_weight: Any, indicators: npt.NDArray[np.uint8], weights: npt.NDArray[np.float64]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """What each label's absence and presence weighs in the loss; None where all weigh the same.

    As each label is a problem of its own with the classes 0 and 1, so are its weights, of which
    the images' mean is one.

    Parameters
    ----------
    class_weight : dict, "balanced" or None
    indicators : uint8 ndarray of shape (n, n_labels)
    weights : float64 ndarray of shape (n,)
        Of the images.

    Raises
    ------
    ValueError
        If the dict's keys aren't 0 and 1, or a weight is none.
    """
    if class_weight is None:
        return None
    present = weights @ indicators
    counts = np.stack([weights.sum() - present, present])
    if isinstance(class_weight, dict):
        unknown = sorted(set(class_weight) - {0, 1}, key=str)
        if unknown:
            raise ValueError(
                f"class_weight has weights for {shown_several(unknown)}. With several labels it is "
                "a dict of weights of 0 and 1, of the absence and presence of any label, or "
                '"balanced".'
            )
        _check_class_weight(class_weight, [0, 1])
        given = np.array([[class_weight.get(value, 1.0)] for value in (0, 1)], dtype=np.float64)
        by_label = np.broadcast_to(given, counts.shape)
    else:
        by_label = 1 / np.maximum(counts, np.finfo(np.float64).tiny)
        by_label = np.where(counts > 0, by_label, 0.0)
    total = (by_label * counts).sum(0)
    # Of a label that has no images that count, the weights say nothing.
    by_label = np.where(total > 0, by_label * weights.sum() / np.where(total > 0, total, 1), 1.0)
    absence, presence = by_label.tolist()
    return tuple(absence), tuple(presence)


def class_numbers(name: str, y: Any, classes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Look up labels among known classes; `name` is that of y in messages.

    Raises
    ------
    ValueError
        If there are others.
    """
    labels = column_or_1d(y, warn=True)
    unknown = sorted(set(labels.tolist()) - set(classes.tolist()), key=str)
    if unknown:
        raise ValueError(
            f"{name} holds {shown_several(unknown)}, which are not in "
            f"classes={shown_several(classes.tolist())}."
        )
    numbers: npt.NDArray[np.int64] = np.searchsorted(classes, labels).astype(np.int64)
    return numbers


def check_weights(
    sample_weight: Any,
    class_weight: Any,
    classes: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """Weights of samples, times those of their classes.

    Parameters
    ----------
    sample_weight : array-like of shape (n,), number or None
    class_weight : dict, "balanced" or None
    classes : ndarray of shape (n_classes,)
    labels : int64 ndarray of shape (n,)

    Returns
    -------
    float64 ndarray of shape (n,)

    Raises
    ------
    ValueError
        If a weight is negative or not finite, or all are zero; or a class with a weight is none.
    """
    weights = _weights_of_rows(sample_weight, len(labels))
    if isinstance(class_weight, dict):
        _check_class_weight(class_weight, classes.tolist())
    if class_weight is not None:
        by_class = compute_class_weight(
            class_weight, classes=classes, y=classes[labels], sample_weight=weights
        )
        weights = weights * by_class[labels]
    if not weights.sum() > 0:
        raise ValueError(
            "sample_weight times class_weight is zero for every image; at least one must count."
        )
    return weights


def check_sample_weight(sample_weight: Any, n: int) -> npt.NDArray[np.float64]:
    """Weights of samples.

    Parameters
    ----------
    sample_weight : array-like of shape (n,), number or None
    n : int

    Returns
    -------
    float64 ndarray of shape (n,)

    Raises
    ------
    ValueError
        If a weight is negative or not finite, or all are zero.
    """
    weights = _weights_of_rows(sample_weight, n)
    if not weights.sum() > 0:
        raise ValueError("sample_weight is zero for every image; at least one must count.")
    return weights


def _weights_of_rows(sample_weight: Any, n: int) -> npt.NDArray[np.float64]:
    if sample_weight is None or isinstance(sample_weight, Number):
        weights = np.full(n, 1.0 if sample_weight is None else sample_weight, dtype=np.float64)
    else:
        weights = check_array(
            sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight"
        )
    if weights.shape != (n,):
        raise ValueError(
            f"sample_weight must be a number or a 1D array of shape {(n,)}, got shape "
            f"{weights.shape}."
        )
    check_non_negative(weights, "`sample_weight`")
    return weights


def check_numbers(y: Any, estimator: str) -> npt.NDArray[np.float64]:
    """Read the numbers in y.

    Parameters
    ----------
    y : array-like of shape (n,) or (n, n_outputs)
    estimator : str
        The name to use in messages.

    Returns
    -------
    float64 ndarray of the same shape

    Raises
    ------
    TypeError
        If y is sparse.
    ValueError
        If y is anything else than one finite number, or several, for each image.
    """
    if y is None:
        raise ValueError(f"{estimator} requires y to be passed, but the target y is None.")
    if issparse(y):
        raise TypeError(
            f"y is sparse, but {estimator} learns dense numbers. Pass y.toarray() in its place."
        )
    values = _numeric(y, estimator)
    if values.ndim not in (1, 2) or 0 in values.shape[1:]:
        raise ValueError(
            f"y has shape {values.shape}, but must have one number for each image, or a row of "
            "several."
        )
    if len(values) == 0:  # and X with it
        raise ValueError("Found 0 sample(s) in X and y while a minimum of 1 is required.")
    assert_all_finite(values, input_name="y")
    return values


def _numeric(y: Any, estimator: str) -> npt.NDArray[np.float64]:
    # NumPy makes text of the numbers in a list that holds text.
    mixed = isinstance(y, list | tuple) and any(isinstance(value, str) for value in y)
    try:
        given = np.asarray(y, dtype=object if mixed else None)
        cells = given.ravel().tolist() if given.dtype == object else given.ravel()[:1]
        if any(cell is None for cell in cells):
            raise ValueError("Input y contains None. Leave out the images that have no number.")
        if np.iscomplexobj(given):
            raise ValueError("Complex data not supported in y. Pass real numbers.")
        numeric = given.dtype.kind in "biuf"
        for cell in cells:
            if not numeric and (given.dtype != object or isinstance(cell, str | bytes | complex)):
                raise ValueError(
                    f"y holds {shown(cell)}, but {estimator} learns numbers. For classes, use "
                    "PretrainedImageClassifier."
                )
        return given.astype(np.float64)
    except TypeError as error:
        raise ValueError(f"y can't be read as numbers: {error}.") from error


def standardization(
    y: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Weighted mean and standard deviation of each output; the latter is 1 where it would be 0.

    Parameters
    ----------
    y : float64 array of shape (n,) or (n, n_outputs)
    weights : float64 array of shape (n,)

    Raises
    ------
    ValueError
        If the numbers are too large for it.
    """
    columns, shares = y.reshape(len(y), -1), weights / weights.sum()
    with np.errstate(over="ignore", invalid="ignore"):
        mean = shares @ columns
        scale = np.sqrt(shares @ (columns - mean) ** 2)
    if not np.isfinite(scale).all():
        raise ValueError(
            f"y holds numbers up to {np.abs(y).max():g}, whose squares are too large for float64. "
            "Pass y in another unit."
        )
    scale[scale <= 10 * np.finfo(np.float64).eps * np.abs(mean)] = 1.0
    scale[scale == 0] = 1.0
    return tuple(mean.tolist()), tuple(scale.tolist())


def _check_kinds(labels: Sequence[Any]) -> None:
    others = [label for label in labels if not isinstance(label, str)]
    if any(label is None for label in others):
        raise ValueError("Input y contains None. Leave out the images that have no label.")
    if not others or len(others) == len(labels):
        return
    first = others[0]
    if not isinstance(first, Real) or first != first:
        raise ValueError(f"Input y contains {shown(first)} among text. Leave out such images.")
    raise TypeError(
        f"y mixes text with {shown(first)} ({type(first).__name__}). Pass labels of one kind, "
        "either all text or all numbers."
    )


def _check_class_weight(class_weight: dict[Any, Any], classes: list[Any]) -> None:
    for label, weight in class_weight.items():
        if not isinstance(weight, Real) or not 0 <= float(weight) < np.inf:
            raise ValueError(
                f"class_weight gives {shown(weight)} to class {shown(label)}; a weight is a finite "
                "number of at least 0."
            )
    unknown = set(class_weight) - set(classes)
    # Weights of classes that a fold happens to lack are welcome.
    if unknown and set(classes) - set(class_weight):
        raise ValueError(
            f"class_weight has weights for {shown_several(sorted(unknown, key=str))}, which "
            f"are not in y. Choose from its classes, {shown_several(classes)}."
        )
