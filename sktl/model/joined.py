"""A frozen prefix and a trained net, joined at the freeze depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..backbones import Backbone, Pooling
from ..cache import FeatureCache
from ..frozen.module import FrozenModule
from ..frozen.passes import run_on_images
from ..frozen.prefix import FrozenPrefix, frozen_prefix_of
from ..images.reading import Images
from ..tensors import named_tensors
from ..training.heads import HeadShape
from ..training.net import SuffixNet, make_net
from ..training.optimization import TrainingPlan
from ..training.targets import Target

_IN_FLIGHT = 512  # images whose features before the suffix are held at a time


@dataclass
class Model:
    """From images to outputs: the frozen prefix, and a net for suffix and head.

    Attributes
    ----------
    backbone : Backbone
    depth : int
        Number of frozen stages.
    pooling : {"auto", "avg", "flatten"}
    precision : {"float32", "bfloat16"}
        Of the prefix.
    device : torch.device
    target : Target
    head : HeadShape
    plan : TrainingPlan
    net : SuffixNet
    """

    backbone: Backbone
    depth: int
    pooling: Pooling
    precision: str
    device: torch.device
    target: Target
    head: HeadShape
    plan: TrainingPlan
    net: SuffixNet
    prefix: FrozenPrefix | None = field(init=False)

    def __post_init__(self) -> None:
        """Make the prefix ready."""
        self.prefix = frozen_prefix_of(
            self.backbone, self.depth, self.pooling, self.precision, self.device
        )

    def outputs(
        self, images: Images, cache: FeatureCache | None, n_jobs: int
    ) -> npt.NDArray[np.floating[Any]]:
        """Compute outputs of shape (n, n_outputs); of classes, logits."""
        parts = [self.outputs_of(features) for features in self._pooled(images, cache, n_jobs)]
        result: npt.NDArray[np.floating[Any]] = torch.cat(parts).numpy()
        return result

    @torch.inference_mode()
    def outputs_of(self, features: Tensor) -> Tensor:
        """Compute outputs of what the head reads, on the CPU."""
        head = self.net.module_.head.eval()
        weight = next(head.parameters(), torch.empty(0))
        outputs: Tensor = head(features.to(weight.device, weight.dtype))
        return outputs.cpu()

    def pooled(
        self, images: Images, cache: FeatureCache | None, n_jobs: int
    ) -> npt.NDArray[np.float32]:
        """Compute what the head reads, of shape (n, in_features)."""
        parts = [features.float() for features in self._pooled(images, cache, n_jobs)]
        result: npt.NDArray[np.float32] = torch.cat(parts).numpy()
        return result

    def _pooled(self, images: Images, cache: FeatureCache | None, n_jobs: int) -> Iterator[Tensor]:
        if self.prefix is not None and self.depth == len(self.backbone.stages):
            yield self.prefix.compute(images, cache, n_jobs)
            return
        for start in range(0, len(images), _IN_FLIGHT):
            block = range(start, min(start + _IN_FLIGHT, len(images)))
            yield self._suffix_of(images, block, cache, n_jobs)

    def _suffix_of(
        self, images: Images, block: range, cache: FeatureCache | None, n_jobs: int
    ) -> Tensor:
        if self.prefix is None:
            return run_on_images(self.suffix, self.backbone.recipe, images, block, n_jobs)
        return self.suffix.all_of(self.prefix.compute(images, cache, n_jobs, block))

    @cached_property
    def suffix(self) -> FrozenModule:
        """The trained suffix, which is as fixed as the prefix now."""
        return FrozenModule(self.net.module_.suffix, self.precision, self.device)

    def whole_network(self) -> nn.Module:
        """Copy all that leads from uint8 images to pooled features, in evaluation mode."""
        network = self.backbone.suffix(0, self.pooling)
        if 0 < self.depth < len(self.backbone.stages):
            copy_tensors(self.net.module_.suffix, network[1])  # type: ignore[index]
        elif self.depth == 0:
            copy_tensors(self.net.module_.suffix, network)
        return network.to(self.device).eval()


def assemble_net(
    backbone: Backbone,
    depth: int,
    pooling: Pooling,
    target: Target,
    head: HeadShape,
    plan: TrainingPlan,
    precision: str,
    device: torch.device,
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    callbacks: Any = None,
) -> SuffixNet:
    """Build the net with a new head and the pretrained suffix."""
    suffix = backbone.suffix(depth, pooling)
    stages = backbone.suffix_stages(depth, suffix) if depth < len(backbone.stages) else None
    module = head.make(plan.seed)
    if plan.full_batch and head.has_one_layer:
        for parameter in module.parameters():  # a convex problem needs no random start
            nn.init.zeros_(parameter)
    return make_net(
        suffix,
        module,
        plan,
        precision,
        device,
        target=target,
        stages=stages,
        prepare=prepare,
        callbacks=callbacks,
    )


@torch.no_grad()
def copy_tensors(module: nn.Module, to: nn.Module) -> None:
    """Put the weights and buffers of a module into one that has all of them, by name."""
    targets = named_tensors(to)
    for name, tensor in named_tensors(module).items():
        targets[name].copy_(tensor)
