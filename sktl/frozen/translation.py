"""A network that no longer changes, in the ONNX format, for images of one size.

Only layers that convolutional networks are made of have a translation; what else a network may do
is refused, and such a network runs in torch. The network is run once, on one image, so that shapes
are known: paddings become numbers, and what depends on them can't be taken for what it isn't.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..backbones import Pool, pad_same, spatial_axes
from ..images.preprocessing import Normalize
from .fusion import INERT

_OPSET = 17
_FORMAT = 8  # of files; both are read by every ONNX Runtime since 1.14
_DTYPES = {torch.float32: "FLOAT", torch.uint8: "UINT8"}

Padding = tuple[int, int, int, int]  # top, left, bottom, right


class UntranslatableError(Exception):
    """Part of a network has no translation."""


@dataclass(frozen=True)
class _Value:
    """A tensor of the network.

    Attributes
    ----------
    name : str
        In the graph that is written.
    example : tensor
        What it is for one image.
    padding : tuple of 4 int
        Zeros that `example` has around it and `name` lacks, for a convolution to add.
    """

    name: str
    example: Tensor
    padding: Padding = (0, 0, 0, 0)


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
    writer = _Writer()
    with torch.inference_mode():
        value = _translate(module, writer, writer.start(example))
    return writer.finish(value), value.example


class _Writer:
    """The graph that is written."""

    def __init__(self) -> None:
        from onnx import TensorProto, helper, numpy_helper

        self._helper, self._numpy, self._types = helper, numpy_helper, TensorProto
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []

    def start(self, example: Tensor) -> _Value:
        """Begin with the inputs."""
        if example.dtype not in _DTYPES:
            raise UntranslatableError(f"inputs of {example.dtype}")
        kind, shape = getattr(self._types, _DTYPES[example.dtype]), list(example.shape[1:])
        if example.ndim == 4:
            shape = [*shape[1:], shape[0]]
        self._inputs = [self._helper.make_tensor_value_info("inputs", kind, ["n", *shape])]
        if example.ndim != 4:
            return _Value("inputs", example)
        return _Value(self.add("Transpose", ["inputs"], perm=[0, 3, 1, 2]), example)

    def add(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node; give the name of its output."""
        name = f"v{len(self._nodes)}"
        self._nodes.append(self._helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, tensor: Tensor) -> str:
        """Add a tensor that doesn't change; give its name."""
        name = f"c{len(self._constants)}"
        array = tensor.detach().contiguous().numpy()
        self._constants.append(self._numpy.from_array(array, name))
        return name

    def numbers(self, *values: int) -> str:
        """Add a list of integers."""
        return self.constant(torch.tensor(values, dtype=torch.int64))

    def plain(self, value: _Value) -> str:
        """Give the name of a tensor with its padding around it."""
        if not any(value.padding):
            return value.name
        top, left, bottom, right = value.padding
        pads = self.numbers(0, 0, top, left, 0, 0, bottom, right)
        return self.add("Pad", [value.name, pads])

    def finish(self, value: _Value) -> bytes:
        """End with the outputs."""
        helper = self._helper
        self._nodes.append(helper.make_node("Identity", [self.plain(value)], ["outputs"]))
        shape = ["n", *value.example.shape[1:]]
        output = helper.make_tensor_value_info("outputs", self._types.FLOAT, shape)
        graph = helper.make_graph(self._nodes, "network", self._inputs, [output], self._constants)
        opset = helper.make_opsetid("", _OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=_FORMAT)
        written: bytes = model.SerializeToString()
        return written


def _translate(module: nn.Module, writer: _Writer, value: _Value) -> _Value:
    if type(module) is nn.Sequential:
        for part in module:
            value = _translate(part, writer, value)
        return value
    if isinstance(module, fx.GraphModule):
        return _Translator(module, writer).of(value)
    return _layer(module, writer, value)


