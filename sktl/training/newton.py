"""Multinomial logistic regression, solved to its optimum in few steps.

The features of a backbone are correlated, which makes first-order methods slow. Newton's
method with preconditioned conjugate gradients isn't impressed: gradients are computed in
double precision, and the directions, which need not be exact, in single precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# The decrement, of which half the square is what the loss lies above its minimum.
_CLOSE = 1e-10
_ROUNDING = 1e-13  # of the loss, which can't tell better from worse beyond it
_MAX_DIRECTIONS = 60
_MANY_DIRECTIONS = 40  # from here on a new preconditioner pays
_SUFFICIENT = 1e-4  # share of the predicted decrease that a step must bring


@dataclass(frozen=True)
class Solution:
    """The optimum.

    Attributes
    ----------
    weight : float64 tensor of shape (n_classes, n_features)
    bias : float64 tensor of shape (n_classes,)
    loss : float
        Mean loss with the penalty.
    n_iter : int
        Steps of Newton's method.
    """

    weight: Tensor
    bias: Tensor
    loss: float
    n_iter: int


def soft_targets(n_classes: int, label_smoothing: float) -> Tensor:
    """Probabilities that each class's images shall have, of shape (n_classes, n_classes)."""
    certain = torch.eye(n_classes, dtype=torch.float64)
    return certain * (1 - label_smoothing) + label_smoothing / n_classes


