r"""Independent logistic regressions on the same rows, solved to their optima by Newton's method.

One for each label, all at once, since a product with many flat matrices is one product of a larger
matrix. The Hessian of one is

.. math:: \lambda I + \sum_i s_i p_i (1 - p_i) x_i x_i^T

where :math:`p_i` is the label's probability for image i, :math:`s_i` is the image's share in the
loss and :math:`x_i` are its features. As in :mod:`sktl.training.newton`, Newton's equation is
solved in single precision by preconditioned conjugate gradients, along the principal axes of the
features. There the Hessian is nearly diagonal as long as all images are equally uncertain, and the
few most uncertain ones are in the preconditioner as they are, by Woodbury's identity. Steps are as
long as is best along their direction, which is found on the logits and costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .newton import Solution
from .rows import CentredRows

# Of the squared Newton decrement before the last step, half of which is what the loss of a label
# lies above its minimum.
_CLOSE = 1e-8
_CERTAIN = 1e-6  # a loss of separable rows, which has no minimum; single precision ends below it
_ROUGH, _FINE = 0.1, 0.03  # shares of the gradient's norm that solutions of Newton's equation leave
_NEAR = 1e-3  # a squared decrement below which the quadratic model is worth solving well
_FLAT = 0.1  # share of the slope that is left where the best length of a step is found
_MOST_LENGTHS = 20
_MAX_DIRECTIONS = 100
_REFRESH = 0.3  # of a solution of Newton's equation is what its preconditioner may cost
_MAX_RANK = 1024
_AT_ONCE = 2**22  # logits
_SUREST = 1e-10  # probability of a label that none of the images has


def binary_targets(
    indicators: Tensor, label_smoothing: float, label_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What speaks for each label, and against it.

    Parameters
    ----------
    indicators : tensor of shape (n, n_labels)
        0 and 1.
    label_smoothing : float
        Half of it is the probability that an image shall have a label which it hasn't.
    label_weights : tensor of shape (2, n_labels) or None
        Of each label's absence and presence.

    Returns
    -------
    present, absent : tensors of shape (n, n_labels)
        The loss is ``present * softplus(-logits) + absent * softplus(logits)``.
    """
    share = indicators * (1 - label_smoothing) + label_smoothing / 2
    if label_weights is None:
        return share, 1 - share
    absence, presence = label_weights.to(share)
    weight = torch.where(indicators > 0, presence, absence)
    return share * weight, (1 - share) * weight


def binary_losses(logits: Tensor, present: Tensor, absent: Tensor) -> Tensor:
    """Cross-entropy of each label; see :func:`binary_targets`."""
    return present * F.softplus(-logits) + absent * F.softplus(logits)


@torch.no_grad()
def solve(
    features: Tensor,
    indicators: Tensor,
    weights: Tensor,
    *,
    weight_decay: float,
    label_smoothing: float = 0.0,
    label_weights: Tensor | None = None,
    max_iter: int = 1000,
) -> Solution:
    """Minimise the sum over labels of the weighted mean cross-entropies plus the L2 penalty.

    Parameters
    ----------
    features : float tensor of shape (n, n_features)
    indicators : tensor of shape (n, n_labels)
        0 and 1.
    weights : tensor of shape (n,)
        Of mean one.
    weight_decay : float
        Half of it times the squared norm of the weights is added to the loss.
    label_smoothing : float, default=0.0
    label_weights : tensor of shape (2, n_labels) or None, default=None
        See :func:`binary_targets`.
    max_iter : int, default=1000

    Returns
    -------
    Solution
        On the features' device. A label that all images have, or none, gets no weights, and the
        bias that fits, up to a probability of 1e-10.

    References
    ----------
    J. Nocedal and S. Wright, Numerical Optimization, 2nd ed. (2006), sections 3.5 and 7.1.
    """
    rows = CentredRows(features, weights, weight_decay)
    parts = [
        _solve_some(rows, some, label_smoothing, some_weights, max_iter)
        for some, some_weights in _parts(indicators.to(rows.exact), label_weights)
    ]
    weight, bias = rows.weight_and_bias(torch.cat([part.coefficients for part in parts]))
    loss = sum(float(part.loss.sum()) for part in parts)
    return Solution(weight, bias, loss, max(part.n_iter for part in parts), weight_decay)


