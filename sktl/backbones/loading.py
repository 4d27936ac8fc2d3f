"""Networks by name or given, with their weights and stages.

Estimators know each other by their parameters alone. So that clones and folds share a network,
and what was made of it, those that were loaded last are kept, by name and content.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import xxhash
from torch import nn

from ..images.descriptions import read_recipe, recipe_of_module
from ..images.preprocessing import Recipe
from ..images.sizes import Size, in_pixels
from ..messages import shown
from ..randomness import seeded
from ..version import __version__
from .backbone import LOADING, Backbone
from .from_transformers import as_network, own_module
from .hubs import build_from_hub, is_of_hub
from .registry import Architecture, check_name
from .split import Splitter, Structure, TracedNetwork, make_splitter
from .weights import (
    IMAGENET_RECIPE,
    Adjustment,
    WeightsSource,
    find_weights,
    load_weights,
)

# Searches fit the same backbone many times; one network in memory serves all fits.
_KEPT = 2
_loaded: OrderedDict[tuple[bytes, str], Backbone] = OrderedDict()


# What was found of architectures, which takes longer than to load the weights of a small one.
_KEPT_STRUCTURES = 16
_structures: OrderedDict[tuple[Any, ...], Structure] = OrderedDict()

# What a name stands for may change with them; read once, as every fit asks.
_VERSIONS = (__version__, version("torchvision"))


def load_backbone(
    backbone: str | nn.Module | Callable[[], nn.Module],
    weights: Any = "DEFAULT",
    image_size: Size | None = None,
    seed: int | None = None,
    recall: Callable[[bytes], tuple[tuple[str, ...], tuple[int, ...]] | None] | None = None,
    resize_mode: str = "crop",
    preprocessing: Any = None,
) -> Backbone:
    """Build a network, give it its weights and find its stages.

    Parameters
    ----------
    backbone : str, torch.nn.Module or callable
        A name of :func:`list_backbones`, a module, or what returns one.
    weights : str, path, torchvision WeightsEnum or None, default="DEFAULT"
        See :func:`sktl.backbones.weights.find_weights`.
    image_size : int, (int, int) or None, default=None
        Height and width of the images in pixels; None is what the weights were trained with.
    seed : int or None, default=None
        Seed of random weights.
    recall : callable or None, default=None
        Gives the `stages` and `sides` of a backbone with this `identity`, if they are known from
        before; the network is then loaded only when it is needed.
    resize_mode : {"auto", "crop", "squash", "pad"}, default="crop"
        See :class:`sktl.images.preprocessing.Recipe`. "auto" is that of `preprocessing`, or else
        "squash".
    preprocessing : object, default=None
        See :func:`sktl.images.descriptions.read_recipe`; None is what comes with the network.

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
            f"{shown(backbone)}."
        )
    given = None if preprocessing is None else read_recipe(preprocessing)
    adjust = Adjustment(given, image_size, resize_mode)
    source = find_weights(backbone, weights)
    source = replace(source, recipe=adjust(source.recipe))
    if not isinstance(backbone, str) or source.read is None or is_of_hub(backbone):
        return _load_once(backbone, source, adjust, seed)
    identity = _identity(backbone, source)
    key = (identity, source.address)
    with LOADING:
        found = _loaded.get(key) or _load_later(backbone, source, identity)
        if not found.is_loaded:
            known = None if recall is None else recall(identity)
            found.known_stages, found.known_sides = (None, None) if known is None else known
            found.known_stages, found.known_sides = found.stages, found.sides
        _keep(key, found)
    return found


def _identity(backbone: str, source: WeightsSource) -> bytes:
    facts = (backbone, source.recipe, source.content(), _VERSIONS)
    return xxhash.xxh3_128_digest(repr(facts).encode())


def _load_later(backbone: str, source: WeightsSource, identity: bytes) -> Backbone:
    architecture = Architecture(backbone, source.recipe.crop, transform_input=True)

    def load() -> Splitter:
        if _identity(backbone, source) != identity:
            raise OSError(f"{source.name} has changed since it was first used. Fit again.")
        splitter = _prepare(architecture.build(initialise=False), architecture)
        _load_weights(splitter, source)
        return splitter

    return Backbone(architecture, source.recipe, load, identity)


