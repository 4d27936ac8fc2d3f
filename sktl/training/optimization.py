"""How a net is trained: the optimizer, and the learning rate of each weight at each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from ..compat import adam_step
from .ridge import WeightDecay
from .selection import DEFAULT_DECAY

OptimizerChoice = str | type[torch.optim.Optimizer]
Schedule = str | Callable[[torch.optim.Optimizer], LRScheduler]
Criterion = str | Callable[[Tensor, Tensor], Tensor]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "lbfgs": torch.optim.LBFGS,
}
SCHEDULES = ("constant", "cosine", "one_cycle")
UNFREEZING = ("at_once", "head_first", "gradual")
_DEFAULT_LR = {"sgd": 1e-2, "lbfgs": 1.0}
_OTHER_LR = 1e-3
# Pretrained stages are adjusted, not overwritten; benchmarks/accuracy has the study.
_FINE_TUNING_SHARE = 0.3
STAGES_SHARE = 0.1  # of the learning rate of a head that isn't fitted first
_MAX_EPOCHS = {"lbfgs": 1000}
_OTHER_MAX_EPOCHS = 20
_MOMENTUM = 0.9
_COUNT_STEPS = (OneCycleLR, CyclicLR)  # torch's other schedulers count epochs
_WARMUP = {"constant": 0.0, "cosine": 0.1, "one_cycle": 0.3}
# As in one-cycle training (Smith 2018) and fastai: momentum goes down while the rate goes up.
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_MOMENTUM = (0.85, 0.95)
_SCHEDULED = ("lr", "momentum", "betas")
# Matrices by shape, but biases and scales by what they do.
_NO_DECAY = ("bias", "class_token", "pos_embedding", "layer_scale")


@dataclass(frozen=True)
class TrainingPlan:
    """Settings of one training run, with nothing left to decide.

    Attributes
    ----------
    optimizer : str or type of torch.optim.Optimizer
        A key of `OPTIMIZERS` or a class.
    lr, backbone_lr : float
        Step sizes of the head and of the suffix's last stage.
    layer_decay : float
        What a stage's step size is of that of the stage after it.
    weight_decay : float or "auto"
        For the head, half of it times the squared norm of the weights is added to the mean loss.
        For stages that train, and with an optimizer of the user's own for the head, too, it is
        the optimizer's parameter. Biases and norms have none. "auto" is what suits the features,
        for a head that is solved for.
    schedule : str or callable
        One of `SCHEDULES`, or what makes a torch scheduler of the optimizer.
    warmup : float or None
        Share of the steps in which the rate grows; None is the schedule's own.
    max_epochs, batch_size : int
        For "lbfgs", iterations over all rows at once.
    accumulation_steps : int
        Batches whose gradients make one step.
    max_grad_norm, ema_decay : float or None
    label_smoothing, mixup, cutmix : float
    criterion : str or callable
        One that the target knows by name, or from outputs and y to losses.
    unfreeze : str
        One of `UNFREEZING`.
    n_iter_no_change : int or None
        Epochs without progress after which training stops.
    seed : int
    verbose : int
    chosen_decay : float or None, default=None
        What "auto" has come to.
    """

    optimizer: OptimizerChoice
    lr: float
    backbone_lr: float
    layer_decay: float
    weight_decay: WeightDecay
    schedule: Schedule
    warmup: float | None
    max_epochs: int
    batch_size: int
    accumulation_steps: int
    max_grad_norm: float | None
    ema_decay: float | None
    label_smoothing: float
    mixup: float
    cutmix: float
    criterion: Criterion
    unfreeze: str
    n_iter_no_change: int | None
    seed: int
    verbose: int
    chosen_decay: float | None = None

    @property
    def full_batch(self) -> bool:
        """Whether every step sees all rows."""
        return self.optimizer == "lbfgs"

    @property
    def stage_decay(self) -> float:
        """Weight decay of stages that train; what suits the head says nothing of theirs."""
        return DEFAULT_DECAY if isinstance(self.weight_decay, str) else self.weight_decay

    @property
    def head_decay(self) -> float:
        """Weight decay of the head."""
        return self.stage_decay if self.chosen_decay is None else self.chosen_decay

    @property
    def head_penalty(self) -> float:
        """Weight decay that the net must add to the head's gradient, since torch's AdamW doesn't.

        That shrinks weights beside the loss, by the learning rate; for the others of `OPTIMIZERS`
        a weight decay is this penalty.
        """
        return self.head_decay if self.optimizer == "adamw" else 0.0

    @property
    def dtype(self) -> torch.dtype:
        """Number format of head and suffix; a second-order method needs the digits."""
        return torch.float64 if self.full_batch else torch.float32

    def of_the_head(self, *, convex: bool) -> TrainingPlan:
        """The plan for a head that is fitted alone before the rest is unfrozen."""
        optimizer = "lbfgs" if convex else "adamw"
        return replace(
            self,
            optimizer=optimizer,
            lr=default_lr(optimizer),
            schedule="cosine",
            warmup=None,
            max_epochs=default_max_epochs(optimizer),
            accumulation_steps=1,
            max_grad_norm=None,
            ema_decay=None,
            mixup=0.0,
            cutmix=0.0,
            n_iter_no_change=None,
            verbose=0,
        )


def choose_optimizer(optimizer: OptimizerChoice, *, convex: bool) -> OptimizerChoice:
    """Find what "auto" stands for, and the name of torch's own classes.

    Parameters
    ----------
    optimizer : str or type
    convex : bool
        Whether only a linear head trains and nothing in training is random.
    """
    if isinstance(optimizer, type):  # torch's classes are the same as their names
        return {kind: name for name, kind in OPTIMIZERS.items()}.get(optimizer, optimizer)
    if optimizer != "auto":
        return optimizer
    return "lbfgs" if convex else "adamw"


def default_lr(optimizer: OptimizerChoice, *, frozen: bool = True) -> float:
    """Learning rate where none is given; smaller where pretrained stages train."""
    lr = _DEFAULT_LR.get(optimizer, _OTHER_LR) if isinstance(optimizer, str) else _OTHER_LR
    return lr if frozen else lr * _FINE_TUNING_SHARE


def default_max_epochs(optimizer: OptimizerChoice) -> int:
    """Number of passes over the images where none is given."""
    if not isinstance(optimizer, str):
        return _OTHER_MAX_EPOCHS
    return _MAX_EPOCHS.get(optimizer, _OTHER_MAX_EPOCHS)


def optimizer_settings(plan: TrainingPlan) -> dict[str, Any]:
    """The optimizer as skorch's parameters."""
    optimizer = plan.optimizer
    kind = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    settings: dict[str, Any] = {"optimizer": kind, "lr": plan.lr}
    if plan.full_batch:
        return settings | {
            "optimizer__max_iter": plan.max_epochs,
            "optimizer__max_eval": 25 * plan.max_epochs,  # as many as 25 a line search
            "optimizer__tolerance_grad": 1e-6,
            "optimizer__tolerance_change": 1e-12,
            "optimizer__line_search_fn": "strong_wolfe",
        }
    if kind is torch.optim.SGD:
        settings["optimizer__momentum"] = _MOMENTUM
    if kind in OPTIMIZERS.values():
        settings["optimizer__fused"] = True  # one kernel for all weights
    return settings


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    stage_of: Callable[[str], int | None],
    n_stages: int,
    plan: TrainingPlan,
) -> list[dict[str, Any]]:
    """Sort weights by their learning rate and weight decay.

    Parameters
    ----------
    named_parameters : iterable of (str, Parameter)
    stage_of : callable
        The number of the stage that a name belongs to, None for the head.
    n_stages : int
    plan : TrainingPlan

    Returns
    -------
    list of dict
        torch's parameter groups; the head's come first. "distance" counts stages from the head.
    """
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    decay_of_head = plan.head_decay - plan.head_penalty
    for name, parameter in named_parameters:
        stage = stage_of(name)
        distance = 0 if stage is None else n_stages - stage
        groups.setdefault((distance, has_decay(name, parameter)), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": plan.backbone_lr * plan.layer_decay ** (distance - 1) if distance else plan.lr,
            "weight_decay": (plan.stage_decay if distance else decay_of_head) if decays else 0.0,
            "distance": distance,
        }
        for (distance, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def has_decay(name: str, parameter: Tensor) -> bool:
    """Whether weight decay is for this weight: biases and norms have none."""
    last = name.rpartition(".")[2]
    return parameter.ndim > 1 and not any(word in last for word in _NO_DECAY)


def quick_step(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """Give what steps as `optimizer.step` does, without what surrounds it.

    The kernels are those that torch's own optimizers call. An optimizer's very first step is an
    ordinary one, for it to set up what it remembers.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Of `OPTIMIZERS`, with the settings that this module gives it.
    """
    groups = optimizer.param_groups
    if any(p.device.type != "cpu" for group in groups for p in group["params"]):
        return optimizer.step
    step_of_group = adam_step(type(optimizer))
    if step_of_group is None:
        return optimizer.step
    remembered: list[list[list[Tensor]]] = []

    def step() -> None:
        if not remembered:
            if not optimizer.state:
                optimizer.step()
                return
            states = [[optimizer.state[p] for p in group["params"]] for group in groups]
            names = ("exp_avg", "exp_avg_sq", "step")
            remembered.extend([[s[name] for s in state] for name in names] for state in states)
        for group, state in zip(groups, remembered, strict=True):
            step_of_group(group, *state)

    return step


class StepSizes:
    """Learning rates over the course of training.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Its groups hold the highest rates.
    plan : TrainingPlan
    n_steps : int
        Of the whole training.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, plan: TrainingPlan, n_steps: int) -> None:
        self.optimizer = optimizer
        self._n_steps = n_steps
        self._n_done = 0
        self._at_first = [
            {name: group[name] for name in _SCHEDULED if name in group}
            for group in optimizer.param_groups
        ]
        self._peaks = [settings["lr"] for settings in self._at_first]
        self._schedule = plan.schedule
        self._warmup = plan.warmup
        if isinstance(plan.schedule, str) and plan.warmup is None:
            self._warmup = _WARMUP[plan.schedule]
        self._scheduler = None if isinstance(plan.schedule, str) else plan.schedule(optimizer)

    def before_step(self) -> None:
        """Set the rates of the step to come."""
        if self._scheduler is not None or self._schedule == "constant" and not self._warmup:
            return
        share = self._factor(self._n_done / max(1, self._n_steps))
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share
            if self._schedule == "one_cycle":
                _set_momentum(group, share)

    def after_step(self) -> None:
        """Count a step."""
        self._n_done += 1
        if isinstance(self._scheduler, _COUNT_STEPS):
            self._scheduler.step()

    def after_epoch(self, loss: float) -> None:
        """Tell a torch scheduler that an epoch is over."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(loss)
        elif self._scheduler is not None and not isinstance(self._scheduler, _COUNT_STEPS):
            self._scheduler.step()

    def finish(self) -> None:
        """Leave the optimizer with the rates and momenta that it began with."""
        for group, settings in zip(self.optimizer.param_groups, self._at_first, strict=True):
            group.update(settings)

    def _factor(self, progress: float) -> float:
        """Share of the highest rate after a share of the steps."""
        warmup = self._warmup or 0.0
        one_cycle = self._schedule == "one_cycle"
        if progress < warmup:
            start = _ONE_CYCLE_START if one_cycle else 1 / max(1.0, warmup * self._n_steps)
            grown = progress / warmup
            grown = (1 - math.cos(math.pi * grown)) / 2 if one_cycle else grown
            return start + (1 - start) * grown
        if self._schedule == "constant":
            return 1.0
        rest = (progress - warmup) / max(1e-12, 1 - warmup)
        return (1 + math.cos(math.pi * min(1.0, rest))) / 2


def _set_momentum(group: dict[str, Any], share: float) -> None:
    low, high = _ONE_CYCLE_MOMENTUM
    momentum = high - (high - low) * share
    if "betas" in group:
        group["betas"] = (momentum, group["betas"][1])
    elif "momentum" in group:
        group["momentum"] = momentum
