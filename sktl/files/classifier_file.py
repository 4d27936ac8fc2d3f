"""What a saved file says of a classifier."""

from __future__ import annotations

import numpy as np
import torch

from ..training.targets import Classes, Indicators
from .container import FileFormatError
from .layout import Layout, Tensors
from .readers import either, integer, list_of, one_of, optional, record, text, tuple_of
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
from .values import adaptation_record, class_labels, labels_to_json, scalar
from .weights import Stored

_SAMPLE_BYTES = 8 * 2**20  # a larger sample of features isn't saved


def _classifier_parts(state: Stored) -> tuple[Stored, Stored, Tensors]:
    sample, classes = state.pop("_sample"), state.pop("classes_")
    target = state["_model"]["target"]
    attributes, model, tensors = trained_parts(state)
    attributes["classes_"] = labels_to_json(classes)
    model["head"]["n_classes"] = model["head"].pop("n_outputs")
    if target["kind"] == Indicators.kind:  # without it, a file is of classes
        model["target"] = {name: target[name] for name in ("kind", "n_labels")}
    if sample is not None and sample["features"].nbytes <= _SAMPLE_BYTES:
        names = ("features", "labels", "weights")
        tensors |= {f"sample/{name}": torch.from_numpy(sample[name]) for name in names}
    if "adaptation_" in state:
        adaptation = state.pop("adaptation_")
        attributes["adaptation_"] = adaptation | {"proportions": adaptation["proportions"].tolist()}
    return attributes, model, tensors


def _classifier_state(attributes: Stored, model: Stored, tensors: Tensors) -> Stored:
    sample = None
    if "sample/features" in tensors:
        sample = {n: tensors[f"sample/{n}"].numpy() for n in ("features", "labels", "weights")}
        sample["n_classes"] = np.asarray(model["head"]["n_classes"])
    state = trained_state(attributes, model, tensors) | {"_sample": sample}
    if "target" in model:
        state["_model"]["target"] = model["target"]
    return state


def _check_classifier(read: Stored) -> None:
    check_trained(read)
    attributes, head = read["attributes"], read["model"]["head"]
    n_classes, adaptation = len(attributes["classes_"]), attributes.get("adaptation_")
    target = read["model"].get("target")
    if target is not None and attributes["classes_"].tolist() != [*range(target["n_labels"])]:
        raise FileFormatError(f"classes_ must be 0 to {target['n_labels'] - 1}, as labels are.")
    if target is not None and adaptation is not None:
        raise FileFormatError("A classifier of several labels has no adaptation_.")
    if head["n_classes"] != n_classes:
        raise FileFormatError(f"The head is for {head['n_classes']} classes, not {n_classes}.")
    if adaptation is not None and len(adaptation.proportions) != n_classes:
        raise FileFormatError("adaptation_ has the proportions of other classes.")


def _check_classifier_tensors(read: Stored, tensors: Tensors) -> None:
    head = read["model"]["head"]
    check_trained_tensors(read, tensors, head["n_classes"])
    _check_sample(head, tensors)
    if "target" in read["model"] and "sample/features" in tensors:
        raise FileFormatError("A classifier of several labels has no sample.")


def _check_sample(head: Stored, tensors: Tensors) -> None:
    names = ("features", "labels", "weights")
    found = [tensors[f"sample/{name}"] for name in names if f"sample/{name}" in tensors]
    if not found:
        return
    if len(found) < len(names):
        raise FileFormatError("The sample lacks features, labels or weights.")
    features, labels, weights = found
    n = len(labels) if labels.ndim else 0
    if (
        [t.dtype for t in found] != [torch.float32, torch.int64, torch.float64]
        or [tuple(t.shape) for t in found] != [(n, head["in_features"]), (n,), (n,)]
        or not bool(((labels >= 0) & (labels < head["n_classes"])).all())
        or not bool((weights >= 0).all())
    ):
        raise FileFormatError("The sample's features, labels and weights don't go together.")


CLASSIFIER = Layout(
    parameters=TRAINED_PARAMETERS
    | {"class_weight": optional(either(text, list_of(tuple_of(scalar, 2))))},
    attributes=record(
        ATTRIBUTES | {"classes_": class_labels},
        TRAINED_MAY_LACK | {"adaptation_": adaptation_record},
    ),
    model=record(
        MODEL
        | {
            "head": record(HEAD | {"n_classes": integer(2)}),
            "plan": record(PLAN | {"criterion": one_of(*Classes.criteria)}, PLAN_MAY_LACK),
        },
        {"target": record({"kind": one_of(Indicators.kind), "n_labels": integer(2)})},
    ),
    to_parts=_classifier_parts,
    to_state=_classifier_state,
    check=_check_classifier,
    check_tensors=_check_classifier_tensors,
    frozen_part=lambda backbone, model: backbone.prefix(model["depth"], model["pooling"]),
)
