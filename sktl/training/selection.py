r"""The penalty that suits a solved head, and how sure of itself the head may be.

A strong penalty makes a head unsure and a weak one too sure, whether or not they classify well. So
each penalty is judged with the temperature :math:`T` that suits it, by which all logits are divided
[1]_: cross-validation on the features gives logits for images that the head has not seen, and the
penalty of the least log loss with its temperature is taken. Dividing weights and biases by
:math:`T` is all that it takes to keep it.

References
----------
.. [1] C. Guo et al., On Calibration of Modern Neural Networks (2017), arXiv:1706.04599.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from .newton import near_solutions

DEFAULT_DECAY = 1e-3  # where there is nothing to go by
_FOLDS = 3
# Penalties that are tried, as shares of the features' variance, strong ones first.
_TRIED = 10 ** torch.arange(-2, -7.1, -0.5, dtype=torch.float64)
_PATIENCE = 3  # weaker ones that may be worse
_HOTTEST = 10.0


@dataclass(frozen=True)
class Choice:
    """What cross-validation prefers.

    Attributes
    ----------
    weight_decay : float
    temperature : float
        By which weights and biases are to be divided.
    """

    weight_decay: float
    temperature: float


@torch.no_grad()
def choose(
    features: Tensor,
    labels: Tensor,
    weights: Tensor,
    n_classes: int,
    *,
    n_views: int = 1,
    label_smoothing: float = 0.0,
) -> Choice:
    """Choose the penalty and the temperature by three-fold cross-validation.

    Folds go by the order of the images, so that the same images give the same choice.

    Parameters
    ----------
    features, labels, weights, n_classes, label_smoothing
        See :func:`sktl.training.newton.solve`.
    n_views : int, default=1
        Rows are views of images, one view of all of them after the other. All views of an image
        are in one fold.

    Returns
    -------
    Choice
        `DEFAULT_DECAY`, and the temperature 1, if no class has two images.
    """
    folds = _folds(labels, weights, n_views)
    parts = [_Part(features, labels, weights, folds.eq(fold)) for fold in range(_FOLDS)]
    parts = [part for part in parts if len(part.wanted)]
    if not parts:
        return Choice(DEFAULT_DECAY, 1.0)
    penalties = (_TRIED * _variance(features, weights)).tolist()
    paths = [part.logits(n_classes, penalties, label_smoothing) for part in parts]
    wanted = torch.cat([part.wanted for part in parts])
    shares = torch.cat([part.shares for part in parts])
    best, least, n_worse = Choice(DEFAULT_DECAY, 1.0), math.inf, 0
    for weight_decay, logits in zip(penalties, zip(*paths, strict=True), strict=True):
        temperature, loss = _calibrate(torch.cat(logits), wanted, shares)
        n_worse += 1
        if loss < least:
            best, least, n_worse = Choice(weight_decay, temperature), loss, 0
        if n_worse >= _PATIENCE:
            break
    return best


class _Part:
    """One fold's images, and all others to learn from.

    Only such images count as have others of their class there.
    """

    def __init__(self, features: Tensor, labels: Tensor, weights: Tensor, held_out: Tensor) -> None:
        self._rows = [t[~held_out & (weights > 0)] for t in (features, labels, weights)]
        known = torch.isin(labels, self._rows[1]) & held_out & (weights > 0)
        self._unseen, self.wanted, self.shares = (t[known] for t in (features, labels, weights))

    def logits(
        self, n_classes: int, penalties: list[float], label_smoothing: float
    ) -> Iterator[Tensor]:
        """Yield the logits of the fold's images for each penalty."""
        features, labels, weights = self._rows
        unseen = self._unseen.double()
        for weight, bias in near_solutions(
            features,
            labels,
            weights / weights.mean(),
            n_classes,
            weight_decays=penalties,
            label_smoothing=label_smoothing,
        ):
            yield torch.addmm(bias, unseen, weight.T)


def _folds(labels: Tensor, weights: Tensor, n_views: int) -> Tensor:
    """Deal the images of each class out to the folds, one after the other."""
    n = len(labels) // n_views
    counted = weights[:n] > 0
    order = torch.argsort(torch.where(counted, labels[:n], labels.max() + 1), stable=True)
    folds = torch.empty_like(order)
    folds[order] = torch.arange(n, device=order.device) % _FOLDS
    return folds.repeat(n_views)


def _variance(features: Tensor, weights: Tensor) -> float:
    """Of all features together."""
    shares = (weights / weights.sum()).double()
    mean = shares @ features.double()
    squares = torch.linalg.vector_norm(features, dim=1, dtype=torch.float64).square()
    return max(float(shares @ squares - mean.square().sum()), 1e-12)


def _calibrate(logits: Tensor, wanted: Tensor, shares: Tensor) -> tuple[float, float]:
    """Temperature of the least log loss, and that loss.

    One image more could be of any class: else none that is wrong would mean no doubt at all.
    """
    shares = shares.double() / shares.sum()
    doubt = 1 / (len(logits) + 1)

    def loss(log_temperature: float) -> float:
        log_proba = torch.log_softmax(logits / math.exp(log_temperature), 1)
        right = log_proba.gather(1, wanted[:, None])[:, 0]
        return -float(shares @ ((1 - doubt) * right + doubt * log_proba.mean(1)))

    bound = math.log(_HOTTEST)
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 0.01})
    return math.exp(found.x), float(found.fun)
