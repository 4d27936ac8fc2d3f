"""A linear head for features of another source, whose images have no labels.

The labelled features are moved to where the unlabelled ones lie, and the head is fitted to them
there. Only means, spreads and correlations of the unlabelled features are needed for that, and
then what the head itself makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from .source_domain import (
    Home,
    LabelledFeatures,
    LinearHead,
    Settings,
    Standardization,
    fit_head,
    moments,
    standardized,
)

_SHRINKAGE = 10.0  # of covariances towards the identity, in variances of a feature
_AS_SURE = 0.95  # confidence, of that at home, from which images look the same
_APART = 0.1  # squared distance of means, in variances, from which they don't
_ROUNDS = 10
_LAST_SHARE = 0.8  # of the images that the head may learn from its own labels
_TOWARDS_NO_SHIFT = 0.1


def standardized_head(home: Home, target: Tensor) -> LinearHead:
    """Take the source's head to features standardised by their own means and spreads.

    Parameters
    ----------
    home : Home
    target : float tensor of shape (n, n_features)
        Features of images without labels.

    Returns
    -------
    LinearHead
        For the target's features.
    """
    return Standardization.of_target(target, home.source).folded_into(home.head)


def expected_accuracy(home: Home, target: Tensor) -> tuple[float, float] | None:
    """Judge by the confidence that a head loses how much of its accuracy it will lose.

    Parameters
    ----------
    home : Home
    target : float tensor of shape (n, n_features)
        Features of images without labels.

    Returns
    -------
    at_home, expected : float
        Accuracies of a head on standardised features: on images of the source that it hasn't
        seen, and on the target. None if a class has one image only.

    References
    ----------
    D. Guillory et al., Predicting with Confidence on Unseen Distributions (2021),
    arXiv:2107.03315.
    """
    if home.held_out is None:
        return None
    confidence, found = home.held_out.max(dim=1)
    at_home = float((found == home.source.labels).double().mean())
    # By the same heads: one that knows all of the source's images is surer of any.
    there = home.confidence(target, Standardization.of_target(target, home.source))
    lost = float(confidence.mean()) - there
    return at_home, min(1.0, max(0.0, at_home - lost))


def looks_the_same(home: Home, target: Tensor) -> bool:
    """Whether heads are about as sure of the target as of images of the source new to them.

    That must hold for its features as they are, and as well for those that are standardised by
    their own means and spreads, since a head may be very sure of what it has never seen.

    Parameters
    ----------
    home : Home
    target : float tensor of shape (n, n_features)
    """
    assert home.held_out is not None, "a class has one image only"
    least = _AS_SURE * float(home.held_out.max(dim=1).values.mean())
    own = Standardization.of(home.source.features, home.source.weights)
    scales = (own, Standardization.of_target(target, home.source))
    return all(home.confidence(target, scale) >= least for scale in scales)


def gain_at_home(
    home: Home, target: Tensor, adapted_head: Callable[[Home, Tensor], LinearHead]
) -> float:
    """What adapting to the target adds to the accuracy on images of the source new to a head.

    Where the target looks like the source this tells of its images as well.

    Parameters
    ----------
    home : Home
    target : float tensor of shape (n, n_features)
    adapted_head : callable
        Makes a head of a part of the source, for the target's features.
    """
    right = 0.0
    for fold in home.folds:
        part = Home(home.source.at(fold.training), home.settings)
        rest = home.source.at(fold.rest)
        scale = Standardization.of(part.source.features, part.source.weights)
        heads = scale.folded_into(part.head), adapted_head(part, target)
        before, after = (
            int((head.proba(rest.features).argmax(1) == rest.labels).sum()) for head in heads
        )
        right += after - before
    return right / len(home.source.labels)


def aligned_head(home: Home, target: Tensor, *, pseudo_labels: bool) -> LinearHead:
    """Fit a head to labelled features that were given the correlations of the target's.

    Means and correlations of all images say as much of how many there are of each class as of
    how they look. So classes are weighted in the source as they seem to occur in the target.

    Parameters
    ----------
    home : Home
    target : float tensor of shape (n, n_features)
    pseudo_labels : bool
        Whether to go on with the target's images under the labels that the head gives them: of
        each class those it is surest of, more in each of ten rounds.

    Returns
    -------
    LinearHead
        For the target's features.

    References
    ----------
    B. Sun, J. Feng and K. Saenko, Return of Frustratingly Easy Domain Adaptation (2016),
    arXiv:1511.05547; Y. Zou et al., Unsupervised Domain Adaptation for Semantic Segmentation via
    Class-Balanced Self-Training (2018), arXiv:1810.07911.
    """
    source, settings = home.source, home.settings
    likely = source.in_proportions(_proportions_at_first_sight(home, target))
    scale = Standardization.of_target(target, likely)
    rows = scale(target)
    head = fit_head(_aligned(likely, rows), settings)
    aligned = _aligned(source.in_proportions(head.proba(rows).mean(0)), rows)
    head = fit_head(aligned, settings)
    if pseudo_labels:
        head = _self_trained(head, aligned, rows, settings)
    return scale.folded_into(head)


def _proportions_at_first_sight(home: Home, target: Tensor) -> Tensor:
    """Class frequencies of the target by the source's head, as far as it can be believed.

    That is where it is nearly as sure of the images as of its own, and the more, the nearer their
    mean is to where it must be with these frequencies. Else the source's own are the better guess.
    """
    source = home.source
    own = source.proportions()
    if home.held_out is None:
        return own
    rows = Standardization.of(source.features, source.weights)(target)
    proba = home.head.proba(rows)
    seen = proba.mean(0)
    confidence = proba.max(dim=1).values.mean() / home.held_out.max(dim=1).values.mean()
    if confidence < _AS_SURE:
        return own
    expected = home.rows.in_proportions(seen)
    mean, variance = moments(expected.features, expected.weights)
    apart = float((rows.mean(0) - mean).square().sum() / variance.sum())
    belief = max(0.0, 1 - apart / _APART)
    between: Tensor = own ** (1 - belief) * seen**belief
    return between / between.sum()


def _aligned(source: LabelledFeatures, target: Tensor) -> LabelledFeatures:
    """Whiten the source's features, and colour them as the target's (standardised) ones."""
    own = standardized(source).features
    shares = (source.weights / source.weights.mean()).sqrt()[:, None]
    white = _times_power(own, own * shares, -0.5)
    coloured = _times_power(white, target - target.mean(0), 0.5)
    return replace(source, features=coloured)


def _times_power(rows: Tensor, centred: Tensor, exponent: float) -> Tensor:
    """Multiply rows by a power of the shrunk covariance of others."""
    n, n_features = centred.shape
    if n < n_features:  # the larger of the two matrices needn't be made
        values, vectors = torch.linalg.eigh(centred @ centred.T / n)
        held = values > values[-1] * 1e-10
        values, vectors = values[held], vectors[:, held]
        directions = centred.T @ vectors / (n * values).sqrt()
    else:
        values, directions = torch.linalg.eigh(centred.T @ centred / n)
        values = values.clamp_min(0)
    gains = (values + _SHRINKAGE) ** exponent - _SHRINKAGE**exponent
    product: Tensor = _SHRINKAGE**exponent * rows + ((rows @ directions) * gains) @ directions.T
    return product


def _self_trained(
    head: LinearHead, source: LabelledFeatures, target: Tensor, settings: Settings
) -> LinearHead:
    for number in range(1, _ROUNDS + 1):
        surest, labels = _surest(head.proba(target), _LAST_SHARE * number / _ROUNDS)
        rows = LabelledFeatures(
            torch.cat([source.features, target[surest]]),
            torch.cat([source.labels, labels]),
            torch.cat([source.weights / source.weights.mean(), torch.ones(len(surest)).double()]),
            source.n_classes,
        )
        head = fit_head(rows, settings)
    return head


def _surest(proba: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The rows of each class that are most probable, and their labels."""
    confidence, labels = proba.max(dim=1)
    chosen = []
    for label in range(proba.shape[1]):
        rows = torch.nonzero(labels == label).ravel()
        n = int(np.ceil(share * len(rows)))
        chosen.append(rows[confidence[rows].argsort(descending=True, stable=True)[:n]])
    surest = torch.cat(chosen)
    return surest, labels[surest]


