"""One fit: features at the freeze depth, a head to begin with, then training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..backbones import Backbone, Pooling
from ..cache import FeatureCache, empty_rows
from ..frozen.module import FrozenModule
from ..frozen.passes import prepare_all
from ..frozen.prefix import FrozenPrefix, frozen_prefix_of, frozen_stage_of
from ..images.augmentation import Augment, View, make_augmentation
from ..images.reading import Images
from ..training.batches import FeatureRows
from ..training.epochs import Observer, Outcome, train
from ..training.heads import Head, HeadShape, choose_head
from ..training.net import SuffixNet
from ..training.optimization import OPTIMIZERS, TrainingPlan
from ..training.progress import progress_bar
from ..training.targets import Classes, Encoded, Numbers, Target
from .joined import Model, assemble_net
from .source_domain import LabelledFeatures, sample_rows

_OTHER_BACKBONE = (
    "Going on from the last fit needs the same backbone and weights, but that had others. To begin "
    "anew, call fit with warm_start=False."
)


@dataclass(frozen=True)
class Task:
    """What is to be learned.

    Attributes
    ----------
    images : Images
    target : Target
    y : array with a row for each image
        As the target encodes it.
    weights : float64 array of shape (n,)
    """

    images: Images
    target: Target
    y: Encoded
    weights: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Setup:
    """How it is to be learned; the names are those of the estimator's parameters."""

    backbone: Backbone
    depth: int
    pooling: Pooling
    head: Head
    dropout: float
    plan: TrainingPlan
    augment: Augment
    n_views: int | None
    validation_fraction: float | None
    precision: str
    device: torch.device
    cache: FeatureCache | None
    n_jobs: int
    callbacks: Any
    verbose: int

    @property
    def frozen(self) -> bool:
        """Whether only the head trains."""
        return self.depth == len(self.backbone.stages)


@dataclass(frozen=True)
class Fit:
    """A fitted model, and how it came about.

    Attributes
    ----------
    model : Model
    outcome : Outcome
    validation : int array or None
        The rows that were watched and didn't train.
    sample : LabelledFeatures or None
        What the head reads of some of the rows, for adapting it to images of another source; of
        classes only.
    """

    model: Model
    outcome: Outcome
    validation: npt.NDArray[np.int64] | None
    sample: LabelledFeatures | None


def fit_model(
    task: Task,
    setup: Setup,
    observe: Callable[[Model], AbstractContextManager[Observer]],
    *,
    start: Model | None = None,
    keep_epochs: bool = False,
) -> Fit:
    """Train suffix and head.

    Parameters
    ----------
    task : Task
    setup : Setup
    observe : callable
        Gives whom to tell of the epochs of a model.
    start : Model or None, default=None
        Whose weights to go on from; it isn't changed.
    keep_epochs : bool, default=False
        See :func:`sktl.training.epochs.train`.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        If the images don't allow of the split for validation, training diverges, or `start` is
        another kind of model.
    UnreadableImagesError
        If images can't be read. It comes before training, and names them all.
    """
    training, validation = _split(task, setup)
    prefix = frozen_prefix_of(
        setup.backbone, setup.depth, setup.pooling, setup.precision, setup.device
    )
    features, prepare = _features(task.images, prefix, setup)
    rows = _rows(task, features)
    watched = None
    if validation is not None:
        place = torch.as_tensor(validation)
        watched = _watched(task, rows, place, prefix if prepare else None, setup)
        rows = rows.subset(torch.as_tensor(training))
    head = _head_shape(task, features, prefix if prepare else None, setup, start)
    plan, ready = setup.plan, None
    if start is not None:
        plan = replace(plan, chosen_decay=start.plan.chosen_decay)
    elif plan.unfreeze != "at_once" and (not setup.frozen or _has_a_start(task, head, plan)):
        ready = _fitted_head(task, training, head, rows, setup)
        if isinstance(plan.weight_decay, str):
            plan = replace(plan, chosen_decay=ready.plan.chosen_decay)
    net = assemble_net(
        setup.backbone,
        setup.depth,
        setup.pooling,
        task.target,
        head,
        plan,
        setup.precision,
        setup.device,
        prepare=prepare,
        callbacks=setup.callbacks,
    )
    model = Model(
        setup.backbone,
        setup.depth,
        setup.pooling,
        setup.precision,
        setup.device,
        task.target,
        head,
        plan,
        net,
    )
    if start is not None:
        _go_on_from(start, model)
    elif ready is not None:
        net.module_.head.load_state_dict(ready.module_.head.state_dict())
    elif not task.target.is_fitted_first and head.has_one_layer:
        _begin_at_zero(net.module_.head)
    with observe(model) as observer:
        outcome = train(net, rows, watched, observer, cache=setup.cache, keep_epochs=keep_epochs)
    model.plan = net.plan
    net.prepare = None  # it may hold the prefix and the user's function
    sample = None
    if isinstance(task.target, Classes):
        sample = _sample(model, rows, task.target, prefix if prepare else None)
    return Fit(model, outcome, validation, sample)


