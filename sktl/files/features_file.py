"""What a saved file says of PretrainedImageFeatures."""

from __future__ import annotations

import numpy as np

from .container import FileFormatError
from .layout import (
    MAY_LACK,
    NETWORK,
    PARAMETERS,
    Layout,
    Tensors,
    check_columns,
    check_network,
    check_same,
    network_to_json,
    network_to_state,
    shared_attributes,
    shared_state,
    tensors_of,
    weights_of,
)
from .readers import integer, list_of, mapping_of, one_of, optional, record, text
from .values import one_or_several, scalar
from .weights import Stored

_dtype = one_of("float32", "float16")


def _features_parts(state: Stored) -> tuple[Stored, Stored, Tensors]:
    stored = state.pop("_backbone")
    attributes = shared_attributes(state) | {"stages_": state.pop("stages_")}
    model = network_to_json(stored) | {
        "stage": state.pop("_stage"),
        "pooling": state.pop("_pooling"),
        "dtype": state.pop("_dtype"),
        "n_features_out": int(state.pop("_n_features_out")),
        "same": {"frozen": stored["frozen"]["same"]},
    }
    return attributes, model, tensors_of(stored["frozen"], "frozen")


def _features_state(attributes: Stored, model: Stored, tensors: Tensors) -> Stored:
    weights = {"frozen": weights_of(tensors, "frozen", model["same"]["frozen"])}
    return shared_state(attributes) | {
        "_stage": model["stage"],
        "_pooling": model["pooling"],
        "_dtype": model["dtype"],
        "_n_features_out": model["n_features_out"],
        "_backbone": network_to_state(model) | weights,
    }


def _check_features(read: Stored) -> None:
    check_columns(read)
    check_network(read)
    stage, n_stages = read["model"]["stage"], len(read["attributes"]["stages_"])
    several = stage if isinstance(stage, tuple) else (stage,)
    if any(s is not None and s >= n_stages for s in several) or len(set(several)) < len(several):
        raise FileFormatError(f"stage={stage} does not go with the stages.")


FEATURES = Layout(
    parameters=PARAMETERS
    | {"stage": one_or_several(scalar), "dtype": lambda v, where: getattr(np, _dtype(v, where))},
    attributes=record({"stages_": list_of(text, least=1)}, MAY_LACK),
    model=record(
        NETWORK
        | {
            "stage": one_or_several(optional(integer(0, 2**15))),
            "dtype": _dtype,
            "n_features_out": integer(1, 2**31),
            "same": record({"frozen": mapping_of(text)}),
        }
    ),
    to_parts=_features_parts,
    to_state=_features_state,
    check=_check_features,
    check_tensors=check_same,
    frozen_part=lambda backbone, model: backbone.stage_features(model["stage"], model["pooling"]),
)
