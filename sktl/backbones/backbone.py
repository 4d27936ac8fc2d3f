"""A network with its preprocessing, by stages: where it can be cut, and the parts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, TypeAlias

from torch import nn

from ..images.preprocessing import Normalize, Recipe
from ..messages import shown
from .registry import Architecture
from .split import OpaqueNetwork, Pool, Pooling, Splitter

# One stage by its number, or what the classifier reads (None), or several of these.
Stages: TypeAlias = int | None | tuple[int | None, ...]


# One for all that is loaded: loading a network may look for others, and the other way round.
LOADING = threading.RLock()


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
            with LOADING:
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

    def choose_pooling(self, pooling: str, depth: int, *, solvable: bool) -> Pooling:
        """Find what a head reads, by an estimator's `pooling` and the number of frozen stages.

        "auto" takes several stages where all are frozen, for a head of one layer that needn't go
        on at another depth (`solvable`). That gains most where the pictures are far from those
        that the network has learned from, or smaller; what training does to the last stages gains
        the same.

        Raises
        ------
        ValueError
            If several stages are asked for, and the network has none that make maps, or some of
            them would lie before those that train.
        """
        n = len(self.stages)
        if pooling in ("auto", "network"):
            several = pooling == "auto" and depth == n and solvable
            return "stages" if several and self.sides else "auto"
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
        # A single stage is no choice of anybody's: -1 would silently train everything.
        if n == 1 and freeze != 0 and isinstance(self.splitter, OpaqueNetwork):
            raise ValueError(
                f"freeze={shown(freeze)}: torch.fx can't trace this network "
                f"({self.splitter.reason}), so it has no stages to cut between. It can be frozen "
                'whole or not at all: "all" or "none".'
            )
        if n == 1 and freeze == -1:
            raise ValueError(
                f"freeze=-1 would train all of this network: {self.stages[0]!r} is its only stage, "
                "since it has no other place where all that it computes flows as one tensor. "
                'Choose "all" or "none".'
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
        pooling : {"auto", "stages", "avg", "flatten"} or None
            None leaves a stage's output as it is. "stages" is for what the classifier reads.
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
