"""A network as a torch.fx graph, and the points where it can be cut in two.

A boundary is a node through which everything that depends on the image flows as a
single tensor. What lies before it can be computed once and kept; what lies after it
needs nothing else.
"""

from __future__ import annotations

import copy
import inspect
import math
import operator
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision.ops
from torch import fx, nn

from ..images.preprocessing import Size, height_width, in_pixels

# Their forward asks for `self.training`, which tracing would freeze into the graph.
_LEAVES = (torchvision.ops.StochasticDepth, torchvision.ops.DropBlock2d)
_PATH = "sktl_path"
_one_at_a_time = threading.RLock()


class NotTraceableError(Exception):
    """torch.fx can't follow this network's forward."""


class _Tracer(fx.Tracer):
    """Record for each node the path of the module in whose forward it is."""

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math, torchvision.ops))  # type: ignore[arg-type]
        self._inside = [""]
        self._thread = threading.get_ident()

    # While it traces, torch.fx stands between all modules and their calls, those of other threads
    # included: a network that computes there must not notice.

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        self._inside.append(self.path_of_module(m))
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self._inside.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta[_PATH] = self._inside[-1]
        # An annotation, which nothing needs, and which torch before 2.13 can't pickle as a string.
        node.type = None
        return node

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class NetworkGraph:
    """The graphs of one network in training and in evaluation mode.

    Attributes
    ----------
    train, eval : torch.fx.Graph
        From the image to the logits, without auxiliary outputs. They differ where a
        functional call such as dropout has the mode as an argument.
    names : dict of torch.fx.Node to str
        Names of the nodes of `eval`. The same name means the same operation in `train`.
    boundaries : tuple of str
        Names of the nodes of `eval` at which the network can be cut, in forward order.
    shapes : dict of str to tuple of int
        Shape of the value at each boundary, for a batch of two images.
    """

    train: fx.Graph
    eval: fx.Graph
    names: dict[fx.Node, str]
    boundaries: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]

    @property
    def nodes(self) -> dict[str, fx.Node]:
        """Nodes of the evaluation graph by name."""
        return {name: node for node, name in self.names.items()}


def trace(network: nn.Module, image_size: Size) -> NetworkGraph:
    """Trace a network in both modes and find its boundaries.

    Parameters
    ----------
    network : torch.nn.Module
        Takes float images of shape (n, 3, h, w).
    image_size : int or (int, int)
        Height and width of the images in pixels.

    Returns
    -------
    NetworkGraph

    Raises
    ------
    NotTraceableError
        If the forward method depends on data or is otherwise beyond torch.fx.
    ValueError
        If the network can't take images of this size.
    """
    was_training = network.training
    try:
        train = _trace_mode(network.train(), training=True)
        graph = _trace_mode(network.eval(), training=False)
    finally:
        network.train(was_training)
    values = _values(network, graph, image_size)
    names = node_names(graph)
    boundaries = tuple(n for n in _boundaries(graph) if isinstance(values.get(n), torch.Tensor))
    known = set(node_names(train).values())
    kept = tuple(n for n in boundaries if names[n] in known)
    shapes = {names[n]: tuple(values[n].shape) for n in kept}
    return NetworkGraph(train, graph, names, tuple(names[n] for n in kept), shapes)


def _trace_mode(network: nn.Module, training: bool) -> fx.Graph:
    try:
        with _one_at_a_time:  # two would put each other's changes back
            graph = _Tracer().trace(network, _defaults(network.forward))
    except Exception as error:  # torch.fx raises whatever the forward method raises on a proxy
        raise NotTraceableError(f"{type(error).__name__}: {error}") from error
    if any(not node.users and writes_in_place(network, node) for node in graph.nodes):
        raise NotTraceableError("its forward changes a tensor in place and drops the result")
    _keep_logits(graph)
    remove_dead_nodes(graph)
    return graph


