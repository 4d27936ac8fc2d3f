"""Pretrained networks: by name or given, with their weights, preprocessing and stages."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from numbers import Integral
from typing import Any, TypeAlias

import xxhash
from torch import nn

from ..images.descriptions import read_recipe, recipe_of_module
from ..images.preprocessing import Normalize, Recipe, Size, in_pixels
from ..messages import shown
from ..randomness import seeded
from ..version import __version__
from .efficientnet_lite import LITES, pad_same
from .from_transformers import as_network, own_module
from .hubs import build_from_hub, is_of_hub
from .registry import EMBEDDED, Architecture, check_name, default_weights, list_backbones
from .split import CutNetwork, OpaqueNetwork, Pool, Pooling, Splitter, make_splitter, spatial_axes
from .weights import (
    IMAGENET_RECIPE,
    Adjustment,
    WeightsSource,
    find_weights,
    load_weights,
)

__all__ = [
    "EMBEDDED",
    "LITES",
    "Backbone",
    "CutNetwork",
    "Pool",
    "Pooling",
    "Stages",
    "check_name",
    "default_weights",
    "list_backbones",
    "load_backbone",
    "pad_same",
    "rebuild_backbone",
    "spatial_axes",
]

# One stage by its number, or what the classifier reads (None), or several of these.
Stages: TypeAlias = int | None | tuple[int | None, ...]

# Searches fit the same backbone many times; one network in memory serves all fits.
_KEPT = 2
_loaded: OrderedDict[tuple[bytes, str], Backbone] = OrderedDict()
_lock = threading.RLock()

# What a name stands for may change with them; read once, as every fit asks.
_VERSIONS = (__version__, version("torchvision"))


@dataclass(eq=False)
class Backbone:
    """A network with its preprocessing, ready to be cut. The network is never changed.

    Attributes
    ----------
    architecture : Architecture
    recipe : Recipe
    load : callable
        Builds the network, gives it its weights and finds where it can be cut.
    identity : bytes or None, default=None
        Hash of name, weights and preprocessing, which stands for all that the network computes;
        None if only the network itself can tell.
    known_stages, known_sides : tuples or None, default=None
        The `stages` and `sides`, where they are known without loading.
    derived : dict
        What others have made of the network, by names of theirs. All who use the network share it,
        and it goes when the network goes; so it must not refer to this object.
    """

    architecture: Architecture
    recipe: Recipe
    load: Callable[[], Splitter]
    identity: bytes | None = None
    known_stages: tuple[str, ...] | None = None
    known_sides: tuple[int, ...] | None = None
    derived: dict[object, Any] = field(default_factory=dict, init=False, repr=False)
    _splitter: Splitter | None = field(default=None, repr=False)

    @property
    def splitter(self) -> Splitter:
        """The network, loaded when it is first asked for."""
        if self._splitter is None:
            with _lock:
                if self._splitter is None:
                    self._splitter = self.load()
        return self._splitter

    @property
    def is_loaded(self) -> bool:
        """Whether the network is in memory."""
        return self._splitter is not None

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages in forward order."""
        return self.splitter.stages if self.known_stages is None else self.known_stages

    @property
    def sides(self) -> tuple[int, ...]:
        """Stages that a head reads with pooling="stages", beside what the classifier reads."""
        return self.splitter.sides if self.known_sides is None else self.known_sides

    def choose_pooling(self, pooling: str, depth: int) -> Pooling:
        """Find what a head reads, by an estimator's `pooling` and the number of frozen stages.

        "auto" takes several stages where all are frozen. That gains most where the pictures are
        far from those that the network has learned from, or smaller; what training does to the
        last stages gains the same.

        Raises
        ------
        ValueError
            If several stages are asked for, and the network has none that make maps, or some of
            them would lie before those that train.
        """
        n = len(self.stages)
        if pooling in ("auto", "network"):
            return "stages" if pooling == "auto" and depth == n and self.sides else "auto"
        if pooling == "stages" and not self.sides:
            raise ValueError(
                'pooling="stages" reads the last stages that make maps, and this network has none '
                'before its last. Choose pooling="network".'
            )
        most = self.sides[0] + 1 if pooling == "stages" else n
        if most < depth < n:
            raise ValueError(
                f'pooling="stages" reads the stages {[self.stages[i] for i in self.sides]}, of '
                f"which some are frozen and others train with {depth} frozen stages. Freeze all or "
                f'at most {most}, or choose pooling="network".'
            )
        found: Pooling = pooling  # type: ignore[assignment]  # the estimators allow no other
        return found

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
        if n == 1 and freeze != 0 and isinstance(self.splitter, OpaqueNetwork):
            # Its one stage is no choice of anybody's: -1 would silently train everything.
            raise ValueError(
                f"freeze={shown(freeze)}: torch.fx can't trace this network "
                f"({self.splitter.reason}), so it has no stages to cut between. It can be frozen "
                'whole or not at all: "all" or "none".'
            )
        if not isinstance(freeze, str | bool) and -n <= freeze <= n:
            return int(freeze) if freeze >= 0 else n + int(freeze)
        raise ValueError(
            f'freeze={shown(freeze)} is not possible: choose "all", "none", a number from {-n} to '
            f"{n}, or one of the {n} stages {list(self.stages)}."
        )

    def prefix(self, depth: int, pooling: Pooling) -> nn.Module:
        """From uint8 images to the features after `depth` stages; at 0, the images."""
        if depth == 0:
            return nn.Identity()
        if depth == len(self.stages):
            return self.stage_features(None, pooling)
        return self.stage_features(depth - 1, None)

    def suffix(self, depth: int, pooling: Pooling) -> nn.Module:
        """From the features after `depth` stages (uint8 images at 0) to pooled features."""
        if depth == len(self.stages):
            return nn.Identity()
        suffix = self.splitter.suffix(depth, pooling)
        return suffix if depth else nn.Sequential(self._normalize(), suffix)

    def rest(self, depth: int, pooling: Pooling) -> nn.Module:
        """What :meth:`suffix` copies, in evaluation mode; shares the network's weights."""
        rest = self.splitter.rest(depth, pooling)
        return rest if depth else nn.Sequential(self._normalize(), rest).eval()

    def inserted(
        self, network: nn.Module, stage: int, module: nn.Module, *, past_norm: bool = False
    ) -> nn.Module:
        """What ``suffix(0, pooling)`` gave, perhaps trained since, with a module in it.

        It is at the end of a stage; with `past_norm` after the layer norm that reads the stage's
        output, if one does.
        """
        normalize, suffix = network.children()
        inserted = self.splitter.inserted(suffix, stage, module, past_norm=past_norm)
        return nn.Sequential(normalize, inserted)

    def suffix_stages(self, depth: int, suffix: nn.Module) -> dict[str, int]:
        """The stage of modules and weights of a suffix, counted from its first, by name.

        What isn't in it belongs to the first.
        """
        layers = self.splitter.stage_of_layers()
        found: dict[str, int] = {}
        for name, _ in (*suffix.named_modules(), *suffix.named_parameters()):
            path = name.partition("body.")[2]  # of a CutNetwork
            while path and path not in layers:
                path = path.rpartition(".")[0]
            if path:
                found[name] = max(0, layers[path] - depth)
        return found

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
        if isinstance(stage, Integral) and not isinstance(stage, bool) and -n <= stage < n:
            return int(stage) % n
        raise ValueError(
            f"There is no stage {shown(stage)}. Choose a number from {-n} to {n - 1}, or one of "
            f"{list(self.stages)}."
        )

    def find_stages(self, stage: Any) -> Stages:
        """Number of a stage, or those of several; a list of one is that one.

        Parameters
        ----------
        stage : int, str, None, or a list or tuple of these

        Raises
        ------
        ValueError
            If there is no such stage, or none, or one occurs twice.
        """
        if not isinstance(stage, list | tuple):
            return self.stage_index(stage)
        found = tuple(map(self.stage_index, stage))
        if not found:
            raise ValueError("stage is empty. Name at least one stage, or None.")
        for i, index in enumerate(found):
            if index in found[:i]:
                raise ValueError(
                    f"stage={shown(stage)} has {shown(stage[found.index(index)])} and "
                    f"{shown(stage[i])}, which are the same. Name each stage once."
                )
        return found if len(found) > 1 else found[0]

    def stage_features(self, stage: Stages, pooling: Pooling | None) -> nn.Module:
        """From uint8 images to the output of one stage, or pooled to what the classifier reads.

        Parameters
        ----------
        stage : int, tuple of (int or None), or None
            None is what the network itself hands to its classifier. Of several stages, all are
            pooled and joined in this order.
        pooling : {"auto", "avg", "flatten"} or None
            None leaves a stage's output as it is.
        """
        if isinstance(stage, tuple):
            features = self.splitter.several(0, stage, pooling or "auto")
        elif stage is None:
            features = self.splitter.prefix(len(self.stages), pooling or "auto")
        else:
            features = self._pooled(self.splitter.stage_features(stage), pooling)
        return nn.Sequential(self._normalize(), features).eval()

    def continuation(self, depth: int, stage: Stages, pooling: Pooling | None) -> nn.Module:
        """From the output of `depth` stages to what :meth:`stage_features` gives."""
        if isinstance(stage, tuple):
            return self.splitter.several(depth, stage, pooling or "auto")
        if stage is None:
            return self.splitter.rest(depth, pooling or "auto")
        if stage == depth - 1:
            return self._pooled(nn.Identity(), pooling).eval()
        return self._pooled(self.splitter.between(depth, stage), pooling).eval()

    @staticmethod
    def _pooled(features: nn.Module, pooling: Pooling | None) -> nn.Module:
        return features if pooling is None else nn.Sequential(features, Pool(pooling))

    def _normalize(self) -> Normalize:
        return Normalize(self.recipe.mean, self.recipe.std)


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
    with _lock:
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
        splitter = _prepare(architecture.build(initialise=False), source.recipe.crop)
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
    with _lock:
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
    splitter = _prepare(network, recipe.crop)
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


def _prepare(network: nn.Module, image_size: Size) -> Splitter:
    network.requires_grad_(False).eval()
    return make_splitter(as_network(network, image_size), image_size)


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
    splitter = _prepare(network, architecture.image_size)
    return _loaded_backbone(architecture, recipe, splitter, identity)
