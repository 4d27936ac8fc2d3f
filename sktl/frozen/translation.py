"""A network that no longer changes, in the ONNX format, for images of one size.

Only layers that convolutional networks are made of have a translation; what else a network may do
is refused, and such a network runs in torch. The network is run once, on one image, so that shapes
are known: paddings become numbers, and what depends on them can't be taken for what it isn't.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..backbones import SideBySide, pad_same
from .onnx_layers import ACTIVATIONS, LAYERS, write_layer
from .onnx_writer import UntranslatableError, Value, Writer

_Values: TypeAlias = Value | tuple[Value, ...]


def to_onnx_bytes(module: nn.Module, example: Tensor) -> tuple[bytes, Tensor]:
    """Translate a network.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode and float32.
    example : tensor of shape (1, ...)
        A uint8 image or float32 features. The network will take any number of such.

    Returns
    -------
    model : bytes
        Its input "inputs" has the channels last, where it has four axes; its output is "outputs".
    outputs : tensor
        What the network makes of the example.

    Raises
    ------
    UntranslatableError
        If there is no translation of some part.
    ImportError
        If the package onnx is missing.
    """
    writer = Writer()
    with torch.inference_mode():
        value = _translate(module, writer, writer.start(example))
    if isinstance(value, tuple):
        raise UntranslatableError("several outputs")
    return writer.finish(value), value.example


def _translate(module: nn.Module, writer: Writer, value: _Values) -> _Values:
    if type(module) is nn.Sequential:
        for part in module:
            value = _translate(part, writer, value)
        return value
    if isinstance(module, SideBySide) and isinstance(value, tuple):
        return _join(module, writer, value)
    if isinstance(value, tuple):
        raise UntranslatableError(f"several inputs of a {type(module).__name__}")
    if isinstance(module, fx.GraphModule):
        return _Translator(module, writer).of(value)
    return write_layer(module, writer, value)


def _join(joining: SideBySide, writer: Writer, values: tuple[Value, ...]) -> Value:
    """Pool several outputs and lay them side by side."""
    pooled = [write_layer(joining.pool, writer, value).name for value in values]
    if joining.share != 1:
        share = writer.constant(torch.tensor(joining.share))
        pooled[:-1] = [writer.add("Mul", [name, share]) for name in pooled[:-1]]
    result = joining([value.example for value in values])
    return Value(writer.add("Concat", pooled, axis=1), result)


class _Translator(fx.Interpreter):
    """Runs a graph on one image, and writes each node down."""

    def __init__(self, module: fx.GraphModule, writer: Writer) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.extra_traceback = False  # an untranslatable call is nothing to report
        self.nodes = list(module.graph.nodes)
        self.writer = writer
        self.values: dict[fx.Node, Value] = {}

    def of(self, value: Value) -> _Values:
        """Translate the whole graph; it may have several outputs."""
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise UntranslatableError(f"{len(inputs)} inputs")
        self.values[inputs[0]] = value
        self.run(value.example)
        (last,) = (node for node in self.nodes if node.op == "output")
        values: Callable[[fx.Node], Any] = self.values.__getitem__
        result: _Values = fx.map_arg(last.args[0], values)
        return tuple(result) if isinstance(result, list) else result

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and write it down."""
        if n.op == "call_module":
            value = _translate(self.fetch_attr(str(n.target)), self.writer, self._only_input(n))
            if isinstance(value, tuple):
                raise UntranslatableError(f"several outputs of {n.target}")
            self.values[n] = value
            return value.example
        result = super().run_node(n)
        if n.op == "get_attr":
            if not isinstance(result, Tensor) or result.dtype is not torch.float32:
                raise UntranslatableError(f"what {n.target} holds")
            self.values[n] = Value(self.writer.constant(result), result)
        elif n.op in ("call_function", "call_method"):
            self._write_call(n, result)
        return result

    def _only_input(self, n: fx.Node) -> Value:
        if len(n.args) != 1 or n.kwargs or n.args[0] not in self.values:
            raise UntranslatableError(f"the inputs of {n.target}")
        first = n.args[0]
        assert isinstance(first, fx.Node)
        return self.values[first]

    def _write_call(self, n: fx.Node, result: Any) -> None:
        known = _METHODS if n.op == "call_method" else _FUNCTIONS
        write = known.get(n.target)
        if write is None or not set(n.all_input_nodes) <= set(self.values):
            raise UntranslatableError(f"a call of {n.target}")
        values: Callable[[fx.Node], Any] = self.values.__getitem__
        args, kwargs = fx.map_arg((n.args, n.kwargs), values)
        self.values[n] = write(self.writer, result, *args, **kwargs)