class _Translator(fx.Interpreter):
    """Runs a graph on one image, and writes each node down."""

    def __init__(self, module: fx.GraphModule, writer: _Writer) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.extra_traceback = False  # an untranslatable call is nothing to report
        self.nodes = list(module.graph.nodes)
        self.writer = writer
        self.values: dict[fx.Node, _Value] = {}

    def of(self, value: _Value) -> _Value:
        """Translate the whole graph."""
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise UntranslatableError(f"{len(inputs)} inputs")
        self.values[inputs[0]] = value
        self.run(value.example)
        (last,) = (node for node in self.nodes if node.op == "output")
        result = last.args[0]
        if not isinstance(result, fx.Node):
            raise UntranslatableError("several outputs")
        return self.values[result]

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and write it down."""
        if n.op == "call_module":
            value = self._only_input(n)
            self.values[n] = _translate(self.fetch_attr(str(n.target)), self.writer, value)
            return self.values[n].example
        result = super().run_node(n)
        if n.op == "get_attr":
            if not isinstance(result, Tensor) or result.dtype is not torch.float32:
                raise UntranslatableError(f"what {n.target} holds")
            self.values[n] = _Value(self.writer.constant(result), result)
        elif n.op in ("call_function", "call_method"):
            self._write_call(n, result)
        return result

    def _only_input(self, n: fx.Node) -> _Value:
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


def _layer(layer: nn.Module, writer: _Writer, value: _Value) -> _Value:
    if isinstance(layer, INERT):
        return value
    write = _LAYERS.get(type(layer))
    if write is None:
        raise UntranslatableError(f"a layer {type(layer).__name__}")
    result = layer(value.example)
    return _Value(write(layer, writer, value), result)


def _convolution(layer: nn.Conv2d, writer: _Writer, value: _Value) -> str:
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


def _norm(layer: nn.BatchNorm2d, writer: _Writer, value: _Value) -> str:
    mean, variance = layer.running_mean, layer.running_var
    if mean is None or variance is None:
        raise UntranslatableError("a batch norm without statistics")
    weight = torch.ones_like(mean) if layer.weight is None else layer.weight
    bias = torch.zeros_like(mean) if layer.bias is None else layer.bias
    constants = [writer.constant(tensor) for tensor in (weight, bias, mean, variance)]
    inputs = [writer.plain(value), *constants]
    return writer.add("BatchNormalization", inputs, epsilon=layer.eps)


def _linear(layer: nn.Linear, writer: _Writer, value: _Value) -> str:
    product = writer.add(
        "MatMul", [writer.plain(value), writer.constant(layer.weight.detach().t())]
    )
    if layer.bias is None:
        return product
    return writer.add("Add", [product, writer.constant(layer.bias)])


def _normalize(layer: Normalize, writer: _Writer, value: _Value) -> str:
    floats = writer.add("Cast", [writer.plain(value)], to=1)
    scaled = writer.add("Mul", [floats, writer.constant(layer.scale)])
    return writer.add("Add", [scaled, writer.constant(layer.shift)])


def _clip(writer: _Writer, name: str, low: float, high: float) -> str:
    limits = [writer.constant(torch.tensor(float(limit))) for limit in (low, high)]
    return writer.add("Clip", [name, *limits])


def _swish(writer: _Writer, name: str) -> str:
    return writer.add("Mul", [name, writer.add("Sigmoid", [name])])


def _hard_sigmoid(writer: _Writer, name: str) -> str:
    return writer.add("HardSigmoid", [name], alpha=1 / 6, beta=0.5)


_Activation = Callable[[Any, _Writer, str], str]
_ACTIVATIONS: dict[type[nn.Module], _Activation] = {
    nn.ReLU: lambda layer, writer, name: writer.add("Relu", [name]),
    nn.ReLU6: lambda layer, writer, name: _clip(writer, name, 0, 6),
    nn.Hardtanh: lambda layer, writer, name: _clip(writer, name, layer.min_val, layer.max_val),
    nn.SiLU: lambda layer, writer, name: _swish(writer, name),
    nn.Hardswish: lambda layer, writer, name: writer.add("HardSwish", [name]),
    nn.Hardsigmoid: lambda layer, writer, name: _hard_sigmoid(writer, name),
    nn.Sigmoid: lambda layer, writer, name: writer.add("Sigmoid", [name]),
}


def _activation(layer: nn.Module, writer: _Writer, value: _Value) -> str:
    return _ACTIVATIONS[type(layer)](layer, writer, writer.plain(value))


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _max_pool(layer: nn.MaxPool2d, writer: _Writer, value: _Value) -> str:
    if layer.return_indices:
        raise UntranslatableError("indices of a max pooling")
    if any(value.padding):  # some versions of ONNX Runtime (1.20 to 1.24) lose them
        raise UntranslatableError("zeros around the input of a max pooling")
    return writer.add(
        "MaxPool",
        [writer.plain(value)],
        kernel_shape=_pair(layer.kernel_size),
        strides=_pair(layer.stride),
        pads=_pair(layer.padding) * 2,
        dilations=_pair(layer.dilation),
        ceil_mode=int(layer.ceil_mode),
    )


def _average_pool(layer: nn.AvgPool2d, writer: _Writer, value: _Value) -> str:
    if layer.divisor_override is not None or layer.ceil_mode:
        raise UntranslatableError("a divisor of an average pooling")
    return writer.add(
        "AveragePool",
        [writer.plain(value)],
        kernel_shape=_pair(layer.kernel_size),
        strides=_pair(layer.stride),
        pads=_pair(layer.padding) * 2,
        count_include_pad=int(layer.count_include_pad),
    )


def _adaptive_pool(writer: _Writer, value: _Value, size: Any) -> str:
    before, after = list(value.example.shape[-2:]), [size, size] if size is None else _pair(size)
    if after == [1, 1]:
        return writer.add("GlobalAveragePool", [writer.plain(value)])
    if after == before:
        return writer.plain(value)
    raise UntranslatableError(f"an average pooling to {size}")


def _pool(layer: Pool, writer: _Writer, value: _Value) -> str:
    name, shape = writer.plain(value), value.example.shape
    if len(shape) == 2:
        return name
    if layer.how == "flatten":
        return writer.add("Flatten", [name])
    axes = (1,) if len(shape) == 3 else spatial_axes(shape)
    return writer.add("ReduceMean", [name], axes=list(axes), keepdims=0)


_Layer = Callable[[Any, _Writer, _Value], str]
_LAYERS: dict[type[nn.Module], _Layer] = {
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
_LAYERS.update(dict.fromkeys(_ACTIVATIONS, _activation))


# Calls ------------------------------------------------------------------------------


def _elementwise(kind: str) -> Callable[..., _Value]:
    def write(writer: _Writer, result: Tensor, first: Any, second: Any) -> _Value:
        names = []
        for term in (first, second):
            if isinstance(term, _Value):
                names.append(writer.plain(term))
            elif isinstance(term, int | float):
                names.append(writer.constant(torch.tensor(float(term))))
            else:
                raise UntranslatableError(f"a {kind} of {type(term).__name__}")
        return _Value(writer.add(kind, names), result)

    return write


def _concatenate(writer: _Writer, result: Tensor, parts: Any, dim: int = 0) -> _Value:
    if dim == 0 or not all(isinstance(part, _Value) for part in parts):
        raise UntranslatableError("what is put side by side")
    names = [writer.plain(part) for part in parts]
    return _Value(writer.add("Concat", names, axis=dim), result)


def _flatten(
    writer: _Writer, result: Tensor, value: _Value, start_dim: int = 0, end_dim: int = -1
) -> _Value:
    if start_dim != 1 or end_dim not in (-1, value.example.ndim - 1):
        raise UntranslatableError("a flattening")
    return _Value(writer.add("Flatten", [writer.plain(value)]), result)


def _mean(
    writer: _Writer, result: Tensor, value: _Value, dim: Any, keepdim: bool = False
) -> _Value:
    axes = [dim] if isinstance(dim, int) else list(dim)
    if any(axis % value.example.ndim == 0 for axis in axes):
        raise UntranslatableError("a mean over images")
    name = writer.add("ReduceMean", [writer.plain(value)], axes=axes, keepdims=int(keepdim))
    return _Value(name, result)


def _as_layer(layer: type[nn.Module]) -> Callable[..., _Value]:
    """A function that takes what its layer takes."""

    def write(writer: _Writer, result: Tensor, value: _Value, *args: Any, **kwargs: Any) -> _Value:
        made = layer(*args, **{k: v for k, v in kwargs.items() if k != "inplace"})
        return _Value(_LAYERS[layer](made, writer, value), result)

    return write


def _unchanged(writer: _Writer, result: Tensor, value: _Value, *args: Any, **kwargs: Any) -> _Value:
    return _Value(value.name, result, value.padding)


def _dropout(writer: _Writer, result: Tensor, value: _Value, *args: Any, **kwargs: Any) -> _Value:
    if (args[1:2] or (kwargs.get("training", True),))[0]:
        raise UntranslatableError("dropout in training")
    return value


def _pad_same(
    writer: _Writer, result: Tensor, value: _Value, kernel_size: int, stride: int
) -> _Value:
    before, after = value.example.shape[-2:], result.shape[-2:]
    vertical, horizontal = (b - a for a, b in zip(before, after, strict=True))
    top, left = vertical // 2, horizontal // 2
    around = (top, left, vertical - top, horizontal - left)
    return _Value(writer.plain(value), result, around)


def _activated(layer: type[nn.Module]) -> Callable[..., _Value]:
    def write(writer: _Writer, result: Tensor, value: _Value, inplace: bool = False) -> _Value:
        return _Value(_ACTIVATIONS[layer](layer(), writer, writer.plain(value)), result)

    return write


_FUNCTIONS: dict[Any, Callable[..., _Value]] = {
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
_METHODS: dict[Any, Callable[..., _Value]] = {
    "add": _elementwise("Add"),
    "mul": _elementwise("Mul"),
    "flatten": _flatten,
    "mean": _mean,
    "relu": _activated(nn.ReLU),
    "sigmoid": _activated(nn.Sigmoid),
    "contiguous": _unchanged,
    "clone": _unchanged,
}
