"""A map of features, with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.validation import check_is_fitted

from ..labels import check_indicators, has_several_labels
from .drawing import (
    COLOURS,
    GREY,
    MARKERS,
    Picture,
    add_legend,
    axes_to_draw_on,
    check_matplotlib,
    frame,
    legend_height,
    shortened,
)
from .pictures import open_pictures, small_pictures

_THUMBNAIL = 0.075  # of the map's longer side
_LONGEST_NAME = 24
_MOST_NAMES = 40  # in a legend
_METHODS = ("pca", "tsne")

Points = npt.NDArray[np.float64]


class FeatureMapDisplay:
    """Images as points of a plane, where those with like features lie close, and some pictures.

    Make it with :meth:`from_estimator`. Pictures are shown where they don't cover others.

    Parameters
    ----------
    points : array of shape (n, 2)
    pictures : dict of int to uint8 array of shape (h, w, 3)
        Some of the images, by their number.
    labels : array-like of shape (n,) or None, default=None
        Classes, told apart by colours and markers, with a legend; of more than forty, it names
        those with the most images.
    axis_names : tuple of (str, str), default=("", "")

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    scatters_ : list of matplotlib PathCollection
        The points of each class.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktl import PretrainedImageFeatures
    >>> from sktl.plotting import FeatureMapDisplay
    >>> X, y = load_digits(n_class=4, return_X_y=True)
    >>> features = PretrainedImageFeatures(image_size=64).fit(X[:100])
    >>> FeatureMapDisplay.from_estimator(features, X[:100], y[:100])
    <...>
    """

    ax_: Any
    figure_: Any

    def __init__(
        self,
        *,
        points: Points,
        pictures: dict[int, Picture],
        labels: Any = None,
        axis_names: tuple[str, str] = ("", ""),
    ) -> None:
        self.points = points
        self.pictures = pictures
        self.labels = labels
        self.axis_names = axis_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        method: str = "pca",
        random_state: Any = 0,
        ax: Any = None,
    ) -> Self:
        """Draw a map of the features of images.

        Parameters
        ----------
        estimator : estimator with `transform`
            Fitted; PretrainedImageFeatures, PretrainedImageClassifier (what its head reads), or a
            Pipeline of images.
        X : array, list, Series or DataFrame of n_samples images
        y : array-like of shape (n_samples,), or array or sparse matrix (n_samples, n_labels), \
