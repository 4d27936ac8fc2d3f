"""A hash of all that a network computes."""

from __future__ import annotations

import torch
import xxhash
from torch import fx, nn

from ..tensors import named_tensors


def fingerprint(module: nn.Module, *facts: object) -> bytes:
    """Hash code, settings and weights, and what else changes the numbers."""
    hasher = xxhash.xxh3_128()

    def add(*facts: object) -> None:
        hasher.update(repr(facts).encode())

    add(*facts)
    for name, part in module.named_modules():
        code = part.code if isinstance(part, fx.GraphModule) else ""
        add(name, type(part).__qualname__, code, part.extra_repr(), sorted(_settings(part).items()))
    for name, tensor in named_tensors(module).items():
        add(name, tensor.dtype, tuple(tensor.shape))
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.digest()


def _settings(module: nn.Module) -> dict[str, object]:
    """Plain attributes, which a forward method may read."""
    plain = (bool, int, float, str, tuple, list, dict)
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, plain) and not name.startswith("_")
    }
