"""A trace by torch.fx in which the sizes of tensors are known numbers.

Plain torch.fx stops where a forward asks how large something is and decides by it, as nearly all of
transformers' do. Here every value is computed along the way without its numbers, for two and for
three images: a length that is the same for both is a number, and one that differs stays a step of
the graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

_COUNTS = (2, 3)  # images


class ShapedProxy(fx.Proxy):
    """Stands for a value of the network, whose size is known."""

    tracer: Any

    @property
    def values(self) -> tuple[Any, Any]:
        """The value for two and for three images; tensors have no numbers in them."""
        found: tuple[Any, Any] = self.tracer.values[self.node]
        return found

    @property
    def shape(self) -> tuple[Any, ...]:
        """Numbers, and steps of the graph for what depends on the number of images."""
        sizes = zip(*(value.shape for value in self.values), strict=True)
        return tuple(
            one if one == other else self.tracer.create_proxy("call_method", "size", (self, i), {})
            for i, (one, other) in enumerate(sizes)
        )

    def size(self, dim: int | None = None) -> Any:
        """As of a tensor."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """As of a tensor."""
        return int(self.values[0].ndim)

    @property
    def ndim(self) -> int:
        """As of a tensor."""
        return self.dim()

    @property
    def device(self) -> torch.device:
        """Where networks are traced; `forget_devices` takes it out again."""
        return torch.device("cpu")

    def __bool__(self) -> bool:
        """Whether a number is true, if it isn't made of tensors or of how many images there are."""
        one, other = self.values
        made_of = [self.tracer.values[node] for node in self.node.all_input_nodes]
        fixed = all(isinstance(a, torch.Tensor) or a == b for a, b in made_of)
        if fixed and not isinstance(one, torch.Tensor) and bool(one) == bool(other):
            return bool(one)
        return bool(super().__bool__())

    def __iter__(self) -> Iterator[Any]:
        """One by one, where it is known how many there are."""
        one, other = self.values
        n = [len(v) if isinstance(v, tuple | list) else v.shape[0] for v in (one, other)]
        if n[0] != n[1]:
            raise TypeError("a batch of unknown length can't be iterated over")
        return iter([operator.getitem(self, i) for i in range(n[0])])

    def __len__(self) -> int:
        """As of a tuple or a tensor, where it is known."""
        one, other = map(len, self.values)
        return one if one == other else super().__len__()


class Values:
    """What the steps of a trace give, computed with no numbers in it.

    Parameters
    ----------
    network : torch.nn.Module
        Without values: a copy on the meta device.
    size : (int, int)
        Of the images.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        self.network = network
        self.size = size
        self.busy = False  # torch.fx must not record what is computed here
        self._known: dict[fx.Node, tuple[Any, Any]] = {}

    def __getitem__(self, node: fx.Node) -> tuple[Any, Any]:
        if node not in self._known:
            self.busy, before = True, self.busy
            try:
                with torch.no_grad():
                    self._known[node] = (self._compute(node, 0), self._compute(node, 1))
            finally:
                self.busy = before
        return self._known[node]

    def _compute(self, node: fx.Node, which: int) -> Any:
        if node.op == "placeholder":
            return torch.empty((_COUNTS[which], 3, *self.size), device="meta")
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.network)
        args: Any = fx.node.map_arg(node.args, lambda n: self[n][which])
        kwargs: Any = fx.node.map_arg(node.kwargs, lambda n: self[n][which])
        if node.op == "call_module":
            return self.network.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        function: Callable[..., Any] = node.target  # type: ignore[assignment]
        return function(*args, **kwargs)


def forget_devices(graph: fx.Graph) -> None:
    """Take out where tensors were moved to in the trace: all are where the network is.

    Raises
    ------
    ValueError
        If tensors are made for a device in another way.
    """
    for node in list(graph.nodes):
        args = [a for a in node.args if not isinstance(a, torch.device)]
        kwargs = {k: v for k, v in node.kwargs.items() if not isinstance(v, torch.device)}
        if len(args) == len(node.args) and len(kwargs) == len(node.kwargs):
            continue
        if node.op != "call_method" or node.target != "to":
            raise ValueError(f"{node.target} is given a device")
        node.args, node.kwargs = tuple(args), kwargs
        if len(args) == 1 and not kwargs:
            node.replace_all_uses_with(args[0])
            graph.erase_node(node)
