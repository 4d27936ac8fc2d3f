"""Which pixels speak for a class."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones import Backbone, spatial_axes
from ..images.reading import Images
from .joined import Model

_BATCH = 8
_FEWEST_PLACES = 4  # along a side; a map of fewer says little of where something is
_STEPS = 50
_STEPS_AT_ONCE = 16  # images on the way from the mean colour that run as one batch


def explain_images(
    model: Model, images: Images, targets: npt.NDArray[np.int64], method: str
) -> npt.NDArray[np.float32]:
    """Attribute the logits of some classes to pixels.

    Parameters
    ----------
    model : Model
        It isn't changed.
    images : Images
    targets : int64 array of shape (n,)
        The class of each image whose logit is explained.
    method : str
        A key of `METHODS`.

    Returns
    -------
    float32 array of shape (n, h, w)

    Raises
    ------
    ImportError
        If captum isn't installed.
    ValueError
        If the method can't be used on the network.
    """
    attribute = METHODS[method](_captum(), model)
    parts = [
        attribute(batch.to(model.device), torch.as_tensor(targets[block]).to(model.device)).cpu()
        for block, batch in _batches(model, images)
    ]
    attributions: npt.NDArray[np.float32] = torch.cat(parts).float().numpy()
    return attributions


def _captum() -> ModuleType:
    try:
        import captum.attr
    except ImportError as error:
        raise ImportError(
            "explain needs captum, which isn't installed: pip install 'sktl[explain]'"
        ) from error
    module: ModuleType = captum.attr
    return module


def _batches(model: Model, images: Images) -> Iterator[tuple[slice, Tensor]]:
    """Pixels as the network sees them, as floats from 0 to 255."""
    for start in range(0, len(images), _BATCH):
        block = range(start, min(start + _BATCH, len(images)))
        prepared = model.backbone.recipe.read(images, block)
        yield slice(block.start, block.stop), prepared.float()


def _fixed(network: nn.Module, head: nn.Module) -> nn.Module:
    """In float32 and evaluation mode; only the input has gradients."""
    joined = nn.Sequential(network, copy.deepcopy(head))
    return joined.float().eval().requires_grad_(False)


Attribute = Callable[[Tensor, Tensor], Tensor]


# Integrated gradients -------------------------------------------------------------------


def _integrated_gradients(captum: ModuleType, model: Model) -> Attribute:
    """Begin at an image of the mean colour, which the network sees as zeros."""
    method = captum.IntegratedGradients(_fixed(model.whole_network(), model.net.module_.head))
    mean = torch.tensor(model.backbone.recipe.mean, device=model.device).reshape(1, 3, 1, 1) * 255

    def attribute(pixels: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = method.attribute(
            pixels.requires_grad_(),
            mean.expand_as(pixels),
            targets,
            n_steps=_STEPS,
            internal_batch_size=_STEPS_AT_ONCE,
        )
        return found.detach().sum(1)

    return attribute


# Grad-CAM -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """Where a stage's output has places and channels.

    Attributes
    ----------
    shape : tuple of int
        Rows and columns of places.
    channels_last : bool
    n_extra : int or None
        Of tokens, the number before those of places, such as the class token; None of maps.
    """

    shape: tuple[int, int]
    channels_last: bool
    n_extra: int | None = None


def _layout(shape: tuple[int, ...], is_square: bool) -> _Layout | None:
    """Read the shape of a map (n, c, h, w) or (n, h, w, c), or of tokens (n, t, c) of a square."""
    if len(shape) == 4:
        rows, columns = spatial_axes(shape)
        return _Layout((shape[rows], shape[columns]), rows == 1)
    if len(shape) == 3 and is_square:
        side = math.isqrt(shape[1])
        return _Layout((side, side), True, shape[1] - side**2)
    return None


def _choose_stage(backbone: Backbone) -> tuple[int, _Layout]:
    """The last stage that tells places apart, and whose places the logits depend on."""
    last = len(backbone.stages) - 1
    found: list[tuple[int, _Layout]] = []
    for stage in reversed(range(last + 1)):
        layout = _layout(
            backbone.splitter.stage_shape(stage), isinstance(backbone.recipe.crop, int)
        )
        if layout is None:
            continue
        if layout.n_extra:
            # After the last stage a class token alone is read: gradients at others are zero.
            return max(0, last - 1), layout
        if stage < last and layout.channels_last:
            continue  # a norm follows, see _grad_cam
        if min(layout.shape) >= _FEWEST_PLACES:
            return stage, layout
        found.append((stage, layout))
    if not found:
        raise ValueError(
            'method="grad_cam" needs a stage whose output has places, as maps and tokens have; the '
            f"stages {list(backbone.stages)} of this network have none that can be read. Choose "
            'method="integrated_gradients".'
        )
    return max(found, key=lambda item: min(item[1].shape))


class _Places(nn.Module):
    """Bring what a stage makes to (n, c, h, w); gradients begin here."""

    def __init__(self, layout: _Layout) -> None:
        super().__init__()
        self.layout = layout
        self.extra = torch.empty(0)

    def forward(self, output: Tensor) -> Tensor:
        """Set aside the tokens of no place."""
        n_extra = self.layout.n_extra
        if n_extra is not None:
            self.extra = output[:, :n_extra]
            output = torch.unflatten(output[:, n_extra:], 1, self.layout.shape)
        if self.layout.channels_last:
            output = output.movedim(-1, 1)
        return output.detach().requires_grad_()


class _Back(nn.Module):
    """Undo :class:`_Places`."""

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self._places = [places]  # in a list, so that it isn't a part of this module

    def forward(self, maps: Tensor) -> Tensor:
        """Bring maps to the stage's own layout."""
        (places,) = self._places
        output = maps.movedim(1, -1) if places.layout.channels_last else maps
        if places.layout.n_extra is None:
            return output
        return torch.cat([places.extra, output.flatten(1, 2)], dim=1)


def _grad_cam(captum: ModuleType, model: Model) -> Attribute:
    stage, layout = _choose_stage(model.backbone)
    places = _Places(layout)
    between = nn.Sequential(places, _Back(places))
    # A layer norm makes a token's length irrelevant, so that the gradient before it is at right
    # angles to the token, and their product says nothing.
    whole, past_norm = model.whole_network(), bool(layout.n_extra)
    whole = model.backbone.inserted(whole, stage, between, past_norm=past_norm)
    network = _fixed(whole, model.net.module_.head)
    method = captum.LayerGradCam(network, places)

    def attribute(pixels: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = method.attribute(pixels, targets, relu_attributions=True)
        size = pixels.shape[2:]
        return F.interpolate(found.detach(), size, mode="bilinear", align_corners=False)[:, 0]

    return attribute


METHODS: dict[str, Callable[[ModuleType, Model], Attribute]] = {
    "grad_cam": _grad_cam,
    "integrated_gradients": _integrated_gradients,
}
