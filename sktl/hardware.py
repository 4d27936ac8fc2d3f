"""Which device and which precision to compute with."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from functools import cache
from pathlib import Path

import torch

from .compat import has_bfloat16_units
from .messages import shown

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_NOTABLE = 2  # times as long, from which a warning says so
_PROBED = 256  # rows of the matrices of which the factor is measured: some 30 ms where it is large

# How torch says it where its error has no class of its own: on Linux and macOS, on Windows, and
# on Apple's GPU.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory:", "MPS backend out of memory")
# How ONNX Runtime says it, with and without its arena; the last is Windows' word for it. Its errors
# begin with its name, and are of a class of their own, which isn't a RuntimeError.
_ENGINE = "[ONNXRuntimeError]"
_ENGINE_OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")


def choose_device(device: str | torch.device) -> torch.device:
    """Find the device to train and predict on.

    Parameters
    ----------
    device : str or torch.device
        "auto" is the first CUDA GPU, else Apple's GPU, else the CPU.

    Raises
    ------
    ValueError
        If torch doesn't know the device or it is not to be had here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f'Unknown device {shown(device)}. Choose "auto", "cpu", "cuda", "cuda:1" or "mps".'
        ) from error
    if not is_available(chosen):
        raise ValueError(f"device={shown(device)} is not available here. {_devices_here()}")
    return chosen


def is_available(device: torch.device) -> bool:
    """Whether this process can compute on the device."""
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def _devices_here() -> str:
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    return f'There is {" and ".join(map(repr, found))}; "auto" takes the fastest.'


def choose_precision(precision: str, device: torch.device) -> str:
    """Find the number format of the frozen prefix.

    Parameters
    ----------
    precision : {"auto", "float32", "bfloat16"}
        "auto" is bfloat16 where the hardware multiplies matrices in it, else float32.
    device : torch.device

    Returns
    -------
    {"float32", "bfloat16"}
    """
    if precision != "auto":
        return precision
    return "bfloat16" if _has_bfloat16_units(device) else "float32"


def _has_bfloat16_units(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return has_bfloat16_units()
    return False


def warn_if_emulated(precision: str, device: torch.device) -> None:
    """Warn where a processor has no units for bfloat16, and of how much longer that takes.

    Parameters
    ----------
    precision : {"float32", "bfloat16"}
    device : torch.device
    """
    if precision == "float32" or device.type != "cpu" or _has_bfloat16_units(device):
        return
    factor = _factor_of_bfloat16()
    if factor < _NOTABLE:  # torch can't name the units of all processors
        return
    warnings.warn(
        'precision="bfloat16" is very slow here: this processor has no units for bfloat16, and '
        f"multiplies matrices in it {factor:.0f} times as slowly as in float32 (measured just "
        'now). Set precision="auto", which is float32 here, and fit again.',
        RuntimeWarning,
        stacklevel=2,
    )


@cache
def _factor_of_bfloat16() -> float:
    """How many times as long a product of matrices takes in bfloat16 as in float32."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(_PROBED, _PROBED, dtype=dtype)
        runs = []
        for _ in range(3):
            start = time.perf_counter()
            matrix @ matrix
            runs.append(time.perf_counter() - start)
        seconds.append(min(runs))
    return seconds[1] / seconds[0]


def restore_device(device: str) -> torch.device:
    """The device of a stored model, or with a warning the best one here."""
    wanted = torch.device(device)
    if is_available(wanted):
        return wanted
    found = choose_device("auto")
    warnings.warn(
        f"The model was fitted on device {shown(device)}, which is not available here; it will "
        f"predict on {str(found)!r}.",
        UserWarning,
        stacklevel=2,
    )
    return found


def restore_precision(asked: str, used: str, device: torch.device) -> str:
    """The precision of a stored model, or with a warning the one that suits this hardware."""
    if asked != "auto" or used == "float32" or choose_precision("auto", device) == used:
        return used
    warnings.warn(
        f"The model was fitted with {used} features, for which this hardware has no units; it "
        "will predict in float32. Probabilities may differ in the third digit.",
        UserWarning,
        stacklevel=2,
    )
    return "float32"


def physical_memory() -> int:
    """Memory in bytes that this machine has, or the container allows."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not to be had on Windows
        total = 8 * 2**30
    return min(total, *_container_limits())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of this machine or of its GPU, was too small."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error)
    if said.startswith(_ENGINE):
        return any(words in said for words in _ENGINE_OUT_OF_MEMORY)
    return isinstance(error, RuntimeError) and any(words in said for words in _OUT_OF_MEMORY)


def _container_limits() -> list[int]:
    found = [sys.maxsize]
    for version in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int(Path("/sys/fs/cgroup", version).read_text()))
    return found