# Layers -----------------------------------------------------------------------------


def _elementwise(kind: str) -> Callable[..., Value]:
    def write(writer: Writer, result: Tensor, first: Any, second: Any) -> Value:
        names = []
        for term in (first, second):
            if isinstance(term, Value):
                names.append(writer.plain(term))
            elif isinstance(term, int | float):
                names.append(writer.constant(torch.tensor(float(term))))
            else:
                raise UntranslatableError(f"a {kind} of {type(term).__name__}")
        return Value(writer.add(kind, names), result)

    return write


def _concatenate(writer: Writer, result: Tensor, parts: Any, dim: int = 0) -> Value:
    if dim == 0 or not all(isinstance(part, Value) for part in parts):
        raise UntranslatableError("what is put side by side")
    names = [writer.plain(part) for part in parts]
    return Value(writer.add("Concat", names, axis=dim), result)


def _flatten(
    writer: Writer, result: Tensor, value: Value, start_dim: int = 0, end_dim: int = -1
) -> Value:
    if start_dim != 1 or end_dim not in (-1, value.example.ndim - 1):
        raise UntranslatableError("a flattening")
    return Value(writer.add("Flatten", [writer.plain(value)]), result)


def _mean(writer: Writer, result: Tensor, value: Value, dim: Any, keepdim: bool = False) -> Value:
    axes = [dim] if isinstance(dim, int) else list(dim)
    if any(axis % value.example.ndim == 0 for axis in axes):
        raise UntranslatableError("a mean over images")
    name = writer.add("ReduceMean", [writer.plain(value)], axes=axes, keepdims=int(keepdim))
    return Value(name, result)


def _as_layer(layer: type[nn.Module]) -> Callable[..., Value]:
    """A function that takes what its layer takes."""

    def write(writer: Writer, result: Tensor, value: Value, *args: Any, **kwargs: Any) -> Value:
        made = layer(*args, **{k: v for k, v in kwargs.items() if k != "inplace"})
        return Value(LAYERS[layer](made, writer, value), result)

    return write


def _unchanged(writer: Writer, result: Tensor, value: Value, *args: Any, **kwargs: Any) -> Value:
    return Value(value.name, result, value.padding)


def _dropout(writer: Writer, result: Tensor, value: Value, *args: Any, **kwargs: Any) -> Value:
    if (args[1:2] or (kwargs.get("training", True),))[0]:
        raise UntranslatableError("dropout in training")
    return value


def _pad_same(writer: Writer, result: Tensor, value: Value, kernel_size: int, stride: int) -> Value:
    before, after = value.example.shape[-2:], result.shape[-2:]
    vertical, horizontal = (b - a for a, b in zip(before, after, strict=True))
    top, left = vertical // 2, horizontal // 2
    around = (top, left, vertical - top, horizontal - left)
    return Value(writer.plain(value), result, around)


def _activated(layer: type[nn.Module]) -> Callable[..., Value]:
    def write(writer: Writer, result: Tensor, value: Value, inplace: bool = False) -> Value:
        return Value(ACTIVATIONS[layer](layer(), writer, writer.plain(value)), result)

    return write


_FUNCTIONS: dict[Any, Callable[..., Value]] = {
    operator.add: _elementwise("Add"),
    operator.iadd: _elementwise("Add"),
    torch.add: _elementwise("Add"),
    operator.mul: _elementwise("Mul"),
    operator.imul: _elementwise("Mul"),
    torch.mul: _elementwise("Mul"),
    torch.cat: _concatenate,
    torch.flatten: _flatten,
    pad_same: _pad_same,
    F.relu: _activated(nn.ReLU),
    torch.relu: _activated(nn.ReLU),
    F.relu6: _activated(nn.ReLU6),
    F.silu: _activated(nn.SiLU),
    F.hardswish: _activated(nn.Hardswish),
    torch.sigmoid: _activated(nn.Sigmoid),
    F.dropout: _dropout,
    F.max_pool2d: _as_layer(nn.MaxPool2d),
    F.avg_pool2d: _as_layer(nn.AvgPool2d),
    F.adaptive_avg_pool2d: _as_layer(nn.AdaptiveAvgPool2d),
}
_METHODS: dict[Any, Callable[..., Value]] = {
    "add": _elementwise("Add"),
    "mul": _elementwise("Mul"),
    "flatten": _flatten,
    "mean": _mean,
    "relu": _activated(nn.ReLU),
    "sigmoid": _activated(nn.Sigmoid),
    "contiguous": _unchanged,
    "clone": _unchanged,
}
