"""Which of a network's boundaries are its stages.

One rule serves every network: descend through containers until blocks repeat. A block
has at least two layers with weights; what comes before the first block is the stem,
what follows the last one belongs to the last stage, and pooling ends the trunk. Flat
networks such as VGG end a stage at each pooling layer.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .graph import NetworkGraph
from .nodes import has_weights, module_path
from .tracing import layers_of_leaf

_POOLING = (nn.MaxPool2d, nn.AvgPool2d)
_GLOBAL_POOLING = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_POOLING_CALLS = (F.max_pool2d, torch.max_pool2d, F.avg_pool2d)
_MUCH_MORE = 4  # as many layers as there are in the stem
_GLOBAL_POOLING_CALLS = (F.adaptive_avg_pool2d, F.adaptive_max_pool2d)


@dataclass(frozen=True)
class Stage:
    """One of a network's own blocks: its name and the boundary at which it ends."""

    name: str
    end: str


@dataclass(frozen=True)
class Anatomy:
    """Where a network's parts lie in its graph.

    Attributes
    ----------
    stages : tuple of Stage
        In forward order; the last one ends before the pooling.
    features : str
        The boundary that the classifier reads, or the output where there is none.
    """

    stages: tuple[Stage, ...]
    features: str


def find_anatomy(network: nn.Module, graph: NetworkGraph, features: str) -> Anatomy:
    """Find a traced network's stages; `features` is the boundary that its classifier reads."""
    trunk = _Trunk(network, graph, _trunk_boundaries(network, graph, features))
    level, blocks = _blocks(trunk)
    stages = _stages_of_blocks(trunk, level, blocks) if blocks else _flat_stages(trunk)
    return Anatomy(stages, features)


def _trunk_boundaries(network: nn.Module, graph: NetworkGraph, features: str) -> tuple[str, ...]:
    """Boundaries before the pooling that turns a map into a vector."""
    upto = graph.boundaries[: graph.boundaries.index(features) + 1]
    pools = [i for i, name in enumerate(upto) if _is_global_pooling(network, graph, name)]
    if pools:
        end = pools[-1]
    else:
        end = len(upto)
        while end > 0 and len(graph.shapes[upto[end - 1]]) < 3:
            end -= 1
    return upto[:end] or upto


def _is_global_pooling(network: nn.Module, graph: NetworkGraph, name: str) -> bool:
    node = graph.nodes[name]
    if node.op != "call_module":
        return node.target in _GLOBAL_POOLING_CALLS
    module = network.get_submodule(str(node.target))
    single = graph.shapes[name][2:] == (1, 1)
    return isinstance(module, _GLOBAL_POOLING) or (isinstance(module, nn.AvgPool2d) and single)


class _Trunk:
    """The nodes from the image to the last boundary before the pooling."""

    def __init__(self, network: nn.Module, graph: NetworkGraph, boundaries: tuple[str, ...]):
        self.network = network
        self.names = graph.names
        last = graph.nodes[boundaries[-1]]
        nodes = list(graph.eval.nodes)
        self.nodes = nodes[: nodes.index(last) + 1]
        allowed = set(boundaries)
        self.is_boundary = [graph.names[node] in allowed for node in self.nodes]
        self.weighted = [has_weights(network, node) for node in self.nodes]
        self.paths = [module_path(node) for node in self.nodes]

    def last_boundary(self, start: int, stop: int) -> int | None:
        """Position of the last boundary in [start, stop)."""
        return next((i for i in range(stop - 1, start - 1, -1) if self.is_boundary[i]), None)

    def next_unit(self, start: int, level: str) -> int:
        """Position of the first node from `start` on that belongs to a unit with parameters.

        A unit is a child of the container at `level`; pooling and activations between
        units belong to none.
        """
        depth = len(level.split(".")) + 1 if level else 1
        for i in range(start, len(self.nodes)):
            unit = ".".join(self.paths[i].split(".")[:depth])
            if _inside(unit, level) and unit != level and _has_parameters(self.network, unit):
                return i
        return len(self.nodes)

    def stage(self, name: str, position: int) -> Stage:
        return Stage(name, self.names[self.nodes[position]])


def _has_parameters(network: nn.Module, path: str) -> bool:
    value = operator.attrgetter(path)(network)
    return not isinstance(value, nn.Module) or any(True for _ in value.parameters())


def _inside(path: str, container: str) -> bool:
    return not container or path == container or path.startswith(container + ".")


def _blocks(trunk: _Trunk) -> tuple[str, list[str]]:
    """Descend through containers until blocks of one class repeat: the container, and they."""
    level = ""
    while True:
        layers = _weight_layers(trunk, level)
        blocks = _large_ones(layers)
        main = max(blocks, key=lambda child: layers[child], default="")
        if _repeat(trunk, blocks) and not _is_beside_its_stem(trunk, layers, blocks, main):
            return level, blocks if len(_spans(trunk, blocks)) > 1 else _of_lists(trunk, blocks)
        if not blocks:
            return level, []
        level = main


