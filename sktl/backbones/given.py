"""A network that was given as a module: its plain copy on the CPU, or why there can be none."""

from __future__ import annotations

import copy
import inspect

import torch
from torch import nn

from ..compat import before_compiling

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic", "torchao.", "bitsandbytes.")


def plain_copy(module: nn.Module) -> nn.Module:
    """Copy a network to the CPU, in float32, out of what wraps it for speed.

    Parameters
    ----------
    module : torch.nn.Module
        Isn't changed.

    Raises
    ------
    ValueError
        If it has no weights, is quantised or scripted, or takes more than images.
    """
    module = _unwrapped(module)
    _check(module)
    network = copy.deepcopy(module).cpu()
    # Weights of fewer bits are for speed; the parameter `precision` says how it is computed.
    return network.float() if _has_other_floats(network) else network


def _unwrapped(module: nn.Module) -> nn.Module:
    if isinstance(module, _WRAPPERS):
        return _unwrapped(module.module)
    original = before_compiling(module)
    return module if original is module else _unwrapped(original)


def _check(module: nn.Module) -> None:
    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"The backbone is a module of torch.jit ({name}), which can't be cut into stages. Pass "
            "the module that it was made from."
        )
    if any(t.device.type == "meta" for t in (*module.parameters(), *module.buffers())):
        raise ValueError(
            f"The backbone {name} has no weights: it is on the device meta. Load them first."
        )
    quantised = {
        type(part).__qualname__
        for part in module.modules()
        if type(part).__module__.startswith(_QUANTISED)
    }
    if quantised:
        raise ValueError(
            f"The backbone {name} is quantised ({sorted(quantised)[0]}), so it can neither be cut "
            "nor trained. Pass it as it was before."
        )
    needed = _needed_besides_images(module)
    if needed:
        raise ValueError(
            f"The backbone {name} needs {needed} besides images. Wrap it in a module whose forward "
            "takes images alone."
        )


def _needed_besides_images(module: nn.Module) -> list[str]:
    parameters = list(inspect.signature(module.forward).parameters.values())[1:]
    return [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def _has_other_floats(module: nn.Module) -> bool:
    tensors = (*module.parameters(), *module.buffers())
    return any(t.is_floating_point() and t.dtype != torch.float32 for t in tensors)
