"""A network as a torch.fx graph, and the points where it can be cut in two.

A boundary is a node through which everything that depends on the image flows as a
single tensor. What lies before it can be computed once and kept; what lies after it
needs nothing else.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
import torchvision.ops
from torch import fx, nn

from ..images.preprocessing import Size, height_width, in_pixels
from ..tensors import without_values
from .shaped_trace import ShapedProxy, Values, forget_devices
from .state import as_before, not_counting, unchanged

# Their forward asks for `self.training`, which tracing would freeze into the graph.
# A linear layer is one whatever its forward looks like; only so a classifier is known.
_LEAVES = (torchvision.ops.StochasticDepth, torchvision.ops.DropBlock2d, nn.Linear)
_PATH = "sktl_path"
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
        node.meta[_PATH] = self._inside[-1]
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
        train, graph = _trace_both(network, image_size)
    return _analyse(network, train, graph, image_size)


def _trace_both(network: nn.Module, image_size: Size) -> tuple[fx.Graph, fx.Graph]:
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


def _analyse(
    network: nn.Module, train: fx.Graph, graph: fx.Graph, image_size: Size
) -> NetworkGraph:
    values = _values(network, graph, image_size, 2)
    if any(map(_asks_for_size, graph.nodes)):
        _fold_sizes(train, graph, values, _values(network, graph, image_size, 3))
    names = node_names(graph)
    shapes = {name: v.shape for n, name in names.items() if isinstance(v := values[n], _Shaped)}
    train_names = node_names(train)
    known = {train_names[node] for node in _boundaries(train)}
    kept = tuple(
        n for n in map(names.__getitem__, _boundaries(graph)) if n in shapes and n in known
    )
    return NetworkGraph(train, graph, names, kept, shapes)


def _fold_sizes(
    train: fx.Graph, graph: fx.Graph, values: dict[fx.Node, Any], others: dict[fx.Node, Any]
) -> None:
    """Make numbers of what follows from the size of the images, which is always the same.

    Otherwise a network that hands its height and width from block to block has no boundaries.
    `values` and `others` are those of differing numbers of images.
    """
    names = node_names(graph)
    sizes = {
        names[node]: value
        for node, value in values.items()
        if _is_size(value) and others[node] == value  # else it counts the images
    }
    for part in (train, graph):
        for node, name in node_names(part).items():
            if name in sizes and node.op not in ("placeholder", "output"):
                _put_in_place(node, sizes[name])
        remove_dead_nodes(part)


def _asks_for_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return node.op == "call_function" and node.target is getattr


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
    return graph


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


@dataclass(frozen=True)
class _Shaped:
    """Stands for a tensor."""

    shape: tuple[int, ...]


def _values(network: nn.Module, graph: fx.Graph, image_size: Size, n: int) -> dict[fx.Node, Any]:
    """What each node gives for `n` images; this also shows whether the size is possible.

    Shapes are propagated without computing if that is possible. It isn't where a forward makes
    tensors of its own: such a network is run.
    """
    module = fx.GraphModule(network.eval(), graph)
    shape = (n, 3, *height_width(image_size))
    try:
        return _record(without_values(module), graph, torch.empty(shape, device="meta"))
    except Exception:
        try:
            return _record(module, graph, torch.zeros(shape))
        except Exception as error:
            refuse_images(network, image_size, error)


@torch.no_grad()
def _record(module: fx.GraphModule, graph: fx.Graph, images: torch.Tensor) -> dict[fx.Node, Any]:
    recorder = _Recorder(module)
    recorder.run(images)
    return dict(zip(graph.nodes, recorder.values, strict=True))


def refuse_images(network: nn.Module, image_size: Size, error: Exception) -> NoReturn:
    """Say why a network can't take images of a size."""
    sizes = height_width(image_size)
    for channels in (1, 4):
        try:
            with torch.no_grad():
                network.eval()(torch.zeros(1, channels, *sizes))
        except Exception:
            continue
        n = f"{channels} channel{'s' if channels > 1 else ''}"
        raise ValueError(
            f"{type(network).__name__} takes images of {n}, and sktl gives 3, red, green and blue "
            "(grey pictures three times the same). Build it for 3, in timm with in_chans=3."
        ) from error
    raise ValueError(
        f"The network can't take images of {in_pixels(image_size)} "
        f"({type(error).__name__}: {_first_line(error)}). Choose another image_size."
    ) from error


class _Recorder(fx.Interpreter):
    """Keep the value of every node in graph order, of tensors the shape alone."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: list[Any] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        is_tensor = isinstance(value, torch.Tensor)
        self.values.append(_Shaped(tuple(value.shape)) if is_tensor else value)
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
