"""A graph in the ONNX format, as it is written node by node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_OPSET = 17
_FORMAT = 8  # of files; both are read by every ONNX Runtime since 1.14
_DTYPES = {torch.float32: "FLOAT", torch.uint8: "UINT8"}


Padding = tuple[int, int, int, int]  # top, left, bottom, right


class UntranslatableError(Exception):
    """Part of a network has no translation."""


@dataclass(frozen=True)
class Value:
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


class Writer:
    """The graph that is written."""

    def __init__(self) -> None:
        from onnx import TensorProto, helper, numpy_helper

        self._helper, self._numpy, self._types = helper, numpy_helper, TensorProto
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []

    def start(self, example: Tensor) -> Value:
        """Begin with the inputs."""
        if example.dtype not in _DTYPES:
            raise UntranslatableError(f"inputs of {example.dtype}")
        kind, shape = getattr(self._types, _DTYPES[example.dtype]), list(example.shape[1:])
        if example.ndim == 4:
            shape = [*shape[1:], shape[0]]
        self._inputs = [self._helper.make_tensor_value_info("inputs", kind, ["n", *shape])]
        if example.ndim != 4:
            return Value("inputs", example)
        return Value(self.add("Transpose", ["inputs"], perm=[0, 3, 1, 2]), example)

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

    def plain(self, value: Value) -> str:
        """Give the name of a tensor with its padding around it."""
        if not any(value.padding):
            return value.name
        top, left, bottom, right = value.padding
        pads = self.numbers(0, 0, top, left, 0, 0, bottom, right)
        return self.add("Pad", [value.name, pads])

    def finish(self, value: Value) -> bytes:
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
