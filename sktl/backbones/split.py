"""Cutting a network into a frozen prefix and a trainable suffix."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor, fx, nn

from ..images.sizes import Size, height_width
from .classifier import expose_features, gives_embeddings, warn_of_output
from .graph import NetworkGraph, asks_of_image, trace
from .nodes import node_names, remove_dead_nodes
from .nodes import writes_in_place as _writes_in_place
from .stages import Anatomy, find_anatomy
from .state import not_counting, unchanged
from .tracing import NotTraceableError, refuse_output
from .values import refuse_images

_End: TypeAlias = str | list[str] | None  # of a part: one boundary, several, or the logits
Pooling = Literal["auto", "stages", "avg", "flatten"]

_INSERTED = "sktl_inserted"  # the name of a module that no network has
_REASON = 150  # characters of torch.fx's own words in a message
# Of "stages": how many beside the last, and what their averages are multiplied by.
# benchmarks/accuracy has the study.
_SIDES = 3
_SIDE_SHARE = 0.25


class Splitter(Protocol):
    """A network that can be cut after any of its stages.

    `depth` counts the stages before the cut; at the last one the prefix goes on to the
    pooled features that the head reads. `classifiers` are the paths of the layers that make the
    network's own logits, or of their weights.
    """

    network: nn.Module
    stages: tuple[str, ...]
    classifiers: tuple[str, ...]

    def prefix(self, depth: int, pooling: Pooling) -> nn.Module:
        """Everything before the cut, in evaluation mode; shares the network's weights."""

    def suffix(self, depth: int, pooling: Pooling) -> nn.Module:
        """Everything after the cut up to the pooled features, as an independent copy."""

    def rest(self, depth: int, pooling: Pooling) -> nn.Module:
        """What `suffix` copies, in evaluation mode; shares the network's weights."""

    @property
    def sides(self) -> tuple[int, ...]:
        """Stages that a head reads with pooling="stages", beside what the classifier reads."""

    def stage_features(self, stage: int) -> nn.Module:
        """The network up to the end of one stage, without pooling."""

    def several(self, depth: int, stages: Sequence[int | None], pooling: Pooling) -> nn.Module:
        """After `depth` stages, the pooled outputs of others; None is what the head reads."""

    def stage_shape(self, stage: int) -> tuple[int, ...]:
        """Shape of what a stage makes of a batch of images."""

    def between(self, depth: int, stage: int) -> nn.Module:
        """The stages after `depth` of them up to the end of one, in evaluation mode."""

    def stage_of_layers(self) -> dict[str, int]:
        """The number of the stage that each of the network's layers and own weights is in."""

    def inserted(
        self, suffix: nn.Module, stage: int, module: nn.Module, *, past_norm: bool = False
    ) -> nn.Module:
        """The suffix of depth 0, perhaps a trained copy, with a module at the end of a stage.

        With `past_norm` it comes after the layer norm that reads the stage's output, if one does.
        """


class Pool(nn.Module):
    """Make one feature vector an image of maps, tokens or vectors."""

    def __init__(self, how: Pooling) -> None:
        super().__init__()
        self.how = how

    def forward(self, features: Tensor) -> Tensor:
        """Pool all axes but the first and the channels'."""
        if features.ndim == 2:
            return features
        if self.how == "flatten":
            return features.flatten(1)
        if features.ndim == 3:  # (n, tokens, channels)
            return features.mean(1)
        return features.mean(spatial_axes(features.shape))

    def extra_repr(self) -> str:
        """Show what it does."""
        return self.how


class SideBySide(nn.Module):
    """Pool several outputs of a network, and join the vectors.

    With pooling="stages" the last output is what the classifier reads, and all others count for
    less.
    """

    def __init__(self, how: Pooling) -> None:
        super().__init__()
        self.pool = Pool(how)
        self.share = _SIDE_SHARE if how == "stages" else 1.0

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """Give one vector an image."""
        pooled = [self.pool(output) for output in outputs]
        if self.share != 1:
            pooled[:-1] = [self.share * features for features in pooled[:-1]]
        return torch.cat(pooled, dim=1)


