"""Solved heads by all that they depend on.

Candidates of a search often differ in what a solved head doesn't use. Their heads are one, so
it is solved once and kept beside the features that it was solved for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import xxhash
from torch import Tensor

from ..cache import FeatureCache
from .newton import Solution

_REVISION = 4  # of the solver; kept solutions of another are then found anew
_N_FACTS = 3  # beside weights and biases: the loss, the number of iterations, and the penalty


def recall_or_solve(
    cache: FeatureCache | None,
    tensors: Sequence[Tensor],
    facts: Sequence[object],
    shape: tuple[int, int],
    solve: Callable[[], Solution],
) -> Solution:
    """Find a solution in the cache, or solve and keep it there.

    Parameters
    ----------
    cache : FeatureCache or None
        None keeps nothing.
    tensors, facts : sequences
        All that the solution depends on: numbers by their bytes, the rest by its representation.
    shape : tuple of (n_classes, n_features)
    solve : callable

    Returns
    -------
    Solution
        On the CPU if it was found.
    """
    if cache is None:
        return solve()
    key = _key(tensors, facts)
    (found,) = cache.get([key])
    if found is not None:
        return _unpacked(found, shape)
    solution = solve()
    cache.put([key], _packed(solution))
    return solution


def _key(tensors: Sequence[Tensor], facts: Sequence[object]) -> bytes:
    hasher = xxhash.xxh3_128(repr(("solution", _REVISION, torch.__version__, *facts)).encode())
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        hasher.update(repr((plain.dtype, tuple(plain.shape))).encode())
        hasher.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.digest()


def _packed(solution: Solution) -> Tensor:
    """One row of bytes, which is what caches keep."""
    numbers = [solution.loss, solution.n_iter, solution.weight_decay]
    facts = torch.tensor(numbers, dtype=torch.float64)
    parts = (solution.weight.ravel().cpu(), solution.bias.cpu(), facts)
    return torch.cat(parts).view(torch.uint8)[None]


def _unpacked(row: Tensor, shape: tuple[int, int]) -> Solution:
    n_classes, n_features = shape
    numbers = row.clone().view(torch.float64)  # a copy, since rows may begin at any byte
    weight, bias, facts = torch.split(numbers, [n_classes * n_features, n_classes, _N_FACTS])
    loss, n_iter, weight_decay = facts.tolist()
    return Solution(weight.reshape(shape), bias, loss, int(n_iter), weight_decay)
