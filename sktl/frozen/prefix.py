"""What a frozen prefix makes of images: each image once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor, nn

from ..backbones import Backbone, Pooling, Stages
from ..cache import FeatureCache
from ..hardware import PRECISIONS
from ..images import jpeg
from ..images.augmentation import View
from ..images.reading import Images
from .fingerprint import fingerprint
from .gathering import PER_LOOKUP, Rows, Share, first_of_each
from .module import FrozenModule, computed_by

_REVISION = 4  # of how images are decoded and prepared; others than kept features are then made
_PAUSE = 0.05  # seconds between two looks for rows that another process computes


@dataclass
class Prepared:
    """What is made of one part of a backbone, once for all who use it.

    It belongs to the backbone and knows nothing of it, so that both go together.

    Attributes
    ----------
    key : bytes or None
        See :attr:`FrozenPrefix.key`.
    module : FrozenModule or None
    n_images : int
        How many images the module was run on.
    """

    key: bytes | None = None
    module: FrozenModule | None = None
    n_images: int = 0


class FrozenPrefix:
    """What a backbone does up to its freeze depth, as a fixed and fast function.

    Parameters
    ----------
    backbone : Backbone
    stage : int, tuple of (int or None), or None
        The last stage, or None for what the classifier reads; several give their pooled outputs
        side by side.
    pooling : {"auto", "avg", "flatten"} or None
        None leaves a stage's output as it is.
    precision : {"float32", "bfloat16"}
    device : torch.device
    prepared : Prepared or None, default=None
        What others have made of the same; None is nothing.
    """

    def __init__(
        self,
        backbone: Backbone,
        stage: Stages,
        pooling: Pooling | None,
        precision: str,
        device: torch.device,
        prepared: Prepared | None = None,
    ) -> None:
        self._backbone = backbone
        self._prepared = Prepared() if prepared is None else prepared
        self.recipe = backbone.recipe
        self.stage = stage
        self.pooling = pooling
        self.precision = precision
        self.device = device

    @property
    def n_images(self) -> int:
        """How many images the network was run on."""
        return self._prepared.n_images

    @property
    def key(self) -> bytes:
        """Hash of all that the features depend on, other than the image."""
        if self._prepared.key is None:
            self._prepared.key = self._hash()
        return self._prepared.key

    def _hash(self) -> bytes:
        in_use = computed_by(self.device, PRECISIONS[self.precision])
        environment = (
            *(_REVISION, jpeg.decoder(), self.precision, torch.__version__),
            *(self.device.type, in_use),
        )
        hardware = torch.backends.cpu.get_cpu_capability()
        if self._backbone.identity is not None:
            place = (self._backbone.identity, self.stage, self.pooling)
            return xxhash.xxh3_128_digest(repr((place, environment, hardware)).encode())
        return fingerprint(self._plain(), (self.recipe, environment, hardware))

    @property
    def module(self) -> FrozenModule:
        """The network up to here, built when it is first needed."""
        if self._prepared.module is None:
            self._prepared.module = FrozenModule(self._plain(), self.precision, self.device)
        return self._prepared.module

    def _plain(self) -> nn.Module:
        return self._backbone.stage_features(self.stage, self.pooling)

    def compute(
        self,
        images: Images,
        cache: FeatureCache | None = None,
        n_jobs: int = 1,
        indices: Sequence[int] | None = None,
        *,
        view: View | None = None,
        tell: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Compute the features of images, or find them in the cache.

        Parameters
        ----------
        images : Images
        cache : FeatureCache or None, default=None
        n_jobs : int, default=1
            Threads that read and prepare images; on a CPU there is one a core at least.
        indices : sequence of int or None, default=None
            Which images; None is all.
        view : View or None, default=None
            A variation of the images to compute the features of.
        tell : callable or None, default=None
            Called with the number of images that have been done since the last call.

        Returns
        -------
        tensor of shape (n_images, ...)
            In the number format of the prefix, on the CPU.

        Raises
        ------
        UnreadableImagesError
            If an image can't be read. Within :meth:`sktl.images.reading.Images.noting` it has a row
            of zeros instead, and the cache keeps nothing of it.
        """
        wanted = range(len(images)) if indices is None else indices
        rows = Rows(len(wanted), tell)
        digests = []
        if cache is not None or view is not None:
            digests = [images.digest(i) for i in wanted]
        if view is not None:
            digests = view.digests(digests)

        def load(batch: Sequence[int]) -> Tensor:
            prepared = self.recipe.read(images, [wanted[i] for i in batch])
            return prepared if view is None else view.apply(prepared, [digests[i] for i in batch])

        def is_bad(i: int) -> bool:
            return wanted[i] in images.noted

        def to_run(places: Sequence[int]) -> Sequence[int]:
            readable = [i for i in places if not is_bad(i)]
            # If none is left, a black pixel still shows how wide a row is.
            return readable or (places[:1] if rows.is_empty else [])

        if cache is None:
            for batch, features in self._run(load, to_run(range(len(wanted))), n_jobs):
                rows.put(batch, features)
        else:
            with cache.claims() as claims:
                share = Share(self.key, cache, claims, digests, rows, is_bad)
                missing = self._continue_from_shallower(share, share.look_up(range(len(digests))))
                first = first_of_each(digests, missing)
                todo = list(to_run(list(first.values())))
                while todo:
                    for batch, features in self._run(load, todo, n_jobs, share.take):
                        share.put(batch, features)
                    others = [i for i in todo if i not in share.done]
                    n_before, todo = len(todo), share.look_up(others)
                    if len(todo) == n_before:
                        time.sleep(_PAUSE)
            for i in missing:  # an image that occurs twice was computed once
                twin = first[digests[i]]
                if twin != i:
                    rows.copy(twin, i)
                    if is_bad(twin):
                        images.note(wanted[i], images.noted[wanted[twin]])
        rows.clear([i for i in range(len(wanted)) if is_bad(i)] if images.noted else [])
        return rows.tensor

    def _run(
        self,
        load: Callable[[Sequence[int]], Tensor],
        places: Sequence[int],
        n_jobs: int,
        select: Callable[[Sequence[int]], Sequence[int]] | None = None,
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        if not places:
            return  # the network isn't needed, and perhaps not there yet
        for batch, features in self.module.map(load, places, n_jobs, select):
            self._prepared.n_images += len(batch)
            yield batch, features

    def _continue_from_shallower(self, share: Share, missing: list[int]) -> list[int]:
        """Go on from features of earlier stages, where the cache has them."""
        for depth, prefix in self._shallower():
            if not missing:
                break
            module: FrozenModule | None = None
            for start in range(0, len(missing), PER_LOOKUP):
                held = share.find(missing[start : start + PER_LOOKUP], prefix.key)
                if not held:
                    continue
                module = module or self._continuation(depth)
                for batch, features in module.map(_stacked(held), list(held), select=share.take):
                    share.put(batch, features)
            missing = [i for i in missing if i not in share.done]
        return missing

    def _shallower(self) -> Iterator[tuple[int, FrozenPrefix]]:
        """Prefixes that this one begins with and their depths, the deepest first."""
        backbone = self._backbone
        n_stages = len(backbone.stages)
        if isinstance(self.stage, tuple):  # all must lie after what was computed
            most = min(n_stages if stage is None else stage for stage in self.stage)
        elif self.pooling == "stages":
            most = backbone.sides[0] + 1
        else:
            most = n_stages if self.stage is None else self.stage + (self.pooling is not None)
        for stage in reversed(range(min(most, n_stages - 1))):
            part = (stage, None, self.precision, self.device)
            # A network without a name must be cut and hashed to know its key: that costs more
            # than it may save, unless it has been done before.
            if backbone.identity is not None or part in backbone.derived:
                yield stage + 1, frozen_stage_of(backbone, *part)

    def _continuation(self, depth: int) -> FrozenModule:
        module = self._backbone.continuation(depth, self.stage, self.pooling)
        return FrozenModule(module, self.precision, self.device)


def _stacked(rows: dict[int, Tensor]) -> Callable[[Sequence[int]], Tensor]:
    return lambda places: torch.stack([rows[i] for i in places])


def frozen_prefix_of(
    backbone: Backbone, depth: int, pooling: Pooling, precision: str, device: torch.device
) -> FrozenPrefix | None:
    """The first stages of a backbone; None if `depth` is 0."""
    if depth == 0:
        return None
    if depth == len(backbone.stages):
        return frozen_stage_of(backbone, None, pooling, precision, device)
    return frozen_stage_of(backbone, depth - 1, None, precision, device)


def frozen_stage_of(
    backbone: Backbone,
    stage: Stages,
    pooling: Pooling | None,
    precision: str,
    device: torch.device,
) -> FrozenPrefix:
    """A backbone up to some stages, or up to what the classifier reads.

    Whoever asks for the same, as all fits of a search do, shares what has been prepared.
    """
    prepared = backbone.derived.setdefault((stage, pooling, precision, device), Prepared())
    return FrozenPrefix(backbone, stage, pooling, precision, device, prepared)
