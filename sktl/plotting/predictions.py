"""Pictures with what a classifier takes them for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.validation import check_is_fitted

from ..images.reading import Images
from ..labels import check_indicators, has_several_labels
from .drawing import BLUE, VERMILION, Picture, Tile, check_matplotlib, draw_grid
from .pictures import file_names, open_pictures, small_pictures

_CELL = 1.6  # inches


class ImagePredictionsDisplay:
    """A grid of pictures with predicted and true classes, the worst mistakes first.

    Make it with :meth:`from_estimator` or :meth:`from_predictions`. Mistakes come first, those
    with the highest probability before others; then what was right, with the lowest probability
    first. Below a picture stand the predicted class and its probability, below a mistake the true
    class, and the name of the file, if it is one.

    With several labels a picture, its labels stand where its class would, and what is predicted is
    right if all of them are. Its probability is that of all labels together, as if they were
    independent.

    Parameters
    ----------
    pictures : list of uint8 arrays of shape (h, w, 3)
    y_true, y_pred : array-like of shape (n_pictures,)
        With several labels, as text.
    probabilities : array-like of shape (n_pictures,)
        Of the predicted classes.
    title : str, default=""
    file_names : list of str, default=()
        Of all pictures; empty where they aren't of files.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    images_ : list of matplotlib AxesImage
    indices_ : ndarray of shape (n_pictures,)
        Which images are shown, by their number in X. Not in a display made by its constructor.

    See Also
    --------
    ExplanationDisplay : Which pixels speak for a class.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktl import PretrainedImageClassifier
    >>> from sktl.plotting import ImagePredictionsDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = PretrainedImageClassifier(image_size=64).fit(X[:100], y[:100])
    >>> ImagePredictionsDisplay.from_estimator(clf, X[100:200], y[100:200])
    <...>
    """

    ax_: Any
    figure_: Any
    indices_: npt.NDArray[np.int64]

    def __init__(
        self,
        *,
        pictures: Sequence[Picture],
        y_true: Any,
        y_pred: Any,
        probabilities: Any,
        title: str = "",
        file_names: Sequence[str] = (),
    ) -> None:
        self.pictures = pictures
        self.y_true = y_true
        self.y_pred = y_pred
        self.probabilities = probabilities
        self.title = title
        self.file_names = file_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        display_labels: Any = None,
        n_images: int = 16,
        ax: Any = None,
    ) -> Self:
        """Draw what a fitted classifier takes images for.

        Parameters
        ----------
        estimator : classifier with `predict_proba`
            Fitted; PretrainedImageClassifier, or a Pipeline or search that takes images.
        X : array, list, Series or DataFrame of n_samples images
        y : array-like of shape (n_samples,), or (n_samples, n_labels)
            True labels; of several, 0 and 1.
        display_labels : array-like of shape (n_labels,), default=None
            Names of several labels. None is their numbers.
        n_images : int, default=16
            How many to show, at most.
        ax : matplotlib Axes, default=None
            None makes a figure.

        Returns
        -------
        ImagePredictionsDisplay

        Raises
        ------
        TypeError
            If the estimator gives no probabilities.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        if not hasattr(estimator, "predict_proba"):
            raise TypeError(
                f"{cls.__name__} needs probabilities, but {type(estimator).__name__} has no "
                "predict_proba."
            )
        check_is_fitted(estimator)
        y_proba = estimator.predict_proba(X)
        images = open_pictures(X, estimator)
        classes = estimator.classes_ if display_labels is None else display_labels
        return cls._of(images, y, y_proba, classes, n_images, ax)

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        y_true: Any,
        y_proba: Any,
        *,
        classes: Any = None,
        n_images: int = 16,
        ax: Any = None,
    ) -> Self:
        """Draw given predictions, such as those of `cross_val_predict`.

        Parameters
        ----------
        images : array, list, Series or DataFrame of n_samples images
            What :meth:`sktl.PretrainedImageClassifier.fit` takes as X. Of rows, the shape must be
            told from their width; otherwise reshape them.
        y_true : array-like of shape (n_samples,), or (n_samples, n_labels)
        y_proba : array-like of shape (n_samples, n_classes)
        classes : array-like of shape (n_classes,), default=None
            Labels of the columns. None is the sorted labels of `y_true`; of several labels a
            picture, their numbers.
        n_images : int, default=16
            How many to show, at most.
        ax : matplotlib Axes, default=None
            None makes a figure.

        Returns
        -------
        ImagePredictionsDisplay

        Raises
        ------
        ValueError
            If the lengths or `classes` don't fit.
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        if classes is None:
            several = has_several_labels(y_true)
            classes = np.arange(np.shape(y_proba)[1]) if several else np.unique(y_true)
        return cls._of(open_pictures(images), y_true, y_proba, classes, n_images, ax)

    @classmethod
    def _of(
        cls, images: Images, y_true: Any, y_proba: Any, classes: Any, n_images: int, ax: Any
    ) -> Self:
        several = has_several_labels(y_true)
        y_true = check_indicators(y_true, cls.__name__) if several else column_or_1d(y_true)
        y_proba, classes = np.asarray(y_proba), np.asarray(classes)
        check_consistent_length(np.empty(len(images)), y_true, y_proba)
        if y_proba.ndim != 2 or y_proba.shape[1] != len(classes):
            raise ValueError(
                f"y_proba has shape {y_proba.shape}, but must have a column for each of the "
                f"{len(classes)} classes. Pass classes=clf.classes_."
            )
        if several:
            if y_true.shape[1] != len(classes):
                raise ValueError(
                    f"y_true has {y_true.shape[1]} columns, but there are {len(classes)} labels."
                )
            highest = np.maximum(y_proba, 1 - y_proba).prod(axis=1)
            y_true, y_pred = _named(y_true > 0, classes), _named(y_proba > 0.5, classes)
        else:
            y_pred, highest = classes[y_proba.argmax(axis=1)], y_proba.max(axis=1)
        wrong = y_pred != y_true
        shown = np.lexsort((np.where(wrong, -highest, highest), ~wrong))[:n_images]
        display = cls(
            pictures=small_pictures(images, shown.tolist()),
            y_true=y_true[shown],
            y_pred=y_pred[shown],
            probabilities=highest[shown],
            title=_title(int(wrong.sum()), len(wrong)),
            file_names=file_names(images, shown.tolist()),
        )
        display.indices_ = shown
        return display.plot(ax=ax)

    def plot(self, ax: Any = None, *, n_columns: int = 8) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.
        n_columns : int, default=8
            Pictures a row, at most; on a given `ax`, as many as make them largest.

        Returns
        -------
        ImagePredictionsDisplay
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        names = self.file_names or [""] * len(self.pictures)
        parts = zip(self.pictures, self.y_true, self.y_pred, self.probabilities, names, strict=True)
        tiles = [_tile(*part) for part in parts]
        self.ax_, self.images_ = draw_grid(ax, tiles, n_columns, _CELL)
        self.figure_ = self.ax_.figure
        self.ax_.set_title(self.title, fontsize="medium")
        return self


def _named(has: npt.NDArray[np.bool_], labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The labels of each row in one text."""
    texts = [", ".join(map(str, labels[row])) or "no label" for row in has]
    return np.array(texts, dtype=object)


def _title(n_wrong: int, n: int) -> str:
    mistakes = "1 mistake" if n_wrong == 1 else f"{n_wrong} mistakes"
    return f"{mistakes} in {n} pictures"


def _tile(picture: Picture, true: Any, predicted: Any, probability: float, name: str) -> Tile:
    right = true == predicted
    mark, colour = ("✓", BLUE) if right else ("✗", VERMILION)
    lines = [(f"{mark} {predicted}", f" {probability:.2f}")]
    if not right:
        lines.append((f"is {true}", ""))
    return Tile(picture, lines, colour, name)
