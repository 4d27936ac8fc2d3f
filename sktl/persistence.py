"""A fitted model as arrays and settings, and back.

No module, graph or tensor is pickled, so a file outlives the torch version and the device
that wrote it. What the user gave as a module or callable is pickled as given.
"""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor, nn

from .backbones import Backbone, rebuild_backbone
from .backbones.registry import Architecture
from .hardware import restore_device, restore_precision
from .model import Model, assemble_net

FORMAT = 1


class InconsistentVersionWarning(UserWarning):
    """A model was written by another version of sktl."""

    def __init__(self, *, estimator_name: str, current_version: str, original_version: str):
        self.estimator_name = estimator_name
        self.current_sktl_version = current_version
        self.original_sktl_version = original_version

    def __str__(self) -> str:
        """Name both versions."""
        return (
            f"Trying to unpickle estimator {self.estimator_name} from sktl version "
            f"{self.original_sktl_version} when using version {self.current_sktl_version}. This "
            "might lead to breaking code or invalid results. Use at your own risk."
        )


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's dtype and values; bfloat16, which numpy lacks, as the bits of int16."""

    dtype: str
    array: npt.NDArray[Any]

    def to_tensor(self) -> Tensor:
        """Copy: joblib may have mapped the array read-only from a file."""
        tensor = torch.from_numpy(np.array(self.array, copy=True))
        return tensor.view(torch.bfloat16) if self.dtype == "bfloat16" else tensor


@dataclass(frozen=True)
class Elsewhere:
    """A tensor that is stored already: in the user's own module, or under another name."""

    name: str
    in_source: bool


Stored = dict[str, StoredTensor | Elsewhere]


def store_weights(module: nn.Module, source: dict[str, Tensor]) -> Stored:
    """Store a module's weights, each once.

    Parameters
    ----------
    module : torch.nn.Module
    source : dict of str to torch.Tensor
        Weights that are pickled anyway.
    """
    known = {_content(tensor): name for name, tensor in source.items()}
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    stored: Stored = {}
    for name, tensor in module.state_dict().items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        same = known.get(_content(tensor)) if known else None
        if same is not None:
            stored[name] = Elsewhere(same, in_source=True)
        elif tensor.numel() and place in seen:
            stored[name] = Elsewhere(seen[place], in_source=False)
        else:
            seen[place] = name
            stored[name] = _store(tensor)
    return stored


def _store(tensor: Tensor) -> StoredTensor:
    values = tensor.detach().cpu().contiguous()
    dtype = str(values.dtype).removeprefix("torch.")
    if values.dtype is torch.bfloat16:
        values = values.view(torch.int16)
    return StoredTensor(dtype, values.numpy().copy())


def _content(tensor: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    stored = _store(tensor)
    return stored.dtype, tuple(tensor.shape), xxhash.xxh3_128_digest(stored.array.data)


def restore_weights(module: nn.Module, stored: Stored, source: dict[str, Tensor]) -> None:
    """Put stored weights into a module."""
    state: dict[str, Tensor] = {}
    for name, entry in stored.items():
        if isinstance(entry, StoredTensor):
            state[name] = entry.to_tensor()
        else:
            state[name] = source[entry.name] if entry.in_source else state[entry.name]
    module.load_state_dict(state)


def source_state(architecture: Architecture) -> dict[str, Tensor]:
    """Weights of the module that the user gave, if it is one."""
    source = architecture.source
    return dict(source.state_dict()) if isinstance(source, nn.Module) else {}


def store_backbone(backbone: Backbone, frozen: nn.Module, source: Any) -> dict[str, Any]:
    """A backbone as settings and the weights of its frozen part.

    Parameters
    ----------
    backbone : Backbone
    frozen : torch.nn.Module
    source : str, torch.nn.Module or callable
        What the architecture is pickled with; a module's own weights aren't stored again.
    """
    architecture = replace(backbone.architecture, source=source)
    return {
        "architecture": architecture,
        "recipe": backbone.recipe,
        "frozen": store_weights(frozen, source_state(architecture)),
    }


def restore_backbone(stored: dict[str, Any]) -> Backbone:
    """Build a stored backbone again, without its weights."""
    return rebuild_backbone(stored["architecture"], stored["recipe"])


def store_model(model: Model, asked_precision: str, source: Any) -> dict[str, Any]:
    """A fitted model as arrays and settings.

    Parameters
    ----------
    model : Model
    asked_precision : str
        The parameter `precision`, by which loading tells a choice from a wish.
    source : str, torch.nn.Module or callable
        See :func:`store_backbone`.
    """
    frozen = model.backbone.prefix(model.depth, model.pooling)
    stored = store_backbone(model.backbone, frozen, source)
    return stored | {
        "format": FORMAT,
        "depth": model.depth,
        "pooling": model.pooling,
        "precision": model.precision,
        "asked_precision": asked_precision,
        "device": str(model.device),
        "head": model.head,
        "plan": model.plan,
        "trained": store_weights(model.net.module_, source_state(stored["architecture"])),
        "history": list(model.net.history),
    }


def restore_model(stored: dict[str, Any]) -> Model:
    """Build a stored model again; hardware that is not to be had falls back, with a warning."""
    device = restore_device(stored["device"])
    precision = restore_precision(stored["asked_precision"], stored["precision"], device)
    backbone = restore_backbone(stored)
    depth, pooling = stored["depth"], stored["pooling"]
    source = source_state(stored["architecture"])
    frozen = backbone.prefix(depth, pooling)
    restore_weights(frozen, stored["frozen"], source)
    net = assemble_net(backbone, depth, pooling, stored["head"], stored["plan"], device)
    restore_weights(net.module_, stored["trained"], source)
    for row in stored["history"]:
        net.history.new_epoch()
        net.history[-1].update(row)
    return Model(backbone, depth, pooling, precision, device, stored["head"], stored["plan"], net)


def picklable(value: Any) -> Any:
    """A parameter as it is pickled: a module's tensors are moved to the CPU."""
    if isinstance(value, nn.Module) and any(t.device.type != "cpu" for t in value.parameters()):
        return copy.deepcopy(value).cpu()
    return value


def check_picklable(name: str, value: Any) -> None:
    """Raise a PicklingError for a function that pickle can't find again by its name."""
    qualified = getattr(value, "__qualname__", "")
    if callable(value) and ("<lambda>" in qualified or "<locals>" in qualified):
        raise pickle.PicklingError(
            f"The parameter {name}={qualified} can't be pickled: a lambda or a function defined "
            "inside another one has no name to be found by. Define it at the top of a module."
        )
