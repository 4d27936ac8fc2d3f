"""A fitted model as arrays and settings, and back.

No module, graph or tensor of ours is pickled, and of our classes only the estimator's own,
so a file outlives the torch version and the device that wrote it. What the user gave as a
parameter is pickled as given.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import fields
from enum import Enum
from types import FunctionType
from typing import Any

import numpy as np
import skorch
import torch
import xxhash
from sklearn.exceptions import InconsistentVersionWarning as SklearnVersionWarning
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from ..backbones import Backbone, rebuild_backbone
from ..backbones.registry import Architecture
from ..frozen.prefix import named_tensors
from ..hardware import restore_device, restore_precision
from ..images.preprocessing import Recipe
from ..model.joined import Model, assemble_net
from ..randomness import seeded
from ..training.heads import HeadShape
from ..training.optimization import TrainingPlan
from ..training.targets import KINDS, Target

FORMAT = 3
# What versions did that lacked a parameter, where its default is something else.
BEFORE = {"resize_mode": "crop"}
_RECIPE = "sktl.Recipe"  # the key of a dict that stands for one
_LOCAL = ("<lambda>", "<locals>")
_RENAMED = {"valid_accuracy": "valid_acc"}  # columns of a history
# What a callback may have kept of a training run.
_TRACES = (Tensor, nn.Module, Dataset, Optimizer, LRScheduler, skorch.NeuralNet)

Stored = dict[str, Any]
Pack = Callable[[str, Any], Any]


class InconsistentVersionWarning(SklearnVersionWarning):
    """An estimator was written by another version of sktl.

    Parameters
    ----------
    estimator_name : str
    current_version, original_version : str
        Of sktl.
    """

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


def check_format(written: int) -> None:
    """Refuse a layout that only later versions know.

    Parameters
    ----------
    written : int
        The `FORMAT` of the version that wrote the file.

    Raises
    ------
    ValueError
    """
    if written > FORMAT:
        raise ValueError(
            f"The file was written by a later version of sktl, in format {written}; this version "
            f"reads formats up to {FORMAT}. Upgrade sktl."
        )


def to_settings(record: Any) -> dict[str, Any]:
    """Give a dataclass's values by name: a dict outlives the class's name and place."""
    return {f.name: getattr(record, f.name) for f in fields(record) if f.init}


# Weights -----------------------------------------------------------------------------


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
    # A copy: joblib may have mapped the array read-only, and torch would write through it.
    tensor = torch.from_numpy(np.array(array, copy=True))
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


# Models ------------------------------------------------------------------------------


def store_backbone(backbone: Backbone, frozen: nn.Module, pack: Pack) -> Stored:
    """A backbone as settings and the weights of its frozen part.

    Parameters
    ----------
    backbone : Backbone
    frozen : torch.nn.Module
    pack : callable
        See :class:`Packer`.
    """
    architecture = to_settings(backbone.architecture)
    source = architecture["source"] = pack("backbone", _unchanged_source(backbone))
    return {
        "format": FORMAT,
        "architecture": architecture,
        "recipe": to_settings(backbone.recipe),
        "identity": backbone.identity,
        "frozen": store_weights(frozen, _given_tensors(source)),
    }


def _unchanged_source(backbone: Backbone) -> Any:
    """What the user gave, or the copy that was fitted if the user has rebuilt theirs since."""
    source = backbone.architecture.source
    network = getattr(backbone.splitter, "network", source)
    changed = isinstance(source, nn.Module) and repr(source) != repr(network)
    return network if changed else source


def _given_tensors(source: Any) -> dict[str, Tensor]:
    return named_tensors(source) if isinstance(source, nn.Module) else {}


def restore_backbone(stored: Stored, seed: int) -> Backbone:
    """Build a stored backbone again, without its weights.

    Parameters
    ----------
    stored : dict
        From :func:`store_backbone`.
    seed : int
        That of the fit, for a callable that draws connections at random.
    """
    check_format(stored["format"])
    settings = stored["architecture"] | {"source": unpack(stored["architecture"]["source"])}
    draws = not isinstance(settings["source"], str)
    with seeded(seed) if draws else nullcontext():
        return rebuild_backbone(
            Architecture(**settings), Recipe(**stored["recipe"]), stored["identity"]
        )


def restore_frozen(backbone: Backbone, frozen: nn.Module, stored: Stored) -> None:
    """Put the weights of a stored backbone into its frozen part."""
    restore_weights(frozen, stored["frozen"], _given_tensors(backbone.architecture.source))


def store_model(model: Model, asked_precision: str, pack: Pack) -> Stored:
    """A fitted model as arrays and settings.

    Parameters
    ----------
    model : Model
    asked_precision : str
        The parameter `precision`, by which loading tells a choice from a wish.
    pack : callable
        See :class:`Packer`.
    """
    frozen = model.backbone.prefix(model.depth, model.pooling)
    stored = store_backbone(model.backbone, frozen, pack)
    head, plan = to_settings(model.head), to_settings(model.plan)
    head["head"] = pack("head", head["head"])
    for name in ("criterion", "optimizer", "schedule"):
        plan[name] = pack(name, plan[name])
    given = _given_tensors(stored["architecture"]["source"])
    return stored | {
        "depth": model.depth,
        "pooling": model.pooling,
        "precision": model.precision,
        "asked_precision": asked_precision,
        "device": str(model.device),
        "target": {"kind": model.target.kind} | to_settings(model.target),
        "head": head,
        "plan": plan,
        "trained": store_weights(model.net.module_, given),
        "history": plain_rows(model.net.history),
    }


def restore_model(stored: Stored) -> Model:
    """Build a stored model again; hardware that is not to be had falls back, with a warning."""
    settings = {k: unpack(v) for k, v in stored["head"].items()}
    n_classes = settings.pop("n_classes", None)  # what older versions call the outputs
    head = HeadShape(**({} if n_classes is None else {"n_outputs": n_classes}) | settings)
    target = _target(stored.get("target") or {"kind": "classes", "n_classes": head.n_outputs})
    plan = TrainingPlan(**{k: unpack(v) for k, v in stored["plan"].items()})
    backbone = restore_backbone(stored, plan.seed)
    device = restore_device(stored["device"])
    precision = restore_precision(stored["asked_precision"], stored["precision"], device)
    depth, pooling = stored["depth"], stored["pooling"]
    restore_frozen(backbone, backbone.prefix(depth, pooling), stored)
    net = assemble_net(backbone, depth, pooling, target, head, plan, precision, device)
    restore_weights(net.module_, stored["trained"], _given_tensors(backbone.architecture.source))
    for row in read_rows(stored["history"]):
        net.history.new_epoch()
        net.history[-1].update(row)
    return Model(backbone, depth, pooling, precision, device, target, head, plan, net)


def _target(stored: Stored) -> Target:
    return KINDS[stored["kind"]](**{k: v for k, v in stored.items() if k != "kind"})


def plain_rows(history: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A training history by epochs, in Python's numbers; that of batches grows with the data."""
    return [{k: _plain(v) for k, v in row.items() if k != "batches"} for row in history]


