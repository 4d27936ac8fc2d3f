"""Running a frozen prefix over images, each image once."""

from __future__ import annotations

import copy
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain

import torch
import xxhash
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .backbones import Backbone, Pooling
from .cache import FeatureCache
from .hardware import PRECISIONS
from .images import Images
from .preprocessing import Recipe

# Large enough to fill the cores, small enough for activations to stay near them.
_BATCH = {"cpu": 32, "cuda": 256, "mps": 64}


class FrozenPrefix:
    """What a backbone does up to its freeze depth, as a fixed and fast function.

    Parameters
    ----------
    recipe : Recipe
        How images are prepared.
    module : torch.nn.Module
        From uint8 images to features, in evaluation mode. It isn't changed.
    precision : {"float32", "bfloat16"}
    device : torch.device

    Attributes
    ----------
    key : bytes
        Hash of all that its output depends on, other than the image.
    n_images : int
        How many images it was run on.
    """

    def __init__(
        self, recipe: Recipe, module: nn.Module, precision: str, device: torch.device
    ) -> None:
        self.recipe = recipe
        self.device = device
        self.n_images = 0
        self.key = _fingerprint(module, recipe, precision, device)
        self._module = _fused(module).to(device, PRECISIONS[precision])
        self._module = self._module.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Compute features.

        Parameters
        ----------
        images : uint8 tensor of shape (n, 3, h, w)

        Returns
        -------
        float32 tensor of shape (n, ...) on the CPU
        """
        self.n_images += len(images)
        return self._run(images)

    def _run(self, images: Tensor) -> Tensor:
        try:
            batch = images.to(self.device, non_blocking=True)
            batch = batch.contiguous(memory_format=torch.channels_last)
            features: Tensor = self._module(batch).float().cpu()
            return features.contiguous()
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(images) // 2
        return torch.cat([self._run(images[:half]), self._run(images[half:])])

    def compute(self, images: Images, cache: FeatureCache | None = None, n_jobs: int = 1) -> Tensor:
        """Compute the features of all images, or find them in the cache.

        Parameters
        ----------
        images : Images
        cache : FeatureCache or None, default=None
        n_jobs : int, default=1
            Threads that read and prepare images while the prefix runs.

        Returns
        -------
        float32 tensor of shape (n_images, ...)

        Raises
        ------
        UnreadableImagesError
            If files can't be decoded; it names them all.
        """
        found: list[Tensor | None] = [None] * len(images)
        keys: list[bytes] = []
        if cache is not None:
            keys = [self.key + images.digest(i) for i in range(len(images))]
            found = cache.get(keys)
        first = _first_of_each(keys, [i for i, row in enumerate(found) if row is None])
        missing = list(first.values()) if keys else list(range(len(images)))
        for indices, batch in prepare(images, self.recipe, missing, n_jobs, self._batch_size):
            rows = self(batch)
            if cache is not None:
                cache.put([keys[i] for i in indices], rows)
            for i, row in zip(indices, rows, strict=True):
                found[i] = row
        for i, row in enumerate(found):
            if row is None:  # an image that occurs twice was computed once
                found[i] = found[first[keys[i]]]
        return torch.stack([row for row in found if row is not None])

    @property
    def _batch_size(self) -> int:
        return _BATCH[self.device.type]


def _first_of_each(keys: Sequence[bytes], positions: Sequence[int]) -> dict[bytes, int]:
    first: dict[bytes, int] = {}
    for i in positions if keys else ():
        first.setdefault(keys[i], i)
    return first


def prepare(
    images: Images, recipe: Recipe, indices: Sequence[int], n_jobs: int, batch_size: int
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Read, resize and crop images in threads, a few batches ahead of whoever uses them.

    Yields
    ------
    indices : sequence of int
    batch : uint8 tensor of shape (b, 3, crop, crop)
    """
    chunks = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]

    def read(chunk: Sequence[int]) -> Tensor:
        return recipe.apply(images.batch(chunk))

    with ThreadPoolExecutor(n_jobs) as pool:
        ahead: deque[tuple[Sequence[int], Future[Tensor]]] = deque()
        try:
            for chunk in chunks:
                ahead.append((chunk, pool.submit(read, chunk)))
                if len(ahead) > n_jobs + 1:
                    done, future = ahead.popleft()
                    yield done, future.result()
            while ahead:
                done, future = ahead.popleft()
                yield done, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def prepare_all(images: Images, recipe: Recipe, n_jobs: int) -> Tensor:
    """Prepare all images at once: uint8 tensor of shape (n, 3, crop, crop)."""
    out = torch.empty((len(images), 3, recipe.crop, recipe.crop), dtype=torch.uint8)
    for indices, batch in prepare(images, recipe, range(len(images)), n_jobs, _BATCH["cpu"]):
        out[list(indices)] = batch
    return out


