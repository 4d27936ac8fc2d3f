"""Conjugate gradients, and what makes few of them solve Newton's equation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_MAX_DIRECTIONS = 100
_CLASSES_OF_A_ROW = 4  # that the preconditioner may count


def largest_uncertainties(proba: Tensor, shares: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    r"""Largest terms of the covariance matrices of one-hot labels with these probabilities.

    For classes in falling order of probability, :math:`\mathrm{diag}(p) - p p^T = \sum_c p_c
    \frac{r_{c+1}}{r_c} l_c l_c^T`, where :math:`r_c` is the probability of the class c and all
    after it, and :math:`l_c` is one for c, and for a class j after it :math:`-p_j / r_{c+1}`:
    whether it is c, if it is none before.

    Parameters
    ----------
    proba : tensor of shape (n_classes, n)
    shares : tensor of shape (n,)
        By which the images' matrices are multiplied.
    rank : int
        Number of terms, at most.

    Returns
    -------
    index : int64 tensor of shape (rank,)
        Images of the terms.
    factors : tensor of shape (n_classes, rank)
        Of which the terms are outer products.
    """
    likely, order = proba.topk(min(_CLASSES_OF_A_ROW, len(proba) - 1), 0)
    after = (1 - likely.cumsum(0)).clamp_min(0)
    here = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    sizes = (shares * likely * after / here.clamp_min(1e-12)).ravel()
    size, place = sizes.topk(min(rank, len(sizes)))
    step, index = place // proba.shape[1], place % proba.shape[1]
    factors = proba[:, index] / -after[step, index].clamp_min(1e-12)
    for i, classes in enumerate(order[:, index]):
        value = torch.where(step == i, 1.0, 0.0)
        known = torch.where(step >= i, value, factors.gather(0, classes[None])[0])
        factors.scatter_(0, classes[None], known[None])
    return index, factors.mul_(size.sqrt())


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    target: Tensor,
    tolerance: float,
) -> tuple[Tensor, float, int]:
    """Solve ``matrix(x) = target`` to a share of the target's preconditioned norm.

    Returns
    -------
    solution : tensor
    error : float
        Share of the squared norm that is left.
    n : int
        Number of directions.
    """
    solution, residual = torch.zeros_like(target), target
    toward = direction = precondition(residual)
    first = product = float((residual * toward).sum())
    n = 0
    while n < _MAX_DIRECTIONS and product > tolerance**2 * first:
        n += 1
        image = matrix(direction)
        curved = float((direction * image).sum())
        if not curved > 0:
            break
        solution = solution + (product / curved) * direction
        residual = residual - (product / curved) * image
        toward = precondition(residual)
        product, before = float((residual * toward).sum()), product
        direction = toward + (product / before) * direction
    return solution, product / first if product >= 0 < first else 1.0, n
