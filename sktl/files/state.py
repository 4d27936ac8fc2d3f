"""A fitted model as arrays and settings, and back.

No module, graph or tensor of ours is pickled, and of our classes only the estimator's own,
so a file outlives the torch version and the device that wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..backbones import Backbone, rebuild_backbone
from ..backbones.registry import Architecture
from ..hardware import restore_device, restore_precision
from ..images.preprocessing import Recipe
from ..model.joined import Model, assemble_net
from ..randomness import seeded
from ..tensors import named_tensors
from ..training.heads import HeadShape
from ..training.optimization import TrainingPlan
from ..training.targets import KINDS, Target
from .pickling import Pack, to_settings, unpack
from .weights import Stored, restore_weights, store_weights, to_array

FORMAT = 3
# What versions did that lacked a parameter, where its default is something else.
BEFORE = {"resize_mode": "crop"}
_RENAMED = {"valid_accuracy": "valid_acc"}  # columns of a history


def check_format(written: int) -> None:
    """Refuse a layout that only later versions know.

    Parameters
    ----------
    written : int
        The `FORMAT` of the version that wrote the file.

    Raises
    ------
    ValueError
    """
    if written > FORMAT:
        raise ValueError(
            f"The file was written by a later version of sktl, in format {written}; this version "
            f"reads formats up to {FORMAT}. Upgrade sktl."
        )


def store_backbone(backbone: Backbone, frozen: nn.Module, pack: Pack) -> Stored:
    """A backbone as settings and the weights of its frozen part.

    Parameters
    ----------
    backbone : Backbone
    frozen : torch.nn.Module
    pack : callable
        See :class:`Packer`.
    """
    architecture = to_settings(backbone.architecture)
    source = architecture["source"] = pack("backbone", _unchanged_source(backbone))
    return {
        "format": FORMAT,
        "architecture": architecture,
        "recipe": to_settings(backbone.recipe),
        "identity": backbone.identity,
        "frozen": store_weights(frozen, _given_tensors(source)),
    }


def _unchanged_source(backbone: Backbone) -> Any:
    """What the user gave, or the copy that was fitted if the user has rebuilt theirs since."""
    source = backbone.architecture.source
    network = getattr(backbone.splitter, "network", source)
    changed = isinstance(source, nn.Module) and repr(source) != repr(network)
    return network if changed else source


def _given_tensors(source: Any) -> dict[str, Tensor]:
    return named_tensors(source) if isinstance(source, nn.Module) else {}


def restore_backbone(stored: Stored, seed: int) -> Backbone:
    """Build a stored backbone again, without its weights.

    Parameters
    ----------
    stored : dict
        From :func:`store_backbone`.
    seed : int
        That of the fit, for a callable that draws connections at random.
    """
    check_format(stored["format"])
    settings = stored["architecture"] | {"source": unpack(stored["architecture"]["source"])}
    draws = not isinstance(settings["source"], str)
    with seeded(seed) if draws else nullcontext():
        return rebuild_backbone(
            Architecture(**settings), Recipe(**stored["recipe"]), stored["identity"]
        )


def restore_frozen(backbone: Backbone, frozen: nn.Module, stored: Stored) -> None:
    """Put the weights of a stored backbone into its frozen part."""
    restore_weights(frozen, stored["frozen"], _given_tensors(backbone.architecture.source))


def store_model(model: Model, asked_precision: str, pack: Pack) -> Stored:
    """A fitted model as arrays and settings.

    Parameters
    ----------
    model : Model
    asked_precision : str
        The parameter `precision`, by which loading tells a choice from a wish.
    pack : callable
        See :class:`Packer`.
    """
    frozen = model.backbone.prefix(model.depth, model.pooling)
    stored = store_backbone(model.backbone, frozen, pack)
    head, plan = to_settings(model.head), to_settings(model.plan)
    head["head"] = pack("head", head["head"])
    for name in ("criterion", "optimizer", "schedule"):
        plan[name] = pack(name, plan[name])
    given = _given_tensors(stored["architecture"]["source"])
    return stored | {
        "depth": model.depth,
        "pooling": model.pooling,
        "precision": model.precision,
        "asked_precision": asked_precision,
        "device": str(model.device),
        "target": {"kind": model.target.kind} | to_settings(model.target),
        "head": head,
        "plan": plan,
        "trained": store_weights(model.net.module_, given),
        "history": plain_rows(model.net.history),
    }


def restore_model(stored: Stored) -> Model:
    """Build a stored model again; hardware that is not to be had falls back, with a warning."""
    settings = {k: unpack(v) for k, v in stored["head"].items()}
    n_classes = settings.pop("n_classes", None)  # what older versions call the outputs
    head = HeadShape(**({} if n_classes is None else {"n_outputs": n_classes}) | settings)
    target = _target(stored.get("target") or {"kind": "classes", "n_classes": head.n_outputs})
    plan = TrainingPlan(**{k: unpack(v) for k, v in stored["plan"].items()})
    backbone = restore_backbone(stored, plan.seed)
    device = restore_device(stored["device"])
    precision = restore_precision(stored["asked_precision"], stored["precision"], device)
    depth, pooling = stored["depth"], stored["pooling"]
    restore_frozen(backbone, backbone.prefix(depth, pooling), stored)
    net = assemble_net(backbone, depth, pooling, target, head, plan, precision, device)
    restore_weights(net.module_, stored["trained"], _given_tensors(backbone.architecture.source))
    for row in read_rows(stored["history"]):
        net.history.new_epoch()
        net.history[-1].update(row)
    return Model(backbone, depth, pooling, precision, device, target, head, plan, net)


def _target(stored: Stored) -> Target:
    return KINDS[stored["kind"]](**{k: v for k, v in stored.items() if k != "kind"})


def plain_rows(history: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A training history by epochs, in Python's numbers; that of batches grows with the data."""
    return [{k: _plain(v) for k, v in row.items() if k != "batches"} for row in history]


def read_rows(stored: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A stored history, with columns by the names that they have today."""
    return [{_RENAMED.get(k, k): value for k, value in row.items()} for row in stored]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = to_array(value)[0]
    single = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0)
    return value.item() if single else value