def loss_and_error(logits: Tensor, targets: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy, and its derivative by the logits.

    Parameters
    ----------
    logits : tensor of shape (n_classes, n)
    targets : tensor of shape (n_classes, n)
        Multiplied by the shares.
    shares : tensor of shape (n,)
        Of each image in the loss.

    Returns
    -------
    loss : tensor of shape ()
    error : tensor of shape (n_classes, n)
    """
    log_proba = torch.log_softmax(logits, 0)
    loss = -(log_proba * targets).sum()
    return loss, log_proba.exp_().mul_(shares).sub_(targets)


@torch.no_grad()
def solve(
    features: Tensor,
    labels: Tensor,
    weights: Tensor,
    n_classes: int,
    *,
    weight_decay: float,
    label_smoothing: float = 0.0,
    max_iter: int = 1000,
) -> Solution:
    """Minimise the weighted mean cross-entropy plus the L2 penalty of the weight matrix.

    Parameters
    ----------
    features : float tensor of shape (n, n_features)
    labels : int64 tensor of shape (n,)
    weights : tensor of shape (n,)
        Of mean one.
    n_classes : int
    weight_decay : float
        Half of it times the squared norm of the weights is added to the loss.
    label_smoothing : float, default=0.0
    max_iter : int, default=1000

    Returns
    -------
    Solution
        On the features' device.

    References
    ----------
    J. Nocedal and S. Wright, Numerical Optimization, 2nd ed. (2006), section 7.1.
    """
    problem = _Problem(features, labels, weights, n_classes, weight_decay, label_smoothing)
    unknowns = problem.start
    loss, gradient = problem.loss_and_gradient(unknowns)
    n_iter, n_directions = 0, _MAX_DIRECTIONS
    while n_iter < max_iter:
        if n_directions >= _MANY_DIRECTIONS:
            problem.look_at_curvature(unknowns)
        step, n_directions = problem.newton_step(unknowns, gradient)
        decrease = float((gradient * step).sum())
        n_iter += 1
        further = _search(problem, unknowns, step, loss, decrease)
        if further is None:
            break
        unknowns, loss, gradient = further
        if decrease < _CLOSE**2:
            break
    unknowns[:, -1] -= unknowns[:, -1].mean()  # the same for all classes, it means nothing
    weight, bias = problem.weight_and_bias(unknowns)
    return Solution(weight, bias, loss, n_iter)


def _search(
    problem: _Problem, unknowns: Tensor, step: Tensor, loss: float, decrease: float
) -> tuple[Tensor, float, Tensor] | None:
    """Shorten the step until the loss falls; None if it doesn't."""
    share = 1.0
    while share > 1e-8:
        there = unknowns - share * step
        found, gradient = problem.loss_and_gradient(there)
        if found <= loss * (1 + _ROUNDING) - _SUFFICIENT * share * decrease:
            return there, found, gradient
        share /= 2
    return None


class _Problem:
    """The loss as a function of the weights, of which the last column is the bias.

    Classes come first, here and in the logits: a product of a flat matrix and a large one is
    several times faster than one of a large matrix and a narrow one.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        weights: Tensor,
        n_classes: int,
        weight_decay: float,
        label_smoothing: float,
    ) -> None:
        n, n_features = features.shape
        # Filled in place, since a second copy of all rows may be gigabytes.
        self.rows = features.new_ones(n, n_features + 1, dtype=torch.float64)
        centred = self.rows[:, :-1]
        centred.copy_(features)
        self.shares = weights.to(self.rows) / n
        targets = soft_targets(n_classes, label_smoothing).to(self.rows)
        self.targets = targets[:, labels] * self.shares
        self.mean = self.shares @ centred
        centred -= self.mean
        # Far fewer rows than features: the weights lie in the space that the rows span.
        self.basis: Tensor | None = None
        if n < n_features // 2:
            self.basis, triangle = torch.linalg.qr(centred.T)
            self.rows = torch.cat([triangle.T, self.rows[:, -1:]], 1)
        self.rough_rows = self.rows.float()
        self.rough_shares = self.shares.float()
        self.decay = torch.full_like(self.rows[0], weight_decay)
        self.decay[-1] = 0  # the bias has no penalty
        self.preconditioner = torch.empty(0)

    @property
    def start(self) -> Tensor:
        """Where all classes are equally likely for any image."""
        return self.rows.new_zeros(len(self.targets), self.rows.shape[1])

    def logits(self, unknowns: Tensor) -> Tensor:
        """Logits of all rows."""
        return unknowns @ self.rows.T

    def loss_and_gradient(self, unknowns: Tensor) -> tuple[float, Tensor]:
        """Loss with the penalty, and its derivative."""
        loss, error = loss_and_error(self.logits(unknowns), self.targets, self.shares)
        penalised = self.decay * unknowns
        loss += 0.5 * (penalised * unknowns).sum()
        return float(loss), torch.addmm(penalised, error, self.rows)

    def look_at_curvature(self, unknowns: Tensor) -> None:
        """Invert what the curvature here is for a class on average."""
        proba = torch.softmax(unknowns.float() @ self.rough_rows.T, 0)
        curved = (proba * (1 - proba)).mean(0) * self.rough_shares
        curvature = self.rough_rows.T @ (self.rough_rows * curved[:, None])
        diagonal = curvature.diagonal()
        diagonal += self.decay.float()
        diagonal += max(1e-6 * float(diagonal.mean()), 1e-30)  # rounding must not make it negative
        self.preconditioner = torch.cholesky_inverse(torch.linalg.cholesky(curvature))

    def newton_step(self, unknowns: Tensor, gradient: Tensor) -> tuple[Tensor, int]:
        """Solve Newton's equation roughly; give the number of directions that it took, too."""
        proba = torch.softmax(self.logits(unknowns), 0).float()
        decay = self.decay.float()
        scale = gradient.abs().max().clamp_min(1e-300)  # single precision has a narrow range

        def curvature(direction: Tensor) -> Tensor:
            change = direction @ self.rough_rows.T
            change = proba * (change - (proba * change).sum(0)) * self.rough_shares
            return torch.addmm(decay * direction, change, self.rough_rows)

        def precondition(residual: Tensor) -> Tensor:
            return residual @ self.preconditioner

        step, n_directions = _conjugate_gradients(
            curvature, precondition, (gradient / scale).float(), tolerance=0.1
        )
        return step.to(gradient) * scale, n_directions

    def weight_and_bias(self, unknowns: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and biases for the features as they were given."""
        weight, bias = unknowns[:, :-1], unknowns[:, -1]
        if self.basis is not None:
            weight = weight @ self.basis.T
        return weight, bias - weight @ self.mean


def _conjugate_gradients(
    matrix: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    target: Tensor,
    tolerance: float,
) -> tuple[Tensor, int]:
    """Solve ``matrix(x) = target`` to a share of the target's preconditioned norm."""
    solution, residual = torch.zeros_like(target), target
    toward = direction = precondition(residual)
    product = float((residual * toward).sum())
    goal = tolerance**2 * product
    n = 0
    while n < _MAX_DIRECTIONS:
        n += 1
        image = matrix(direction)
        curved = float((direction * image).sum())
        if not curved > 0:
            break
        solution = solution + (product / curved) * direction
        residual = residual - (product / curved) * image
        toward = precondition(residual)
        product, before = float((residual * toward).sum()), product
        if not product > goal:
            break
        direction = toward + (product / before) * direction
    return solution, n
