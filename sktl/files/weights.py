"""A module's weights as arrays, each stored once, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from ..tensors import named_tensors

Stored = dict[str, Any]


def store_weights(module: nn.Module, given: dict[str, Tensor]) -> Stored:
    """Store a module's weights and buffers, each once.

    Parameters
    ----------
    module : torch.nn.Module
    given : dict of str to torch.Tensor
        Tensors that are pickled anyway, in the module that the user gave.

    Returns
    -------
    dict
        "arrays" by name; "dtypes" of those whose bits stand in for a dtype that NumPy lacks;
        under "given" and "same", the other names of tensors that are stored already.
    """
    stored: Stored = {"arrays": {}, "dtypes": {}, "given": {}, "same": {}}
    by_content = {_content(tensor): name for name, tensor in given.items()}
    by_place: dict[object, str] = {}
    for name, tensor in named_tensors(module).items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in by_place:
            stored["same"][name] = by_place[place]
            continue
        by_place[place] = name
        known = by_content.get(_content(tensor)) if by_content else None
        if known is not None:
            stored["given"][name] = known
            continue
        stored["arrays"][name], foreign = to_array(tensor)
        if foreign:
            stored["dtypes"][name] = str(tensor.dtype).removeprefix("torch.")
    return stored


def to_array(tensor: Tensor) -> tuple[np.ndarray[Any, Any], bool]:
    """Give a tensor's values, or its bits (and True) where NumPy lacks the dtype."""
    values = tensor.detach().cpu().contiguous()
    try:
        return values.numpy(), False
    except TypeError:  # bfloat16 and the like
        bits = {1: torch.uint8, 2: torch.int16}[values.itemsize]
        return values.view(bits).numpy(), True


def _content(tensor: Tensor) -> object:
    array, _ = to_array(tensor)
    return tensor.dtype, tensor.shape, xxhash.xxh3_128_digest(array.reshape(-1).view(np.uint8).data)


def restore_weights(module: nn.Module, stored: Stored, given: dict[str, Tensor]) -> None:
    """Put stored weights into a module.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place.
    stored : dict
        From :func:`store_weights`.
    given : dict of str to torch.Tensor
        As it was there.

    Raises
    ------
    ValueError
        If the module isn't built as it was then.
    """
    values = {name: given.get(source) for name, source in stored["given"].items()}
    for name, array in stored["arrays"].items():
        values[name] = _to_tensor(array, stored["dtypes"].get(name))
    values |= {name: values.get(first) for name, first in stored["same"].items()}
    tensors = named_tensors(module)
    _check_fit(tensors, values)
    with torch.no_grad():
        for name, tensor in tensors.items():
            value = values[name]
            # Expanded buffers can't be written, nor need they.
            if value is not None and not torch.equal(tensor, value.to(tensor)):
                tensor.copy_(value)


def _to_tensor(array: np.ndarray[Any, Any], dtype: str | None) -> Tensor:
    # Large networks fit in twice their weights, so nothing is copied but what torch can't share:
    # an array that joblib has mapped read-only.
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor if dtype is None else tensor.view(getattr(torch, dtype))


def _check_fit(tensors: dict[str, Tensor], values: dict[str, Tensor | None]) -> None:
    wanted = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    found = {name: (tuple(v.shape), v.dtype) for name, v in values.items() if v is not None}
    differing = sorted(n for n in {*wanted, *found} if wanted.get(n) != found.get(n))
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ValueError(
            f"The stored weights do not fit the network as it is built now: {differing[:5]}{more} "
            "differ. Does the callable that was given as backbone or head make another network?"
        )
