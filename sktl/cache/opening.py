"""The cache that the parameter `cache` names, and room for what doesn't fit in memory."""

from __future__ import annotations

import os
import tempfile
import warnings

import numpy as np
import torch
from torch import Tensor

from ..hardware import physical_memory
from .directory import DirectoryCache, TemporaryCache
from .memory import MemoryCache
from .protocol import FeatureCache

# One for the process, so that clones and folds share it; a quarter of the memory at most.
memory_cache = MemoryCache(physical_memory() // 4, TemporaryCache)


def open_cache(cache: str | os.PathLike[str] | None) -> FeatureCache | None:
    """Open what the parameter `cache` names.

    Parameters
    ----------
    cache : "memory", path or None

    Returns
    -------
    FeatureCache or None
        A directory that can't be used is replaced by memory, with a warning.
    """
    if cache is None:
        return None
    if cache == "memory":
        return memory_cache
    try:
        return DirectoryCache(cache)
    except OSError as error:
        warnings.warn(
            f"cache={os.fspath(cache)!r} can't be used ({error}); features are kept in memory.",
            UserWarning,
            stacklevel=3,
        )
        return memory_cache


def empty_rows(n: int, like: Tensor) -> Tensor:
    """Make room for n rows; on disk, in a file without a name, if they would fill the memory.

    Parameters
    ----------
    n : int
    like : tensor of shape (m, ...)

    Returns
    -------
    tensor of shape (n, ...)
        Not initialised.
    """
    shape = (n, *like.shape[1:])
    n_bytes = n * like[0].nbytes
    if n_bytes <= physical_memory() // 4:
        return torch.empty(shape, dtype=like.dtype)
    with tempfile.TemporaryFile(prefix="sktl-features-") as file:
        memory = np.memmap(file, np.uint8, "w+", shape=(n_bytes,))
    return torch.from_numpy(memory).view(like.dtype).reshape(shape)
