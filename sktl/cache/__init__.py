"""Features by image content.

A key is the hash of all that a row of features depends on: the image, the preprocessing,
the frozen prefix with its weights, and the number format. So the rows of a fold, a
shuffled or a cloned fit are found again, and anything that changes the numbers misses.
"""

from .directory import DirectoryCache
from .memory import MemoryCache
from .opening import empty_rows, memory_cache, open_cache
from .protocol import FeatureCache

__all__ = [
    "DirectoryCache",
    "FeatureCache",
    "MemoryCache",
    "empty_rows",
    "memory_cache",
    "open_cache",
]
