"""oneDNN's kernels in torch: what there is of them here, and whether it computes what it should.

Their names are private, so a version of torch may lack one or change what it does. Each is tried
once in a process, against torch's public functions. What fails isn't used.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

# Name, numbers and variant, as the operators take them.
Activation = tuple[str, list[float], str]
NOTHING: Activation = ("none", [], "")
RELU: Activation = ("relu", [], "")
RELU6: Activation = ("hardtanh", [0.0, 6.0], "")
HARDSIGMOID: Activation = ("hardsigmoid", [], "")
HARDSWISH: Activation = ("hardswish", [], "")
SIGMOID: Activation = ("sigmoid", [], "")
SWISH: Activation = ("swish", [], "")

# Padding, stride, dilation and groups.
Geometry = tuple[list[int], list[int], list[int], int]

_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of the largest number


def hardtanh(low: float, high: float) -> Activation:
    """Describe an activation that cuts off at two bounds."""
    return ("hardtanh", [low, high], "")


def gelu(approximate: str) -> Activation:
    """Describe a GELU, exact or approximate."""
    return ("gelu", [], approximate)


def convolve(
    maps: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, after: Activation
) -> Tensor:
    """Convolve channels-last maps, and apply an activation."""
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(maps, weight, bias, *geometry, *after)
    return result


def convolve_and_add(
    maps: Tensor,
    other: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    after: Activation,
) -> Tensor:
    """Convolve channels-last maps, add others of the result's shape, and apply ReLU or nothing.

    Use it where :func:`can_add` says so.
    """
    name, numbers, variant = after
    activation = (None if after == NOTHING else name, numbers, variant)
    sum_of = torch.ops.mkldnn._convolution_pointwise.binary
    result: Tensor = sum_of(maps, other, weight, bias, *geometry, "add", 1.0, *activation)
    return result


def can_add(shape: Sequence[int]) -> bool:
    """Whether sums of this shape are right in all versions: torch 2.11 fails at single places."""
    return shape[-2] * shape[-1] > 1


def lay_out(weight: Tensor, geometry: Geometry, shape: torch.Size) -> Tensor:
    """Lay out a convolution's weights as its kernel for maps of a shape wants them."""
    result: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, shape)
    return result


def multiply(rows: Tensor, weight: Tensor, bias: Tensor | None, after: Activation) -> Tensor:
    """Apply a linear layer whose weights are laid out, and an activation."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, *after)
    return result


def lay_out_linear(weight: Tensor) -> Tensor:
    """Lay out a linear layer's weights for :func:`multiply`."""
    result: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return result


# What can be used ----------------------------------------------------------------------


def usable(device: torch.device, dtype: torch.dtype) -> frozenset[str]:
    """Find the kernels that are right here.

    Parameters
    ----------
    device : torch.device
    dtype : torch.dtype

    Returns
    -------
    frozenset of str
        Of "convolution", "layout" (of its weights), "sum" and "linear". The second and third need
        the first.
    """
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    return _usable_on_cpu(dtype)


@lru_cache
def _usable_on_cpu(dtype: torch.dtype) -> frozenset[str]:
    if dtype not in _TOLERANCES or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return frozenset()
    if dtype is torch.bfloat16 and not _has_bfloat16():
        return frozenset()
    found = {name for name, trials in _TRIALS.items() if _is_right(trials, dtype)}
    return frozenset(found if "convolution" in found else found - {"layout", "sum"})


def _has_bfloat16() -> bool:
    ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    return bool(ask())


_Trial = tuple[Tensor, Tensor]  # what a kernel gives, and what it should


@torch.inference_mode()
def _is_right(trials: Callable[[torch.dtype], Iterator[_Trial]], dtype: torch.dtype) -> bool:
    try:
        return all(_agree(found, wanted, dtype) for found, wanted in trials(dtype))
    except Exception:  # whatever torch raises: the kernel can't be used
        return False


