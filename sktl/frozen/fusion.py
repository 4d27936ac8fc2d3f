"""Fewer and larger kernels for a network that no longer changes.

A convolution takes in the batch norm, the sum and the activation that follow it, so that a map is
written to memory once in place of up to four times. On processors that oneDNN serves, weights are
also laid out in advance as its kernels want them.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import StochasticDepth

from ..backbones import CutNetwork, pad_same
from ..backbones.split import with_own_layers
from ..images.preprocessing import Normalize
from ..tensors import lay_out_by_places
from . import onednn
from .onednn import NOTHING, RELU, RELU6, Activation

_LAYERS: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda layer: RELU,
    nn.ReLU6: lambda layer: RELU6,
    nn.Hardtanh: lambda layer: onednn.hardtanh(layer.min_val, layer.max_val),
    nn.SiLU: lambda layer: onednn.SWISH,
    nn.Hardswish: lambda layer: onednn.HARDSWISH,
    nn.Hardsigmoid: lambda layer: onednn.HARDSIGMOID,
    nn.Sigmoid: lambda layer: onednn.SIGMOID,
    nn.GELU: lambda layer: onednn.gelu(layer.approximate),
}
_FUNCTIONS: dict[Any, Activation] = {F.relu: RELU, torch.relu: RELU, F.relu6: RELU6}
_SUMS = (operator.add, operator.iadd, torch.add)
INERT = (nn.Identity, nn.Dropout, nn.Dropout2d, StochasticDepth)  # in evaluation mode
_PIXELS_ABREAST = 64
_LAYOUTS = 3  # of a convolution's weights that are kept; each takes their memory once more


def kernels(device: torch.device, dtype: torch.dtype) -> str:
    """Name the kernels that :func:`fuse` takes, since others give slightly other numbers."""
    found = onednn.usable(device, dtype)
    return " ".join(["packed-2", *sorted(found)]) if found else "plain"


def fuse(module: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Copy a module, to compute what it does in evaluation mode, without gradients.

    Parameters
    ----------
    module : torch.nn.Module
        It isn't changed. What isn't a graph, or a chain of such, is copied as it is.
    dtype : torch.dtype
        Of the weights of the copy.
    device : torch.device

    Returns
    -------
    torch.nn.Module
        For channels-last maps. It can't be moved or brought to another number format.
    """
    fused = fold_norms(module).requires_grad_(False).to(device, dtype)
    lay_out_by_places(fused)
    found = onednn.usable(device, dtype)
    return _packed(fused, dtype, found) if found else fused


# Batch norm ----------------------------------------------------------------------------


def fold_norms(module: nn.Module) -> nn.Module:
    """Copy a module in evaluation mode, with each batch norm folded into the convolution before it.

    Parameters
    ----------
    module : torch.nn.Module
        It isn't changed.
    """
    if isinstance(module, CutNetwork):
        module = module.evaluation
    if type(module) is nn.Sequential:  # a subclass may have a forward of its own
        return nn.Sequential(*(fold_norms(part) for part in module)).eval()
    if not isinstance(module, fx.GraphModule):
        return copy.deepcopy(module).eval()
    copied = with_own_layers(module, copy.deepcopy(module.graph)).eval()
    _fold_in(copied)
    return copied


def _fold_in(network: fx.GraphModule) -> None:
    calls = Counter(node.target for node in network.graph.nodes if node.op == "call_module")
    for node in list(network.graph.nodes):
        source = _source(node)
        if source is None or not node.op == source.op == "call_module":
            continue
        path = str(source.target)
        convolution, norm = network.get_submodule(path), network.get_submodule(str(node.target))
        alone = len(source.users) == 1 and calls[source.target] == calls[node.target] == 1
        if alone and type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, fuse_conv_bn_eval(convolution, norm))
            _put_through(network, node, source)
    _tidy(network)


# oneDNN's kernels ----------------------------------------------------------------------


class _Kernel(nn.Module):
    """A layer with the activation that follows it."""

    activation: Activation = NOTHING

    def take_in(self, activation: Activation) -> None:
        """Apply the activation as well."""
        self.activation = activation


