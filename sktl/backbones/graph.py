"""A network as a torch.fx graph, and the points where it can be cut in two.

A boundary is a node through which everything that depends on the image flows as a
single tensor. What lies before it can be computed once and kept; what lies after it
needs nothing else.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..images.sizes import Size
from .nodes import node_names, remove_dead_nodes
from .state import as_before
from .tracing import NotTraceableError, trace_both
from .values import Shaped, values_of

_ENDS = ("placeholder", "output")


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
        Shape of each node of `eval` that is a tensor, for a batch of two images.
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

    def shape_of(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of a node's value; empty if that is no tensor."""
        return self.shapes.get(self.names[node], ())


def trace(network: nn.Module, image_size: Size) -> NetworkGraph:
    """Trace a network in both modes and find its boundaries.

    Where torch.fx can't follow all of a network, the parts that its library names, or else its
    repeated blocks, are taken as one step each.

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
    with as_before(network):
        train, graph = trace_both(network, image_size)
    return _analyse(network, train, graph, image_size)


def _analyse(
    network: nn.Module, train: fx.Graph, graph: fx.Graph, image_size: Size
) -> NetworkGraph:
    values = others = values_of(network, graph, image_size, 2)
    if any(map(_is_size, values.values())):
        others = values_of(network, graph, image_size, 3)
        _fold_sizes(train, graph, values, others)
    names = node_names(graph)
    shapes = {name: v.shape for n, name in names.items() if isinstance(v := values.get(n), Shaped)}
    train_names = node_names(train)
    known = {train_names[node] for node in _boundaries(train)}
    found = [n for n in _boundaries(graph) if names[n] in shapes and names[n] in known]
    if any(map(asks_how_many, graph.nodes)):  # of any boundary, in a part that begins there
        found = [n for n in found if (values[n].shape[0], others[n].shape[0]) == (2, 3)]
    return NetworkGraph(train, graph, names, tuple(names[n] for n in found), shapes)


def _fold_sizes(
    train: fx.Graph, graph: fx.Graph, values: dict[fx.Node, Any], others: dict[fx.Node, Any]
) -> None:
    """Make numbers of what follows from the size of the images, which is always the same.

    And whatever counts the images asks the image itself. Otherwise a network that hands its height
    and width, or how many images there are, from block to block has no boundaries. `values` are
    those of two images, and `others` of three.
    """
    names = node_names(graph)
    sizes = {names[n]: v for n, v in values.items() if _is_size(v) and others[n] == v}
    counts = {names[n] for n, v in values.items() if (v, others[n]) == (2, 3)}
    for part in (train, graph):
        by_name = [(n, name) for n, name in node_names(part).items() if n.op not in _ENDS]
        for node, name in by_name:
            if name in sizes:
                _put_in_place(node, sizes[name])
        _ask_the_image(part, [node for node, name in by_name if name in counts])
        remove_dead_nodes(part)


def _ask_the_image(graph: fx.Graph, counts: list[fx.Node]) -> None:
    if all(map(asks_how_many, counts)):
        return
    image = next(node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(image):
        n_images = graph.call_method("size", (image, 0))
    for node in counts:
        node.replace_all_uses_with(n_images)


def _is_size(value: object) -> bool:
    """Whether it is a whole number, or several."""
    if isinstance(value, tuple | list):
        return all(map(_is_size, value))
    return isinstance(value, int)


def _put_in_place(node: fx.Node, value: Any) -> None:
    for user in list(node.users):
        for part in ("args", "kwargs"):
            given = getattr(user, part)
            setattr(user, part, fx.node.map_arg(given, lambda n: value if n is node else n))


def give_out(
    network: nn.Module, graph: NetworkGraph, names: list[str], image_size: Size
) -> NetworkGraph:
    """Let a network end in some of its inner values, vectors.

    Those of one width, such as the two tokens of a distilled network, are averaged, as the logits
    that are made of them are; others are laid side by side.

    Parameters
    ----------
    network : torch.nn.Module
    graph : NetworkGraph
        Changed in place.
    names : list of str
        Of the values.
    image_size : int or (int, int)

    Raises
    ------
    NotTraceableError
        If the network doesn't have them in training.
    """
    widths = {graph.shapes[name][1:] for name in names}
    for part in (graph.train, graph.eval):
        by_name = {name: node for node, name in node_names(part).items()}
        if not set(names) <= by_name.keys():
            raise NotTraceableError("in training it goes another way to its classifier")
        values = [by_name[name] for name in names]
        output = next(n for n in part.nodes if n.op == "output")
        with part.inserting_before(output):
            output.args = (_join(part, values, mean=len(widths) == 1),)
        remove_dead_nodes(part)
    return _analyse(network, graph.train, graph.eval, image_size)


def _join(graph: fx.Graph, values: list[fx.Node], *, mean: bool) -> fx.Node:
    if len(values) == 1:
        return values[0]
    if not mean:
        return graph.call_function(torch.cat, (values, 1))
    total = functools.reduce(lambda a, b: graph.call_function(operator.add, (a, b)), values)
    return graph.call_function(operator.truediv, (total, len(values)))


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
        if not dependent or asks_of_image(node):
            continue
        made_from_image.add(node)
        if node.op != "placeholder" and outlives <= i:
            boundaries.append(node)
        users = [position[user] for user in node.users if not asks_of_image(user)]
        outlives = max(outlives, max(users, default=-1))
    return boundaries


def asks_of_image(node: fx.Node) -> bool:
    """Whether the node is the image's dtype or device, or how many there are.

    Every value after it has the same. DINOv3 gives the dtype to the table of positions that all its
    blocks read, and CoaT the number of images to the first layer of each stage.
    """
    if asks_how_many(node):
        return True
    if node.op != "call_function" or node.target is not getattr:
        return False
    return node.args[1] in ("dtype", "device") and _is_image(node.args[0])


def asks_how_many(node: fx.Node) -> bool:
    """Whether the node is the number of images."""
    counts = node.op == "call_method" and node.target == "size" and node.args[1:] == (0,)
    return counts and _is_image(node.args[0])


def _is_image(value: object) -> bool:
    while isinstance(value, fx.Node) and value.op == "call_method" and value.target == "to":
        value = value.args[0]
    return isinstance(value, fx.Node) and value.op == "placeholder"
