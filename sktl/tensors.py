"""The tensors of a module: by name, and a copy of the module without their values."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TypeVar

from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, also those that a state dict leaves out.

    A network that a callable makes may draw such a buffer at random.
    """
    return dict(
        chain(
            module.named_parameters(remove_duplicate=False),
            module.named_buffers(remove_duplicate=False),
        )
    )


def without_values(module: _Module) -> _Module:
    """A copy on the meta device, which computes shapes and nothing else."""
    # deepcopy takes what the memo holds, so no weight is copied.
    memo = {id(tensor): _to_meta(tensor) for tensor in named_tensors(module).values()}
    return copy.deepcopy(module, memo)


def _to_meta(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty
