"""What a network's forward changes in the network itself.

What it does to an image must not depend on those before it, or features couldn't be kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import fx, nn

from ..images.sizes import Size, height_width

_Numbers = dict[tuple[str, str], int | float]


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Run or trace a network, which must not change in it.

    Raises
    ------
    ValueError
        If buffers have changed; they are put back.
    """
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    yield
    changed = []
    for name, buffer in network.named_buffers():
        if name in buffers and not torch.equal(buffer, buffers[name]):
            buffer.data.copy_(buffers[name])
            changed.append(name)
    if changed:
        _refuse(network, changed[0])


@contextmanager
def as_before(network: nn.Module) -> Iterator[None]:
    """Put back what a forward has kept of its input in attributes of the modules."""
    attributes = [(module, dict(vars(module))) for module in network.modules()]
    try:
        yield
    finally:
        for module, before in attributes:
            now = vars(module)
            # torch.fx keeps constants of the graph as new attributes, which stay.
            for name in [n for n, v in now.items() if isinstance(v, fx.Proxy) and n not in before]:
                del now[name]
            now.update(before)


@contextmanager
def not_counting(network: nn.Module, image_size: Size) -> Iterator[None]:
    """Trace a network in evaluation mode, whose own numbers may follow the images but not count.

    A trace takes a number for a constant. Where one has changed in it, the network is run to tell
    what it keeps of the images, such as their height, from what changes each time.

    Raises
    ------
    ValueError
        If a number, an attribute of a module, changes each time.
    """
    before = _numbers(network)
    with as_before(network):
        yield
        if _numbers(network) != before:
            changing = _changing(network, image_size)
            if changing:
                _refuse(network, changing[0])


def _numbers(network: nn.Module) -> _Numbers:
    """The numbers that are attributes of modules, by path and name; train mode is none of them."""
    return {
        (path, name): value
        for path, module in network.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float) and name != "training"
    }


@torch.no_grad()
def _changing(network: nn.Module, image_size: Size) -> list[str]:
    """Names of the numbers that differ between two runs on the same image."""
    images = torch.zeros(1, 3, *height_width(image_size))
    found: list[_Numbers] = []
    for _ in range(2):
        network.eval()(images)
        found.append(_numbers(network))
    first, second = found
    return [".".join(filter(None, key)) for key in second if second[key] != first.get(key)]


def _refuse(network: nn.Module, name: str) -> NoReturn:
    raise ValueError(
        f"The forward of {type(network).__name__} changes its own {name!r}, so that the features "
        "of a picture depend on those before it, and can't be kept. Take that out, or do it in "
        "training mode only."
    )
