"""The tensors of a module: by name, their layout, and a copy of the module without their values."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TypeVar

import torch
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


def lay_out_by_places(module: nn.Module) -> None:
    """Store the channels of a place side by side, in all kernels for maps.

    ``module.to(memory_format=torch.channels_last)`` does so, too, but not where there are kernels
    for volumes beside them, as in networks of lambda layers.
    """
    with torch.no_grad():
        for tensor in named_tensors(module).values():
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


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