def class_shift(held_out: Tensor, source: LabelledFeatures, seen: Tensor) -> Tensor:
    """Estimate how much more often each class occurs among unlabelled images.

    Parameters
    ----------
    held_out : float64 tensor of shape (n, n_classes)
        From :func:`held_out_proba`.
    source : LabelledFeatures
    seen : float64 tensor of shape (n_classes,)
        Mean probabilities of the unlabelled images.

    Returns
    -------
    float64 tensor of shape (n_classes,)
        Ratios of frequencies, target to source.

    References
    ----------
    Z. Lipton, Y.-X. Wang and A. Smola, Detecting and Correcting for Label Shift with Black Box
    Predictors (2018), arXiv:1802.03916; K. Azizzadenesheli et al., Regularized Learning for
    Domain Adaptation under Label Shifts (2019), arXiv:1903.09734.
    """
    # Column j is what the images of class j look like, times their share.
    confusion = torch.zeros(source.n_classes, source.n_classes, dtype=torch.float64)
    shares = (source.weights / source.weights.sum())[:, None]
    confusion.index_add_(0, source.labels, held_out * shares)
    # Few images can't tell similar classes apart, and then it is better to see no shift.
    penalty = _TOWARDS_NO_SHIFT / source.n_classes
    system = np.vstack([confusion.T.numpy(), penalty * np.eye(source.n_classes)])
    ratios, _ = nnls(system, np.concatenate([seen.numpy(), np.full(source.n_classes, penalty)]))
    return torch.as_tensor(ratios)
