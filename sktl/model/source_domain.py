"""What is known of the images of a fit: features with labels, and heads that know them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from ..threads import suited_threads
from ..training.newton import solve

# Chosen by benchmarks/transfer.
_WEIGHT_DECAY = 2e-2  # for standardised features, whatever suits those of the network
_COMMON_SPREAD = 0.3  # share of the mean spread in each feature's, for those that hardly vary
_PRIOR_IMAGES = 1  # of the source, that count in the mean and spread of the target
_N_FOLDS = 3
_SAMPLE_IMAGES = 1000
_SAMPLE_BYTES = 4 * 2**20


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of images whose classes are known.

    Attributes
    ----------
    features : float tensor of shape (n, n_features)
    labels : int64 tensor of shape (n,)
    weights : float64 tensor of shape (n,)
    n_classes : int
    """

    features: Tensor
    labels: Tensor
    weights: Tensor
    n_classes: int

    def in_proportions(self, proportions: Tensor) -> LabelledFeatures:
        """The same rows, weighted so that the classes have these shares."""
        ratios = proportions / self.proportions().clamp_min(1e-12)
        weights = self.weights * ratios[self.labels]
        return replace(self, weights=weights / weights.mean())

    def at(self, rows: npt.NDArray[np.int64]) -> LabelledFeatures:
        """Some of the rows."""
        place = torch.as_tensor(rows)
        return LabelledFeatures(
            self.features[place], self.labels[place], self.weights[place], self.n_classes
        )

    def proportions(self) -> Tensor:
        """Share of each class in the weights."""
        zeros = torch.zeros(self.n_classes, dtype=torch.float64)
        return zeros.index_add_(0, self.labels, self.weights) / self.weights.sum()


