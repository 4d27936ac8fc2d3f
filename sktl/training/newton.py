r"""Multinomial logistic regression, solved to its optimum by Newton's method.

The features of a backbone are correlated and the penalty is small, which makes first-order methods
slow. Newton's equation is solved by preconditioned conjugate gradients. Its matrix, the Hessian, is

.. math:: \lambda I + \sum_i s_i (\mathrm{diag}(p_i) - p_i p_i^T) \otimes x_i x_i^T

where :math:`p_i` are the probabilities of image i, :math:`s_i` is its share in the loss and
:math:`x_i` are its features. Three things make few steps of it do:

- L-BFGS along the principal axes of the features comes near to the optimum first, since Newton's
  steps are long only there. It works in single precision, as do the directions of Newton's steps.
- The few uncertain images have most of what is hard about the Hessian. The preconditioner inverts
  their terms as they are, by Woodbury's identity, and the rest as if it were the same for all.
- A step that goes too far is taken back, and the Hessian gets a multiple of the features'
  covariance on top, which bounds how far logits move, as Levenberg and Marquardt have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .lbfgs import APPROACH, SUFFICIENT, Point, approach
from .preconditioning import conjugate_gradients, largest_uncertainties
from .rows import CentredRows

# Of the squared Newton decrement that a step leaves, half of which is what the loss lies above its
# minimum. Up to the second, a solution goes while it costs little.
_CLOSE = 1e-6
_EXACT = 1e-20
_LITTLE = 2**28  # multiplications: a hundredth of a second of one core

_ROUNDING = 1e-13  # of the loss, which can't tell better from worse beyond it
_STALLED = 1e-9  # by which the loss must fall; single precision can't solve all equations
_MOST_STALLED = 10  # steps in a row
_LEAST_DAMPING = 1e-4
_REFRESH = 0.3  # of a solution of Newton's equation is what its preconditioner may cost
_MAX_RANK = 4096  # 64 MB
_AT_ONCE = 2**22  # logits


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
        Steps of both methods, those of Newton's that were taken back among them.
    weight_decay : float
        The penalty, given or chosen.
    """

    weight: Tensor
    bias: Tensor
    loss: float
    n_iter: int
    weight_decay: float

    def divided_by(self, temperature: float) -> Solution:
        """The same with all logits divided by a temperature."""
        weight, bias = self.weight / temperature, self.bias / temperature
        return replace(self, weight=weight, bias=bias)


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
    J. Nocedal and S. Wright, Numerical Optimization, 2nd ed. (2006), sections 7.1, 7.2 and 10.3.
    """
    problem = _Problem(features, labels, weights, n_classes, weight_decay, label_smoothing)
    near, n_iter = approach(problem, problem.start, max_iter)
    spent = n_iter * problem.n_products
    point = problem.at(problem.rows.from_axes(near))
    damping, tolerance, n_directions = 0.0, 0.1, APPROACH
    n_stalled = 0
    # A minimum is not below zero: where the loss is near it, as that of separable rows, it's found.
    while n_iter < max_iter and n_stalled < _MOST_STALLED:
        enough = _CLOSE if spent > _LITTLE else _EXACT
        if point.loss < enough / 2:
            break
        n_iter += 1
        step = problem.newton_step(point, damping, tolerance, n_directions)
        n_directions = step.n_directions
        spent += n_directions * problem.n_products
        there = problem.at(point.coefficients - step.change)
        if step.squared_decrement <= _ROUNDING * point.loss:
            # The loss can't tell better from worse any more, but the gradient can.
            if there.loss > point.loss * (1 + _ROUNDING):
                break
            point = there
            n_stalled += 1
            if step.squared_decrement * step.error < enough:
                break
            continue
        n_stalled = n_stalled + 1 if point.loss - there.loss < _STALLED else 0
        # One where the loss falls as its quadratic model does.
        gain = 2 * (point.loss - there.loss) / max(step.squared_decrement, 1e-300)
        left = step.squared_decrement * (step.error + (gain - 1) ** 2)
        if gain > SUFFICIENT:
            point = there
            if not damping and left < enough:
                break
        if gain < 0.25:
            damping = max(4 * damping, 10 * _LEAST_DAMPING)
        elif gain > 0.75:
            damping = damping / 8 if damping > 2 * _LEAST_DAMPING else 0.0
        if left < 1e-3:  # the quadratic model is good enough to be solved well
            tolerance = 0.03
    # What is the same for all classes means nothing, and is rounding.
    weight, bias = problem.rows.weight_and_bias(point.coefficients - point.coefficients.mean(0))
    return Solution(weight, bias, point.loss, n_iter, weight_decay)


@torch.no_grad()
def near_solutions(
    features: Tensor,
    labels: Tensor,
    weights: Tensor,
    n_classes: int,
    *,
    weight_decays: Sequence[float],
    label_smoothing: float = 0.0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what lies near the optima for several penalties, each from the one before it.

    Parameters
    ----------
    features, labels, weights, n_classes, label_smoothing
        See :func:`solve`.
    weight_decays : sequence of float
        Strong ones first, which are found in few iterations.

    Yields
    ------
    weight : float64 tensor of shape (n_classes, n_features)
    bias : float64 tensor of shape (n_classes,)
    """
    problem = _Problem(features, labels, weights, n_classes, weight_decays[0], label_smoothing)
    near = problem.start
    for weight_decay in weight_decays:
        problem.rows.penalise(weight_decay)
        near, _ = approach(problem, near, APPROACH)
        yield problem.rows.weight_and_bias(problem.rows.from_axes(near))


