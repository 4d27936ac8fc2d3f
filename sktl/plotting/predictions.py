"""Pictures with what a classifier takes them for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.validation import check_is_fitted

from ..images.reading import Images
from .drawing import BLUE, VERMILION, Picture, Tile, check_matplotlib, draw_grid
from .pictures import file_names, open_pictures, small_pictures

_CELL = 1.6  # inches


class ImagePredictionsDisplay:
    """A grid of pictures with predicted and true classes, the worst mistakes first.

    Make it with :meth:`from_estimator` or :meth:`from_predictions`. Mistakes come first, those
    with the highest probability before others; then what was right, with the lowest probability
    first. Below a picture stand the predicted class and its probability, below a mistake the true
    class, and the name of the file, if it is one.

    Parameters
    ----------
    pictures : list of uint8 arrays of shape (h, w, 3)
    y_true, y_pred : array-like of shape (n_pictures,)
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
        cls, estimator: Any, X: Any, y: Any, *, n_images: int = 16, ax: Any = None
    ) -> Self:
        """Draw what a fitted classifier takes images for.

        Parameters
        ----------
        estimator : classifier with `predict_proba`
            Fitted; PretrainedImageClassifier, or a Pipeline or search that takes images.
        X : array, list, Series or DataFrame of n_samples images
        y : array-like of shape (n_samples,)
            True labels.
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
        return cls._of(images, y, y_proba, estimator.classes_, n_images, ax)

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
        y_true : array-like of shape (n_samples,)
        y_proba : array-like of shape (n_samples, n_classes)
        classes : array-like of shape (n_classes,), default=None
            Labels of the columns. None is the sorted labels of `y_true`.
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
        classes = np.unique(y_true) if classes is None else classes
        return cls._of(open_pictures(images), y_true, y_proba, classes, n_images, ax)

    @classmethod
    def _of(
        cls, images: Images, y_true: Any, y_proba: Any, classes: Any, n_images: int, ax: Any
    ) -> Self:
        y_true, y_proba, classes = column_or_1d(y_true), np.asarray(y_proba), np.asarray(classes)
        check_consistent_length(np.empty(len(images)), y_true, y_proba)
        if y_proba.ndim != 2 or y_proba.shape[1] != len(classes):
            raise ValueError(
                f"y_proba has shape {y_proba.shape}, but must have a column for each of the "
                f"{len(classes)} classes. Pass classes=clf.classes_."
            )
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
