"""L-BFGS along the principal axes, which comes near to an optimum at little cost."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

APPROACH = 60  # iterations
_PAIRS = 10  # that L-BFGS remembers
_NEAR = 3e-4  # of the loss
SUFFICIENT = 1e-4  # share of the predicted decrease that a step must bring


@dataclass(frozen=True)
class Point:
    """Coefficients with what the loss is there; the gradient is along the principal axes.

    The coefficients are so, too, where they are in single precision.
    """

    coefficients: Tensor
    loss: float
    gradient: Tensor
    proba: Tensor


class Problem(Protocol):
    """A loss, in single precision and for coefficients along the principal axes."""

    def roughly_at(self, coefficients: Tensor) -> Point:
        """Loss and gradient."""

    def diagonal(self, proba: Tensor) -> Tensor:
        """Diagonal of the Hessian."""


def approach(problem: Problem, start: Tensor, max_iter: int) -> tuple[Tensor, int]:
    """Come near to the optimum; return the number of iterations, too."""
    point = problem.roughly_at(start)
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=_PAIRS)
    n_iter = 0
    while n_iter < min(APPROACH, max_iter):
        n_iter += 1
        direction = _two_loops(point.gradient, pairs, problem.diagonal(point.proba))
        squared_decrement = float((point.gradient * direction).sum(dtype=torch.float64))
        if squared_decrement < _NEAR * point.loss:
            break
        there = _backtrack(problem, point, direction, squared_decrement)
        if there is None:
            break
        moved = there.coefficients - point.coefficients
        change = there.gradient - point.gradient
        product = float((moved * change).sum(dtype=torch.float64))
        if product > 0:
            pairs.append((moved, change, product))
        point = there
    return point.coefficients, n_iter


def _backtrack(
    problem: Problem, point: Point, direction: Tensor, squared_decrement: float
) -> Point | None:
    """Shorten the step until the loss falls; None if it doesn't."""
    share = 1.0
    while share > 1e-6:
        there = problem.roughly_at(point.coefficients - share * direction)
        if there.loss <= point.loss - SUFFICIENT * share * squared_decrement:
            return there
        share /= 4
    return None


def _two_loops(
    gradient: Tensor, pairs: Sequence[tuple[Tensor, Tensor, float]], diagonal: Tensor
) -> Tensor:
    """Multiply by the inverse Hessian as L-BFGS has it (Nocedal and Wright, algorithm 7.4)."""
    direction, shares = gradient.clone(), []
    for moved, change, product in reversed(pairs):
        shares.append(float((moved * direction).sum()) / product)
        direction.sub_(change, alpha=shares[-1])
    direction /= diagonal
    if pairs:
        _, change, product = pairs[-1]
        direction *= product / float((change * (change / diagonal)).sum())
    for moved, change, product in pairs:
        share = shares.pop() - float((change * direction).sum()) / product
        direction.add_(moved, alpha=share)
    return direction
