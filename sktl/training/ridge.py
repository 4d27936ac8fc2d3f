r"""Ridge regression in closed form: the optimum of a linear head for numbers.

With features and numbers less their means, weighted by the roots of the images' shares in the loss,
the weights are

.. math:: W = (X^T X + \tfrac{\lambda}{2} I)^{-1} X^T Y,

which the eigenvectors of :math:`X^T X`, or of :math:`X X^T` where there are fewer images than
features, give for any penalty :math:`\lambda` at once. They also give the error of each image by a
fit without it, which divides its error by what its leverage leaves; "auto" chooses the penalty by
these. Generalised cross-validation, which puts the mean leverage in the place of each image's own,
would hardly penalise at all for some sets of fewer images than features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .newton import Solution

WeightDecay = float | Literal["auto"]

# Penalties that are tried, in powers of ten of the features' largest variance.
_LEAST, _MOST, _N_TRIED = -10, 2, 97
# Errors that differ by no more are the same but for rounding, as those of weak penalties are where
# there are more features than images; the strongest of such penalties is taken.
_ALIKE = 1e-4
_LEAST_FREE = 1e-9  # share of an image's error that a fit leaves, below which it is rounding
_ROWS_AT_ONCE = 4096


@torch.no_grad()
def solve(
    features: Tensor,
    y: Tensor,
    weights: Tensor,
    *,
    weight_decay: WeightDecay,
    counts: Tensor | None = None,
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
        Half of it times the squared norm of the weights is added to the loss. "auto" has the least
        squared error in leave-one-out cross-validation [1]_.
    counts : tensor of shape (n_images,) or None, default=None
        How many images each row stands for, of which "auto" leaves one out. Where there are more
        rows, they are further views of the same images, and "auto" looks at the first only. None is
        one for each row.

    Returns
    -------
    Solution
        On the features' device.

    References
    ----------
    .. [1] R. Rifkin and R. Lippert, Notes on Regularized Least Squares (2007),
       MIT-CSAIL-TR-2007-025.
    """
    if weight_decay == "auto":
        counts = torch.ones_like(weights) if counts is None else counts
        n = len(counts)
        first = _Problem.of(features[:n], y[:n], weights[:n])
        weight_decay = first.choose(counts.to(first.rows))
        if n == len(features):
            return first.solution(weight_decay)
    return _Problem.of(features, y, weights).solution(weight_decay)


@dataclass(frozen=True)
class _Problem:
    """Rows and what they shall give, centred and weighted, along the rows' principal axes.

    Attributes
    ----------
    rows : tensor of shape (n, n_features)
    wanted : tensor of shape (n, n_outputs)
    mean, mean_wanted : tensors of shape (n_features,) and (n_outputs,)
        What has been taken from them.
    shares : tensor of shape (n,)
        Of each row in the loss.
    squares : tensor of shape (rank,)
        Squared singular values of the rows.
    directions : tensor of shape (n_features, rank)
        Right singular vectors.
    parts : tensor of shape (rank, n_outputs)
        What the left singular vectors have of `wanted`.
    """

    rows: Tensor
    wanted: Tensor
    mean: Tensor
    mean_wanted: Tensor
    shares: Tensor
    squares: Tensor
    directions: Tensor
    parts: Tensor

    @classmethod
    def of(cls, features: Tensor, y: Tensor, weights: Tensor) -> _Problem:
        """Find the principal axes."""
        rows, wanted = features.double(), y.double()
        shares = weights.to(rows)
        shares = shares / shares.sum()
        mean, mean_wanted = shares @ rows, shares @ wanted
        root = shares.sqrt()[:, None]
        rows, wanted = (rows - mean).mul_(root), (wanted - mean_wanted) * root
        wide = len(rows) < rows.shape[1]
        squares, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
        rounding = max(rows.shape) * torch.finfo(squares.dtype).eps
        known = squares > rounding * squares[-1].clamp_min(1e-300)
        squares, vectors = squares[known], vectors[:, known]
        directions = rows.T @ vectors / squares.sqrt() if wide else vectors
        parts = directions.T @ (rows.T @ wanted) / squares.sqrt()[:, None]
        return cls(rows, wanted, mean, mean_wanted, shares, squares, directions, parts)

    def solution(self, weight_decay: float) -> Solution:
        """Solve for a penalty."""
        strength = weight_decay / 2
        kept = self.squares.sqrt() / (self.squares + strength)
        weight = (self.directions @ (self.parts * kept[:, None])).T
        loss = (self.rows @ weight.T - self.wanted).square().sum()
        loss = loss + strength * weight.square().sum()
        bias = self.mean_wanted - weight @ self.mean
        return Solution(weight, bias, float(loss), 1, weight_decay)

    def choose(self, counts: Tensor) -> float:
        """Penalty of the least leave-one-out error, of many that are tried."""
        if not len(self.squares):  # all images are the same to the network
            return 1.0
        strengths = self.squares[-1] * torch.logspace(
            _LEAST, _MOST, _N_TRIED, dtype=torch.float64, device=self.squares.device
        )
        kept = self.squares / (self.squares + strengths[:, None])  # (n_tried, rank)
        errors = torch.zeros_like(strengths)
        to_left = self.directions / self.squares.sqrt()
        counting = counts > 0
        parts = (self.rows, self.wanted, self.shares, counts)
        for rows, wanted, shares, copies in zip(
            *(torch.split(part[counting], _ROWS_AT_ONCE) for part in parts), strict=True
        ):
            left = rows @ to_left
            leverage = left.square() @ kept.T + shares[:, None]
            free = 1 - leverage / copies[:, None]  # (n, n_tried)
            squared = torch.zeros_like(free)
            for output in range(wanted.shape[1]):
                fitted = left @ (kept * self.parts[:, output]).T
                squared += (wanted[:, output, None] - fitted).square()
            errors += torch.where(free > _LEAST_FREE, squared / free.square(), torch.inf).sum(0)
        alike = errors <= errors.min() * (1 + _ALIKE)
        return 2 * float(strengths[alike].max())
