"""Pretrained networks: by name or given, with their weights, preprocessing and stages."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..preprocessing import Normalize, Recipe
from .registry import EMBEDDED, Architecture, check_name, default_weights, list_backbones
from .split import OpaqueNetwork, Pool, Pooling, Splitter, make_splitter, spatial_axes
from .weights import (
    WeightsSource,
    at_image_size,
    find_weights,
    load_weights,
    recipe_of_module,
)

__all__ = [
    "EMBEDDED",
    "Backbone",
    "Pool",
    "Pooling",
    "default_weights",
    "list_backbones",
    "load_backbone",
    "rebuild_backbone",
    "spatial_axes",
]

# Searches fit the same backbone many times; one network in memory serves all fits.
_KEPT = 2
_loaded: OrderedDict[Any, Backbone] = OrderedDict()
_lock = threading.RLock()


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network with its preprocessing, ready to be cut. It is never changed.

    Attributes
    ----------
    architecture : Architecture
    recipe : Recipe
    splitter : Splitter
    """

    architecture: Architecture
    recipe: Recipe
    splitter: Splitter

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages in forward order."""
        return self.splitter.stages

    @property
    def traceable(self) -> bool:
        """Whether the network can be cut between its stages."""
        return not isinstance(self.splitter, OpaqueNetwork)

    def freeze_depth(self, freeze: int | str) -> int:
        """Number of frozen stages that the parameter `freeze` means.

        Parameters
        ----------
        freeze : int or str
            "all", "none", a number of stages (negative counts from the end), or the name of the
            last frozen stage.

        Raises
        ------
        ValueError
            If there is no such stage or there are not as many.
        """
        n = len(self.stages)
        if freeze == "all" or freeze == "none":
            return n if freeze == "all" else 0
        if isinstance(freeze, str) and freeze in self.stages:
            return self.stages.index(freeze) + 1
        if not isinstance(freeze, str) and -n <= freeze <= n:
            return int(freeze) if freeze >= 0 else n + int(freeze)
        if not self.traceable:
            raise ValueError(
                f"freeze={freeze!r}: torch.fx can't trace this network, so it has no stages to cut "
                'between. It can be frozen whole or not at all: "all" or "none".'
            )
        raise ValueError(
            f'freeze={freeze!r} is not possible: choose "all", "none", a number from {-n} to {n}, '
            f"or one of the {n} stages {list(self.stages)}."
        )

    def prefix(self, depth: int, pooling: Pooling) -> nn.Module:
        """From uint8 images to the features after `depth` stages; at 0, the images."""
        if depth == 0:
            return nn.Identity()
        if depth == len(self.stages):
            return self.stage_features(None, pooling)
        return nn.Sequential(self._normalize(), self.splitter.prefix(depth, pooling)).eval()

    def suffix(self, depth: int, pooling: Pooling) -> nn.Module:
        """From the features after `depth` stages (uint8 images at 0) to pooled features."""
        suffix = self.splitter.suffix(depth, pooling)
        return suffix if depth else nn.Sequential(self._normalize(), suffix)

    def stage_index(self, stage: int | str | None) -> int | None:
        """Number of the stage that the parameter `stage` means; None is the classifier's input.

        Raises
        ------
        ValueError
            If there is no such stage.
        """
        n = len(self.stages)
        if stage is None:
            return None
        if isinstance(stage, str) and stage in self.stages:
            return self.stages.index(stage)
        if not isinstance(stage, str) and -n <= stage < n:
            return int(stage) % n
        raise ValueError(
            f"There is no stage {stage!r}. Choose a number from {-n} to {n - 1}, or one of "
            f"{list(self.stages)}."
        )

    def stage_features(self, stage: int | None, pooling: Pooling) -> nn.Module:
        """From uint8 images to the pooled output of one stage, or what the classifier reads."""
        if stage is None:
            features = self.splitter.prefix(len(self.stages), pooling)
        else:
            features = nn.Sequential(self.splitter.stage_features(stage), Pool(pooling))
        return nn.Sequential(self._normalize(), features).eval()

    def _normalize(self) -> Normalize:
        return Normalize(self.recipe.mean, self.recipe.std)


def load_backbone(
    backbone: str | nn.Module | Callable[[], nn.Module],
    weights: Any = "DEFAULT",
    image_size: int | None = None,
    seed: int | None = None,
) -> Backbone:
    """Build a network, give it its weights and find its stages.

    Parameters
    ----------
    backbone : str, torch.nn.Module or callable
        A name of :func:`list_backbones`, a module, or what returns one.
    weights : str, path, torchvision WeightsEnum or None, default="DEFAULT"
        See :func:`sktl.backbones.weights.find_weights`.
    image_size : int or None, default=None
        Height and width of the images in pixels; None is what the weights were trained with.
    seed : int or None, default=None
        Seed of random weights.

    Returns
    -------
    Backbone

    Raises
    ------
    TypeError
        If `backbone` is none of the above.
    ValueError
        If there is no such backbone or there are no such weights, or the weights or the image
        size don't fit.
    OSError
        If a download fails.
    """
    if isinstance(backbone, str):
        check_name(backbone)
    elif not callable(backbone):
        raise TypeError(
            "backbone must be a name, a torch.nn.Module or a callable that returns one, got "
            f"{backbone!r}."
        )
    source = at_image_size(find_weights(backbone, weights), image_size)
    key = _memo_key(backbone, source)
    if key is None:
        return _load(backbone, source, image_size, seed)
    with _lock:
        if key not in _loaded:
            _loaded[key] = _load(backbone, source, image_size, seed)
        _loaded.move_to_end(key)
        while len(_loaded) > _KEPT:
            _loaded.popitem(last=False)
        return _loaded[key]


def _memo_key(backbone: Any, source: WeightsSource) -> Any:
    """What stays the same as long as the loaded network does; None if that can't be known."""
    if not isinstance(backbone, str) or source.read is None:
        return None
    stamp = None
    if Path(source.address).is_file():
        status = Path(source.address).stat()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
    return backbone, source.address, source.recipe, stamp


def _load(
    backbone: Any, source: WeightsSource, image_size: int | None, seed: int | None
) -> Backbone:
    pretrained = source.read is not None
    architecture = Architecture(backbone, source.recipe.crop, transform_input=pretrained)
    with torch.random.fork_rng(devices=[]):
        if seed is None:
            torch.default_generator.seed()
        else:
            torch.default_generator.manual_seed(seed)
        network = architecture.build(initialise=not pretrained)
    recipe = source.recipe
    if not isinstance(backbone, str) and (own := recipe_of_module(network)) is not None:
        recipe = own if image_size is None else own.at(image_size)
        architecture = replace(architecture, image_size=recipe.crop)
    splitter = _prepare(network, recipe.crop)
    if source.read is not None:
        load_weights(network, source.read(), splitter.classifier, source.name)
    return Backbone(architecture, recipe, splitter)


def _prepare(network: nn.Module, image_size: int) -> Splitter:
    network.requires_grad_(False).eval()
    return make_splitter(network, image_size)


def rebuild_backbone(architecture: Architecture, recipe: Recipe) -> Backbone:
    """Build a network of a stored model; its weights are put in afterwards."""
    network = architecture.build(initialise=False)
    return Backbone(architecture, recipe, _prepare(network, architecture.image_size))