class _Convolution(_Kernel):
    """A convolution, its activation, and between them the sum with another map.

    After a sum, the activation is ReLU or none.
    """

    def __init__(
        self,
        layer: nn.Conv2d,
        padding: Sequence[int],
        usable: frozenset[str],
        weight: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.weight = layer.weight if weight is None else weight
        self.bias = layer.bias
        self.geometry = (list(padding), list(layer.stride), list(layer.dilation), layer.groups)
        sizes = self.weight.shape[2:]
        self.spread = [d * (k - 1) for d, k in zip(layer.dilation, sizes, strict=True)]
        self.channels = layer.out_channels
        self._n_layouts = _LAYOUTS if "layout" in usable else 0
        self._layouts: dict[tuple[int, ...], Tensor] = {}

    def forward(self, maps: Tensor, other: Tensor | None = None) -> Tensor:
        """Convolve maps of shape (n, channels, h, w), and add `other`."""
        layer = (self._laid_out(maps.shape), self.bias, self.geometry)
        if other is None:
            return onednn.convolve(maps, *layer, self.activation)
        if other.shape == self._shape(maps) and onednn.can_add(other.shape):
            return onednn.convolve_and_add(maps, other, *layer, self.activation)
        result = onednn.convolve(maps, *layer, NOTHING) + other  # torch may broadcast one of them
        return result.relu() if self.activation == RELU else result

    def _laid_out(self, shape: torch.Size) -> Tensor:
        """Weights as the kernel for maps of this shape wants them.

        It depends on the threads, too. From another kernel's layout, oneDNN would bring them into
        order at each call, at many times the cost of the convolution.
        """
        key = (torch.get_num_threads(), *shape)
        found = self._layouts.get(key)
        if found is None:
            if len(self._layouts) == self._n_layouts:
                return self.weight  # oneDNN is quick to lay out these
            found = onednn.lay_out(self.weight, self.geometry, shape)
            self._layouts[key] = found
        return found

    def _shape(self, maps: Tensor) -> tuple[int, ...]:
        padding, stride, _, _ = self.geometry
        sizes = zip(maps.shape[-2:], padding, self.spread, stride, strict=True)
        after = ((size + 2 * edge - spread - 1) // step + 1 for size, edge, spread, step in sizes)
        return (len(maps), self.channels, *after)


class _SamePaddedConvolution(_Kernel):
    """A convolution of stride 2 with SAME padding of which nothing is laid around the maps.

    Maps of even size get one more zero at the end than at the beginning. A kernel with a row and
    a column of zeros before it gives the same from maps that are padded alike on both sides,
    which the operator does by itself.
    """

    def __init__(self, layer: nn.Conv2d, usable: frozenset[str]) -> None:
        super().__init__()
        padding = [(size - 1) // 2 for size in layer.kernel_size]
        self.odd = _Convolution(layer, padding, usable)
        larger = nn.Parameter(F.pad(layer.weight, (1, 0, 1, 0)), requires_grad=False)
        self.even = _Convolution(layer, padding, usable, larger)
        self.plain = _Convolution(layer, (0, 0), usable)
        self.padding = (layer.kernel_size[0], layer.stride[0])

    def take_in(self, activation: Activation) -> None:
        """See :class:`_Kernel`."""
        super().take_in(activation)
        for kernel in (self.odd, self.even, self.plain):
            kernel.take_in(activation)

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve maps of shape (n, channels, h, w)."""
        ends = {size % 2 for size in maps.shape[-2:]}
        kernel = self.odd if ends == {1} else self.even
        if len(ends) == 2:
            kernel, maps = self.plain, pad_same(maps, *self.padding)
        result: Tensor = kernel(maps)
        return result


class _Linear(_Kernel):
    """A linear layer and its activation."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        self.weight = onednn.lay_out_linear(layer.weight)

    def forward(self, rows: Tensor) -> Tensor:
        """Multiply rows of shape (..., in_features)."""
        return onednn.multiply(rows, self.weight, self.bias, self.activation)


class _Normalize(nn.Module):
    """The same as :class:`Normalize`, on many pixels at a time."""

    def __init__(self, layer: Normalize) -> None:
        super().__init__()
        self.scale, self.shift = layer.scale.reshape(3), layer.shift.reshape(3)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise channels-last uint8 images of shape (n, 3, h, w)."""
        n, channels, height, width = images.shape
        abreast = _PIXELS_ABREAST
        while height * width % abreast:
            abreast //= 2
        rows = images.movedim(1, -1).reshape(-1, channels * abreast).to(self.scale)
        rows = torch.addcmul(self.shift.repeat(abreast), rows, self.scale.repeat(abreast))
        return rows.reshape(n, height, width, channels).movedim(-1, 1)


def _packed(module: nn.Module, dtype: torch.dtype, usable: frozenset[str]) -> nn.Module:
    if type(module) is nn.Sequential:
        return nn.Sequential(*(_packed(part, dtype, usable) for part in module))
    if type(module) is Normalize:
        return _Normalize(module)
    if isinstance(module, fx.GraphModule):
        _pack(module, dtype, usable)
    return module


def _pack(network: fx.GraphModule, dtype: torch.dtype, usable: frozenset[str]) -> None:
    sums = [_take_in_sums] if "sum" in usable else []
    for step in (_drop_inert, _take_kernels(dtype, usable), *sums, _take_in_activations):
        for node in list(network.graph.nodes):
            step(network, node)
    _tidy(network)


def _drop_inert(network: fx.GraphModule, node: fx.Node) -> None:
    source = _source(node)
    if isinstance(_layer(network, node), INERT) and source is not None:
        _put_through(network, node, source)


def _take_kernels(
    dtype: torch.dtype, usable: frozenset[str]
) -> Callable[[fx.GraphModule, fx.Node], None]:
    def take(network: fx.GraphModule, node: fx.Node) -> None:
        layer, source = _layer(network, node), _source(node)
        if source is None:
            return
        # In float32 torch's own matrix product is as good.
        if type(layer) is nn.Linear and dtype is torch.bfloat16 and "linear" in usable:
            _replace(network, node, _Linear(layer), source)
        if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros":
            return
        if "convolution" not in usable:
            return
        before = _source(source)
        if before is not None and _suits_larger_kernel(source, layer):
            _replace(network, node, _SamePaddedConvolution(layer, usable), before)
            network.graph.erase_node(source)
        elif not isinstance(layer.padding, str):
            _replace(network, node, _Convolution(layer, layer.padding, usable), source)

    return take


def _suits_larger_kernel(source: fx.Node, layer: nn.Conv2d) -> bool:
    """A depthwise convolution is bound by memory, so that the added zeros cost little."""
    size = layer.kernel_size[0]
    return (
        source.target is pad_same
        and len(source.users) == 1
        and layer.groups == layer.in_channels
        and layer.kernel_size == (size, size)
        and size % 2 == 1
        and layer.stride == (2, 2)
        and layer.dilation == (1, 1)
        and layer.padding == (0, 0)
    )


def _take_in_sums(network: fx.GraphModule, node: fx.Node) -> None:
    if node.op != "call_function" or node.target not in _SUMS or node.kwargs:
        return
    last = node.prev  # what stands between could change the convolution's input in place
    kernel, source = _layer(network, last), _source(last)
    others = [term for term in node.args if isinstance(term, fx.Node) and term is not last]
    if type(kernel) is not _Convolution or source is None or len(others) != 1:
        return
    (other,) = others
    in_place = node.target is operator.iadd and node.args[0] is other
    alone = len(last.args) == len(last.users) == 1
    if alone and not (in_place and len(other.users) > 1):
        _replace(network, node, kernel, source, other)
        network.graph.erase_node(last)


def _take_in_activations(network: fx.GraphModule, node: fx.Node) -> None:
    activation, source = _activation(network, node), _source(node)
    if activation is None or source is None or len(source.users) != 1:
        return
    kernel = _layer(network, source)
    if not isinstance(kernel, _Kernel) or kernel.activation != NOTHING:
        return
    if len(source.args) == 1 or activation == RELU:
        kernel.take_in(activation)
        _put_through(network, node, source)


def _activation(network: fx.GraphModule, node: fx.Node) -> Activation | None:
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target)
    layer = _layer(network, node)
    describe = None if layer is None else _LAYERS.get(type(layer))
    return None if describe is None else describe(layer)


# Graphs ----------------------------------------------------------------------------------


def _layer(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _source(node: fx.Node) -> fx.Node | None:
    """The node whose output is this one's first input."""
    first = node.args[0] if node.args else None
    return first if isinstance(first, fx.Node) else None


def _put_through(network: fx.GraphModule, node: fx.Node, source: fx.Node) -> None:
    """Leave out a node, and hand on what it was given."""
    node.replace_all_uses_with(source)
    network.graph.erase_node(node)


def _replace(network: fx.GraphModule, node: fx.Node, module: nn.Module, *inputs: fx.Node) -> None:
    name = f"{node.name}_kernel"
    network.add_submodule(name, module)
    with network.graph.inserting_before(node):
        new = network.graph.call_module(name, inputs)
    node.replace_all_uses_with(new)
    network.graph.erase_node(node)


def _tidy(network: fx.GraphModule) -> None:
    network.delete_all_unused_submodules()
    network.recompile()
