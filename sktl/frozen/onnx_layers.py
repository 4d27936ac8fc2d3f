"""What each kind of layer is in the ONNX format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..backbones import Pool, spatial_axes
from ..images.preprocessing import Normalize
from .fusion import INERT
from .onnx_writer import UntranslatableError, Value, Writer


def write_layer(layer: nn.Module, writer: Writer, value: Value) -> Value:
    """Write a layer down; an UntranslatableError if there is no way to."""
    if isinstance(layer, INERT):
        return value
    write = LAYERS.get(type(layer))
    if write is None:
        raise UntranslatableError(f"a layer {type(layer).__name__}")
    result = layer(value.example)
    return Value(write(layer, writer, value), result)


def _convolution(layer: nn.Conv2d, writer: Writer, value: Value) -> str:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise UntranslatableError("a padding")
    bias = [] if layer.bias is None else [writer.constant(layer.bias)]
    own = (layer.padding[0], layer.padding[1])
    return writer.add(
        "Conv",
        [value.name, writer.constant(layer.weight), *bias],
        pads=[edge + more for edge, more in zip(value.padding, own * 2, strict=True)],
        strides=list(layer.stride),
        dilations=list(layer.dilation),
        group=layer.groups,
    )


def _norm(layer: nn.BatchNorm2d, writer: Writer, value: Value) -> str:
    mean, variance = layer.running_mean, layer.running_var
    if mean is None or variance is None:
        raise UntranslatableError("a batch norm without statistics")
    weight = torch.ones_like(mean) if layer.weight is None else layer.weight
    bias = torch.zeros_like(mean) if layer.bias is None else layer.bias
    constants = [writer.constant(tensor) for tensor in (weight, bias, mean, variance)]
    inputs = [writer.plain(value), *constants]
    return writer.add("BatchNormalization", inputs, epsilon=layer.eps)


def _linear(layer: nn.Linear, writer: Writer, value: Value) -> str:
    product = writer.add(
        "MatMul", [writer.plain(value), writer.constant(layer.weight.detach().t())]
    )
    if layer.bias is None:
        return product
    return writer.add("Add", [product, writer.constant(layer.bias)])


def _normalize(layer: Normalize, writer: Writer, value: Value) -> str:
    floats = writer.add("Cast", [writer.plain(value)], to=1)
    scaled = writer.add("Mul", [floats, writer.constant(layer.scale)])
    return writer.add("Add", [scaled, writer.constant(layer.shift)])


def _clip(writer: Writer, name: str, low: float, high: float) -> str:
    limits = [writer.constant(torch.tensor(float(limit))) for limit in (low, high)]
    return writer.add("Clip", [name, *limits])


def _swish(writer: Writer, name: str) -> str:
    return writer.add("Mul", [name, writer.add("Sigmoid", [name])])


def _hard_sigmoid(writer: Writer, name: str) -> str:
    return writer.add("HardSigmoid", [name], alpha=1 / 6, beta=0.5)


_Activation = Callable[[Any, Writer, str], str]
ACTIVATIONS: dict[type[nn.Module], _Activation] = {
    nn.ReLU: lambda layer, writer, name: writer.add("Relu", [name]),
    nn.ReLU6: lambda layer, writer, name: _clip(writer, name, 0, 6),
    nn.Hardtanh: lambda layer, writer, name: _clip(writer, name, layer.min_val, layer.max_val),
    nn.SiLU: lambda layer, writer, name: _swish(writer, name),
    nn.Hardswish: lambda layer, writer, name: writer.add("HardSwish", [name]),
    nn.Hardsigmoid: lambda layer, writer, name: _hard_sigmoid(writer, name),
    nn.Sigmoid: lambda layer, writer, name: writer.add("Sigmoid", [name]),
}


def _activation(layer: nn.Module, writer: Writer, value: Value) -> str:
    return ACTIVATIONS[type(layer)](layer, writer, writer.plain(value))


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _window(layer: nn.MaxPool2d | nn.AvgPool2d) -> dict[str, list[int]]:
    """What a pooling looks at, and how it moves."""
    return {
        "kernel_shape": _pair(layer.kernel_size),
        "strides": _pair(layer.stride),
        "pads": _pair(layer.padding) * 2,
    }


def _max_pool(layer: nn.MaxPool2d, writer: Writer, value: Value) -> str:
    if layer.return_indices:
        raise UntranslatableError("indices of a max pooling")
    if any(value.padding):  # some versions of ONNX Runtime (1.20 to 1.24) lose them
        raise UntranslatableError("zeros around the input of a max pooling")
    return writer.add(
        "MaxPool",
        [writer.plain(value)],
        **_window(layer),
        dilations=_pair(layer.dilation),
        ceil_mode=int(layer.ceil_mode),
    )


def _average_pool(layer: nn.AvgPool2d, writer: Writer, value: Value) -> str:
    if layer.divisor_override is not None or layer.ceil_mode:
        raise UntranslatableError("a divisor of an average pooling")
    return writer.add(
        "AveragePool",
        [writer.plain(value)],
        **_window(layer),
        count_include_pad=int(layer.count_include_pad),
    )


def _adaptive_pool(writer: Writer, value: Value, size: Any) -> str:
    before, after = list(value.example.shape[-2:]), [size, size] if size is None else _pair(size)
    if after == [1, 1]:
        return writer.add("GlobalAveragePool", [writer.plain(value)])
    if after == before:
        return writer.plain(value)
    raise UntranslatableError(f"an average pooling to {size}")


def _pool(layer: Pool, writer: Writer, value: Value) -> str:
    name, shape = writer.plain(value), value.example.shape
    if len(shape) == 2:
        return name
    if layer.how == "flatten":
        return writer.add("Flatten", [name])
    axes = (1,) if len(shape) == 3 else spatial_axes(shape)
    return writer.add("ReduceMean", [name], axes=list(axes), keepdims=0)


_Layer = Callable[[Any, Writer, Value], str]
LAYERS: dict[type[nn.Module], _Layer] = {
    nn.Conv2d: _convolution,
    nn.BatchNorm2d: _norm,
    nn.Linear: _linear,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: lambda layer, writer, value: _adaptive_pool(
        writer, value, layer.output_size
    ),
    Normalize: _normalize,
    Pool: _pool,
}
LAYERS.update(dict.fromkeys(ACTIVATIONS, _activation))
