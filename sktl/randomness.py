"""torch's global random numbers, as if they were ours alone."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import torch

# There is one generator for all threads, so they take turns. Threads that work for the one whose
# turn it is (they run in a copy of its context) take turns among themselves.
_first = threading.Lock()
_within: ContextVar[threading.Lock | None] = ContextVar("_within", default=None)


@contextlib.contextmanager
def seeded(seed: int | None, device: str = "cpu") -> Iterator[None]:
    """Draw from torch's global generator what a seed gives, and leave it as it was.

    Other threads that ask for it wait. Numbers that one draws without asking come from the seed
    as well.

    Parameters
    ----------
    seed : int or None
        None draws others each time.
    device : str, default="cpu"
        A CUDA device's generator is seeded as well.
    """
    on_gpu = device.startswith("cuda")
    before = _within.get()
    with _first if before is None else before, torch.random.fork_rng([device] if on_gpu else []):
        token = _within.set(threading.Lock())
        try:
            if seed is None:
                torch.default_generator.seed()
            elif on_gpu:
                torch.manual_seed(seed)
            else:
                torch.default_generator.manual_seed(seed)
            yield
        finally:
            _within.reset(token)


def _renew() -> None:
    """Whoever held it isn't here after a fork."""
    global _first
    _first = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