def _load_once(
    backbone: Any, source: WeightsSource, adjust: Adjustment, seed: int | None
) -> Backbone:
    """Keep a network of a hub, which takes long to read, for the next fit."""
    if not source.built_in:
        return _load_now(backbone, source, adjust, seed)
    key = (repr((backbone, source.recipe)).encode(), source.name)
    with LOADING:
        if key not in _loaded:
            _keep(key, _load_now(backbone, source, adjust, seed))
        return _loaded[key]


def _keep(key: tuple[bytes, str], backbone: Backbone) -> None:
    _loaded[key] = backbone
    _loaded.move_to_end(key)
    while len(_loaded) > _KEPT:
        _loaded.popitem(last=False)


def _load_now(
    backbone: Any, source: WeightsSource, adjust: Adjustment, seed: int | None
) -> Backbone:
    """Load what only the network itself can tell apart: modules, callables, random weights."""
    pretrained = source.read is not None
    architecture = Architecture(backbone, source.recipe.crop, transform_input=pretrained)
    with seeded(seed):
        if source.built_in:
            network = build_from_hub(backbone, source.recipe.crop, pretrained=True)
        else:
            network = architecture.build(initialise=not pretrained)
    recipe = source.recipe
    if not isinstance(backbone, str):
        recipe = adjust(_recipe_that_comes_with(network, adjust))
        architecture = replace(architecture, image_size=recipe.crop)
    splitter = _prepare(network, architecture)
    if source.read is not None:
        _load_weights(splitter, source)
    return _loaded_backbone(architecture, recipe, splitter)


def _recipe_that_comes_with(network: nn.Module, adjust: Adjustment) -> Recipe:
    """The preprocessing that a network brings, or else ImageNet's, with a warning."""
    if adjust.given is not None:
        return adjust.given
    own = recipe_of_module(network)
    if own is None:
        own, name = IMAGENET_RECIPE, type(network).__name__
        size = in_pixels(own.crop if adjust.image_size is None else adjust.image_size)
        warnings.warn(
            f"{name} brings no preprocessing, so pictures are prepared as for most networks of "
            f"ImageNet: {size}, mean {own.mean}, deviation {own.std}. Pass as preprocessing what "
            "its weights were trained with, or sktl.Recipe() if it is this.",
            UserWarning,
            stacklevel=2,
        )
    if adjust.resize_mode == "crop" and own.resize_mode != "crop":
        mode = "pad" if own.resize_mode == "pad" else "squash"
        warnings.warn(
            f"The weights of {type(network).__name__} were evaluated on whole pictures, and "
            f'"crop" cuts their edges off. resize_mode={mode!r} keeps them.',
            UserWarning,
            stacklevel=2,
        )
    return own


def _loaded_backbone(
    architecture: Architecture, recipe: Recipe, splitter: Splitter, identity: bytes | None = None
) -> Backbone:
    return Backbone(architecture, recipe, lambda: splitter, identity, _splitter=splitter)


def _prepare(network: nn.Module, architecture: Architecture) -> Splitter:
    """Find where a network can be cut; of those that have a name, once for all of their weights."""
    network.requires_grad_(False).eval()
    key, size = architecture.name_and_size, architecture.image_size
    structure = None if key is None else _structures.get(key)
    if structure is not None:
        return TracedNetwork(network, structure)
    splitter = make_splitter(as_network(network, size), size)
    if key is None or not isinstance(splitter, TracedNetwork) or splitter.network is not network:
        return splitter
    if splitter.structure.is_of_any_like(network):
        with LOADING:
            _structures[key] = splitter.structure
            while len(_structures) > _KEPT_STRUCTURES:
                _structures.popitem(last=False)
    return splitter


def _load_weights(splitter: Splitter, source: WeightsSource) -> None:
    assert source.read is not None
    network = splitter.network
    own = own_module(network)
    paths = splitter.classifiers
    if own is not network:
        paths = tuple(path.removeprefix("model.") for path in paths)
    load_weights(own, source.read(), paths, source.name)


def rebuild_backbone(
    architecture: Architecture, recipe: Recipe, identity: bytes | None = None
) -> Backbone:
    """Build a network of a stored model; its weights are put in afterwards."""
    network = architecture.build(initialise=False)
    splitter = _prepare(network, architecture)
    return _loaded_backbone(architecture, recipe, splitter, identity)