def sample_rows(labels: npt.NDArray[np.int64], row_bytes: int) -> npt.NDArray[np.int64]:
    """Choose rows to keep: of each class its share, and of each one at least."""
    most = min(_SAMPLE_IMAGES, max(1, _SAMPLE_BYTES // row_bytes))
    by_class = np.argsort(labels, kind="stable")
    step = max(1, -(-len(labels) // most))
    _, first = np.unique(labels, return_index=True)
    return np.union1d(by_class[::step], first)


@dataclass(frozen=True)
class LinearHead:
    """Weights from features to logits.

    Attributes
    ----------
    weight : float64 tensor of shape (n_classes, n_features)
    bias : float64 tensor of shape (n_classes,)
    """

    weight: Tensor
    bias: Tensor

    def proba(self, features: Tensor) -> Tensor:
        """Class probabilities, of shape (n, n_classes)."""
        return torch.softmax(features.double() @ self.weight.T + self.bias, dim=1)


@dataclass(frozen=True)
class Standardization:
    """Shift and scale of each feature."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, features: Tensor, weights: Tensor | None = None) -> Standardization:
        """Learn it from rows."""
        return cls._from(*moments(features, weights))

    @classmethod
    def of_target(cls, target: Tensor, source: LabelledFeatures) -> Standardization:
        """Learn it from few or many rows; few don't tell much, so the source has a say.

        References
        ----------
        S. Schneider et al., Improving robustness against common corruptions by covariate shift
        adaptation (2020), arXiv:2006.16971.
        """
        share = len(target) / (len(target) + _PRIOR_IMAGES)
        both = zip(moments(target), moments(source.features, source.weights), strict=True)
        return cls._from(*(share * own + (1 - share) * other for own, other in both))

    @classmethod
    def _from(cls, mean: Tensor, variance: Tensor) -> Standardization:
        spread = variance.sqrt()
        spread = spread + _COMMON_SPREAD * spread.mean()
        return cls(mean, torch.where(spread > 0, spread, torch.ones_like(spread)))

    def __call__(self, features: Tensor) -> Tensor:
        """Standardise rows, in double precision."""
        return (features.double() - self.mean) / self.spread

    def folded_into(self, head: LinearHead) -> LinearHead:
        """The head for features that aren't standardised."""
        weight = head.weight / self.spread
        return LinearHead(weight, head.bias - weight @ self.mean)


def moments(features: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weighted mean and variance of each feature."""
    rows = features.double()
    shares = torch.ones(len(rows), dtype=torch.float64) if weights is None else weights
    shares = shares / shares.sum()
    mean = shares @ rows
    return mean, shares @ (rows - mean).square()


@dataclass(frozen=True)
class Settings:
    """Of the head's fits; see :func:`sktl.training.newton.solve`."""

    weight_decay: float
    label_smoothing: float

    def for_standardized(self) -> Settings:
        """The same for features of mean zero and spread one."""
        return replace(self, weight_decay=_WEIGHT_DECAY)


def fit_head(rows: LabelledFeatures, settings: Settings) -> LinearHead:
    """Multinomial logistic regression."""
    # Its steps also multiply matrices that are far from flat.
    with suited_threads(10 * rows.features.numel() * rows.n_classes):
        found = solve(
            rows.features,
            rows.labels,
            rows.weights / rows.weights.mean(),
            rows.n_classes,
            weight_decay=settings.weight_decay,
            label_smoothing=settings.label_smoothing,
        )
    return LinearHead(found.weight, found.bias)


def standardized(source: LabelledFeatures) -> LabelledFeatures:
    """The same rows with features of mean zero and spread one."""
    own = Standardization.of(source.features, source.weights)(source.features)
    return replace(source, features=own)


class Home:
    """A source with the heads that know its standardised features, each fitted once.

    Parameters
    ----------
    source : LabelledFeatures
    settings : Settings
        Of heads on features as they are.
    """

    def __init__(self, source: LabelledFeatures, settings: Settings) -> None:
        self.source = source
        self.settings = settings.for_standardized()

    @cached_property
    def rows(self) -> LabelledFeatures:
        """The standardised features."""
        return standardized(self.source)

    @cached_property
    def head(self) -> LinearHead:
        """Fitted to all of them."""
        return fit_head(self.rows, self.settings)

    @cached_property
    def folds(self) -> list[Fold]:
        """Heads that know a part each; none with too few rows."""
        return fit_folds(self.rows, self.settings)

    @cached_property
    def held_out(self) -> Tensor | None:
        """Probabilities of each row by a head that was fitted without it."""
        return _held_out(self.rows, self.folds)

    def confidence(self, target: Tensor, scale: Standardization) -> float:
        """How sure the heads of the folds are of the target's images."""
        rows = scale(target)
        found = [fold.head.proba(rows).max(dim=1).values.mean() for fold in self.folds]
        return float(torch.stack(found).mean())


@dataclass(frozen=True)
class Fold:
    """A head, the rows that it was fitted to, and the rest."""

    head: LinearHead
    training: npt.NDArray[np.int64]
    rest: npt.NDArray[np.int64]


def fit_folds(source: LabelledFeatures, settings: Settings) -> list[Fold]:
    """Fit a head to all but each part of the rows; none where a class has one row only."""
    n_folds = min(_N_FOLDS, int(source.labels.bincount(minlength=source.n_classes).min()))
    if n_folds < 2:
        return []
    parts = StratifiedKFold(n_folds).split(source.labels, source.labels)
    return [
        Fold(fit_head(source.at(training), settings), training, rest) for training, rest in parts
    ]


def _held_out(source: LabelledFeatures, folds: list[Fold]) -> Tensor | None:
    if not folds:
        return None
    proba = torch.zeros(len(source.labels), source.n_classes, dtype=torch.float64)
    for fold in folds:
        proba[torch.as_tensor(fold.rest)] = fold.head.proba(source.at(fold.rest).features)
    return proba


def held_out_proba(source: LabelledFeatures, settings: Settings) -> Tensor | None:
    """Probabilities of each row by a head that was fitted without it; None with too few rows."""
    return _held_out(source, fit_folds(source, settings))
