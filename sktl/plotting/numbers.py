"""Predicted against true numbers, with pictures of the largest errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.metrics import r2_score
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.validation import check_is_fitted

from ..images.reading import Images
from .drawing import BLUE, GREY, VERMILION, Picture, axes_to_draw_on, check_matplotlib, frame
from .pictures import open_pictures, small_pictures

_THUMBNAIL = 0.1  # side of a picture, as a share of the axes

Numbers = npt.NDArray[np.float64]


class ImagePredictionErrorDisplay:
    """Predicted against true numbers, with pictures of the largest errors.

    Make it with :meth:`from_estimator` or :meth:`from_predictions`. Points on the line are
    predicted as they are. Beside the points that are farthest from it stand their pictures.

    Parameters
    ----------
    y_true, y_pred : float array of shape (n_samples,)
    pictures : dict of int to uint8 array of shape (h, w, 3), default=None
        By the number of their point.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    scatter_ : matplotlib PathCollection
    images_ : list of matplotlib AxesImage
    indices_ : ndarray of shape (n_pictures,)
        Which images are shown, by their number in X, the largest error first.

    See Also
    --------
    sklearn.metrics.PredictionErrorDisplay : The same without pictures.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktl import PretrainedImageRegressor
    >>> from sktl.plotting import ImagePredictionErrorDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> reg = PretrainedImageRegressor(image_size=64).fit(X[:100], y[:100])
    >>> ImagePredictionErrorDisplay.from_estimator(reg, X[100:200], y[100:200])
    <...>
    """

    ax_: Any
    figure_: Any
    scatter_: Any
    images_: list[Any]
    indices_: npt.NDArray[np.int64]

    def __init__(
        self, *, y_true: Any, y_pred: Any, pictures: dict[int, Picture] | None = None
    ) -> None:
        self.y_true = y_true
        self.y_pred = y_pred
        self.pictures = pictures

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: Any, *, output: int = 0, n_images: int = 8, ax: Any = None
    ) -> Self:
        """Draw what a fitted regressor predicts.

        Parameters
        ----------
        estimator : regressor
            Fitted; PretrainedImageRegressor, or a Pipeline or search that takes images.
        X : array, list, Series or DataFrame of n_samples images
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            True numbers.
        output : int, default=0
            Which of several outputs.
        n_images : int, default=8
            How many pictures to show, at most.
        ax : matplotlib Axes, default=None
            None makes a figure.

        Returns
        -------
        ImagePredictionErrorDisplay
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        check_is_fitted(estimator)
        images = open_pictures(X, estimator)
        return cls._of(images, y, estimator.predict(X), output, n_images, ax)

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        y_true: Any,
        y_pred: Any,
        *,
        output: int = 0,
        n_images: int = 8,
        ax: Any = None,
    ) -> Self:
        """Draw given predictions, such as those of `cross_val_predict`.

        Parameters
        ----------
        images : array, list, Series or DataFrame of n_samples images
            What :meth:`sktl.PretrainedImageRegressor.fit` takes as X. Of rows, the shape must be
            told from their width; otherwise reshape them.
        y_true, y_pred : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Images without a prediction, of which it is NaN, are left out.
        output : int, default=0
            Which of several outputs.
        n_images : int, default=8
            How many pictures to show, at most.
        ax : matplotlib Axes, default=None
            None makes a figure.

        Returns
        -------
        ImagePredictionErrorDisplay

        Raises
        ------
        ValueError
            If the lengths don't fit, there is no such output, or nothing is predicted.
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        return cls._of(open_pictures(images), y_true, y_pred, output, n_images, ax)

    @classmethod
    def _of(
        cls, images: Images, y_true: Any, y_pred: Any, output: int, n_images: int, ax: Any
    ) -> Self:
        true, predicted = _column(y_true, output), _column(y_pred, output)
        check_consistent_length(np.empty(len(images)), true, predicted)
        answered = np.flatnonzero(~np.isnan(predicted))
        if not len(answered):
            raise ValueError("y_pred is NaN for all images, so there is nothing to draw.")
        true, predicted = true[answered], predicted[answered]
        worst = np.argsort(-np.abs(predicted - true), kind="stable")[:n_images].tolist()
        shown = small_pictures(images, answered[worst].tolist())
        display = cls(y_true=true, y_pred=predicted, pictures=dict(zip(worst, shown, strict=True)))
        display.indices_ = answered[worst]
        return display.plot(ax=ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.

        Returns
        -------
        ImagePredictionErrorDisplay
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        true, predicted = np.asarray(self.y_true), np.asarray(self.y_pred)
        self.ax_, _ = axes_to_draw_on(ax, (5.6, 5.6))
        self.figure_ = self.ax_.figure
        low, high = _limits(true, predicted)
        self.ax_.plot([low, high], [low, high], color=GREY, lw=1, ls="--", zorder=1)
        self.scatter_ = self.ax_.scatter(true, predicted, s=16, color=BLUE, lw=0, zorder=2)
        self.images_ = []
        places: list[tuple[float, float]] = []
        for point, picture in (self.pictures or {}).items():
            at = float(true[point]), float(predicted[point])
            place = _free_place(at, places, low, high)
            places.append(place)
            self.ax_.plot(*zip(at, place, strict=True), color=VERMILION, lw=1, zorder=3)
            self._draw_picture(picture, place, high - low)
        self.ax_.set(xlim=(low, high), ylim=(low, high), xlabel="True", ylabel="Predicted")
        self.ax_.set_aspect("equal")
        self.ax_.set_title(_title(true, predicted), fontsize="medium")
        return self

    def _draw_picture(self, picture: Picture, place: tuple[float, float], span: float) -> None:
        height, width = picture.shape[:2]
        scale = _THUMBNAIL * span / max(height, width) / 2
        x, y = place
        extent = (x - width * scale, x + width * scale, y - height * scale, y + height * scale)
        image = self.ax_.imshow(picture, extent=extent, zorder=4, interpolation="antialiased")
        self.images_.append(image)
        self.ax_.add_patch(frame(extent, VERMILION, 1.5)).set_zorder(4)


def _column(y: Any, output: int) -> Numbers:
    """One output's numbers."""
    values = np.asarray(y, dtype=np.float64)
    if values.ndim == 2 and values.shape[1] > 1:
        if not 0 <= output < values.shape[1]:
            raise ValueError(f"output={output} is none of {values.shape[1]}, counted from 0.")
        values = values[:, output]
    column: Numbers = column_or_1d(values)
    return column


