"""Which linear layers make a network's logits, and what they read.

Most networks end in one linear layer. Some have several: distilled ones average two, CrossViT one
for each branch, and VOLO adds what a second one makes of the tokens. The features are what they
read, whichever it is.
"""

from __future__ import annotations

import operator
import warnings

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..images.sizes import Size
from .graph import NetworkGraph, give_out
from .nodes import has_weights, module_path

# What may stand between a linear layer and the output.
_AFTER_LINEAR = (nn.Flatten, nn.Dropout, nn.Identity, nn.Softmax, nn.LogSoftmax, nn.Sigmoid)
_AFTER_CONVOLUTION = (
    *_AFTER_LINEAR,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AvgPool2d,
    nn.ReLU,
)
_AFTER_CALLS = (
    torch.flatten,
    torch.squeeze,
    F.dropout,
    F.softmax,
    F.log_softmax,
    F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d,
    "flatten",
    "reshape",
    "squeeze",
    "view",
)
# How logits are joined, and the greatest of several positions taken.
_JOINING = (
    *(operator.add, operator.iadd, operator.mul, operator.truediv, operator.getitem),
    *(torch.add, torch.mul, torch.div, torch.stack, torch.mean, torch.sum, torch.max),
    *("add", "add_", "mul", "div", "mean", "sum", "max"),
)


def classifier_layers(network: nn.Module, graph: NetworkGraph) -> list[fx.Node]:
    """Find the linear layers (or 1 x 1 convolutions) that alone make the logits.

    Parameters
    ----------
    network : torch.nn.Module
    graph : NetworkGraph
        Its graph.

    Returns
    -------
    list of torch.fx.Node
        Empty if something else makes the output.
    """
    output = _output(graph.eval)
    if len(graph.shapes.get(graph.names[output], ())) != 2:
        return []
    layers = _linear_layers(network, output, only_linear=True) or []
    of_vectors = [node for node in layers if len(graph.shape_of(node.all_input_nodes[0])) == 2]
    return of_vectors or layers


def _output(graph: fx.Graph) -> fx.Node:
    value = next(n for n in graph.nodes if n.op == "output").args[0]
    assert isinstance(value, fx.Node)
    return value


def _linear_layers(network: nn.Module, node: fx.Node, *, only_linear: bool) -> list[fx.Node] | None:
    """The layers that make a value, each once; None if other things do, too."""
    parents = node.all_input_nodes
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        if isinstance(module, nn.Linear):
            return [node] if only_linear else None
        if isinstance(module, nn.Conv2d):
            return [node] if module.kernel_size == (1, 1) else None
        if not isinstance(module, _AFTER_CONVOLUTION) or len(parents) != 1:
            return None
        only_linear = only_linear and isinstance(module, _AFTER_LINEAR)
        return _linear_layers(network, parents[0], only_linear=only_linear)
    if is_linear_call(node):
        return [node] if only_linear else None
    if node.target in _AFTER_CALLS and len(parents) == 1:
        return _linear_layers(network, parents[0], only_linear=only_linear)
    if node.target not in _JOINING or not parents:
        return None
    found: dict[fx.Node, None] = {}
    for parent in [p for p in parents if not _is_weight(p)]:  # shares may be learned, too
        layers = _linear_layers(network, parent, only_linear=only_linear)
        if layers is None:
            return None
        found |= dict.fromkeys(layers)
    return list(found)


def is_linear_call(node: fx.Node) -> bool:
    """Whether the node is a linear layer written as a function of the network's own weights."""
    if node.op != "call_function":
        return False
    if node.target is F.linear:
        return all(_is_weight(weight) for weight in node.all_input_nodes[1:])
    if node.target not in (operator.add, operator.iadd, torch.add):
        return False
    # x @ weight + bias. Without the bias it is a projection, such as that of CLIP.
    products = _products_in(node)
    others = [p for p in node.all_input_nodes if p not in products]
    return (
        len(products) == 1
        and bool(others)
        and all(map(_is_weight, (*others, *products[0].all_input_nodes[1:])))
    )


def _products_in(node: fx.Node) -> list[fx.Node]:
    """The products of matrices that a node takes."""
    return [p for p in node.all_input_nodes if p.target in (operator.matmul, torch.matmul)]


def _is_weight(node: fx.Node) -> bool:
    """Whether a value comes of the network's own weights alone."""
    if node.op == "get_attr":
        return True
    parents = node.all_input_nodes
    return node.op != "placeholder" and bool(parents) and all(map(_is_weight, parents))


