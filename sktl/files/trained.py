"""What the files of estimators that are trained have in common."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import get_args

import numpy as np
import torch

from ..backbones import Pooling
from ..training.heads import HEADS, ONE_LAYER
from ..training.optimization import OPTIMIZERS, TrainingPlan
from ..training.parameters import BOUNDS
from .container import FileFormatError
from .layout import (
    MAY_LACK,
    NETWORK,
    PARAMETERS,
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
from .readers import (
    either,
    integer,
    list_of,
    mapping_of,
    number,
    one_of,
    optional,
    record,
    text,
    tuple_of,
)
from .values import history, history_to_json, parameter, plain
from .weights import Stored

_share = number(0, 1, below=True)
_positive = number(0, above=True)
_least_one = integer(1)

WIDTHS = tuple_of(integer(1, 2**31))
HEAD = {
    "head": either(one_of(*ONE_LAYER), WIDTHS),
    "dropout": _share,
    "in_features": integer(1, 2**31),
}
# What a plan has decided where the parameter of this name leaves it open, or isn't one.
_DECIDED = {
    "optimizer": one_of(*OPTIMIZERS),
    "lr": _positive,
    "backbone_lr": _positive,
    "max_epochs": _least_one,
    "n_iter_no_change": optional(_least_one),
    "seed": integer(0, 2**31 - 1),
    "verbose": integer(0, 1),
    "chosen_decay": number(0),
}
_by_name = {f.name: f for f in fields(TrainingPlan)}
_of_plan = {name: parameter(bounds) for name, bounds in BOUNDS.items()} | _DECIDED
# Fields with a default came later, and are left out where they have it.
PLAN_MAY_LACK = {n: r for n, r in _of_plan.items() if _by_name[n].default is not MISSING}
PLAN = {name: reader for name, reader in _of_plan.items() if name not in PLAN_MAY_LACK}


def trained_parts(state: Stored) -> tuple[Stored, Stored, Tensors]:
    """Take a state apart, into attributes, model and tensors."""
    stored = state.pop("_model")
    attributes = shared_attributes(state) | {
        "history_": history_to_json(state.pop("history_")),
        "n_iter_": int(state.pop("n_iter_")),
        "stages_": state.pop("stages_"),
    }
    del state["freeze_"]  # the model's depth
    tensors = tensors_of(stored["frozen"], "frozen") | tensors_of(stored["trained"], "trained")
    if "best_epoch_" in state:
        attributes["best_epoch_"] = int(state.pop("best_epoch_"))
        tensors["validation_indices_"] = torch.from_numpy(state.pop("validation_indices_"))
    skipped = state.pop("skipped_", np.arange(0)).tolist()
    if skipped:
        attributes["skipped_"] = skipped
    plan = {name: plain(name, value) for name, value in stored["plan"].items()}
    for name in PLAN_MAY_LACK:
        if plan[name] == _by_name[name].default:
            del plan[name]
    head = stored["head"]
    widths = [int(n) for n in head["head"]] if isinstance(head["head"], tuple) else None
    model = network_to_json(stored) | {
        "depth": stored["depth"],
        "pooling": stored["pooling"],
        "head": {name: plain(name, v) for name, v in (head | {"head": "linear"}).items()}
        | {"head": widths or plain("head", head["head"])},
        "plan": plan,
        "history": history_to_json(stored["history"]),
        "same": {part: stored[part]["same"] for part in ("frozen", "trained")},
    }
    return attributes, model, tensors


def trained_state(attributes: Stored, model: Stored, tensors: Tensors) -> Stored:
    """Undo `trained_parts`."""
    state = shared_state(attributes)
    if "validation_indices_" in tensors:
        state["validation_indices_"] = tensors["validation_indices_"].numpy()
    if "skipped_" in state:
        state["skipped_"] = np.array(state["skipped_"], dtype=np.int64)
    kept = ("depth", "pooling", "head", "plan", "history")
    weights = {
        part: weights_of(tensors, part, model["same"][part]) for part in ("frozen", "trained")
    }
    return state | {
        "freeze_": model["depth"],
        "_model": network_to_state(model) | {k: model[k] for k in kept} | weights,
    }


def check_trained(read: Stored) -> None:
    """See whether the parts of a document go together."""
    check_columns(read)
    check_network(read)
    if not 0 <= read["model"]["depth"] <= len(read["attributes"]["stages_"]):
        raise FileFormatError(f"depth={read['model']['depth']} does not go with the stages.")


def check_trained_tensors(read: Stored, tensors: Tensors, n_outputs: int) -> None:
    """See whether the tensors go with the document."""
    check_same(read, tensors)
    _check_head(read["model"]["head"], n_outputs, tensors)
    _check_indices(read["attributes"], tensors)


def _check_head(head: Stored, n_outputs: int, tensors: Tensors) -> None:
    """Before it is built: a few digits may ask for more memory than there is."""
    hidden = () if head["head"] in ONE_LAYER else head["head"]
    widths = (head["in_features"], *hidden, n_outputs)
    wanted = [(out, into) for into, out in zip(widths, widths[1:], strict=False)]
    found = {
        tuple(tensor.shape)
        for name, tensor in tensors.items()
        if name.startswith("trained/head.") and tensor.ndim == 2
    }
    if found != set(wanted):
        raise FileFormatError(f"The head should have weights of the shapes {wanted}.")


def _check_indices(attributes: Stored, tensors: Tensors) -> None:
    indices = tensors.get("validation_indices_")
    if (indices is None) != ("best_epoch_" not in attributes):
        raise FileFormatError("best_epoch_ and validation_indices_ belong together.")
    if indices is not None and (
        indices.dtype is not torch.int64 or indices.ndim != 1 or bool((indices < 0).any())
    ):
        raise FileFormatError("validation_indices_ must be row numbers.")


ATTRIBUTES = {
    "history_": history,
    "n_iter_": integer(0),
    "stages_": list_of(text, least=1),
}
TRAINED_MAY_LACK = MAY_LACK | {
    "best_epoch_": integer(0),
    "skipped_": list_of(integer(0)),
}
MODEL = NETWORK | {
    "pooling": one_of(*get_args(Pooling)),
    "depth": integer(0, 2**15),
    "history": history,
    "same": record({"frozen": mapping_of(text), "trained": mapping_of(text)}),
}
TRAINED_PARAMETERS = PARAMETERS | {
    "head": either(one_of(*HEADS), WIDTHS),
    "callbacks": one_of(None),
}
