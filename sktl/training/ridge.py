r"""Ridge regression in closed form: the optimum of a linear head for numbers.

With features and numbers less their means, weighted by the roots of the images' shares
:math:`s_i`, the weights are

.. math:: W = (X^T X + \tfrac{\lambda}{2} I)^{-1} X^T Y,

which the eigenvectors of :math:`X^T X`, or of :math:`X X^T` where there are fewer images than
features, give for any penalty :math:`\lambda` at once. So the one that generalised cross-validation
prefers costs hardly more than one that is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .newton import Solution

WeightDecay = float | Literal["auto"]

# Penalties that are tried, in powers of ten of the features' largest variance.
_LEAST, _MOST, _N_TRIED = -12, 3, 241
_FEWEST_FREE = 1e-9  # share of the degrees of freedom, below which it is rounding


@torch.no_grad()
def solve(
    features: Tensor,
    y: Tensor,
    weights: Tensor,
    *,
    weight_decay: WeightDecay,
    n_images: float = 0.0,
) -> Solution:
    """Minimise the weighted mean squared error plus the L2 penalty of the weight matrix.

    Errors of several outputs are added up, so that for one penalty each has the solution that it
    has alone.

    Parameters
    ----------
    features : float tensor of shape (n, n_features)
    y : float tensor of shape (n, n_outputs)
    weights : tensor of shape (n,)
        Of mean one.
    weight_decay : float or "auto"
        Half of it times the squared norm of the weights is added to the loss. "auto" is what
        generalised cross-validation [1]_ prefers.
    n_images : float, default=0
        How many images the rows stand for, for "auto": less than there are where several are views
        of one, more where one stands for several.

    Returns
    -------
    Solution
        On the features' device.

    References
    ----------
    .. [1] G. Golub, M. Heath and G. Wahba, Generalized Cross-Validation as a Method for Choosing a
       Good Ridge Parameter (1979), Technometrics 21.
    """
    rows, wanted = features.double(), y.double()
    shares = weights.to(rows) / len(rows)
    mean, mean_wanted = shares @ rows, shares @ wanted
    root = shares.sqrt()[:, None]
    rows, wanted = (rows - mean).mul_(root), (wanted - mean_wanted) * root
    axes = _principal_axes(rows, wanted)
    if weight_decay == "auto":
        weight_decay = _choose(axes, n_images)
    strength = weight_decay / 2
    weight = axes.coefficients(strength)
    loss = (rows @ weight.T - wanted).square().sum() + strength * weight.square().sum()
    bias = mean_wanted - weight @ mean
    return Solution(weight, bias, float(loss), 1, weight_decay)


@dataclass(frozen=True)
class _Axes:
    """The problem along the principal axes of the features.

    Attributes
    ----------
    squares : tensor of shape (rank,)
        Squared singular values of the rows.
    directions : tensor of shape (n_features, rank)
        Right singular vectors, times the singular values.
    parts : tensor of shape (rank, n_outputs)
        What left singular vectors have of y.
    beyond : float
        Squared norm of what they have not.
    """

    squares: Tensor
    directions: Tensor
    parts: Tensor
    beyond: float

    def coefficients(self, strength: float) -> Tensor:
        """Weights of shape (n_outputs, n_features)."""
        weight: Tensor = (self.directions @ (self.parts / (self.squares + strength)[:, None])).T
        return weight


def _principal_axes(rows: Tensor, wanted: Tensor) -> _Axes:
    n, n_features = rows.shape
    wide = n < n_features
    squares, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    rounding = max(n, n_features) * torch.finfo(squares.dtype).eps
    known = squares > rounding * squares[-1].clamp_min(1e-300)
    squares, vectors = squares[known], vectors[:, known]
    if wide:
        parts, directions = vectors.T @ wanted, rows.T @ vectors
    else:
        singular = squares.sqrt()
        directions = vectors * singular
        parts = vectors.T @ (rows.T @ wanted) / singular[:, None]
    beyond = float(wanted.square().sum() - parts.square().sum())
    return _Axes(squares, directions, parts, max(0.0, beyond))


def _choose(axes: _Axes, n_images: float) -> float:
    """Penalty of the least generalised cross-validation error, of many that are tried.

    That error is the mean squared one over the squared share of the degrees of freedom which the
    fit leaves.
    """
    if not len(axes.squares):  # all images are the same to the network
        return 1.0
    strengths = axes.squares[-1] * torch.logspace(
        _LEAST, _MOST, _N_TRIED, dtype=torch.float64, device=axes.squares.device
    )
    lost = strengths[:, None] / (axes.squares + strengths[:, None])  # share of each direction
    free = (n_images - 1 - len(axes.squares) + lost.sum(1)) / n_images
    errors = (axes.beyond + lost.square() @ axes.parts.square().sum(1)) / free.square()
    errors[free < _FEWEST_FREE] = torch.inf
    # Of equal ones the strongest; where none will do, too.
    best = _N_TRIED - 1 - int(errors.flip(0).argmin())
    return 2 * float(strengths[best])
