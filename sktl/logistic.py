"""Multinomial logistic regression, solved to its optimum in few steps.

The features of a backbone are correlated, which makes plain L-BFGS slow. Here it sees the
problem in coordinates in which the loss is about as curved in all directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.nn import functional as F

_NEAR = 1e-5  # largest component of the gradient from which Newton's method goes on
_CLOSE = 1e-11  # and at which it ends
_NEWTON_STEPS = 5
_SMALL_GAIN = 1e-12  # of the loss in a stride: rounding lets no more be won
_STRIDE = 30  # steps between two looks at the curvature


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
    """

    weight: Tensor
    bias: Tensor
    loss: float
    n_iter: int


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
    D. Böhning, Multinomial logistic regression algorithm, Ann. Inst. Statist. Math. 44 (1992),
    for the curvature; R. Byrd, P. Lu, J. Nocedal and C. Zhu, A limited memory algorithm for bound
    constrained optimization, SIAM J. Sci. Comput. 16 (1995), for the steps.
    """
    problem = _Problem(features, labels, weights, n_classes, weight_decay, label_smoothing)
    values = np.zeros(problem.size)
    loss, n_iter = np.inf, 0
    while True:
        values = problem.whiten(values)
        result = minimize(
            problem.value_and_gradient,
            values,
            jac=True,
            method="L-BFGS-B",
            options={
                "maxiter": min(_STRIDE, max_iter - n_iter),
                "maxfun": 25 * _STRIDE,  # as many as 25 a line search
                "maxcor": _STRIDE,
                "gtol": _NEAR,
                "ftol": np.finfo(float).eps,
            },
        )
        values = result.x
        n_iter += int(result.nit)
        gain, loss = loss - float(result.fun), float(result.fun)
        if result.nit < _STRIDE or n_iter >= max_iter or gain < _SMALL_GAIN * loss:
            break
    if n_iter < max_iter:
        values = _polish(problem, values)
    weight, bias = problem.solution(values)
    return Solution(weight, bias, loss, n_iter)


def _polish(problem: _Problem, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Take Newton's steps: close to the optimum the loss is too flat to be compared."""
    gradient = problem.value_and_gradient(values)[1]
    for _ in range(_NEWTON_STEPS):
        size = np.abs(gradient).max()
        if size < _CLOSE:
            break
        curvature = LinearOperator(
            (problem.size, problem.size), problem.curvature_at(values), dtype=np.float64
        )
        step, _ = cg(curvature, gradient, rtol=1e-2, maxiter=30)
        further = problem.value_and_gradient(values - step)[1]
        if not np.abs(further).max() < size:
            break
        values, gradient = values - step, further
    return values


class _Problem:
    """The loss as a function of whitened weights."""

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        weights: Tensor,
        n_classes: int,
        weight_decay: float,
        label_smoothing: float,
    ) -> None:
        rows = features.to(torch.float64)
        n = len(rows)
        self.n_classes = n_classes
        self.weight_decay = weight_decay
        self.shares = (weights.to(rows) / n)[:, None]
        self.targets = F.one_hot(labels, n_classes).to(rows)
        if label_smoothing:
            self.targets.mul_(1 - label_smoothing).add_(label_smoothing / n_classes)
        self.mean = (self.shares * rows).sum(0)
        rows = rows - self.mean
        # Fewer rows than features: the weights lie in the space that the rows span.
        self.basis: Tensor | None = None
        if n < rows.shape[1]:
            self.basis, rows = _row_space(rows)
        self.rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)  # the bias comes last
        # Of the weights for `white_rows`, those for `rows` are a linear function.
        self.plain = torch.eye(self.rows.shape[1]).to(rows)
        self.white_rows = self.rows

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return self.rows.shape[1] * self.n_classes

    def whiten(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Change to coordinates in which the loss is about as curved in all directions here."""
        weight = self.plain @ self._unknowns(values)
        proba = torch.softmax(self.rows @ weight, 1)
        curved = (proba * (1 - proba)).mean(1, keepdim=True) * self.shares
        curvature = (self.rows * curved).T @ self.rows
        diagonal = curvature.diagonal()
        diagonal[:-1] += self.weight_decay
        diagonal += max(1e-10 * float(diagonal.mean()), 1e-30)
        factor = torch.linalg.cholesky(curvature)
        identity = torch.eye(len(factor)).to(factor)
        self.plain = torch.linalg.solve_triangular(factor, identity, upper=False).T.contiguous()
        self.white_rows = self.rows @ self.plain
        return _to_numpy(factor.T @ weight)

    def value_and_gradient(
        self, values: npt.NDArray[np.float64]
    ) -> tuple[float, npt.NDArray[np.float64]]:
        """Loss with penalty, and its gradient."""
        unknowns = self._unknowns(values)
        log_proba = torch.log_softmax(self.white_rows @ unknowns, 1)
        loss = -(log_proba * self.targets * self.shares).sum()
        gradient = self.white_rows.T @ ((log_proba.exp() - self.targets) * self.shares)
        if self.weight_decay:
            penalised = self.plain[:-1] @ unknowns
            loss += 0.5 * self.weight_decay * penalised.square().sum()
            gradient.addmm_(self.plain[:-1].T, penalised, alpha=self.weight_decay)
        return float(loss), _to_numpy(gradient)

    def curvature_at(
        self, values: npt.NDArray[np.float64]
    ) -> Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
        """Product of the matrix of second derivatives with a vector."""
        proba = torch.softmax(self.white_rows @ self._unknowns(values), 1)
        rows, plain, shares = self.white_rows, self.plain[:-1], self.shares

        def product(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            direction = self._unknowns(vector)
            change = rows @ direction
            change = proba * (change - (proba * change).sum(1, keepdim=True)) * shares
            result = rows.T @ change
            result.addmm_(plain.T, plain @ direction, alpha=self.weight_decay)
            return _to_numpy(result)

        return product

    def solution(self, values: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Weights and biases for the features as they were given."""
        unknowns = self.plain @ self._unknowns(values)
        weight, bias = unknowns[:-1], unknowns[-1]
        bias = bias - bias.mean()  # the same for all classes, it means nothing
        if self.basis is not None:
            weight = self.basis @ weight
        return weight.T.contiguous(), bias - self.mean @ weight

    def _unknowns(self, values: npt.NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).to(self.rows.device).reshape(-1, self.n_classes)


def _to_numpy(tensor: Tensor) -> npt.NDArray[np.float64]:
    array: npt.NDArray[np.float64] = tensor.flatten().cpu().numpy()
    return array


def _row_space(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal basis of the rows, of shape (n_features, n), and the rows in it."""
    basis, triangle = torch.linalg.qr(rows.T)
    return basis, triangle.T.contiguous()
