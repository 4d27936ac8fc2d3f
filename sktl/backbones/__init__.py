"""Pretrained networks: by name or given, with their weights, preprocessing and stages."""

from .backbone import Backbone, Stages
from .efficientnet_lite import LITES, pad_same
from .feature_names import names_of_features
from .loading import load_backbone, rebuild_backbone
from .registry import EMBEDDED, check_name, default_weights, list_backbones
from .split import CutNetwork, Pool, Pooling, SideBySide, spatial_axes

__all__ = [
    "EMBEDDED",
    "LITES",
    "Backbone",
    "CutNetwork",
    "Pool",
    "Pooling",
    "SideBySide",
    "Stages",
    "check_name",
    "default_weights",
    "list_backbones",
    "load_backbone",
    "names_of_features",
    "pad_same",
    "rebuild_backbone",
    "spatial_axes",
]