def spatial_axes(shape: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
    """Axes of a feature map other than the channels': (n, c, h, w) or (n, h, w, c)."""
    channels_last = len(shape) == 4 and shape[1] == shape[2] != shape[3]
    return (1, 2) if channels_last else tuple(range(2, len(shape)))


class CutNetwork(nn.Module):
    """Part of a traced network, with a graph for training and one for evaluation."""

    def __init__(self, train: fx.GraphModule, evaluation: fx.GraphModule) -> None:
        super().__init__()
        self.body = train
        # Most networks run the same code in both modes; their layers know the mode.
        self.eval_body = None if train.code == evaluation.code else evaluation

    @property
    def evaluation(self) -> fx.GraphModule:
        """The graph for evaluation."""
        return self.body if self.eval_body is None else self.eval_body

    def forward(self, features: Tensor) -> Tensor:
        """Compute what follows the cut."""
        result: Tensor = (self.body if self.training else self.evaluation)(features)
        return result


@dataclass(frozen=True)
class Structure:
    """What a trace has found; it is the same for each network of one architecture."""

    graph: NetworkGraph
    anatomy: Anatomy
    classifiers: tuple[str, ...]

    def is_of_any_like(self, network: nn.Module) -> bool:
        """Whether networks without what the trace has left in this one will do, too.

        torch.fx makes attributes of the tensors that it takes for constants, as in MaxVit.
        """
        nodes = (*self.graph.train.nodes, *self.graph.eval.nodes)
        return not any(n.op == "get_attr" and str(n.target) in vars(network) for n in nodes)

    @cached_property
    def runs_the_same_in_both_modes(self) -> bool:
        """Whether training differs from evaluation in what layers do, not in which are called."""
        train, evaluation = (
            graph.python_code("self").src for graph in (self.graph.train, self.graph.eval)
        )
        return train == evaluation


def find_structure(network: nn.Module, image_size: Size) -> Structure:
    """Trace a network; see :func:`sktl.backbones.graph.trace`."""
    traced = trace(network, image_size)
    graph, features, classifiers = expose_features(network, traced, image_size)
    structure = Structure(graph, find_anatomy(network, graph, features), tuple(classifiers))
    for part in (graph.train, graph.eval):
        part.owning_module = None  # it would keep this network's weights
    return structure


class TracedNetwork:
    """A network cut along its torch.fx graph."""

    def __init__(self, network: nn.Module, structure: Structure) -> None:
        self.network = network
        self.structure = structure
        self.graph, self.anatomy = structure.graph, structure.anatomy
        self.stages = tuple(stage.name for stage in self.anatomy.stages)
        self.classifiers = structure.classifiers

    def prefix(self, depth: int, pooling: Pooling) -> nn.Module:
        """See :class:`Splitter`."""
        return self.stage_features(depth - 1) if depth < len(self.stages) else self.rest(0, pooling)

    def suffix(self, depth: int, pooling: Pooling) -> nn.Module:
        """See :class:`Splitter`."""
        if depth == len(self.stages):
            return nn.Identity()
        start, end = self._end_of(depth), self._read(pooling)
        if start == end:
            return Pool(pooling)
        return nn.Sequential(self.cut(start, end), _pool_of(end, pooling))

    def rest(self, depth: int, pooling: Pooling) -> nn.Module:
        """See :class:`Splitter`."""
        if depth == len(self.stages):
            return nn.Identity()
        start, end = self._end_of(depth), self._read(pooling)
        if start == end:
            return Pool(pooling).eval()
        return nn.Sequential(self._part(start, end), _pool_of(end, pooling)).eval()

    @cached_property
    def sides(self) -> tuple[int, ...]:
        """See :class:`Splitter`; the last before the last one, if they make maps."""
        last = len(self.stages) - 1
        found = tuple(range(max(0, last - _SIDES), last))
        return found if all(len(self.stage_shape(stage)) == 4 for stage in found) else ()

    def stage_features(self, stage: int) -> nn.Module:
        """See :class:`Splitter`."""
        return self._part(None, self.anatomy.stages[stage].end)

    def several(self, depth: int, stages: Sequence[int | None], pooling: Pooling) -> nn.Module:
        """See :class:`Splitter`; each layer runs once."""
        part = self._part(self._end_of(depth), self._ends(stages, pooling))
        return nn.Sequential(part, SideBySide(pooling)).eval()

    def stage_shape(self, stage: int) -> tuple[int, ...]:
        """See :class:`Splitter`."""
        return self.graph.shapes[self.anatomy.stages[stage].end]

    def between(self, depth: int, stage: int) -> nn.Module:
        """See :class:`Splitter`."""
        return self._part(self._end_of(depth), self.anatomy.stages[stage].end)

    def stage_of_layers(self) -> dict[str, int]:
        """See :class:`Splitter`; what follows the last stage belongs to it."""
        ends = [stage.end for stage in self.anatomy.stages]
        stages: dict[str, int] = {}
        stage = 0
        for node, name in node_names(self.graph.train).items():
            if node.op in ("call_module", "get_attr"):
                stages.setdefault(str(node.target), min(stage, len(ends) - 1))
            if stage < len(ends) and name == ends[stage]:
                stage += 1
        return stages

    def inserted(
        self, suffix: nn.Module, stage: int, module: nn.Module, *, past_norm: bool = False
    ) -> nn.Module:
        """See :class:`Splitter`; it shares the suffix's weights."""
        network, pool = suffix.children()
        assert isinstance(network, CutNetwork)
        body = network.evaluation
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        graph.output(graph.graph_copy(body.graph, copies))
        names = node_names(body.graph).items()
        place = next(copies[node] for node, name in names if name == self.anatomy.stages[stage].end)
        norms = [user for user in place.users if _is_layer_norm(body, user)]
        place = norms[0] if past_norm and norms else place
        whole = fx.GraphModule(body, graph)
        whole.add_submodule(_INSERTED, module)
        with graph.inserting_after(place):
            after = graph.call_module(_INSERTED, (place,))
        place.replace_all_uses_with(after, delete_user_cb=lambda user: user is not after)
        whole.recompile()
        return nn.Sequential(whole.eval(), pool)

    def cut(self, start: str | None, end: _End) -> CutNetwork:
        """Copy the part between two boundaries; None is the image or the logits."""
        memo: dict[int, object] = {}  # both graphs have the same layers
        train = _subgraph(self.network, self.graph.train, start, end)
        body = with_own_layers(self.network, train, memo)
        if self.structure.runs_the_same_in_both_modes:
            return CutNetwork(body, body)
        evaluation = _subgraph(self.network, self.graph.eval, start, end)
        return CutNetwork(body, with_own_layers(self.network, evaluation, memo))

    def _end_of(self, depth: int) -> str | None:
        """Boundary after some stages."""
        return self.anatomy.stages[depth - 1].end if depth else None

    def _part(self, start: str | None, end: _End) -> fx.GraphModule:
        graph = _subgraph(self.network, self.graph.eval, start, end)
        return fx.GraphModule(self.network, graph).eval()

    def _pooled(self, pooling: Pooling) -> str:
        """Boundary that the pooling reads last."""
        of_network = pooling in ("auto", "stages")
        return self.anatomy.features if of_network else self.anatomy.stages[-1].end

    def _read(self, pooling: Pooling) -> _End:
        """Boundary that the pooling reads, or several."""
        if pooling == "stages":
            return self._ends((*self.sides, None), pooling)
        return self._pooled(pooling)

    def _ends(self, stages: Sequence[int | None], pooling: Pooling) -> list[str]:
        """Boundaries of stages; that of None is what the pooling reads last."""
        return [
            self._pooled(pooling) if stage is None else self.anatomy.stages[stage].end
            for stage in stages
        ]


def _pool_of(end: _End, pooling: Pooling) -> nn.Module:
    return SideBySide(pooling) if isinstance(end, list) else Pool(pooling)


def _is_layer_norm(network: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(
        network.get_submodule(str(node.target)), nn.LayerNorm
    )


def with_own_layers(
    network: nn.Module, graph: fx.Graph, memo: dict[int, object] | None = None
) -> fx.GraphModule:
    """Make a module of a graph and of copies of the layers and tensors that it calls.

    Takes a part of the time of ``copy.deepcopy``, which copies the graph node by node as well.

    Parameters
    ----------
    network : torch.nn.Module
        Has the layers; it isn't changed.
    graph : torch.fx.Graph
        Becomes the module's own.
    memo : dict, default=None
        Copies that were made before, as for ``copy.deepcopy``.
    """
    memo = {} if memo is None else memo
    part = fx.GraphModule(network, graph)  # has the very layers of the network as yet
    for name, child in list(part.named_modules(remove_duplicate=False)):
        if name and "." not in name:
            setattr(part, name, copy.deepcopy(child, memo))
    for name, parameter in list(part.named_parameters("", False, False)):
        setattr(part, name, copy.deepcopy(parameter, memo))
    for name, buffer in list(part.named_buffers("", False, False)):
        setattr(part, name, copy.deepcopy(buffer, memo))
    return part


def _subgraph(network: nn.Module, graph: fx.Graph, start: str | None, end: _End) -> fx.Graph:
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    logits = part.graph_copy(graph, copies)
    by_name = {name: copies[node] for node, name in node_names(graph).items() if node in copies}
    if isinstance(end, list):
        part.output(tuple(_kept(part, by_name[name]) for name in end))
    else:
        part.output(logits if end is None else by_name[end])
    if start is not None:
        _start_at(network, part, by_name[start])
    remove_dead_nodes(part)
    for node in list(part.nodes):
        if node.op == "placeholder" and not node.users:
            part.erase_node(node)
    return part


def _start_at(network: nn.Module, part: fx.Graph, boundary: fx.Node) -> None:
    """Replace the value of a boundary by the graph's input."""
    with part.inserting_before(next(iter(part.nodes))):
        features = part.placeholder("boundary")
        if any(_writes_in_place(network, user) for user in boundary.users):
            features = part.call_method("clone", (features,))  # the features are kept by a cache
    boundary.replace_all_uses_with(features)
    for node in part.nodes:
        if asks_of_image(node):
            node.args = (features, *node.args[1:])


def _kept(part: fx.Graph, node: fx.Node) -> fx.Node:
    """Copy a value that is given out, which what follows may overwrite."""
    with part.inserting_after(node):
        return part.call_method("clone", (node,))


class OpaqueNetwork:
    """A network that torch.fx can't follow: frozen whole or not at all.

    Attributes
    ----------
    reason : str
        Why it can't be followed.
    """

    stages: tuple[str, ...] = ("network",)

    def __init__(self, network: nn.Module, image_size: Size, reason: str) -> None:
        self.network = network
        self.reason = reason
        with unchanged(network.eval()), not_counting(network, image_size):
            self._classifier = _last_linear(network, image_size)
        paths = [] if self._classifier is None else [self._classifier]
        self.classifiers: tuple[str, ...] = tuple(paths)
        self._image_size = image_size

    def prefix(self, depth: int, pooling: Pooling) -> nn.Module:
        """See :class:`Splitter`."""
        return nn.Sequential(self._headless(), Pool(pooling)).eval()

    def suffix(self, depth: int, pooling: Pooling) -> nn.Module:
        """See :class:`Splitter`."""
        if depth:
            return nn.Identity()
        return nn.Sequential(copy.deepcopy(self._headless()), Pool(pooling))

    def rest(self, depth: int, pooling: Pooling) -> nn.Module:
        """See :class:`Splitter`."""
        return nn.Identity() if depth else self.prefix(1, pooling)

    def stage_features(self, stage: int) -> nn.Module:
        """See :class:`Splitter`."""
        return self._headless().eval()

    def several(self, depth: int, stages: Sequence[int | None], pooling: Pooling) -> nn.Module:
        """See :class:`Splitter`; there is one stage only."""
        raise ValueError(
            f"torch.fx can't trace this network ({self.reason}), so it has no several stages to "
            "give the features of. Choose stage=None, what its classifier reads."
        )

    @torch.no_grad()
    def stage_shape(self, stage: int) -> tuple[int, ...]:
        """See :class:`Splitter`; only running it tells."""
        image = torch.zeros(1, 3, *height_width(self._image_size))
        return tuple(self.stage_features(stage)(image).shape)

    def between(self, depth: int, stage: int) -> nn.Module:
        """See :class:`Splitter`; there is one stage only, and nothing after it."""
        return nn.Identity()

    def stage_of_layers(self) -> dict[str, int]:
        """See :class:`Splitter`."""
        return {}  # all are in the one stage

    sides: tuple[int, ...] = ()

    def inserted(
        self, suffix: nn.Module, stage: int, module: nn.Module, *, past_norm: bool = False
    ) -> nn.Module:
        """See :class:`Splitter`; there is one stage only, and the pooling after it."""
        network, pool = suffix.children()
        return nn.Sequential(network, module, pool)

    def _headless(self) -> nn.Module:
        """The network with its classifier taken out; its other weights are shared."""
        if self._classifier is None:
            return self.network
        memo: dict[int, object] = {id(t): t for t in self.network.parameters()}
        memo |= {id(t): t for t in self.network.buffers()}
        network = copy.deepcopy(self.network, memo)
        parent, _, name = self._classifier.rpartition(".")
        setattr(network.get_submodule(parent), name, nn.Identity())
        return network


def _last_linear(network: nn.Module, image_size: Size) -> str | None:
    """Path of the linear layer whose output is the network's output, found by running it."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.__setitem__(name, output)
        )
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and not gives_embeddings(network)
    ]
    images = torch.rand(
        (1, 3, *height_width(image_size)), generator=torch.Generator().manual_seed(0)
    )
    try:
        with torch.no_grad():
            result = network.eval()(images)
    except Exception as error:
        refuse_images(network, image_size, error)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(result, Tensor):
        refuse_output(result)
    alike = {name: out for name, out in outputs.items() if out.shape == result.shape}
    same = [name for name, output in alike.items() if torch.equal(output, result)]
    if not same and alike and result.ndim == 2:
        warn_of_output(network, result.shape[1])
    return same[-1] if same else None


def make_splitter(network: nn.Module, image_size: Size) -> Splitter:
    """Find out how a network can be cut.

    Parameters
    ----------
    network : torch.nn.Module
        Takes float images of shape (n, 3, h, w).
    image_size : int or (int, int)
        Height and width of the images in pixels.

    Returns
    -------
    TracedNetwork or OpaqueNetwork
    """
    try:
        return TracedNetwork(network, find_structure(network, image_size))
    except NotTraceableError as error:
        return OpaqueNetwork(network, image_size, str(error).splitlines()[0][:_REASON])