def read_rows(stored: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A stored history, with columns by the names that they have today."""
    return [{_RENAMED.get(k, k): value for k, value in row.items()} for row in stored]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = to_array(value)[0]
    single = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0)
    return value.item() if single else value


# Parameters --------------------------------------------------------------------------


class Packer:
    """Make parameters ready for pickling; one object stays one object.

    Modules are moved to the CPU, callbacks lose what a fit left in them, and functions that
    have no name to be found by are wrapped so that pickle says which parameter they are.
    """

    def __init__(self) -> None:
        self._packed: dict[int, tuple[Any, Any]] = {}

    def __call__(self, name: str, value: Any) -> Any:
        """Give what goes into the file for a parameter."""
        if id(value) not in self._packed:
            self._packed[id(value)] = (value, _pack(name, value))  # keeps the id taken
        return self._packed[id(value)][1]


def _pack(name: str, value: Any) -> Any:
    if name == "callbacks":
        return _without_traces(value)
    if isinstance(value, Recipe):
        return {_RECIPE: to_settings(value)}
    if isinstance(value, nn.Module):
        on_cpu = all(t.device.type == "cpu" for t in named_tensors(value).values())
        return value if on_cpu else copy.deepcopy(value).cpu()
    if callable(value) and any(mark in getattr(value, "__qualname__", "") for mark in _LOCAL):
        return _carrier(name, value)
    return value


def _without_traces(callbacks: Any) -> Any:
    """Callbacks as given: a fit may leave in them the net, its optimizer and the images."""
    if isinstance(callbacks, list | tuple):
        return type(callbacks)(map(_without_traces, callbacks))
    if not isinstance(callbacks, skorch.callbacks.Callback):
        return callbacks
    given = inspect.signature(type(callbacks)).parameters
    cleaned = copy.copy(callbacks)
    for name, value in vars(callbacks).items():
        if name not in given and _is_trace(value):
            cleaned.__dict__.pop(name, None)
    return cleaned


def _is_trace(value: Any) -> bool:
    held = list(value.values()) if isinstance(value, dict) else value
    return any(isinstance(v, _TRACES) for v in (held if isinstance(held, list | tuple) else [held]))


def _carrier(name: str, function: Any) -> FunctionType:
    """Wrap a function that pickle can't find by its name.

    pickle refuses the wrapper and quotes its name, which tells the user what to do. The workers
    of joblib use cloudpickle, which sends functions whole: there, lambdas go on working.
    """

    def carrier() -> None: ...

    what = "<lambda>" if "<lambda>" in function.__qualname__ else function.__name__
    carrier.__qualname__ = f"{name}={what} (define it at the top of a module to pickle it)"
    carrier.__dict__["carried"] = function
    return carrier  # type: ignore[return-value]


def refuse_what_needs_pickle(state: Stored) -> None:
    """Refuse what skops would write such that it can't be read, or fail at without a word.

    Parameters
    ----------
    state : dict
        From `__getstate__` of an estimator, or what it holds.

    Raises
    ------
    TypeError
    """
    for name, value in state.items():
        if isinstance(value, dict):
            refuse_what_needs_pickle(value)
            continue
        weighty = isinstance(value, nn.Module) and bool(named_tensors(value))
        local = isinstance(value, FunctionType) and "carried" in value.__dict__
        if weighty or local or isinstance(value, Enum):
            parameter = "backbone" if name == "source" else name
            given = unpack(value)
            shown = getattr(given, "__name__", type(given).__name__)
            raise TypeError(
                f"skops can't write {parameter}={shown}. It writes names, numbers and what can be "
                "imported: give weights by their name or path, and a function of a module in the "
                "place of a network or a local function; or use joblib.dump."
            )


def unpack(value: Any) -> Any:
    """Undo :class:`Packer`."""
    if isinstance(value, dict) and value.keys() == {_RECIPE}:
        return Recipe(**value[_RECIPE])
    return value.__dict__.get("carried", value) if isinstance(value, FunctionType) else value