def _limits(true: Numbers, predicted: Numbers) -> tuple[float, float]:
    """The same for both axes, with room for pictures."""
    low = float(min(true.min(), predicted.min()))
    high = float(max(true.max(), predicted.max()))
    margin = 1.5 * _THUMBNAIL * (high - low or 1.0)
    return low - margin, high + margin


def _free_place(
    point: tuple[float, float], taken: Sequence[tuple[float, float]], low: float, high: float
) -> tuple[float, float]:
    """Where a picture hides no other, as near to its point as may be, and away from the line."""
    side = 1.15 * _THUMBNAIL * (high - low)
    above = 1 if point[1] >= point[0] else -1
    away = np.array([-above, above]) / np.sqrt(2)
    along = np.array([1, 1]) / np.sqrt(2)
    centres = [
        np.clip(
            np.array(point) + side * (out * away + shift * along), low + side / 2, high - side / 2
        )
        for out in (1.0, 1.5, 2.5, 3.5)
        for shift in (0, 1, -1, 2, -2, 3, -3)
    ]
    free = [
        centre
        for centre in centres
        if all(np.abs(centre - other).max() >= side for other in taken)
        and np.abs(centre - point).max() >= side / 2
    ]
    x, y = free[0] if free else centres[0]
    return float(x), float(y)


def _title(true: Numbers, predicted: Numbers) -> str:
    error = float(np.abs(predicted - true).mean())
    if len(true) < 2:
        return f"mean absolute error {error:.3g}"
    return f"R² {r2_score(true, predicted):.3f}, mean absolute error {error:.3g}"
