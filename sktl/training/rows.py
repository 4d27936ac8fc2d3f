"""Features as matrices for solvers of a linear head, centred and along their principal axes."""

from __future__ import annotations

import torch
from torch import Tensor


class CentredRows:
    """Features as matrices, of which the last column is for the bias.

    Single precision works along the principal axes of the features, where the Hessian of a linear
    head is nearly diagonal as long as all images are equally uncertain.

    Parameters
    ----------
    features : float tensor of shape (n, n_features)
    weights : tensor of shape (n,)
        Of mean one.
    weight_decay : float

    Attributes
    ----------
    exact : float64 tensor of shape (n, width)
        Centred; where there are fewer rows than features, in the space that the rows span.
    rough : float32 tensor of shape (n, width)
        The same along the principal axes.
    shares : float64 tensor of shape (n,)
        Of each image in the loss.
    axes : float32 tensor of shape (width - 1, width - 1)
    variances : float32 tensor of shape (width,)
        Along the axes.
    decay : float64 tensor of shape (width,)
        Penalties; that of the bias is zero.
    """

    def __init__(self, features: Tensor, weights: Tensor, weight_decay: float) -> None:
        n, n_features = features.shape
        # Filled in place, since a second copy of all rows may be gigabytes.
        self.exact = features.new_ones(n, n_features + 1, dtype=torch.float64)
        centred = self.exact[:, :-1]
        centred.copy_(features)
        self.shares = weights.to(self.exact) / n
        self._mean = self.shares @ centred
        centred -= self._mean
        # Fewer rows than features: the weights lie in the space that the rows span.
        self._basis: Tensor | None = None
        if n < n_features:
            self._basis, triangle = torch.linalg.qr(centred.T)
            self.exact = torch.cat([triangle.T, self.exact[:, -1:]], 1)
        self.penalise(weight_decay)
        self.rough = self.exact.float()
        centred = self.rough[:, :-1]
        covariance = centred.T @ (centred * self.shares.float()[:, None])
        variances, self.axes = torch.linalg.eigh(covariance)
        centred.copy_(centred @ self.axes)
        self.variances = torch.cat([variances.clamp_min(0), variances.new_ones(1)])

    def penalise(self, weight_decay: float) -> None:
        """Take another penalty."""
        self.decay = torch.full_like(self.exact[0], weight_decay)
        self.decay[-1] = 0  # the bias has none

    def to_axes(self, coefficients: Tensor) -> Tensor:
        """Turn all but the bias, in the precision of the coefficients."""
        return _turned(coefficients, self.axes)

    def from_axes(self, coefficients: Tensor) -> Tensor:
        """Turn back, in double precision."""
        return _turned(coefficients.double(), self.axes.T)

    def weight_and_bias(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and biases for the features as they were given."""
        weight, bias = coefficients[:, :-1], coefficients[:, -1]
        if self._basis is not None:
            weight = weight @ self._basis.T
        return weight, bias - weight @ self._mean


def _turned(coefficients: Tensor, axes: Tensor) -> Tensor:
    turned = coefficients[:, :-1] @ axes.to(coefficients.dtype)
    return torch.cat([turned, coefficients[:, -1:]], 1)