def _parts(indicators: Tensor, label_weights: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """So many labels at a time as memory is to be taken for."""
    size = max(1, _AT_ONCE // len(indicators))
    some = torch.split(indicators, size, 1)
    if label_weights is None:
        return [(part, None) for part in some]
    return list(zip(some, torch.split(label_weights, size, 1), strict=True))


@dataclass(frozen=True)
class _Optimum:
    coefficients: Tensor
    loss: Tensor
    n_iter: int


def _solve_some(
    rows: CentredRows,
    indicators: Tensor,
    label_smoothing: float,
    label_weights: Tensor | None,
    max_iter: int,
) -> _Optimum:
    """Find the optima of some labels, for which there is memory."""
    present, absent = binary_targets(indicators, label_smoothing, label_weights)
    problem = _Labels(rows, rows.shares * present.T, rows.shares * absent.T)
    coefficients = problem.start()
    loss = problem.losses(coefficients)
    left = problem.varying
    problem = problem.of(left)
    tolerance = torch.full_like(left, _ROUGH, dtype=torch.float32)
    n_iter, n_directions = 0, 1
    while len(left) and n_iter < max_iter:
        n_iter += 1
        here = coefficients[left]
        slope = problem.slope(here)
        step = problem.newton_step(slope, tolerance, n_directions)
        n_directions = step.n_directions
        length = problem.best_length(slope, here, step)
        coefficients[left] = here - length[:, None] * step.change
        # A minimum is not below zero: where the loss is near it, it's found.
        goes_on = (step.squared_decrement > _CLOSE) & (slope.losses > _CERTAIN)
        goes_on &= n_iter < max_iter
        loss[left[~goes_on]] = problem.of(~goes_on).losses(coefficients[left[~goes_on]])
        tolerance = torch.where(step.squared_decrement < _NEAR, _FINE, _ROUGH).float()[goes_on]
        left, problem = left[goes_on], problem.of(goes_on)
    return _Optimum(coefficients, loss, n_iter)


@dataclass(frozen=True)
class _Slope:
    """Logits (n_labels, n) and probabilities; losses, and their gradients by the coefficients."""

    logits: Tensor
    proba: Tensor
    losses: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class _Step:
    """Solutions of Newton's equations, to be subtracted.

    Attributes
    ----------
    change : float64 tensor of shape (n_labels, width)
    squared_decrement : float64 tensor of shape (n_labels,)
        The gradient times the change.
    n_directions : int
    """

    change: Tensor
    squared_decrement: Tensor
    n_directions: int


class _Labels:
    """The losses of labels as functions of their coefficients.

    Labels come first, here and in the logits: a product of a flat matrix and a large one is
    several times faster than one of a large matrix and a narrow one.
    """

    def __init__(self, rows: CentredRows, present: Tensor, absent: Tensor) -> None:
        self._rows = rows
        self._present = present
        self._absent = absent
        self._shares = present + absent

    def of(self, chosen: Tensor) -> _Labels:
        """Some of the labels."""
        return _Labels(self._rows, self._present[chosen], self._absent[chosen])

    @property
    def varying(self) -> Tensor:
        """The labels that not all images have, and not none."""
        return torch.nonzero((self._present.sum(1) > 0) & (self._absent.sum(1) > 0)).ravel()

    def start(self) -> Tensor:
        """The optimum without weights: all images have a label with the same probability."""
        coefficients = self._present.new_zeros(len(self._present), self._rows.exact.shape[1])
        share = self._present.sum(1) / self._shares.sum(1)
        coefficients[:, -1] = torch.logit(share, eps=_SUREST)
        return coefficients

    def losses(self, coefficients: Tensor) -> Tensor:
        """Losses with the penalty."""
        return self._losses(coefficients, coefficients @ self._rows.exact.T)

    def _losses(self, coefficients: Tensor, logits: Tensor) -> Tensor:
        penalty = 0.5 * (self._rows.decay * coefficients.square()).sum(1)
        return binary_losses(logits, self._present, self._absent).sum(1) + penalty

    def slope(self, coefficients: Tensor) -> _Slope:
        """Differentiate the losses."""
        logits = coefficients @ self._rows.exact.T
        proba = torch.sigmoid(logits)
        error = proba * self._shares - self._present
        gradient = torch.addmm(self._rows.decay * coefficients, error, self._rows.exact)
        return _Slope(logits, proba, self._losses(coefficients, logits), gradient)

    def newton_step(self, slope: _Slope, tolerance: Tensor, n_directions: int) -> _Step:
        """Solve Newton's equations to tolerances, which shall take so many directions."""
        rows, proba = self._rows.rough, slope.proba.float()
        curvature = (proba * (1 - proba)).mul_(self._shares.float())
        # Rounding must not make the Hessian singular where there is no penalty.
        least = 1e-6 * curvature.sum(1, keepdim=True) * self._rows.variances.mean()
        decay = torch.maximum(self._rows.decay.float(), least.clamp_min(1e-30))

        def hessian(direction: Tensor) -> Tensor:
            change = (direction @ rows.T).mul_(curvature)
            return torch.addmm(decay * direction, change, rows)

        # Single precision is narrow.
        scale = slope.gradient.abs().amax(1, keepdim=True).clamp_min(1e-300)
        gradient = self._rows.to_axes((slope.gradient / scale).float())
        for rank in (self._rank(n_directions), 0):
            precondition = self._preconditioner(curvature, decay, rank)
            solution, n_directions = _conjugate_gradients(
                hessian, precondition, gradient, tolerance
            )
            if bool(solution.any(1).all()):
                break  # else rounding of large terms has made a preconditioner indefinite
        change = self._rows.from_axes(solution) * scale
        return _Step(change, (slope.gradient * change).sum(1), n_directions)

    def _rank(self, n_directions: int) -> int:
        """Number of images that a preconditioner may count, so as not to cost too much."""
        n, width = self._rows.rough.shape
        work = _REFRESH * n_directions * 2 * n * width
        ranks = torch.arange(1, min(_MAX_RANK, n) + 1, dtype=torch.float64)
        return int((ranks**2 * (width + ranks) <= work).sum())

    def _preconditioner(
        self, curvature: Tensor, decay: Tensor, rank: int
    ) -> Callable[[Tensor], Tensor]:
        """Invert nearly what the Hessians are.

        The terms of the most uncertain images are taken as they are, the rest as if it were the
        same for all images, which is a diagonal matrix along the principal axes. Woodbury's
        identity inverts the sum of both.
        """
        largest, index = curvature.topk(rank, 1)
        rest = (curvature.sum(1) - largest.sum(1)).clamp_min(0)
        diagonal = rest[:, None] * self._rows.variances + decay
        if not rank:
            return lambda residual: residual / diagonal
        used, place = torch.unique(index, return_inverse=True)
        rows, factors = self._rows.rough[used], largest.sqrt()
        inverses = torch.stack(
            [_inverse(rows[p], d, f) for p, d, f in zip(place, diagonal, factors, strict=True)]
        )

        def precondition(residual: Tensor) -> Tensor:
            plain = residual / diagonal
            terms = (plain @ rows.T).gather(1, place).mul_(factors)
            terms = torch.bmm(inverses, terms[..., None])[..., 0].mul_(factors)
            of_rows = torch.zeros_like(plain[:, :1]).repeat(1, len(used)).scatter_(1, place, terms)
            return plain - (of_rows @ rows) / diagonal

        return precondition

    def best_length(self, slope: _Slope, coefficients: Tensor, step: _Step) -> Tensor:
        """How much of its step is best for each label, by Newton's method within brackets."""
        change = step.change @ self._rows.exact.T
        linear = (self._rows.decay * coefficients * step.change).sum(1)
        square = (self._rows.decay * step.change.square()).sum(1)
        low, high = torch.zeros_like(linear), torch.full_like(linear, torch.inf)
        length = torch.ones_like(linear)
        for _ in range(_MOST_LENGTHS):
            proba = torch.sigmoid(slope.logits - length[:, None] * change)
            error = proba * self._shares - self._present
            first = length * square - linear - (error * change).sum(1)
            if bool((first.abs() <= _FLAT * step.squared_decrement.abs()).all()):
                break
            second = square + (proba * (1 - proba) * self._shares * change.square()).sum(1)
            low, high = torch.where(first < 0, length, low), torch.where(first < 0, high, length)
            length = length - first / second.clamp_min(1e-300)
            unbounded = high.isinf()
            bound = torch.where(unbounded, 4 * low, high)
            between = torch.where(unbounded, bound, (low + high) / 2)
            length = torch.where((length > low) & (length < bound), length, between)
        return length


def _inverse(rows: Tensor, diagonal: Tensor, factors: Tensor) -> Tensor:
    small = (rows @ (rows / diagonal).T) * torch.outer(factors, factors)
    # More than one, so that rounding of large terms can't make it indefinite.
    small.diagonal().add_(1 + 1e-5 * float(small.diagonal().max()))
    return torch.cholesky_inverse(torch.linalg.cholesky(small))


def _conjugate_gradients(
    matrix: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    target: Tensor,
    tolerance: Tensor,
) -> tuple[Tensor, int]:
    """Solve ``matrix(x) = target`` for each row, to shares of the targets' preconditioned norms.

    Returns
    -------
    solution : tensor of the target's shape
    n : int
        Number of directions.
    """
    solution, residual = torch.zeros_like(target), target
    direction = precondition(residual)
    product = (residual * direction).sum(1)
    enough = tolerance.square() * product
    going = product > 0
    n = 0
    while n < _MAX_DIRECTIONS and bool(going.any()):
        n += 1
        image = matrix(direction)
        curved = (direction * image).sum(1)
        going = going & (curved > 0)
        length = torch.where(going, product / curved, 0.0)[:, None]
        solution = solution + length * direction
        residual = residual - length * image
        toward = precondition(residual)
        before, product = product, (residual * toward).sum(1)
        direction = toward + torch.where(going, product / before, 0.0)[:, None] * direction
        going = going & (product > enough)
    return solution, n
