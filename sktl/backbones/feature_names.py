"""Names of features, which tell the stage and the channel."""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch

from .backbone import Backbone, Stages
from .split import Pool, Pooling, spatial_axes


def names_of_features(
    backbone: Backbone, stage: Stages, pooling: Pooling, n_features: int
) -> list[str]:
    """Name what :meth:`Backbone.stage_features` gives.

    Parameters
    ----------
    backbone : Backbone
    stage : int, tuple of (int or None), or None
    pooling : {"auto", "stages", "avg", "flatten"}
    n_features : int

    Returns
    -------
    list of str
        "stage_channel", or with `pooling="flatten"` "stage_channel_row_column", of tokens
        "stage_token_channel". What the classifier reads is "penultimate_number".
    """
    if stage is None and pooling == "stages":
        stage = (*backbone.sides, None)
    stages = stage if isinstance(stage, tuple) else (stage,)
    names = {
        number: _names(backbone.stages[number], backbone.splitter.stage_shape(number), pooling)
        for number in stages
        if number is not None
    }
    n_others = n_features - sum(map(len, names.values()))
    penultimate = [f"penultimate_{i}" for i in range(n_others)]
    return list(chain.from_iterable(penultimate if s is None else names[s] for s in stages))


def _names(stage: str, shape: tuple[int, ...], pooling: Pooling) -> list[str]:
    """Name the features that a stage's output of this shape is pooled to."""
    if pooling != "flatten":
        n_channels = Pool(pooling)(torch.empty(shape, device="meta")).shape[1]
        return [f"{stage}_{channel}" for channel in range(n_channels)]
    places = np.ndindex(shape[1:])
    if len(shape) == 4 and spatial_axes(shape) == (1, 2):  # the channels lie last
        return [f"{stage}_{channel}_{row}_{column}" for row, column, channel in places]
    return ["_".join(map(str, (stage, *place))) for place in places]
