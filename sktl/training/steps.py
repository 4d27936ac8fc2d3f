"""The ways to train a head and suffix, one class a way.

:class:`SolvedHead` finds the optimum of a linear head on all rows, :class:`LinearSteps` takes
steps on a linear head by the gradient that its loss is known to have, and :class:`GradientSteps`
steps on anything else, by backpropagation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from skorch.callbacks import Callback
from skorch.utils import to_device
from torch import Tensor, nn

from ..cache import FeatureCache
from ..parallel import processes
from .averaging import WeightAverage
from .batches import FeatureRows, Mixer, TensorBatches
from .heads import SquareRoot
from .newton import Solution
from .optimization import OPTIMIZERS, StepSizes, TrainingPlan, default_lr, quick_step
from .solutions import recall_or_solve

_BATCH_EVENTS = ("on_batch_begin", "on_batch_end", "on_grad_computed")
_NUMBERS_AT_ONCE = 2**20
_ROWS_AT_ONCE = 4096

Batch = tuple[Tensor, tuple[Tensor, Tensor]]


class Net(Protocol):
    """What steps need to know of a skorch net."""

    module_: Any
    criterion_: Any
    optimizer_: Any
    callbacks_: Any
    history: Any
    device: str
    lr: float
    plan: TrainingPlan
    prepare: Callable[[Tensor], Tensor] | None

    def notify(self, method_name: str, **kwargs: Any) -> None:
        """Tell callbacks."""

    def get_loss(
        self, y_pred: Tensor, y_true: Any, X: Any = None, training: bool = False
    ) -> Tensor:
        """Mean loss of a batch."""


@dataclass
class Course:
    """What the steps of one training share, from the first to the last.

    Attributes
    ----------
    step_sizes : StepSizes
    penalised : list of torch.Tensor
        Weights of the head that have a penalty which the optimizer doesn't know of.
    mixer : Mixer or None
    average : WeightAverage or None
    valid_rows : FeatureRows or None
        Rows that don't train and are watched.
    cache : FeatureCache or None
        Where solved heads are kept.
    counts : tensor of shape (n_images,) or None
        How many images each of the rows that train stands for.
    """

    step_sizes: StepSizes
    penalised: list[Tensor]
    mixer: Mixer | None = None
    average: WeightAverage | None = None
    valid_rows: FeatureRows | None = None
    cache: FeatureCache | None = None
    counts: Tensor | None = None

    @torch.no_grad()
    def add_penalty(self, strength: float) -> None:
        """Add the gradient of the head's L2 penalty, where the optimizer doesn't."""
        for weight in self.penalised:
            if weight.grad is not None:
                weight.grad.add_(weight, alpha=strength)


class Steps(Protocol):
    """A way to take the steps of an epoch."""

    def take(self, batches: TensorBatches) -> tuple[list[Tensor], list[int]]:
        """Take all of them; return loss and number of rows of each batch."""


# Which way ---------------------------------------------------------------------------


def is_solved(net: Net) -> bool:
    """Whether training is that of a linear head, to its optimum."""
    loss = net.criterion_
    return (
        net.plan.full_batch
        and _trains_a_layer(net)
        and loss.target.is_solved(loss.criterion)
        and net.lr == default_lr("lbfgs")
        and _all_of_it_trains(net)
    )


def is_plain(net: Net) -> bool:
    """Whether training is that of a linear head, and nobody asks for more than its steps."""
    plan, loss = net.plan, net.criterion_
    return (
        _trains_a_layer(net)
        and loss.target.steps_by(loss.criterion)
        and type(net.optimizer_) in OPTIMIZERS.values()
        and _all_of_it_trains(net)
        and not any((net.prepare, plan.mixup, plan.cutmix, plan.ema_decay, plan.max_grad_norm))
        and plan.accumulation_steps == processes().size == 1
        and not is_watched(net)
    )


def is_watched(net: Net) -> bool:
    """Whether a callback wants to know of batches or gradients."""
    return any(
        getattr(type(callback), event) is not getattr(Callback, event)
        for _, callback in net.callbacks_
        for event in _BATCH_EVENTS
    )


def _trains_a_layer(net: Net) -> bool:
    """Whether only one linear layer on the features trains."""
    return type(net.module_.suffix) is nn.Identity and _is_linear(net.module_.head)


def _is_linear(head: nn.Module) -> bool:
    """Whether :func:`make_head` made one linear layer, on features or their roots."""
    if type(head) is not nn.Sequential or type(head[-1]) is not nn.Linear:
        return False
    return all(type(layer) is SquareRoot for layer in head[:-1])


def _all_of_it_trains(net: Net) -> bool:
    """Whether no callback has frozen a part of the head or suffix."""
    return all(parameter.requires_grad for parameter in net.module_.parameters())


# A linear head -----------------------------------------------------------------------


@torch.no_grad()
def _read_by_the_last(head: nn.Sequential, features: Tensor) -> Tensor:
    """What the linear layer reads, in single precision; made in parts, without large copies."""
    before = head[:-1]
    if not len(before):
        return features.float()
    inputs = torch.empty_like(features, dtype=torch.float32)
    parts = (torch.split(rows, _ROWS_AT_ONCE) for rows in (features, inputs))
    for part, made in zip(*parts, strict=True):
        made.copy_(before(part.float()))
    return inputs


class _OfNet:
    """What takes steps for a net, on the course of its training.

    Parameters
    ----------
    net : Net
    course : Course
    """

    def __init__(self, net: Net, course: Course) -> None:
        self._net = net
        self._course = course


class SolvedHead(_OfNet):
    """A linear head at its optimum.

    Parameters
    ----------
    net : Net
    course : Course
        In its cache, a fit with all that the solution depends on may have left it.
    max_iter : int
    """

    def __init__(self, net: Net, course: Course, max_iter: int) -> None:
        super().__init__(net, course)
        self._max_iter = max_iter

    @torch.no_grad()
    def take(self, batch: Batch) -> Solution:
        """Set the head to its optimum on all rows."""
        features, (y, weights) = batch
        solution = self._solution(features, y, weights)
        linear = self._net.module_.head[-1]
        linear.weight.copy_(solution.weight)
        linear.bias.copy_(solution.bias)
        return solution

    def _solution(self, features: Tensor, y: Tensor, weights: Tensor) -> Solution:
        net = self._net
        head, device, target = net.module_.head, net.device, net.criterion_.target
        settings = {
            "weight_decay": net.plan.weight_decay,
            "label_smoothing": net.criterion_.label_smoothing,
            "max_iter": self._max_iter,
        }
        layers = [type(layer).__name__ for layer in head]
        counts = self._course.counts if net.plan.weight_decay == "auto" else None

        def solve() -> Solution:
            inputs = _read_by_the_last(head, features.to(device))
            rest = y.to(device), weights.to(device)
            solution: Solution = target.solve(inputs, *rest, counts=counts, **settings)
            return solution

        return recall_or_solve(
            self._course.cache,
            (features, y, weights, *([] if counts is None else [counts])),
            (target, *layers, *settings.items(), device),
            (head[-1].out_features, head[-1].in_features),
            solve,
        )


class LinearSteps(_OfNet):
    """Steps on a linear head, by the gradient that its loss is known to have.

    A step on a small head costs less than all that usually surrounds it. Outputs come first:
    products of flat matrices are the faster ones.

    Parameters
    ----------
    net : Net
    course : Course
    """

    def __init__(self, net: Net, course: Course) -> None:
        super().__init__(net, course)
        self._read: tuple[FeatureRows, FeatureRows] | None = None

    @torch.no_grad()
    def take(self, batches: TensorBatches) -> tuple[list[Tensor], list[int]]:
        """See :class:`Steps`."""
        net, course = self._net, self._course
        batches.dataset = self._as_read(batches.dataset)
        weight, bias = net.module_.head[-1].weight, net.module_.head[-1].bias
        column = bias[:, None]
        step = quick_step(net.optimizer_)
        target, criterion = net.criterion_.target, net.criterion_.criterion
        features, sizes = batches.dataset.features, batches.sizes
        order, places = batches.draw()
        losses = []
        parts = zip(
            torch.split(places, sizes), self._wanted(batches.dataset, order, sizes), strict=True
        )
        for place, (wanted, shares) in parts:
            rows = features.index_select(0, place).to(weight.device)
            course.step_sizes.before_step()
            outputs = torch.addmm(column, weight, rows.T)
            loss, error = target.loss_and_error(outputs, wanted, shares, criterion)
            weight.grad, bias.grad = error @ rows, error.sum(1)
            course.add_penalty(net.plan.head_penalty)
            step()
            course.step_sizes.after_step()
            losses.append(loss)
        return losses, sizes

    def _as_read(self, rows: FeatureRows) -> FeatureRows:
        """What the linear layer reads of the rows, found once for all epochs."""
        if self._read is None or self._read[0] is not rows:
            features = _read_by_the_last(self._net.module_.head, rows.features)
            self._read = rows, FeatureRows(features, rows.labels, rows.weights)
        return self._read[1]

    def _wanted(
        self, rows: FeatureRows, order: Tensor, sizes: list[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Give what each batch's outputs shall be, and its images' shares in the loss.

        They are computed for many batches at a time.
        """
        device, loss = self._net.device, self._net.criterion_
        n_at_once = max(1, _NUMBERS_AT_ONCE // (loss.target.n_outputs * max(sizes)))
        images = iter(torch.split(order, sizes))
        for start in range(0, len(sizes), n_at_once):
            some = sizes[start : start + n_at_once]
            index = torch.cat(list(islice(images, len(some))))
            n_beside = torch.tensor(some).repeat_interleave(torch.tensor(some))
            shares = (rows.weights[index] / n_beside).to(device)
            y = rows.labels[index].to(device)
            wanted = loss.target.wanted(y, shares, loss.label_smoothing)
            yield from zip(torch.split(wanted, some, 1), torch.split(shares, some), strict=True)


# Anything ----------------------------------------------------------------------------


class GradientSteps(_OfNet):
    """Steps on any head and suffix, by backpropagation.

    Parameters
    ----------
    net : Net
    course : Course
    """

    def take(self, batches: Iterable[Batch]) -> tuple[list[Tensor], list[int]]:
        """See :class:`Steps`."""
        watched = is_watched(self._net)
        losses, sizes = [], []
        remaining = iter(batches)
        while group := list(islice(remaining, self._net.plan.accumulation_steps)):
            results = self._watched_step(group) if watched else self._step(group)
            losses += [loss for loss, _ in results]
            sizes += [len(batch[0]) for batch in group]
        return losses, sizes

    def _step(self, group: Sequence[Batch], watched: bool = False) -> list[tuple[Tensor, Tensor]]:
        """Take one step on a group of batches; give loss and logits of each."""
        net, course = self._net, self._course
        results: list[tuple[Tensor, Tensor]] = []

        def compute_gradient() -> Tensor | None:
            net.optimizer_.zero_grad()
            results[:] = [self._add_part_of_gradient(batch, 1 / len(group)) for batch in group]
            processes().add_gradients(net.module_)
            course.add_penalty(net.plan.head_penalty)
            if net.plan.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(net.module_.parameters(), net.plan.max_grad_norm)
            if watched:
                named = list(net.module_.named_parameters())
                net.notify(
                    "on_grad_computed", named_parameters=named, batch=group[-1], training=True
                )
            return None if known else torch.stack([loss for loss, _ in results]).mean()

        known = type(net.optimizer_) in OPTIMIZERS.values()
        course.step_sizes.before_step()
        if known:
            compute_gradient()
            net.optimizer_.step()
        else:
            net.optimizer_.step(compute_gradient)  # it may want to look more than once
        course.step_sizes.after_step()
        if course.average is not None:
            course.average.update()
        return results

    def _watched_step(self, group: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
        """Do as `_step` does, and tell callbacks what skorch would tell."""
        net = self._net
        for batch in group:
            net.notify("on_batch_begin", batch=batch, training=True)
        results = self._step(group, watched=True)
        rows = net.history[-1]["batches"][-len(group) :]
        for batch, (loss, logits), row in zip(group, results, rows, strict=True):
            row.update(train_loss=float(loss), train_batch_size=len(batch[0]))
            net.notify("on_batch_end", batch=batch, training=True, loss=loss, y_pred=logits)
        return results

    def _add_part_of_gradient(self, batch: Batch, share: float) -> tuple[Tensor, Tensor]:
        """Add the gradient of this process's rows; give their part of the loss, and logits."""
        features, (labels, weights) = batch
        n, part = len(labels), processes().part(len(labels))
        n_own = part.stop - part.start
        if n_own == n:
            return self._add_gradient(batch, share)
        if n_own == 0:
            device = self._net.device
            return torch.zeros((), device=device), torch.empty(0, device=device)
        own = features[part], (labels[part], weights[part])
        loss, logits = self._add_gradient(own, share * n_own / n)
        return loss * (n_own / n), logits

    def _add_gradient(self, batch: Batch, share: float) -> tuple[Tensor, Tensor]:
        net, mixer = self._net, self._course.mixer
        features, (labels, weights) = self._on_device(batch)
        if net.prepare is not None:
            features = net.prepare(features).to(labels.device)
        if mixer is None:
            logits = net.module_(features)
            loss = net.get_loss(logits, (labels, weights), training=True)
        else:
            features, partner, own = mixer(features)
            logits = net.module_(features)
            loss = own * net.get_loss(logits, (labels, weights), training=True)
            others = labels[partner], weights[partner]
            loss = loss + (1 - own) * net.get_loss(logits, others, training=True)
        (share * loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), logits.detach()

    def _on_device(self, batch: Batch) -> Batch:
        # Looking at the batch is not free.
        return batch if self._net.device == "cpu" else to_device(batch, self._net.device)