# Prefixes by backbone, so that all fits of a search share one.
_prefixes: weakref.WeakKeyDictionary[Backbone, dict[object, FrozenPrefix]] = (
    weakref.WeakKeyDictionary()
)


def freeze_prefix(
    backbone: Backbone, depth: int, pooling: Pooling, precision: str, device: torch.device
) -> FrozenPrefix | None:
    """Freeze the first stages of a backbone; None if `depth` is 0."""
    if depth == 0:
        return None
    if depth == len(backbone.stages):
        return freeze_stage(backbone, None, pooling, precision, device)
    name = ("prefix", depth, precision, device)
    return _shared(backbone, name, lambda: backbone.prefix(depth, pooling), precision, device)


def freeze_stage(
    backbone: Backbone,
    stage: int | None,
    pooling: Pooling,
    precision: str,
    device: torch.device,
) -> FrozenPrefix:
    """Freeze a backbone up to one stage and its pooling, or up to what the classifier reads."""
    name = ("stage", stage, pooling, precision, device)
    return _shared(
        backbone, name, lambda: backbone.stage_features(stage, pooling), precision, device
    )


def _shared(
    backbone: Backbone,
    name: object,
    module: Callable[[], nn.Module],
    precision: str,
    device: torch.device,
) -> FrozenPrefix:
    kept = _prefixes.setdefault(backbone, {})
    if name not in kept:
        kept[name] = FrozenPrefix(backbone.recipe, module(), precision, device)
    return kept[name]


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, also those that a state dict leaves out.

    A network that a callable makes may draw such a buffer at random.
    """
    return dict(
        chain(
            module.named_parameters(remove_duplicate=False),
            module.named_buffers(remove_duplicate=False),
        )
    )


def _fingerprint(module: nn.Module, recipe: Recipe, precision: str, device: torch.device) -> bytes:
    """Hash code, settings and weights, and what else changes the numbers."""
    hasher = xxhash.xxh3_128()

    def add(*facts: object) -> None:
        hasher.update(repr(facts).encode())

    add(recipe, precision, torch.__version__, device.type, torch.backends.cpu.get_cpu_capability())
    for name, part in module.named_modules():
        code = part.code if isinstance(part, fx.GraphModule) else ""
        add(name, type(part).__qualname__, code, part.extra_repr(), sorted(_settings(part).items()))
    for name, tensor in named_tensors(module).items():
        add(name, tensor.dtype, tuple(tensor.shape))
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.digest()


def _settings(module: nn.Module) -> dict[str, object]:
    """Plain attributes, which a forward method may read."""
    plain = (bool, int, float, str, tuple)
    return {k: v for k, v in vars(module).items() if isinstance(v, plain) and not k.startswith("_")}


def _fused(module: nn.Module) -> nn.Module:
    """Copy a module with each batch norm folded into the convolution before it."""
    if isinstance(module, fx.GraphModule):
        return _fused_graph(module)
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*(_fused(part) for part in module)).eval()

    return copy.deepcopy(module).eval()


def _fused_graph(module: fx.GraphModule) -> fx.GraphModule:

    fused = copy.deepcopy(module).eval()
    calls = Counter(node.target for node in fused.graph.nodes if node.op == "call_module")
    for node in list(fused.graph.nodes):
        source = node.args[0] if node.args else None
        if not (isinstance(source, fx.Node) and node.op == source.op == "call_module"):
            continue
        path = str(source.target)
        convolution, norm = fused.get_submodule(path), fused.get_submodule(str(node.target))
        alone = len(source.users) == 1 and calls[source.target] == calls[node.target] == 1
        if alone and type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
            parent, _, name = path.rpartition(".")
            setattr(fused.get_submodule(parent), name, fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(source)
            fused.graph.erase_node(node)
    fused.delete_all_unused_submodules()
    fused.recompile()
    return fused
