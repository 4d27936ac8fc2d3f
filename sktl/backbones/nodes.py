"""Nodes of a torch.fx graph: their names, where they come from and what they do."""

from __future__ import annotations

import operator
from collections import Counter

from torch import fx, nn

PATH = "sktl_path"


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
    return str(node.meta.get(PATH, ""))


def has_weights(network: nn.Module, node: fx.Node) -> bool:
    """Whether the node is a layer with a weight matrix or kernel, or reads one."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return any(p.ndim >= 2 for p in module.parameters())
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(network)
        return isinstance(value, nn.Parameter) and value.ndim >= 2
    return False
