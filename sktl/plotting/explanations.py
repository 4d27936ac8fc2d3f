"""Pictures with the pixels that speak for a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.utils import check_consistent_length, column_or_1d

from ..labels import check_indicators, has_several_labels
from .drawing import BLUE, ORANGE, Picture, Tile, check_matplotlib, draw_grid
from .pictures import fitted_classifier, open_pictures, small_pictures

_CELL = 1.7  # inches
_TITLES = {
    "grad_cam": "Grad-CAM: bright places speak for the class",
    "integrated_gradients": "Integrated gradients: orange speaks for the class, blue against it",
}
_STRONGEST = 0.75  # share of the colour in the strongest place
_TOP = 99.5  # percentile that counts as the strongest: single pixels stand out


class ExplanationDisplay:
    """Pictures beside copies on which colours show what speaks for a class.

    Make it with :meth:`from_estimator`. Colours are as strong as they can be in each picture, so
    they don't compare pictures.

    Parameters
    ----------
    pictures : uint8 array of shape (n, h, w, 3), or list of such (h, w, 3)
    attributions : float array of shape (n, h, w), or list of such (h, w)
        From :meth:`sktl.PretrainedImageClassifier.explain`, laid on the pictures; zero where the
        network sees nothing of them.
    targets : array-like of shape (n,)
        The class that is explained.
    probabilities : array-like of shape (n,) or None, default=None
        Of these classes.
    method : {"grad_cam", "integrated_gradients"}, default="grad_cam"
    y_true : array-like of shape (n,) or None, default=None
        The true classes, which stand below the pictures.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    images_ : list of matplotlib AxesImage
        Of each picture, itself and its copy.

    See Also
    --------
    ImagePredictionsDisplay : Which pictures are taken for what.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktl import PretrainedImageClassifier
    >>> from sktl.plotting import ExplanationDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = PretrainedImageClassifier(image_size=64).fit(X[:100], y[:100])
    >>> ExplanationDisplay.from_estimator(clf, X[100:104])
    <...>
    """

    ax_: Any
    figure_: Any

    def __init__(
        self,
        *,
        pictures: Sequence[Picture],
        attributions: Sequence[npt.NDArray[np.floating[Any]]],
        targets: Any,
        probabilities: Any = None,
        method: str = "grad_cam",
        y_true: Any = None,
    ) -> None:
        self.pictures = pictures
        self.attributions = attributions
        self.targets = targets
        self.probabilities = probabilities
        self.method = method
        self.y_true = y_true

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        target: Any = None,
        *,
        y: Any = None,
        method: str = "grad_cam",
        ax: Any = None,
    ) -> Self:
        """Draw what :meth:`sktl.PretrainedImageClassifier.explain` finds.

        Parameters
        ----------
        estimator : PretrainedImageClassifier
            Fitted; or a search whose best estimator is one.
        X : array, list, Series or DataFrame of n_samples images
            All are drawn.
        target : label or array-like of shape (n_samples,), default=None
            The class to explain. None is the predicted one.
        y : array-like of shape (n_samples,) or (n_samples, n_labels), default=None
            True labels, to be shown with the pictures.
        method : {"grad_cam", "integrated_gradients"}, default="grad_cam"
        ax : matplotlib Axes, default=None
            None makes a figure.

        Returns
        -------
        ExplanationDisplay

        Raises
        ------
        TypeError
            If there is no fitted classifier.
        ValueError
            If X and y differ in length.
        ImportError
            If captum or matplotlib isn't installed.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        clf = fitted_classifier(estimator, cls.__name__, "explain")
        if y is None:
            labels = None
        elif has_several_labels(y):
            labels = _listed(check_indicators(y, cls.__name__))
        else:
            labels = column_or_1d(y)
        check_consistent_length(X, labels)
        attributions = clf.explain(X, target, method=method)
        probabilities = clf.predict_proba(X)
        if target is None:
            columns = probabilities.argmax(axis=1)
        else:
            targets = np.broadcast_to(np.asarray(target), len(probabilities))
            columns = np.searchsorted(clf.classes_, targets)
        images = open_pictures(X, clf)
        recipe = clf.__sktl_backbone__().recipe
        small = small_pictures(images, range(len(images)))
        pictures = [_enlarged(picture, max(recipe.size)) for picture in small]
        display = cls(
            pictures=pictures,
            attributions=[
                recipe.back(torch.from_numpy(found), *picture.shape[:2]).numpy()
                for found, picture in zip(attributions, pictures, strict=True)
            ],
            targets=clf.classes_[columns],
            probabilities=probabilities[np.arange(len(columns)), columns],
            method=method,
            y_true=labels,
        )
        return display.plot(ax=ax)

    def plot(self, ax: Any = None, *, n_columns: int = 3) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.
        n_columns : int, default=3
            Pictures a row, at most, not counting the copies; on a given `ax`, as many as make
            them largest.

        Returns
        -------
        ExplanationDisplay
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        unknown = [None] * len(self.pictures)
        known: Sequence[Any] = unknown if self.probabilities is None else self.probabilities
        true: Sequence[Any] = unknown if self.y_true is None else self.y_true
        tiles = []
        for picture, found, target, probability, label in zip(
            self.pictures, self.attributions, self.targets, known, true, strict=True
        ):
            rest = "?" if probability is None else f"? {probability:.2f}"
            tiles.append(Tile(picture, [] if label is None else [(f"is {label}", "")]))
            tiles.append(Tile(overlaid(picture, found), [(str(target), rest)]))
        self.ax_, self.images_ = draw_grid(ax, tiles, 2 * n_columns, _CELL, together=2)
        self.figure_ = self.ax_.figure
        self.ax_.set_title(_TITLES[self.method], fontsize="medium")
        return self


def _listed(indicators: npt.NDArray[np.uint8]) -> list[str]:
    """The numbers of each picture's labels."""
    return [", ".join(map(str, np.flatnonzero(row))) or "no label" for row in indicators]


def _enlarged(picture: Picture, side: int) -> Picture:
    """Make a picture at least as long as what the network sees, whose places it is to show."""
    height, width = picture.shape[:2]
    scale = max(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size))


def overlaid(picture: Picture, attributions: npt.NDArray[np.floating[Any]]) -> Picture:
    """Colour a grey copy of a picture where something speaks for a class or against it."""
    import matplotlib as mpl
    from matplotlib.colors import to_rgb

    if attributions.min() < 0:  # of single pixels: their neighbourhood shows more
        attributions = gaussian_filter(attributions, len(picture) / 64)
        strength = np.abs(attributions)
        towards = np.where(attributions[..., None] > 0, to_rgb(ORANGE), to_rgb(BLUE))
    else:
        strength = attributions
    strength = np.clip(strength / max(float(np.percentile(strength, _TOP)), 1e-12), 0, 1)
    if attributions.min() >= 0:
        towards = mpl.colormaps["inferno"](strength)[..., :3]
    grey = picture.mean(axis=2, keepdims=True) / 255
    share = _STRONGEST * strength[..., None]
    mixed = (1 - share) * grey + share * towards
    return np.asarray(np.round(255 * mixed), dtype=np.uint8)