def _weights_of(node: fx.Node) -> list[fx.Node]:
    """The weights that alone make a value."""
    if not _is_weight(node):
        return []
    if node.op == "get_attr":
        return [node]
    return [weight for parent in node.all_input_nodes for weight in _weights_of(parent)]


def _read_by(network: nn.Module, layer: fx.Node) -> fx.Node:
    """What a layer reads, or the norm that is one layer with it."""
    first = layer.all_input_nodes[0]
    if layer.op == "call_function" and layer.target is not F.linear:
        (product,) = _products_in(layer)
        first = product.all_input_nodes[0]
    whole = str(layer.target).rpartition(".")[0] if layer.op == "call_module" else ""
    if whole and _is_norm_and_linear(network.get_submodule(whole)):
        while module_path(first).startswith(whole + "."):
            first = first.all_input_nodes[0]
    return first


def _is_norm_and_linear(module: nn.Module) -> bool:
    """Whether it is of a class for a linear layer with batch norm before it, as in LeViT."""
    kinds = {type(child) for child in module.children()} - {nn.Dropout, nn.Identity}
    linear = {kind for kind in kinds if issubclass(kind, nn.Linear)}
    return type(module) is not nn.Sequential and bool(linear) and kinds - linear == {nn.BatchNorm1d}


def expose_features(
    network: nn.Module, graph: NetworkGraph, image_size: Size
) -> tuple[NetworkGraph, str, list[str]]:
    """Find what the classifier reads, and make it a boundary if it is none.

    Parameters
    ----------
    network : torch.nn.Module
    graph : NetworkGraph
    image_size : int or (int, int)

    Returns
    -------
    graph : NetworkGraph
        The same, or one that ends in the features.
    features : str
        Name of the boundary that the classifier reads; the output, where there is no classifier.
    classifiers : list of str
        Paths of the linear layers that make the logits, or of their weights.
    """
    if gives_embeddings(network):
        return graph, graph.boundaries[-1], []
    layers = classifier_layers(network, graph)
    if not layers:
        if _ends_in_a_layer(network, graph):
            warn_of_output(network, graph.shape_of(_output(graph.eval))[1])
        return graph, graph.boundaries[-1], []
    paths = [path for layer in layers for path in _paths(layer)]
    read = list(dict.fromkeys(_read_by(network, layer) for layer in layers))
    names = [graph.names[node] for node in read]
    if len(names) == 1 and names[0] in graph.boundaries:
        return graph, names[0], paths
    if (vector := _last_vector_before(graph, read)) is not None:
        return graph, vector, paths
    graph = give_out(network, graph, names, image_size)
    return graph, graph.boundaries[-1], paths


def gives_embeddings(network: nn.Module) -> bool:
    """Whether its last layer projects and classifies nothing, as in a tower of open_clip."""
    return hasattr(network, "preprocess_cfg") or bool(getattr(network, "gives_embeddings", False))


def _paths(layer: fx.Node) -> list[str]:
    if layer.op == "call_module":
        return [str(layer.target)]
    parents = [p for node in layer.all_input_nodes for p in (node, *node.all_input_nodes)]
    return [str(weight.target) for parent in parents for weight in _weights_of(parent)]


def _last_vector_before(graph: NetworkGraph, read: list[fx.Node]) -> str | None:
    """The last boundary with a vector an image that all of these come after."""
    position = {graph.names[node]: i for i, node in enumerate(graph.eval.nodes)}
    first = min(position[graph.names[node]] for node in read)
    vectors = [
        name
        for name in graph.boundaries
        if position[name] <= first and len(graph.shapes[name]) == 2
    ]
    return vectors[-1] if vectors else None


def _ends_in_a_layer(network: nn.Module, graph: NetworkGraph) -> bool:
    """Whether vectors go through a layer with weights last, as in a classifier of another kind."""
    open_nodes, seen = [_output(graph.eval)], set()
    while open_nodes:
        node = open_nodes.pop()
        if node in seen or len(graph.shape_of(node)) != 2:
            continue
        seen.add(node)
        if node.op == "call_module" and has_weights(network, node):
            return True
        weights = [p for parent in node.all_input_nodes for p in _weights_of(parent)]
        if node.op != "call_module" and any(has_weights(network, p) for p in weights):
            return True
        open_nodes += [p for p in node.all_input_nodes if not _is_weight(p)]
    return False


def warn_of_output(network: nn.Module, width: int) -> None:
    """Say that the output is taken for the features, since no classifier was found."""
    warnings.warn(
        f"{type(network).__name__} doesn't end in a linear layer, so sktl can't tell its "
        f"classifier: its whole output, {width} wide, is taken for the features. If these are "
        "class scores, pass the network without its classifier.",
        UserWarning,
        stacklevel=2,
    )