@torch.no_grad()
def _begin_at_zero(head: nn.Sequential) -> None:
    """Tell nothing yet: what random weights say would have to be unlearned."""
    for parameter in head.parameters():
        parameter.zero_()


def _sample(
    model: Model, rows: FeatureRows, classes: Classes, prefix: FrozenPrefix | None
) -> LabelledFeatures:
    """Keep what the head reads of some rows; `prefix` is what they haven't been through."""
    counting = torch.nonzero(rows.weights > 0).ravel()
    n_bytes = 4 * model.head.in_features
    place = counting[sample_rows(rows.labels[counting].numpy(), n_bytes)]
    features, (labels, weights) = rows[place]
    if prefix is not None:
        features = prefix.module.all_of(features)
    if model.depth < len(model.backbone.stages):
        features = model.suffix.all_of(features)
    return LabelledFeatures(features.float(), labels, weights.double(), classes.n_classes)


def _split(task: Task, setup: Setup) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Rows that train, and rows to watch if there shall be such."""
    everything = np.arange(len(task.weights))
    if setup.validation_fraction is None:
        return everything, None
    counting = np.flatnonzero(task.weights > 0)  # a row that doesn't count shows nothing
    share, seed = setup.validation_fraction, setup.plan.seed
    try:
        chosen = task.target.hold_out(task.y[counting], share, seed)
    except ValueError as error:
        of_each = " of each class" if isinstance(task.target, Classes) else ""
        raise ValueError(
            f"early_stopping=True sets aside some images{of_each}, which can't be done with "
            f"validation_fraction={share:g}: {error} Pass more images{of_each}, change "
            "validation_fraction, or set early_stopping=False."
        ) from error
    validation = np.sort(counting[chosen])
    return np.setdiff1d(everything, validation), validation


def _features(
    images: Images, prefix: FrozenPrefix | None, setup: Setup
) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
    """What training starts from, and what is done to a batch of it first.

    Varied images can't be computed once for all epochs: either some views of each are, or the
    prefix runs in each epoch anew.
    """
    augment = make_augmentation(setup.augment)
    anew = augment is not None and (prefix is None or setup.n_views is None)
    n_views = 1 if augment is None or anew else setup.n_views or 1
    with progress_bar("features", n_views * len(images), "image", setup.verbose) as tell:
        if prefix is None or anew:
            prepared = prepare_all(images, setup.backbone.recipe, setup.n_jobs, tell)
            return prepared, _preparation(augment, prefix) if augment else None

        def compute(view: View | None) -> Tensor:
            return prefix.compute(images, setup.cache, setup.n_jobs, view=view, tell=tell)

        first = compute(None)
        if n_views == 1:
            return first, None
        n = len(first)
        rows = empty_rows(n_views * n, first)
        rows[:n] = first
        for number in range(1, n_views):
            rows[number * n : (number + 1) * n] = compute(View(setup.augment, number))
        return rows, None


def _preparation(
    augment: Callable[[Tensor], Tensor], prefix: FrozenPrefix | None
) -> Callable[[Tensor], Tensor]:
    def prepare(images: Tensor) -> Tensor:
        varied = augment(images)
        # A clone, since what inference mode makes can't be trained on.
        return varied if prefix is None else prefix.module(varied).clone()

    return prepare


def _rows(task: Task, features: Tensor) -> FeatureRows:
    return FeatureRows(features, task.target.tensor(task.y), torch.as_tensor(task.weights))


def _watched(
    task: Task, rows: FeatureRows, place: Tensor, prefix: FrozenPrefix | None, setup: Setup
) -> FeatureRows:
    """Rows to watch, as the suffix reads them and without variations."""
    features, (labels, weights) = rows[place]
    if prefix is not None:
        features = prefix.compute(task.images, setup.cache, setup.n_jobs, place.tolist())
    return FeatureRows(features, labels, weights)


def _head_shape(
    task: Task,
    features: Tensor,
    prefix: FrozenPrefix | None,
    setup: Setup,
    start: Model | None,
) -> HeadShape:
    first = features[:1] if prefix is None else prefix.module(features[:1])
    pooled = first
    if not setup.frozen:
        rest = setup.backbone.rest(setup.depth, setup.pooling)
        with torch.inference_mode():
            pooled = rest(first.float() if first.is_floating_point() else first)
    if setup.plan.cutmix and not setup.plan.mixup and first.ndim != 4:
        raise ValueError(
            f"cutmix={setup.plan.cutmix:g} pastes a part of one map into another, but at this "
            f"freeze depth features have the shape {tuple(first.shape[1:])}. Use mixup, or "
            "freeze fewer stages."
        )
    if setup.head == "auto" and start is not None and start.head.has_one_layer:
        kind = start.head.head
    elif setup.head == "auto" and not setup.frozen and not task.target.is_fitted_first:
        kind = "linear"  # roots of features near zero change too much with the stages before
    else:
        kind = choose_head(setup.head, pooled, of_stages=setup.pooling == "stages")
    return HeadShape(kind, task.target.n_outputs, setup.dropout, int(pooled.shape[1]))


def _has_a_start(task: Task, head: HeadShape, plan: TrainingPlan) -> bool:
    """Whether steps on a head alone begin near their end.

    From random weights, numbers take many more steps than classes, whose logits may be anything as
    long as the right one is the greatest.
    """
    target = task.target
    if not isinstance(target, Numbers) or not head.is_convex:
        return False
    is_solved_anyway = plan.full_batch and target.is_solved(plan.criterion)
    return target.is_solved(target.first_criterion(plan.criterion)) and not is_solved_anyway


def _fitted_head(
    task: Task,
    training: npt.NDArray[np.int64],
    head: HeadShape,
    rows: FeatureRows,
    setup: Setup,
) -> SuffixNet:
    """A net whose head fits what the whole backbone, as it is, makes of the images.

    Stages that train under a random head first lose what they know.

    References
    ----------
    A. Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution (2022), arXiv:2202.10054.
    """
    depth = len(setup.backbone.stages)
    if setup.frozen and rows.features.is_floating_point():
        pooled = rows.X  # as they are, in the first view
    elif setup.cache is None and not rows.n_views > 1 and rows.features.is_floating_point():
        rest = setup.backbone.rest(setup.depth, setup.pooling)
        pooled = FrozenModule(rest, setup.precision, setup.device).all_of(rows.features)
    else:
        prefix = frozen_stage_of(setup.backbone, None, setup.pooling, setup.precision, setup.device)
        with progress_bar("head", len(training), "image", setup.verbose) as tell:
            pooled = prefix.compute(
                task.images, setup.cache, setup.n_jobs, training.tolist(), tell=tell
            )
    criterion = task.target.first_criterion(setup.plan.criterion)
    solved = head.is_convex and task.target.is_solved(criterion)
    plan = replace(setup.plan, criterion=criterion).of_the_head(convex=solved)
    if solved and not setup.frozen:
        plan = replace(plan, weight_decay=task.target.decay_to_start(plan.weight_decay))
    net = assemble_net(
        setup.backbone,
        depth,
        setup.pooling,
        task.target,
        head,
        plan,
        setup.precision,
        setup.device,
    )
    train(net, FeatureRows(pooled, rows.labels, rows.weights), cache=setup.cache)
    return net


def _go_on_from(start: Model, model: Model) -> None:
    """Put the weights of one model into another, and what its optimizer remembers."""
    net, before = model.net, start.net
    same_head = start.head == model.head
    everything = start.depth == model.depth and start.pooling == model.pooling
    head_alone = start.depth == len(start.backbone.stages) and start.pooling == model.pooling
    if not same_head or not (everything or head_alone):
        raise ValueError(
            "Going on from the last fit needs the same network, but that had another head, pooling "
            f"or freeze depth ({start.depth} frozen stages, now {model.depth}). Only from "
            'freeze="all" with pooling="network" can a fit go on to any depth. To begin anew, call '
            "fit with warm_start=False."
        )
    if start.backbone is not model.backbone and not _same_network(start, model):
        raise ValueError(_OTHER_BACKBONE)
    try:
        if everything:
            net.module_.load_state_dict(before.module_.state_dict())
            _remember_steps(before, net)
        else:
            net.module_.head.load_state_dict(before.module_.head.state_dict())
    except RuntimeError as error:  # weights of other names or shapes
        raise ValueError(_OTHER_BACKBONE) from error
    for row in before.history:
        net.history.new_epoch()
        net.history[-1].update({k: v for k, v in row.items() if k != "batches"})


def _same_network(start: Model, model: Model) -> bool:
    """Whether the frozen stages are the same; what trains is taken over with its weights."""
    known = None not in (start.backbone.identity, model.backbone.identity)
    if known and start.backbone.identity == model.backbone.identity:
        return True
    if known and _described(start) != _described(model):
        return False
    # The same network has another identity in another version.
    depth = min(start.depth, model.depth)
    ours, theirs = (m.backbone.prefix(depth, m.pooling).state_dict() for m in (model, start))
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in ours.items()
    )


def _described(model: Model) -> tuple[Any, ...]:
    return model.backbone.architecture.source, model.backbone.recipe


def _remember_steps(before: SuffixNet, net: SuffixNet) -> None:
    """Go on with the optimizer's momenta, at the new plan's learning rates."""
    kind = type(net.optimizer_)
    if type(before.optimizer_) is not kind or kind not in OPTIMIZERS.values() or net.full_batch:
        return
    if not before.optimizer_.state:
        return
    settings = [
        {k: v for k, v in group.items() if k != "params"} for group in net.optimizer_.param_groups
    ]
    net.optimizer_.load_state_dict(before.optimizer_.state_dict())
    for group, own in zip(net.optimizer_.param_groups, settings, strict=True):
        group.update(own)
