"""Training one model in several processes, each on its part of every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class Processes:
    """Those that train together; alone, its methods do nothing.

    Attributes
    ----------
    rank : int
        Number of this process.
    size : int
        How many there are.
    """

    rank: int = 0
    size: int = 1

    def part(self, n: int) -> slice:
        """Give the rows of a batch of n that are this process's."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def add_gradients(self, module: nn.Module) -> None:
        """Give each parameter the sum of its gradients in all processes."""
        if self.size == 1:
            return
        parameters = [p for p in module.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:  # no row of the batch was this process's
                parameter.grad = torch.zeros_like(parameter)
        self._exchange([p.grad for p in parameters if p.grad is not None], distributed.all_reduce)

    def total(self, values: Tensor) -> Tensor:
        """Sum values over the processes."""
        total = values.clone()
        self._exchange([total], distributed.all_reduce)
        return total

    def agree(self, *tensors: Tensor) -> None:
        """Give tensors the values that they have in the first process."""
        self._exchange(tensors, lambda values: distributed.broadcast(values, 0))

    @torch.no_grad()
    def _exchange(self, tensors: Sequence[Tensor], do: Callable[[Tensor], object]) -> None:
        if self.size == 1:
            return
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        for dtype in sorted({t.dtype for t in tensors}, key=str):
            same = [t for t in tensors if t.dtype is dtype]
            values = torch.cat([t.detach().reshape(-1) for t in same]).to(device)
            do(values)
            parts = torch.split(values, [t.numel() for t in same])
            for tensor, part in zip(same, parts, strict=True):
                tensor.detach().copy_(part.view_as(tensor))


_alone = Processes()
_together: ContextVar[Processes] = ContextVar("_together", default=_alone)


def processes() -> Processes:
    """Those that train together here."""
    return _together.get()


@contextmanager
def data_parallel() -> Iterator[None]:
    """Within, the processes of torch's process group train each model together.

    Each process calls the same methods with the same arguments. A step takes the same batch as in
    one process, of which each process computes the gradient of its part, and all end with the same
    model. Features are computed once in all if the processes have one directory as their `cache`.
    Batch norm whose statistics train takes those of a process's own part.

    A process group comes from ``accelerate.PartialState()`` in a script that ``torchrun`` or
    ``accelerate launch`` starts, from Ray Train, or from
    :func:`torch.distributed.init_process_group`. If one process fails, the others wait for it
    until the group's timeout.

    Raises
    ------
    RuntimeError
        If there is no process group.

    References
    ----------
    S. Li et al., PyTorch Distributed: Experiences on Accelerating Data Parallel Training (2020),
    arXiv:2006.15704.

    Examples
    --------
    >>> from accelerate import PartialState  # doctest: +SKIP
    >>> state = PartialState()  # doctest: +SKIP
    >>> with sktl.data_parallel():  # doctest: +SKIP
    ...     clf = PretrainedImageClassifier(freeze=-1, cache="features").fit(X, y)
    >>> if state.is_main_process:  # doctest: +SKIP
    ...     clf.save("clf.sktl")
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise RuntimeError(
            "There is no process group to train in. Start the script with torchrun and call "
            "accelerate.PartialState() or torch.distributed.init_process_group first."
        )
    group = Processes(distributed.get_rank(), distributed.get_world_size())
    token = _together.set(group)
    try:
        yield
    finally:
        _together.reset(token)
