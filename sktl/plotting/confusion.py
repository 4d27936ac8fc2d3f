"""A confusion matrix with pictures in its cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix as count_pairs
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.multiclass import unique_labels
from sklearn.utils.validation import check_is_fitted

from ..images.reading import Images
from ..labels import has_several_labels
from .drawing import (
    BLACK,
    BLUE,
    VERMILION,
    Picture,
    axes_to_draw_on,
    check_matplotlib,
    shortened,
    size_in_inches,
)
from .pictures import open_pictures, small_pictures

_CELL = 0.75  # inches
_SMALLEST, _LARGEST = 3.6, 14.0  # inches, of a matrix in a figure of our own
_LONGEST_NAME = 24
_PICTURE = 0.72  # of a cell's width; below it stands the count
_STRONGEST = 0.55  # opacity of the cell of a class whose images are all in it

Matrix = npt.NDArray[np.int64]


class ImageConfusionMatrixDisplay:
    """A confusion matrix with a picture in each cell: what is taken for what, and how it looks.

    Make it with :meth:`from_estimator` or :meth:`from_predictions`. Rows are true classes, columns
    predicted ones. A cell holds the number of its images and one of them, that with the highest
    probability where it is known, else the first. Its colour is as strong as its share of the true
    class: blue for what is right, red for mistakes.

    Parameters
    ----------
    confusion_matrix : int array of shape (n_classes, n_classes)
        As of :func:`sklearn.metrics.confusion_matrix`.
    pictures : dict of (int, int) to uint8 array of shape (h, w, 3)
        For row and column of a cell, its picture.
    display_labels : array-like of shape (n_classes,)
        Names of the classes.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    im_ : matplotlib AxesImage
        The colours of the cells.
    images_ : dict of (int, int) to matplotlib AxesImage
        The pictures.
    text_ : dict of (int, int) to matplotlib Text
        The counts, where they aren't zero.
    indices_ : dict of (int, int) to int
        Which image stands in a cell, by its number in X. Not in a display made by its constructor.

    See Also
    --------
    ImagePredictionsDisplay : The pictures themselves, the worst mistakes first.
    sklearn.metrics.ConfusionMatrixDisplay : The same with numbers alone.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktl import PretrainedImageClassifier
    >>> from sktl.plotting import ImageConfusionMatrixDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = PretrainedImageClassifier(image_size=64).fit(X[:100], y[:100])
    >>> ImageConfusionMatrixDisplay.from_estimator(clf, X[100:200], y[100:200])
    <...>
    """

    ax_: Any
    figure_: Any
    im_: Any
    indices_: dict[tuple[int, int], int]

    def __init__(
        self,
        *,
        confusion_matrix: Matrix,
        pictures: Mapping[tuple[int, int], Picture],
        display_labels: Any,
    ) -> None:
        self.confusion_matrix = confusion_matrix
        self.pictures = pictures
        self.display_labels = display_labels

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: Any, *, labels: Any = None, ax: Any = None
    ) -> Self:
        """Draw what a fitted classifier takes images for.

        Parameters
        ----------
        estimator : classifier
            Fitted; PretrainedImageClassifier, or a Pipeline or search that takes images.
        X : array, list, Series or DataFrame of n_samples images
        y : array-like of shape (n_samples,)
            True labels.
        labels : array-like of shape (n_classes,), default=None
            The classes to show, in this order. None is all that occur, sorted.
        ax : matplotlib Axes, default=None
            None makes a figure.

        Returns
        -------
        ImageConfusionMatrixDisplay

        Raises
        ------
        ValueError
            If the lengths don't fit, or no label occurs.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        check_is_fitted(estimator)
        sure = None
        if hasattr(estimator, "predict_proba"):
            sure = estimator.predict_proba(X).max(axis=1)
        images = open_pictures(X, estimator)
        return cls._of(images, y, estimator.predict(X), sure, labels, ax)

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        y_true: Any,
        y_pred: Any,
        *,
        probabilities: Any = None,
        labels: Any = None,
        ax: Any = None,
    ) -> Self:
        """Draw given predictions, such as those of `cross_val_predict`.

        Parameters
        ----------
        images : array, list, Series or DataFrame of n_samples images
            What :meth:`sktl.PretrainedImageClassifier.fit` takes as X. Of rows, the shape must be
            told from their width; otherwise reshape them.
        y_true, y_pred : array-like of shape (n_samples,)
        probabilities : array-like of shape (n_samples,), default=None
            Of the predicted classes. The surest image stands in each cell; None takes the first.
        labels : array-like of shape (n_classes,), default=None
            The classes to show, in this order. None is all that occur, sorted.
        ax : matplotlib Axes, default=None
            None makes a figure.

        Returns
        -------
        ImageConfusionMatrixDisplay

        Raises
        ------
        ValueError
            If the lengths don't fit, or no label occurs.
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        return cls._of(open_pictures(images), y_true, y_pred, probabilities, labels, ax)

    @classmethod
    def _of(cls, images: Images, y_true: Any, y_pred: Any, sure: Any, labels: Any, ax: Any) -> Self:
        if has_several_labels(y_true):
            raise ValueError(
                f"{cls.__name__} is for one class an image, but y has a column for each of several "
                "labels. sklearn.metrics.multilabel_confusion_matrix counts them label by label."
            )
        y_true, y_pred = column_or_1d(y_true), column_or_1d(y_pred)
        sure = np.zeros(len(y_pred)) if sure is None else column_or_1d(sure)
        check_consistent_length(np.empty(len(images)), y_true, y_pred, sure)
        classes = unique_labels(y_true, y_pred) if labels is None else column_or_1d(labels)
        shown = _surest(y_true, y_pred, sure, classes)
        display = cls(
            confusion_matrix=count_pairs(y_true, y_pred, labels=classes),
            pictures=dict(zip(shown, small_pictures(images, list(shown.values())), strict=True)),
            display_labels=classes,
        )
        display.indices_ = shown
        return display.plot(ax=ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.

        Returns
        -------
        ImageConfusionMatrixDisplay
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        n = len(self.confusion_matrix)
        names = [shortened(str(label), _LONGEST_NAME) for label in self.display_labels]
        side = float(np.clip(_CELL * n, _SMALLEST, _LARGEST))
        margin = 0.6 + 0.075 * max(map(len, names))
        self.ax_, _ = axes_to_draw_on(ax, (round(side + margin, 1), round(side + margin, 1)))
        self.figure_ = self.ax_.figure
        self.im_ = self.ax_.imshow(_colours(self.confusion_matrix))
        self.images_ = {cell: self._draw_picture(cell) for cell in self.pictures}
        font = float(np.clip(11 * min(size_in_inches(self.ax_)) / n, 4, 9))
        self.text_ = {
            (i, j): self._write_count(i, j, font)
            for i, j in zip(*np.nonzero(self.confusion_matrix), strict=True)
        }
        self.ax_.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor")
        self.ax_.set_yticks(range(n), names)
        self.ax_.set(xlabel="Predicted label", ylabel="True label")
        self.ax_.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5))
        self.ax_.tick_params(length=0)
        self._rule(n)
        return self

    def _draw_picture(self, cell: tuple[int, int]) -> Any:
        picture = self.pictures[cell]
        height, width = picture.shape[:2]
        scale = _PICTURE / max(height, width) / 2
        x, y = cell[1], cell[0] - 0.46 + _PICTURE / 2
        extent = (x - width * scale, x + width * scale, y + height * scale, y - height * scale)
        return self.ax_.imshow(picture, extent=extent, interpolation="antialiased", zorder=2)

    def _write_count(self, i: int, j: int, font: float) -> Any:
        count = self.confusion_matrix[i, j]
        weight = "bold" if i == j else "normal"
        return self.ax_.text(
            j, i + 0.47, str(count), ha="center", va="bottom", fontsize=font, fontweight=weight,
            color=BLACK,
        )  # fmt: skip

    def _rule(self, n: int) -> None:
        """Part the cells by lines."""
        self.ax_.set_xticks(np.arange(n + 1) - 0.5, minor=True)
        self.ax_.set_yticks(np.arange(n + 1) - 0.5, minor=True)
        self.ax_.grid(which="minor", color="#D0D0D0", linewidth=0.8)
        self.ax_.tick_params(which="minor", length=0)


def _surest(
    y_true: Any, y_pred: Any, sure: npt.NDArray[Any], classes: Any
) -> dict[tuple[int, int], int]:
    """Which image stands in each cell that isn't empty."""
    number = {label: k for k, label in enumerate(np.asarray(classes).tolist())}
    found: dict[tuple[int, int], int] = {}
    for k in np.argsort(-sure, kind="stable").tolist():
        row, column = number.get(y_true[k]), number.get(y_pred[k])
        if row is not None and column is not None:
            found.setdefault((row, column), k)
    return found


def _colours(counts: Matrix) -> npt.NDArray[np.float64]:
    """Colours of cells by their share of the row, as an array (n, n, 4)."""
    from matplotlib.colors import to_rgb

    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colours = np.empty((*counts.shape, 4))
    colours[..., :3] = np.where(np.eye(len(counts))[..., None], to_rgb(BLUE), to_rgb(VERMILION))
    colours[..., 3] = _STRONGEST * np.sqrt(shares)  # single mistakes are seen, too
    return colours
