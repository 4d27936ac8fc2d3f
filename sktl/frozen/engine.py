"""Frozen networks in ONNX Runtime, whose kernels suit processors that torch's don't.

Without matrix units for bfloat16, depthwise convolutions above all take ONNX Runtime half the time
that they take oneDNN, which torch computes with.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from ..hardware import choose_precision, is_out_of_memory
from .onnx_writer import UntranslatableError
from .translation import to_onnx_bytes

_SESSIONS = 3  # of one network, for inputs of other shapes or other numbers of threads
_TOLERANCE = 1e-3  # of the largest output: far more than rounding, far less than another network


@cache
def engine_name() -> str | None:
    """Name of the engine and its version, or None if it isn't installed."""
    try:
        return f"onnxruntime {version('onnxruntime')}, onnx {version('onnx')}"
    except PackageNotFoundError:
        return None


def is_worth_it(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the engine is there, and quicker than torch on this hardware."""
    if device.type != "cpu" or dtype is not torch.float32 or engine_name() is None:
        return False
    return choose_precision("auto", device) == "float32"


class EngineNetwork(nn.Module):
    """A network that runs in ONNX Runtime, or in torch if it can't.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode, on the CPU and in float32, without batch norms that could be folded.
    in_torch : callable
        Makes of it the module that runs where the engine can't.
    """

    def __init__(self, network: nn.Module, in_torch: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.network = network
        self._in_torch: Callable[[nn.Module], nn.Module] | None = in_torch
        self._sessions: OrderedDict[object, Any] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def runs_in_torch(self) -> bool:
        """Whether the engine has been found unable to run the network."""
        return self._in_torch is None

    def forward(self, batch: Tensor) -> Tensor:
        """Run a batch of images or features."""
        session = self._session(batch)
        if session is None:
            result: Tensor = self.network(batch)
            return result
        return _run(session, batch)

    def _session(self, batch: Tensor) -> Any:
        """A session for inputs like these, or None if the network can't run there."""
        key = (batch.shape[1:], batch.dtype, torch.get_num_threads())
        with self._lock:
            if not self.runs_in_torch and key not in self._sessions:
                self._start(key, batch[:1])
            return self._sessions.get(key)

    def _start(self, key: object, example: Tensor) -> None:
        try:
            model, wanted = to_onnx_bytes(self.network, example)
            session = _open(model, torch.get_num_threads())
            if _agree(_run(session, example), wanted):
                self._sessions[key] = session
                if len(self._sessions) > _SESSIONS:
                    self._sessions.popitem(last=False)
                return
        except UntranslatableError:
            pass  # such networks suit torch well enough
        except Exception as error:  # whatever the engine or its installation raises
            if is_out_of_memory(error):
                raise
            warnings.warn(
                f"The frozen network runs in torch, which may be slower, since ONNX Runtime failed "
                f"({type(error).__name__}: {str(error)[:200]}).",
                RuntimeWarning,
                stacklevel=2,
            )
        self._leave_to_torch()

    def _leave_to_torch(self) -> None:
        assert self._in_torch is not None
        self.network = self._in_torch(self.network)
        self._in_torch = None
        self._sessions.clear()


def _run(session: Any, batch: Tensor) -> Tensor:
    inputs = batch.movedim(1, -1) if batch.ndim == 4 else batch
    (outputs,) = session.run(None, {"inputs": inputs.contiguous().numpy()})
    return torch.from_numpy(outputs)


def _open(model: bytes, n_threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    # Threads that wait by spinning take the core from whoever prepares the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _agree(found: Tensor, wanted: Tensor) -> bool:
    """Whether a translation computes what the network does."""
    scale = float(wanted.abs().max())
    same = found.shape == wanted.shape and bool(found.isfinite().all() == wanted.isfinite().all())
    return same and float((found - wanted).abs().max()) <= _TOLERANCE * scale
