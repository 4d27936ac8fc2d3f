"""A frozen prefix and a trained net, joined at the freeze depth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .backbones import Backbone, Pooling
from .cache import FeatureCache
from .images import Images
from .prefix import FrozenPrefix, freeze_prefix, prepare, prepare_all
from .training import Head, SuffixNet, TrainingPlan, make_head, make_net

_ROWS_IN_FLIGHT = 256


@dataclass(frozen=True)
class HeadShape:
    """What builds a head."""

    head: Head
    n_classes: int
    dropout: float
    in_features: int


@dataclass
class Model:
    """From images to logits: the frozen prefix, and a net for suffix and head.

    Attributes
    ----------
    backbone : Backbone
    depth : int
        Number of frozen stages.
    pooling : {"auto", "avg", "flatten"}
    precision : {"float32", "bfloat16"}
        Of the prefix.
    device : torch.device
    head : HeadShape
    plan : TrainingPlan
    net : SuffixNet
    """

    backbone: Backbone
    depth: int
    pooling: Pooling
    precision: str
    device: torch.device
    head: HeadShape
    plan: TrainingPlan
    net: SuffixNet
    prefix: FrozenPrefix | None = field(init=False)

    def __post_init__(self) -> None:
        """Make the prefix ready."""
        self.prefix = freeze_prefix(
            self.backbone, self.depth, self.pooling, self.precision, self.device
        )

    def logits(
        self, images: Images, cache: FeatureCache | None, n_jobs: int
    ) -> npt.NDArray[np.float64]:
        """Compute logits of shape (n, n_classes)."""
        return self._map(self.net.forward, images, cache, n_jobs)

    def pooled(
        self, images: Images, cache: FeatureCache | None, n_jobs: int
    ) -> npt.NDArray[np.float32]:
        """Compute what the head reads, of shape (n, in_features)."""

        def suffix(features: Tensor) -> Tensor:
            with torch.inference_mode():
                part: nn.Module = self.net.module_.suffix.eval()
                result: Tensor = part(features.to(self.net.device)).float().cpu()
            return result

        return self._map(suffix, images, cache, n_jobs)

    def _map(
        self, function: Any, images: Images, cache: FeatureCache | None, n_jobs: int
    ) -> npt.NDArray[Any]:
        if self.prefix is not None:
            return _to_numpy(function(self.prefix.compute(images, cache, n_jobs)))
        batches = prepare(images, self.backbone.recipe, range(len(images)), n_jobs, _ROWS_IN_FLIGHT)
        return np.concatenate([_to_numpy(function(batch)) for _, batch in batches])


def _to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    result: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    return result


def features_at(
    backbone: Backbone,
    prefix: FrozenPrefix | None,
    images: Images,
    cache: FeatureCache | None,
    n_jobs: int,
) -> Tensor:
    """Features that training starts from; with nothing frozen, the uint8 images."""
    if prefix is None:
        return prepare_all(images, backbone.recipe, n_jobs)
    return prefix.compute(images, cache, n_jobs)


def assemble_net(
    backbone: Backbone,
    depth: int,
    pooling: Pooling,
    head: HeadShape,
    plan: TrainingPlan,
    device: torch.device,
    callbacks: Any = None,
) -> SuffixNet:
    """Build the net with a new head and the pretrained suffix."""
    suffix = backbone.suffix(depth, pooling)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(plan.seed)
        module = make_head(head.head, head.in_features, head.n_classes, head.dropout)
    if plan.full_batch and head.head == "linear":
        for parameter in module.parameters():  # a convex problem needs no random start
            nn.init.zeros_(parameter)
    return make_net(suffix, module, plan, device, callbacks)


def pooled_width(backbone: Backbone, depth: int, pooling: Pooling, features: Tensor) -> int:
    """Number of features that the head reads."""
    if depth == len(backbone.stages):
        return int(features.shape[1])
    with torch.inference_mode():
        return int(backbone.suffix(depth, pooling).eval()(features[:1]).shape[1])
