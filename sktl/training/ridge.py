"""Ridge regression in closed form: the optimum of a linear head for numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from .newton import Solution


@torch.no_grad()
def solve(features: Tensor, y: Tensor, weights: Tensor, *, weight_decay: float) -> Solution:
    """Minimise the weighted mean squared error plus the L2 penalty of the weight matrix.

    Errors of several outputs are added up, so that each has the solution that it has alone.

    Parameters
    ----------
    features : float tensor of shape (n, n_features)
    y : float tensor of shape (n, n_outputs)
    weights : tensor of shape (n,)
        Of mean one.
    weight_decay : float
        Half of it times the squared norm of the weights is added to the loss.

    Returns
    -------
    Solution
        On the features' device.
    """
    rows, wanted = features.double(), y.double()
    shares = weights.to(rows) / len(rows)
    mean, mean_wanted = shares @ rows, shares @ wanted
    root = shares.sqrt()[:, None]
    rows, wanted = (rows - mean) * root, (wanted - mean_wanted) * root
    strength = weight_decay / 2
    if len(rows) < rows.shape[1]:
        kernel = _inverse_times(rows @ rows.T, strength, wanted)
        weight = (rows.T @ kernel).T
    else:
        weight = _inverse_times(rows.T @ rows, strength, rows.T @ wanted).T
    bias = mean_wanted - weight @ mean
    residual = rows @ weight.T - wanted
    loss = residual.square().sum() + strength * weight.square().sum()
    return Solution(weight, bias, float(loss), 1)


def _inverse_times(matrix: Tensor, strength: float, right: Tensor) -> Tensor:
    """Solve with a multiple of the identity on top; of the smallest norm where that is singular."""
    matrix.diagonal().add_(strength)
    triangle, failed = torch.linalg.cholesky_ex(matrix)
    if strength and not bool(failed):
        return torch.cholesky_solve(right, triangle)
    values, vectors = torch.linalg.eigh(matrix)
    least = len(values) * torch.finfo(values.dtype).eps * values[-1].clamp_min(1e-300)
    inverse = torch.where(values > least, values.reciprocal(), 0.0)
    solved: Tensor = vectors @ (inverse[:, None] * (vectors.T @ right))
    return solved
