"""What a saved file says of a regressor."""

from __future__ import annotations

from ..training.targets import Numbers
from .container import FileFormatError
from .layout import Layout, Tensors
from .readers import flag, integer, number, one_of, record, tuple_of
from .trained import (
    ATTRIBUTES,
    HEAD,
    MODEL,
    PLAN,
    PLAN_MAY_LACK,
    TRAINED_MAY_LACK,
    TRAINED_PARAMETERS,
    check_trained,
    check_trained_tensors,
    trained_parts,
    trained_state,
)
from .weights import Stored


def _regressor_parts(state: Stored) -> tuple[Stored, Stored, Tensors]:
    target = state["_model"]["target"]
    attributes, model, tensors = trained_parts(state)
    model["target"] = {name: target[name] for name in ("mean", "scale", "flat")}
    return attributes, model, tensors


def _regressor_state(attributes: Stored, model: Stored, tensors: Tensors) -> Stored:
    state = trained_state(attributes, model, tensors)
    state["_model"]["target"] = {"kind": Numbers.kind} | model["target"]
    return state


def _check_regressor(read: Stored) -> None:
    check_trained(read)
    target, n_outputs = read["model"]["target"], read["model"]["head"]["n_outputs"]
    lengths = [len(target[name]) for name in ("mean", "scale")]
    if lengths != [n_outputs, n_outputs] or (target["flat"] and n_outputs > 1):
        raise FileFormatError(f"The target does not go with a head of {n_outputs} outputs.")


def _check_regressor_tensors(read: Stored, tensors: Tensors) -> None:
    check_trained_tensors(read, tensors, read["model"]["head"]["n_outputs"])


REGRESSOR = Layout(
    parameters=TRAINED_PARAMETERS,
    attributes=record(ATTRIBUTES, TRAINED_MAY_LACK),
    model=record(
        MODEL
        | {
            "target": record(
                {
                    "mean": tuple_of(number()),
                    "scale": tuple_of(number(0, above=True)),
                    "flat": flag,
                }
            ),
            "head": record(HEAD | {"n_outputs": integer(1)}),
            "plan": record(PLAN | {"criterion": one_of(*Numbers.criteria)}, PLAN_MAY_LACK),
        }
    ),
    to_parts=_regressor_parts,
    to_state=_regressor_state,
    check=_check_regressor,
    check_tensors=_check_regressor_tensors,
    frozen_part=lambda backbone, model: backbone.prefix(model["depth"], model["pooling"]),
)
