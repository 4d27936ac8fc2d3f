"""What each node of a graph gives for images of some size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import fx, nn

from ..images.sizes import Size, height_width, in_pixels
from ..tensors import without_values


@dataclass(frozen=True)
class Shaped:
    """Stands for a tensor."""

    shape: tuple[int, ...]


def values_of(network: nn.Module, graph: fx.Graph, image_size: Size, n: int) -> dict[fx.Node, Any]:
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
        self.values.append(Shaped(tuple(value.shape)) if is_tensor else value)
        return value


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"
