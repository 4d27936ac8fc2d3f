"""Parameters as they are pickled: without a device, a fit's traces, or names none can find.

Else what the user gave is pickled as given.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import fields
from enum import Enum
from types import FunctionType
from typing import Any

import skorch
from sklearn.exceptions import InconsistentVersionWarning as SklearnVersionWarning
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from ..images.preprocessing import Recipe
from ..tensors import named_tensors
from .weights import Stored

_RECIPE = "sktl.Recipe"  # the key of a dict that stands for one
_LOCAL = ("<lambda>", "<locals>")
# What a callback may have kept of a training run.
_TRACES = (Tensor, nn.Module, Dataset, Optimizer, LRScheduler, skorch.NeuralNet)

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


def to_settings(record: Any) -> dict[str, Any]:
    """Give a dataclass's values by name: a dict outlives the class's name and place."""
    return {f.name: getattr(record, f.name) for f in fields(record) if f.init}


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