def _is_beside_its_stem(trunk: _Trunk, layers: Counter[str], blocks: list[str], main: str) -> bool:
    """Whether of two blocks of a class one holds all that repeats: both may be mere sequences."""
    kind = type(trunk.network.get_submodule(main))
    alike = [b for b in blocks if type(trunk.network.get_submodule(b)) is kind]
    if len(alike) != 2 or layers[main] < _MUCH_MORE * min(layers[block] for block in alike):
        return False
    return _repeat(trunk, _large_ones(_weight_layers(trunk, main)))


def _large_ones(layers: Counter[str]) -> list[str]:
    """The children that have several layers with weights."""
    return [child for child, n in layers.items() if n >= 2]


def _repeat(trunk: _Trunk, blocks: list[str]) -> bool:
    """Whether two of them are of one class."""
    kinds = Counter(type(trunk.network.get_submodule(block)) for block in blocks)
    return max(kinds.values(), default=0) >= 2


def _of_lists(trunk: _Trunk, lists: list[str]) -> list[str]:
    """The blocks of lists that are gone through by turns, as in PoolFormer of transformers."""
    found: list[str] = []
    for path in lists:
        if not isinstance(trunk.network.get_submodule(path), nn.ModuleList):
            return lists
        inner = _large_ones(_weight_layers(trunk, path))
        are_lists = [isinstance(trunk.network.get_submodule(p), nn.ModuleList) for p in inner]
        found += _of_lists(trunk, inner) if inner and all(are_lists) else inner
    found.sort(key=lambda path: next(i for i, p in enumerate(trunk.paths) if _inside(p, path)))
    return found if len(_spans(trunk, found)) > 1 else lists


def _weight_layers(trunk: _Trunk, level: str) -> Counter[str]:
    """Number of layers with weights in each child of a container, in forward order."""
    layers: Counter[str] = Counter()
    depth = len(level.split(".")) if level else 0
    for path in dict.fromkeys(p for p, w in zip(trunk.paths, trunk.weighted, strict=True) if w):
        parts = path.split(".")
        if _inside(path, level) and len(parts) > depth:
            inner = 1 if len(parts) > depth + 1 else 0
            layers[".".join(parts[: depth + 1])] += layers_of_leaf(trunk.network, path) or inner
    return layers


def _stages_of_blocks(trunk: _Trunk, level: str, blocks: list[str]) -> tuple[Stage, ...]:
    spans = _spans(trunk, blocks)
    stages = []
    first = spans[0][1]
    stem = trunk.last_boundary(0, first)
    if stem is not None and any(trunk.weighted[:first]):
        stages.append(trunk.stage("stem", stem))
    for i, (name, _, end) in enumerate(spans):
        last = i == len(spans) - 1
        stop = len(trunk.nodes) if last else trunk.next_unit(end + 1, level)
        boundary = trunk.last_boundary(end, stop)
        if boundary is not None:
            stages.append(trunk.stage(name, boundary))
    return tuple(stages)


def _spans(trunk: _Trunk, blocks: list[str]) -> list[tuple[str, int, int]]:
    """First and last node of each block; blocks that interleave count as one."""
    spans: list[tuple[str, int, int]] = []
    for block in blocks:
        inside = [i for i, path in enumerate(trunk.paths) if _inside(path, block)]
        name, start, end = block, inside[0], inside[-1]
        while spans and start <= spans[-1][2]:
            name, start, before = spans.pop()
            end = max(end, before)
        spans.append((name, start, end))
    return spans


def _flat_stages(trunk: _Trunk) -> tuple[Stage, ...]:
    """End a stage at each pooling layer; with no pooling, before each layer with weights."""
    end = len(trunk.nodes) - 1
    cuts = [i for i in range(end) if trunk.is_boundary[i] and _is_pooling(trunk, i)]
    if not cuts:
        weighted = [i for i, weights in enumerate(trunk.weighted) if weights]
        spans = zip(weighted, weighted[1:], strict=False)
        found = [trunk.last_boundary(start, stop) for start, stop in spans]
        cuts = [i for i in found if i is not None]
    return tuple(trunk.stage(trunk.names[trunk.nodes[i]], i) for i in (*cuts, end))


def _is_pooling(trunk: _Trunk, position: int) -> bool:
    node = trunk.nodes[position]
    if node.op == "call_module":
        return isinstance(trunk.network.get_submodule(str(node.target)), _POOLING)
    return node.target in _POOLING_CALLS
