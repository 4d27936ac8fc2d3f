"""A network's forward as a torch.fx graph, in training and in evaluation.

Where torch.fx can't follow all of it, parts of the network are taken as one step each.
"""

from __future__ import annotations

import inspect
import math
import operator
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torchvision.ops
from torch import fx, nn

from ..images.sizes import Size, height_width
from ..tensors import without_values
from .nodes import PATH, remove_dead_nodes, writes_in_place
from .shaped_trace import ShapedProxy, Values, forget_devices
from .state import not_counting, unchanged

# Their forward asks for `self.training`, which tracing would freeze into the graph.
# A linear layer is one whatever its forward looks like; only so a classifier is known.
_LEAVES = (torchvision.ops.StochasticDepth, torchvision.ops.DropBlock2d, nn.Linear)


_one_at_a_time = threading.RLock()


class NotTraceableError(Exception):
    """torch.fx can't follow this network's forward."""


@dataclass(frozen=True)
class Whole:
    """What a trace takes as one step, without looking inside.

    Attributes
    ----------
    classes : tuple of type
        Of modules.
    paths : frozenset of str
        Of modules.
    functions : tuple of callable
    with_sizes : bool
        Whether the trace knows the sizes of tensors; see :mod:`sktl.backbones.shaped_trace`.
    """

    classes: tuple[type[nn.Module], ...] = ()
    paths: frozenset[str] = frozenset()
    functions: tuple[Callable[..., Any], ...] = ()
    with_sizes: bool = False


class _Tracer(fx.Tracer):
    """Record for each node the path of the module in whose forward it is."""

    def __init__(self, whole: Whole) -> None:
        super().__init__(
            autowrap_modules=(math, torchvision.ops),  # type: ignore[arg-type]
            autowrap_functions=whole.functions,
        )
        self._whole = whole
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
        node.meta[PATH] = self._inside[-1]
        # An annotation, which nothing needs, and which torch before 2.13 can't pickle as a string.
        node.type = None
        return node

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, (*_LEAVES, *self._whole.classes))
            or module_qualified_name in self._whole.paths
            or super().is_leaf_module(m, module_qualified_name)
        )


class _ShapedTracer(_Tracer):
    """Know the sizes of the values that it records."""

    def __init__(self, whole: Whole, network: nn.Module, image_size: Size) -> None:
        super().__init__(whole)
        self.values = Values(without_values(network), height_width(image_size))

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if self.values.busy:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.values.busy:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ShapedProxy(node, self)

    def create_proxy(self, kind: str, *args: Any, **kwargs: Any) -> fx.Proxy:
        proxy = super().create_proxy(kind, *args, **kwargs)
        if kind != "output":
            self.values[proxy.node]  # what isn't possible shows at once
        return proxy


def trace_both(network: nn.Module, image_size: Size) -> tuple[fx.Graph, fx.Graph]:
    """Trace a network in training and in evaluation mode, in the first way that works."""
    first: NotTraceableError | None = None
    for whole in _ways(network):
        try:
            train = _trace_mode(network.train(), whole, image_size)
            with unchanged(network), not_counting(network, image_size):
                return train, _trace_mode(network.eval(), whole, image_size)
        except NotTraceableError as error:
            first = first or error
    assert first is not None
    raise first


def _ways(network: nn.Module) -> Iterator[Whole]:
    """What to take as one step: first as little as possible."""
    yield Whole()
    known = _known_to_timm(network)
    if known is not None:
        yield known
    yield Whole(with_sizes=True)
    if known is not None:
        yield replace(known, with_sizes=True)
    blocks = _repeated_blocks(network)
    if blocks:
        yield Whole(paths=blocks)
        yield Whole(paths=blocks, with_sizes=True)
        if known is not None:
            yield replace(known, paths=blocks)


def _known_to_timm(network: nn.Module) -> Whole | None:
    """The modules and functions that timm's own feature extraction doesn't trace."""
    if not any(type(part).__module__.startswith("timm.") for part in network.modules()):
        return None
    try:
        from timm.models import get_notrace_functions, get_notrace_modules
    except ImportError:  # they have been there since 0.6 and aren't documented
        return None
    classes, functions = get_notrace_modules(), get_notrace_functions()  # type: ignore[no-untyped-call]
    return Whole(classes=tuple(classes), functions=tuple(functions))