def _agree(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    if found.shape != wanted.shape or found.dtype is not dtype:
        return False
    error = (found.float() - wanted).abs().max()  # NaN is within no tolerance
    return bool(error <= _TOLERANCES[dtype] * wanted.abs().max())


# Channels, height, width, channels of the result, kernel, padding, stride, dilation, groups.
_CONVOLUTIONS = (
    (5, 1, 1, 3, 1, 0, 1, 1, 1),
    (5, 7, 5, 3, 1, 0, 2, 1, 1),
    (3, 9, 6, 4, 3, 1, 2, 1, 1),
    (4, 6, 9, 6, 3, 2, 1, 2, 2),
    (8, 7, 7, 8, 5, 2, 2, 1, 8),
    (16, 1, 1, 16, 3, 1, 1, 1, 16),
)
_ACTIVATIONS: tuple[tuple[Activation, Callable[[Tensor], Tensor]], ...] = (
    (NOTHING, lambda maps: maps),
    (RELU, F.relu),
    (RELU6, F.relu6),
    (HARDSIGMOID, F.hardsigmoid),
    (HARDSWISH, F.hardswish),
    (SIGMOID, torch.sigmoid),
    (SWISH, F.silu),
    (gelu("none"), F.gelu),
    (gelu("tanh"), lambda maps: F.gelu(maps, approximate="tanh")),
)


def _numbers(dtype: torch.dtype, *shape: int) -> Tensor:
    """Fill a tensor with numbers of both signs that both formats can hold."""
    n = torch.Size(shape).numel()
    values = torch.arange(n, dtype=torch.int64, device="cpu") * 37 % 23 - 11
    return (values / 8).to(dtype).reshape(shape)


def _maps(dtype: torch.dtype, *shape: int) -> Tensor:
    return _numbers(dtype, *shape).contiguous(memory_format=torch.channels_last)


class _Convolution:
    """A small convolution, and what goes into it."""

    def __init__(self, case: tuple[int, ...], n: int, dtype: torch.dtype) -> None:
        channels, height, width, n_out, size, padding, stride, dilation, groups = case
        self.geometry: Geometry = ([padding] * 2, [stride] * 2, [dilation] * 2, groups)
        self.maps = _maps(dtype, n, channels, height, width)
        self.weight = _maps(dtype, n_out, channels // groups, size, size)
        self.bias = _numbers(dtype, n_out)
        tensors = self.maps.float(), self.weight.float(), self.bias.float()
        self.wanted = F.conv2d(*tensors, stride, padding, dilation, groups)


def _cases(dtype: torch.dtype) -> Iterator[_Convolution]:
    for i, case in enumerate(_CONVOLUTIONS):
        yield _Convolution(case, 1 + i % 3, dtype)


def _try_convolution(dtype: torch.dtype) -> Iterator[_Trial]:
    for case in _cases(dtype):
        yield convolve(case.maps, case.weight, case.bias, case.geometry, NOTHING), case.wanted
    for after, plain in _ACTIVATIONS:
        found = convolve(case.maps, case.weight, case.bias, case.geometry, after)
        yield found, plain(case.wanted)


def _try_layout(dtype: torch.dtype) -> Iterator[_Trial]:
    for case in _cases(dtype):
        weight = lay_out(case.weight, case.geometry, case.maps.shape)
        found = convolve(case.maps, weight, case.bias, case.geometry, RELU)
        yield found, case.wanted.relu()


def _try_sum(dtype: torch.dtype) -> Iterator[_Trial]:
    for case in _cases(dtype):
        if not can_add(case.wanted.shape):
            continue
        other = _maps(dtype, *case.wanted.shape)
        wanted = case.wanted + other.float()
        inputs = (case.maps, other, case.weight, case.bias, case.geometry)
        yield convolve_and_add(*inputs, NOTHING), wanted
        yield convolve_and_add(*inputs, RELU), wanted.relu()


def _try_linear(dtype: torch.dtype) -> Iterator[_Trial]:
    weight, bias = _numbers(dtype, 5, 7), _numbers(dtype, 5)
    laid_out = lay_out_linear(weight)
    for shape in ((1, 7), (3, 7), (2, 3, 7)):
        rows = _numbers(dtype, *shape)
        wanted = F.linear(rows.float(), weight.float(), bias.float())
        for after, plain in _ACTIVATIONS:
            yield multiply(rows, laid_out, bias, after), plain(wanted)


_TRIALS: dict[str, Callable[[torch.dtype], Iterator[_Trial]]] = {
    "convolution": _try_convolution,
    "layout": _try_layout,
    "sum": _try_sum,
    "linear": _try_linear,
}
