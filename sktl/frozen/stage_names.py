"""The stages of backbones that were used with a cache before.

A fit whose rows the cache holds needs to know their names, and which a head reads beside what the
classifier reads; then it needn't load the network.
"""

from __future__ import annotations

import json

import torch
import xxhash

from ..backbones import Backbone
from ..cache import FeatureCache


def recall_stages(
    cache: FeatureCache | None, identity: bytes
) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
    """The `stages` and `sides` of a backbone that was used with this cache before."""
    (found,) = [None] if cache is None else cache.get([_stages_key(identity)])
    if found is None:
        return None
    stages, sides = json.loads(bytes(found.tolist()))
    return tuple(stages), tuple(sides)


def remember_stages(cache: FeatureCache | None, backbone: Backbone) -> None:
    """Keep what :func:`recall_stages` gives."""
    if cache is None or backbone.identity is None or not backbone.is_loaded:
        return
    key = _stages_key(backbone.identity)
    if cache.get([key])[0] is None:
        text = json.dumps([backbone.stages, backbone.sides]).encode()
        cache.put([key], torch.tensor([list(text)], dtype=torch.uint8))


def _stages_key(identity: bytes) -> bytes:
    return xxhash.xxh3_128_digest(identity + b"stages and sides")