def _defaults(forward: Callable[..., Any]) -> dict[str, Any]:
    """Arguments after the image keep their defaults."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _keep_logits(graph: fx.Graph) -> None:
    """Drop auxiliary outputs: of a tuple the first counts, of a dict "out" or "logits"."""
    output = next(n for n in graph.nodes if n.op == "output")
    value = output.args[0]
    if isinstance(value, dict):
        value = next((value[k] for k in ("out", "logits") if k in value), None)
    elif isinstance(value, tuple | list) and value:
        value = value[0]
    if not isinstance(value, fx.Node):
        raise NotTraceableError("the network's output is neither a tensor nor a tuple of tensors")
    output.args = (value,)


def remove_dead_nodes(graph: fx.Graph) -> None:
    """Erase what the output does not need."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def writes_in_place(network: nn.Module, node: fx.Node) -> bool:
    """Whether the node overwrites its input."""
    if node.op == "call_module":
        return bool(getattr(network.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    return node.op == "call_function" and bool(node.kwargs.get("inplace", False))


def node_names(graph: fx.Graph) -> dict[fx.Node, str]:
    """Name nodes by module path and operation, so that names agree between modes."""
    seen: Counter[str] = Counter()
    names = {}
    for node in graph.nodes:
        base = _base_name(node)
        names[node] = base if not seen[base] else f"{base}:{seen[base]}"
        seen[base] += 1
    return names


def _base_name(node: fx.Node) -> str:
    if node.op in ("call_module", "get_attr", "placeholder", "output"):
        return str(node.target)
    operation = node.target if isinstance(node.target, str) else node.target.__name__
    return f"{module_path(node)}.{operation}".lstrip(".")


def module_path(node: fx.Node) -> str:
    """Path of the module in whose forward the node was recorded."""
    if node.op in ("call_module", "get_attr"):
        return str(node.target)
    return str(node.meta.get(_PATH, ""))


def has_weights(network: nn.Module, node: fx.Node) -> bool:
    """Whether the node is a layer with a weight matrix or kernel, or reads one."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return any(p.ndim >= 2 for p in module.parameters())
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(network)
        return isinstance(value, nn.Parameter) and value.ndim >= 2
    return False


def _values(network: nn.Module, graph: fx.Graph, image_size: Size) -> dict[fx.Node, Any]:
    """Propagate shapes without computing; this also shows whether the size is possible."""
    tensors = (*network.parameters(), *network.buffers())
    # deepcopy takes what the memo holds, so no weight is copied.
    memo = {id(t): _to_meta(t) for t in tensors}
    recorder = _Recorder(fx.GraphModule(copy.deepcopy(network.eval(), memo), graph))
    with torch.no_grad():
        try:
            recorder.run(torch.empty(2, 3, *height_width(image_size), device="meta"))
        except Exception as error:
            raise ValueError(
                f"The network can't take images of {in_pixels(image_size)} "
                f"({type(error).__name__}: {_first_line(error)}). Choose another image_size."
            ) from error
    return dict(zip(graph.nodes, recorder.values, strict=True))


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    copied = tensor.detach().to("meta")
    return (
        nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
    )


class _Recorder(fx.Interpreter):
    """Keep the value of every node in graph order."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: list[Any] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values.append(value)
        return value


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"


def _boundaries(graph: fx.Graph) -> list[fx.Node]:
    """Nodes that no value older than themselves, made from the image, outlives."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    made_from_image: set[fx.Node] = set()
    boundaries: list[fx.Node] = []
    outlives = -1
    for i, node in enumerate(graph.nodes):
        if node.op == "output":
            break
        dependent = node.op == "placeholder" or any(
            parent in made_from_image for parent in node.all_input_nodes
        )
        if not dependent:
            continue
        made_from_image.add(node)
        if node.op != "placeholder" and outlives <= i:
            boundaries.append(node)
        outlives = max(outlives, max((position[user] for user in node.users), default=-1))
    return boundaries