@dataclass(frozen=True)
class _Step:
    """A solution of Newton's equation, to be subtracted.

    Attributes
    ----------
    change : float64 tensor of shape (n_classes, n_features + 1)
    squared_decrement : float
        The gradient times the change.
    error : float
        Squared, of the solution, as a share of the squared decrement.
    n_directions : int
        Products with the Hessian that it took.
    """

    change: Tensor
    squared_decrement: float
    error: float
    n_directions: int


class _Problem:
    """The loss as a function of the coefficients, of which the last column is the bias.

    Classes come first, here and in the logits: a product of a flat matrix and a large one is
    several times faster than one of a large matrix and a narrow one.

    Single precision works along the principal axes of the features.
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
        self.rows = CentredRows(features, weights, weight_decay)
        self.labels = labels
        self.targets = soft_targets(n_classes, label_smoothing).to(self.rows.exact)
        self.rough_shares = self.rows.shares.float()
        self.rough_targets = self.targets.float()

    @property
    def start(self) -> Tensor:
        """Where all classes are equally likely for any image."""
        return self.rows.rough.new_zeros(len(self.targets), self.rows.exact.shape[1])

    @property
    def n_products(self) -> int:
        """Multiplications of a product with the Hessian."""
        return 2 * len(self.targets) * self.rows.exact.numel()

    def at(self, coefficients: Tensor) -> Point:
        """Loss with the penalty, its gradient and the probabilities."""
        loss, gradient, proba = self._evaluate(
            coefficients, self.rows.exact, self.targets, self.rows.shares, self.rows.decay
        )
        return Point(coefficients, loss, self.rows.to_axes(gradient), proba)

    def roughly_at(self, coefficients: Tensor) -> Point:
        """Do the same in single precision, for coefficients along the principal axes."""
        of_rows = self.rows.rough, self.rough_targets, self.rough_shares, self.rows.decay.float()
        return Point(coefficients, *self._evaluate(coefficients, *of_rows))

    def _evaluate(
        self, coefficients: Tensor, rows: Tensor, targets: Tensor, shares: Tensor, decay: Tensor
    ) -> tuple[float, Tensor, Tensor]:
        gradient = decay * coefficients
        loss = 0.5 * (gradient * coefficients).sum(dtype=torch.float64)
        proba = self.rows.rough.new_empty(len(coefficients), len(rows))
        size = max(1, _AT_ONCE // len(coefficients))
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            logits = coefficients @ rows[part].T
            proba[:, part] = torch.softmax(logits, 0)
            wanted = targets[:, self.labels[part]] * shares[part]
            its_loss, error = loss_and_error(logits, wanted, shares[part])
            loss += its_loss
            gradient.addmm_(error, rows[part])
        return float(loss), gradient, proba

    def diagonal(self, proba: Tensor, factors: Tensor | None = None) -> Tensor:
        """Diagonal of the Hessian, if all images were equally uncertain of all classes.

        Without the terms that have these factors.
        """
        total = self.rough_shares @ (1 - proba.square().sum(0))
        if factors is not None:
            total = (total - factors.square().sum()).clamp_min(0)
        diagonal = total / len(proba) * self.rows.variances + self.rows.decay.float()
        # Rounding must not make it zero.
        return diagonal + max(1e-6 * float(diagonal.mean()), 1e-30)

    def newton_step(
        self, point: Point, damping: float, tolerance: float, n_directions: int
    ) -> _Step:
        """Solve Newton's equation to a tolerance, which shall take so many directions."""
        proba, shares = point.proba, self.rough_shares
        damped = damping * self.rows.variances
        diagonal = self.rows.decay.float() + damped

        def hessian(direction: Tensor) -> Tensor:
            change = direction @ self.rows.rough.T
            change.sub_((proba * change).sum(0)).mul_(proba).mul_(shares)
            return torch.addmm(diagonal * direction, change, self.rows.rough)

        scale = float(point.gradient.abs().max().clamp_min(1e-300))  # single precision is narrow
        gradient = (point.gradient / scale).float()
        for rank in (self._rank(n_directions), 0):
            precondition = self._preconditioner(proba, damped, rank)
            solution, error, n_directions = conjugate_gradients(
                hessian, precondition, gradient, tolerance
            )
            if n_directions:
                break  # else rounding of large terms has made the preconditioner indefinite
        squared_decrement = scale**2 * float((gradient * solution).sum(dtype=torch.float64))
        change = scale * self.rows.from_axes(solution)
        return _Step(change, squared_decrement, error, n_directions)

    def _rank(self, n_directions: int) -> int:
        """Number of terms that the preconditioner may have, so as not to cost too much."""
        work = _REFRESH * n_directions * self.n_products
        width = self.rows.exact.shape[1] + len(self.targets)
        ranks = torch.arange(1, _MAX_RANK + 1, dtype=torch.float64)
        return int((ranks**2 * (width + ranks) <= work).sum())

    def _preconditioner(
        self, proba: Tensor, damped: Tensor, rank: int
    ) -> Callable[[Tensor], Tensor]:
        """Invert nearly what the Hessian is at these probabilities.

        Its largest terms are taken as they are, the rest as if it were the same for all images and
        classes, which is a diagonal matrix along the principal axes. Woodbury's identity inverts
        the sum of both.
        """
        index, factors = largest_uncertainties(proba, self.rough_shares, rank)
        diagonal = self.diagonal(proba, factors) + damped
        if not rank:
            return lambda residual: residual / diagonal
        used, place = torch.unique(index, return_inverse=True)  # an image may have several terms
        rows = self.rows.rough[used]
        scaled = rows / diagonal
        small = (rows @ scaled.T)[place][:, place].mul_(factors.T @ factors)
        # More than one, so that rounding of large terms can't make it indefinite.
        small.diagonal().add_(1 + 1e-5 * float(small.diagonal().max()))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(small))

        def precondition(residual: Tensor) -> Tensor:
            plain = residual / diagonal
            terms = inverse @ (plain @ rows.T)[:, place].mul_(factors).sum(0)
            of_rows = torch.zeros_like(factors[:, : len(rows)])
            of_rows.index_add_(1, place, factors * terms)
            return torch.addmm(plain, of_rows, scaled, alpha=-1)

        return precondition
