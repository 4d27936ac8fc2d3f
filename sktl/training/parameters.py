"""What the parameters of training may be, for an estimator that is given them and for its files.

A parameter of :class:`sktl.training.optimization.TrainingPlan` has its bounds here and its default
in the signatures of the estimators; :mod:`sktl.files.trained` reads it by the same bounds.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from ..constraints import Interval, StrOptions
from .optimization import OPTIMIZERS, SCHEDULES, UNFREEZING

_POSITIVE = Interval(Real, 0, None, closed="neither")
_NOT_NEGATIVE = Interval(Real, 0, None, closed="left")
_COUNT = Interval(Integral, 1, None, closed="left")
SHARE = Interval(Real, 0, 1, closed="left")

BOUNDS: dict[str, list[Any]] = {
    "mixup": [_NOT_NEGATIVE],
    "cutmix": [_NOT_NEGATIVE],
    "label_smoothing": [SHARE],
    "optimizer": [StrOptions({"auto", *OPTIMIZERS}), type],
    "lr": [_POSITIVE, None],
    "backbone_lr": [_POSITIVE, None],
    "layer_decay": [Interval(Real, 0, 1, closed="right")],
    "weight_decay": [_NOT_NEGATIVE, StrOptions({"auto"})],
    "schedule": [StrOptions(set(SCHEDULES)), callable],
    "warmup": [SHARE, None],
    "unfreeze": [StrOptions({"auto", *UNFREEZING})],
    "max_epochs": [_COUNT, None],
    "batch_size": [_COUNT],
    "accumulation_steps": [_COUNT],
    "max_grad_norm": [_POSITIVE, None],
    "ema_decay": [Interval(Real, 0, 1, closed="neither"), None],
    "n_iter_no_change": [_COUNT],
}
