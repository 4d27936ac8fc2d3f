"""Running a network that no longer changes, as fast as the hardware can."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial

import torch
from torch import Tensor, nn

from ..hardware import PRECISIONS
from ..threads import one_thread, stay_alone
from .engine import EngineNetwork, engine_name, is_worth_it
from .fusion import fold_norms, fuse, kernels

# On a CPU each thread runs batches of its own: large enough to make kernels worth their call,
# small enough for activations to stay near the core.
_BATCH = {"cpu": 8, "cuda": 256, "mps": 64}


def computed_by(device: torch.device, dtype: torch.dtype) -> str:
    """Name what a :class:`FrozenModule` computes with, since others give slightly other numbers."""
    in_torch = kernels(device, dtype)
    return f"{engine_name()}, {in_torch}" if is_worth_it(device, dtype) else in_torch


class FrozenModule:
    """A copy of a module in evaluation mode: fused, channels-last, in low precision.

    Parameters
    ----------
    module : torch.nn.Module
        It isn't changed.
    precision : {"float32", "bfloat16"}
        Floating-point inputs are brought to it, and outputs have it.
    device : torch.device
    """

    def __init__(self, module: nn.Module, precision: str, device: torch.device) -> None:
        self.device = device
        self.dtype = PRECISIONS[precision]
        self.module = self._fastest(module)
        self.batch_size = _BATCH[device.type]

    def _fastest(self, module: nn.Module) -> nn.Module:
        in_torch = partial(fuse, dtype=self.dtype, device=self.device)
        if not is_worth_it(self.device, self.dtype):
            return in_torch(module)
        return EngineNetwork(fold_norms(module).to(self.device, self.dtype), in_torch)

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        """Run a batch; a GPU that lacks the memory gets half of it.

        Parameters
        ----------
        batch : tensor of shape (n, ...)
            uint8 images or features.

        Returns
        -------
        tensor of shape (n, ...)
            On the CPU.
        """
        try:
            return self._run(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(batch) // 2
        self.batch_size = min(self.batch_size, half)
        return torch.cat([self(batch[:half]), self(batch[half:])])

    def _run(self, batch: Tensor) -> Tensor:
        dtype = self.dtype if batch.is_floating_point() else batch.dtype
        batch = batch.to(self.device, dtype, non_blocking=True)
        if batch.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        output: Tensor = self.module(batch)
        return output.cpu().contiguous()

    def all_of(self, inputs: Tensor) -> Tensor:
        """Run all rows of a tensor that is already there."""

        def load(places: Sequence[int]) -> Tensor:
            return inputs[torch.as_tensor(places)]

        return torch.cat([rows for _, rows in self.map(load, range(len(inputs)))])

    def map(
        self,
        load: Callable[[Sequence[int]], Tensor],
        indices: Sequence[int],
        n_jobs: int = 1,
        select: Callable[[Sequence[int]], Sequence[int]] | None = None,
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Run many inputs in batches, and load the next ones meanwhile.

        Parameters
        ----------
        load : callable
            Gives the inputs of some indices; it is called in threads.
        indices : sequence of int
        n_jobs : int, default=1
            Threads that load, at least.
        select : callable or None, default=None
            Called with the indices of each batch just before it is loaded, in the caller's
            thread; gives those to run.

        Yields
        ------
        indices : sequence of int
            Of one batch.
        output : tensor of shape (len(indices), ...)
        """
        batches: Iterable[Sequence[int]] = _split(indices, self._n_batches(len(indices)))
        if select is not None:
            batches = filter(len, map(select, batches))
        if self.device.type != "cpu":
            return self._map_on_gpu(load, batches, n_jobs)
        threads = torch.get_num_threads()
        if len(indices) < threads:
            return ((batch, self(load(batch))) for batch in batches)
        # Batches side by side, one a core, wait less than all cores on one batch.
        return ahead(lambda batch: self(load(batch)), batches, max(threads, n_jobs))

    def _n_batches(self, n: int) -> int:
        if self.device.type != "cpu":
            return math.ceil(n / self.batch_size)
        threads = torch.get_num_threads()
        return 1 if n < threads else threads * math.ceil(n / (threads * self.batch_size))

    def _map_on_gpu(
        self,
        load: Callable[[Sequence[int]], Tensor],
        batches: Iterable[Sequence[int]],
        n_jobs: int,
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        def pinned(batch: Sequence[int]) -> Tensor:
            loaded = load(batch)
            return loaded.pin_memory() if self.device.type == "cuda" else loaded

        for batch, loaded in ahead(pinned, batches, n_jobs):
            yield batch, self(loaded)


def _split(indices: Sequence[int], n_parts: int) -> list[Sequence[int]]:
    """Cut into parts that differ in length by one at most."""
    bounds = [round(i * len(indices) / n_parts) for i in range(n_parts + 1)] if n_parts else []
    return [indices[a:b] for a, b in zip(bounds, bounds[1:], strict=False) if b > a]


def ahead(
    work: Callable[[Sequence[int]], Tensor], batches: Iterable[Sequence[int]], n_threads: int
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Work on batches in threads, a few ahead of whoever takes the results, in order.

    Each thread computes alone: torch starts no others below it. Nor does it in the caller's
    thread until all is done: OpenMP's threads wait for more work by spinning, on cores that are
    wanted here. The process's other threads keep theirs.
    """
    waiting: deque[tuple[Sequence[int], Future[Tensor]]] = deque()
    with one_thread(), ThreadPoolExecutor(n_threads, initializer=stay_alone) as pool:
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(copy_context().run, work, batch)))
                if len(waiting) > n_threads + 1:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