default=None
            Labels. Where an image has several, each combination of them is drawn as a class; they
            are called by their columns, which have names in a DataFrame, and numbers elsewhere.
        method : {"pca", "tsne"}, default="pca"
            How features become two numbers: the two directions of most variance, which are quick
            and keep distances, or t-SNE [1]_, which keeps neighbours together and costs seconds a
            thousand images.
        random_state : int, RandomState instance or None, default=0
        ax : matplotlib Axes, default=None
            None makes a figure.

        Returns
        -------
        FeatureMapDisplay

        Raises
        ------
        TypeError
            If the estimator has no `transform`.
        ValueError
            If there is no such method, or there are fewer than three images.

        References
        ----------
        .. [1] L. van der Maaten and G. Hinton, Visualizing Data using t-SNE (2008), Journal of
           Machine Learning Research 9.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        if method not in _METHODS:
            raise ValueError(f"method={method!r} is not one of {list(_METHODS)}.")
        if not hasattr(estimator, "transform"):
            raise TypeError(
                f"{cls.__name__} needs features, but {type(estimator).__name__} has no transform."
            )
        check_is_fitted(estimator)
        features = np.asarray(estimator.transform(X), dtype=np.float64)
        labels = None if y is None else _labels(y)
        check_consistent_length(features, labels)
        if len(features) < 3:
            raise ValueError(f"A map needs at least 3 images, got {len(features)}.")
        points, names = _in_two_dimensions(features, method, random_state)
        shown = _apart(points)
        pictures = small_pictures(open_pictures(X, estimator), shown)
        display = cls(
            points=points,
            pictures=dict(zip(shown, pictures, strict=True)),
            labels=labels,
            axis_names=names,
        )
        return display.plot(ax=ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.

        Returns
        -------
        FeatureMapDisplay
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        labels = np.zeros(len(self.points)) if self.labels is None else np.asarray(self.labels)
        classes, counts = np.unique(labels, return_counts=True)
        names = [shortened(str(label), _LONGEST_NAME) for label in classes]
        legend = legend_height(names[:_MOST_NAMES], 7.2) if self.labels is not None else 0.0
        self.ax_, own_figure = axes_to_draw_on(ax, (7.2, self._height(7.2) + legend))
        self.figure_ = self.ax_.figure
        looks = _looks(len(classes))
        self.scatters_ = []
        for label, name, (colour, marker) in zip(classes, names, looks, strict=True):
            x, y = self.points[labels == label].T
            self.scatters_.append(
                self.ax_.scatter(x, y, s=16, color=colour, marker=marker, label=name, lw=0)
            )
        colours = dict(zip(classes.tolist(), (colour for colour, _ in looks), strict=True))
        for i, picture in self.pictures.items():
            self._draw_picture(picture, self.points[i], colours[labels[i].item()])
        self._frame_map()
        if self.labels is not None:
            largest = sorted(np.argsort(-counts, kind="stable")[:_MOST_NAMES].tolist())
            handles = [self.scatters_[k] for k in largest]
            if len(largest) < len(classes):
                handles += self.ax_.plot([], [], " ", label=f"… of {len(classes)} classes")
            add_legend(self.ax_, handles, own_figure)
        return self

    def _draw_picture(self, picture: Picture, point: Points, colour: str) -> None:
        height, width = picture.shape[:2]
        scale = _THUMBNAIL * np.ptp(self.points, axis=0).max() * 0.94 / max(height, width) / 2
        x, y = point
        extent = (x - width * scale, x + width * scale, y - height * scale, y + height * scale)
        self.ax_.imshow(picture, extent=extent, zorder=2, interpolation="antialiased")
        edge = frame(extent, GREY if self.labels is None else colour, 1.5)
        self.ax_.add_patch(edge).set_zorder(2)

    def _height(self, width: float) -> float:
        """Of a figure of this width, for a map of equal scales."""
        spans = np.ptp(self.points, axis=0) + _THUMBNAIL * np.ptp(self.points, axis=0).max()
        return round(float(np.clip(width * spans[1] / spans[0], 0.4 * width, 1.2 * width)), 1)

    def _frame_map(self) -> None:
        margin = _THUMBNAIL * np.ptp(self.points, axis=0).max()
        (left, bottom), (right, top) = self.points.min(axis=0), self.points.max(axis=0)
        self.ax_.set(
            xlim=(left - margin, right + margin),
            ylim=(bottom - margin, top + margin),
            xticks=[],
            yticks=[],
            xlabel=self.axis_names[0],
            ylabel=self.axis_names[1],
        )
        self.ax_.set_aspect("equal")


def _labels(y: Any) -> npt.NDArray[Any]:
    """One label an image; of several, their combination."""
    if not has_several_labels(y):
        return np.asarray(column_or_1d(y))
    indicators = check_indicators(y, "PretrainedImageClassifier")
    names = np.asarray([str(name) for name in getattr(y, "columns", range(indicators.shape[1]))])
    return np.asarray([" + ".join(names[row > 0]) or "none" for row in indicators])


def _in_two_dimensions(
    features: Points, method: str, random_state: Any
) -> tuple[Points, tuple[str, str]]:
    if method == "pca":
        pca = PCA(2, random_state=random_state)
        points = pca.fit_transform(features)
        first, second = (
            f"{100 * share:.0f} % of variance" for share in pca.explained_variance_ratio_
        )
        return points, (f"First component, {first}", f"Second component, {second}")
    perplexity = min(30.0, (len(features) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=random_state)
    return tsne.fit_transform(features).astype(np.float64), ("t-SNE", "")


def _apart(points: Points) -> list[int]:
    """Numbers of points whose pictures don't overlap, in the order of the images."""
    side = _THUMBNAIL * float(np.ptp(points, axis=0).max())
    chosen: list[int] = []
    for i, point in enumerate(points):
        if not chosen or np.abs(points[chosen] - point).max(axis=1).min() >= side:
            chosen.append(i)
    return chosen


def _looks(n: int) -> Sequence[tuple[Any, str]]:
    """Colours and markers of classes, which have no order; no two alike of up to 140."""
    import matplotlib as mpl

    colours: Sequence[Any] = COLOURS
    if n > len(COLOURS):
        twenty = [mpl.colors.to_hex(c) for c in mpl.colormaps["tab20"](range(20))]
        colours = twenty[::2] + twenty[1::2]  # those of one hue far apart
    return [(colours[i % len(colours)], MARKERS[i % len(MARKERS)]) for i in range(n)]