def _repeated_blocks(network: nn.Module) -> frozenset[str]:
    """Paths of modules of one class, with layers inside, that stand side by side in a container."""
    found: list[str] = []
    for path, module in network.named_modules():
        if not isinstance(module, nn.Sequential | nn.ModuleList):
            continue
        if any(path == f or path.startswith(f + ".") for f in found):
            continue
        children = [
            (f"{path}.{name}".lstrip("."), child)
            for name, child in module.named_children()
            if _n_layers(child) >= 2
        ]
        if len(children) >= 2 and len({type(child) for _, child in children}) == 1:
            found += [name for name, _ in children]
    return frozenset(found)


def _n_layers(module: nn.Module) -> int:
    """How many layers with weight matrices or kernels a module holds."""
    return sum(
        any(p.ndim >= 2 for p in part.parameters(recurse=False)) for part in module.modules()
    )


def layers_of_leaf(network: nn.Module, path: str) -> int:
    """How many layers there are in what a trace took as one step; 0 in a layer of torch."""
    part = operator.attrgetter(path)(network)
    own = isinstance(part, nn.Module) and not type(part).__module__.startswith("torch.nn")
    return _n_layers(part) if own and any(True for _ in part.children()) else 0


def _trace_mode(network: nn.Module, whole: Whole, image_size: Size) -> fx.Graph:
    try:
        with _one_at_a_time:  # two would put each other's changes back
            tracer = (
                _ShapedTracer(whole, network, image_size) if whole.with_sizes else _Tracer(whole)
            )
            graph = tracer.trace(network, _defaults(network.forward))
            if whole.with_sizes:
                forget_devices(graph)
    except Exception as error:  # torch.fx raises whatever the forward method raises on a proxy
        raise NotTraceableError(f"{type(error).__name__}: {error}") from error
    if any(not node.users and writes_in_place(network, node) for node in graph.nodes):
        raise NotTraceableError("its forward changes a tensor in place and drops the result")
    _keep_logits(graph, network.training)
    remove_dead_nodes(graph)
    _forget_numpy(graph)
    return graph


def _forget_numpy(graph: fx.Graph) -> None:
    """Make Python's numbers of NumPy's, which the code of a graph can't name.

    DINOv3 of transformers has such in training.
    """

    def plain(value: Any) -> Any:
        return value.item() if isinstance(value, np.generic) else value

    for node in graph.nodes:
        node.args = fx.node.map_aggregate(node.args, plain)
        node.kwargs = fx.node.map_aggregate(node.kwargs, plain)


def _defaults(forward: Callable[..., Any]) -> dict[str, Any]:
    """Arguments after the image keep their defaults."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _keep_logits(graph: fx.Graph, training: bool) -> None:
    """Keep one tensor: of a dict, "logits"; of a tuple in training, the first."""
    output = next(n for n in graph.nodes if n.op == "output")
    value = output.args[0]
    if isinstance(value, dict) and "logits" in value:
        value = value["logits"]
    elif training and isinstance(value, tuple | list) and value:
        value = value[0]  # the others are auxiliary outputs, if there is one in evaluation
    if not isinstance(value, fx.Node):
        refuse_output(value)
    output.args = (value,)


def refuse_output(value: object) -> NoReturn:
    """Raise a ValueError for what a network returned in the place of a tensor."""
    kinds = (dict, list, tuple)  # torch.fx has classes of its own for these
    kind = next((k.__name__ for k in kinds if isinstance(value, k)), type(value).__name__)
    what = f"{kind} of {len(value)} things" if isinstance(value, kinds) else kind
    raise ValueError(
        f"The backbone must return one tensor a batch, the features or logits, and returns "
        f"a {what}. Build it so that it returns one (in timm, features_only=False), or wrap it in "
        "a module whose forward does."
    )
