"""What the estimators that are trained share: parameters, the fit, and what a fitted one tells."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from skorch.callbacks import Callback, InputShapeSetter, LRScheduler
from torch import nn

from .backbones import Backbone, Pooling, names_of_features
from .base import ImageEstimator, n_rows, rows_at
from .constraints import Interval, Options, StrOptions
from .files.pickling import Packer
from .files.state import plain_rows, read_rows, restore_model, store_model
from .images.augmentation import AUGMENTATIONS
from .images.errors import Unreadable, UnreadableImagesError
from .images.kinds import kind_of, looks_like_one_picture, one_picture_message
from .images.reading import Images
from .messages import shown, shown_several
from .model.explain import METHODS as EXPLANATIONS
from .model.fit import Fit, Setup, Task, fit_model
from .model.joined import Model
from .summary import Summary, name_of
from .training.epochs import history_rows, n_iterations, seed_of
from .training.heads import HEADS
from .training.optimization import (
    STAGES_SHARE,
    OptimizerChoice,
    TrainingPlan,
    choose_optimizer,
    default_lr,
    default_max_epochs,
)
from .training.parameters import BOUNDS, SHARE
from .training.progress import (
    CallbackSupportMixin,
    EpochObserver,
    lines_wanted,
    naming_fit,
    progress_bar,
)
from .training.targets import Encoded, Target


class _FreezeDepths(Options):
    """What `freeze` may be, in words that say it."""

    def __init__(self) -> None:
        super().__init__(str, {"all", "none"})

    def allows(self, value: Any) -> bool:
        """Whether it is a name or a number of stages."""
        return isinstance(value, str | Integral) and not isinstance(value, bool | np.bool_)

    def __str__(self) -> str:
        return '"all", "none", the number of frozen stages or the name of the last of them'


@dataclass(frozen=True)
class Given:
    """What y and weights are, once they are read.

    Attributes
    ----------
    target : Target
    y : array with a row for each image
        As the target encodes it.
    weights : float64 array of shape (n,)
    attributes : dict of str to object
        What a fitted estimator shall tell of y.
    """

    target: Target
    y: Encoded
    weights: npt.NDArray[np.float64]
    attributes: dict[str, Any]


class ImagePredictor(CallbackSupportMixin, TransformerMixin, ImageEstimator):
    """Base of the estimators that train a head, and stages of the backbone, on y."""

    _model: Model
    validation_indices_: npt.NDArray[np.int64]

    _parameter_constraints: dict[str, list[Any]] = {
        **ImageEstimator._parameter_constraints,
        **BOUNDS,
        "freeze": [_FreezeDepths()],
        "pooling": [StrOptions({"auto", "stages", "network", "avg", "flatten"})],
        "head": [StrOptions(set(HEADS)), tuple, callable],
        "dropout": [SHARE],
        "augment": [StrOptions(set(AUGMENTATIONS)), callable, None],
        "n_views": [Interval(Integral, 1, None, closed="left"), None],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "warm_start": ["boolean"],
        "callbacks": [list, None],
        "random_state": ["random_state"],
    }

    @abstractmethod
    def _read_y(
        self, y: Any, sample_weight: Any, *, start: Model | None, partial: bool, **how: Any
    ) -> Given:
        """Check y and weights, and encode y.

        Parameters
        ----------
        y, sample_weight : object
            As the user gave them.
        start : Model or None
            Whose fit goes on.
        partial : bool
            Whether this is a part of the images.
        **how : object
            What else the user gave to `partial_fit`.
        """

    @abstractmethod
    def _fact_of_y(self) -> tuple[str, str]:
        """What a summary says of the target: its name and value."""

    def _fit_or_nothing(
        self, X: Any, y: Any, sample_weight: Any, *, goes_on: bool, **how: Any
    ) -> None:
        context = self._init_callback_context(max_subtasks=None)
        data = {"X": X, "y": y, "metadata": {"sample_weight": sample_weight}}
        with self._all_or_nothing(), naming_fit(context):
            self._validate_params()
            self._check_training_params()
            if context is not None:
                context.call_on_fit_task_begin(estimator=self, **data)
            start = self._model if goes_on and self.__sklearn_is_fitted__() else None
            # Drawn once, so that a second attempt is the same fit.
            seed = seed_of(self.random_state) if start is None else start.plan.seed
            asked: list[Given] = []  # of all images, and then of those that are left
            attempt = partial(
                self._fit, context=context, start=start, seed=seed, asked=asked, **how
            )

            def check_left(left: npt.NDArray[np.int64], error: UnreadableImagesError) -> None:
                if "partial" not in how:
                    _check_classes(asked[0], left, error)

            interrupted, self.skipped_ = self._skip_unreadable(
                attempt, X, y, sample_weight, check_left=check_left
            )
            if len(self.skipped_) and hasattr(self, "validation_indices_"):
                left = np.delete(np.arange(n_rows(X)), self.skipped_)
                self.validation_indices_ = left[self.validation_indices_]
            if context is not None and not interrupted:
                context.call_on_fit_task_end(estimator=self, reconstruction_attributes=dict, **data)
        if interrupted:
            raise KeyboardInterrupt

    def _check_training_params(self) -> None:
        """What scikit-learn's constraints can't say."""
        if isinstance(self.head, torch.nn.Module):
            raise TypeError(
                f"head={type(self.head).__name__}(...) is a module. Pass a callable that makes one "
                "of (in_features, n_outputs), such as torch.nn.Linear."
            )
        widths = self.head if isinstance(self.head, tuple) else ()
        whole = all(isinstance(w, Integral) and not isinstance(w, bool) for w in widths)
        if not whole or any(w < 1 for w in widths) or self.head == ():
            raise ValueError(
                f"head={shown(self.head)}: hidden widths must be positive integers, such as "
                "(1024,)."
            )
        if isinstance(self.optimizer, type) and not issubclass(
            self.optimizer, torch.optim.Optimizer
        ):
            raise ValueError(
                f"optimizer={shown(self.optimizer)} is not a subclass of torch.optim.Optimizer."
            )
        for callback in self.callbacks or ():
            kind = _check_callback(callback)
            if issubclass(kind, LRScheduler) and not self._leaves_the_rates_to_a_callback():
                raise ValueError(
                    f"callbacks holds an {kind.__name__}, which sets learning rates, as "
                    f"schedule={self.schedule!r} and warmup={self.warmup!r} do. Leave both as they "
                    "are by default, or leave the callback out."
                )

    def _leaves_the_rates_to_a_callback(self) -> bool:
        return self.schedule in ("cosine", "constant") and self.warmup is None

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        *,
        context: Any,
        start: Model | None,
        seed: int,
        asked: list[Given],
        partial: bool = False,
        **how: Any,
    ) -> bool:
        """Fit; say whether the user has stopped it after a whole epoch, and what y was read as."""
        kind_of(X)  # refuses a single image, whose length isn't a number of samples
        if looks_like_one_picture(X) and len(X) != n_rows(y):
            raise ValueError(f"{one_picture_message(X.shape)} y has {n_rows(y)} rows.")
        check_consistent_length(X, y)
        given = self._read_y(y, sample_weight, start=start, partial=partial, **how)
        asked.append(given)
        reset = not (partial and start is not None)
        images = self._open(X, reset=reset, counts=given.weights > 0)
        check_consistent_length(np.empty(len(images)), given.y)
        task = Task(images, given.target, given.y, given.weights)
        setup = self._setup(self._load_backbone(seed), given.target, seed, partial, start)
        data = {"X": X, "y": y, "metadata": {"sample_weight": sample_weight}}

        @contextmanager
        def observe(model: Model) -> Iterator[EpochObserver]:
            def fitted() -> dict[str, Any]:
                # A copy, since a model computes on with the weights of its first prediction.
                return self._fitted_attributes(replace(model), given)

            net = model.net
            what = ("solving the head", 1, "solution")
            if not net.full_batch:
                what = ("training", net.max_epochs, "epoch")
            with progress_bar(*what, self.verbose, lines=False) as advance:
                yield EpochObserver(self, context, data, fitted, advance)

        fit = fit_model(
            task, setup, observe, start=start, keep_epochs=self.warm_start and not partial
        )
        self._set_fitted(fit, given, partial)
        return fit.outcome.interrupted

    def _setup(
        self, backbone: Backbone, target: Target, seed: int, partial: bool, start: Model | None
    ) -> Setup:
        depth = backbone.freeze_depth(self.freeze)
        device, precision = self._choose_hardware()
        watches = self.early_stopping and not partial
        return Setup(
            backbone=backbone,
            depth=depth,
            pooling=self._choose_pooling(backbone, depth, start),
            head=self.head,
            dropout=self.dropout,
            plan=self._plan(target, depth == len(backbone.stages), seed, partial),
            augment=self.augment,
            n_views=self.n_views,
            validation_fraction=self.validation_fraction if watches else None,
            precision=precision,
            device=device,
            cache=self._cache(),
            n_jobs=self._n_jobs(),
            callbacks=self.callbacks,
            verbose=int(self.verbose),
        )

    def _choose_pooling(self, backbone: Backbone, depth: int, start: Model | None) -> Pooling:
        if self.pooling == "auto" and start is not None and start.depth == depth:
            return start.pooling  # what is gone on from was chosen without warm_start, perhaps
        solvable = isinstance(self.head, str) and not self.warm_start
        return backbone.choose_pooling(self.pooling, depth, solvable=solvable)

    def _plan(self, target: Target, frozen: bool, seed: int, partial: bool) -> TrainingPlan:
        optimizer = self._choose_optimizer(target, frozen, partial)
        # What "auto" solves is solved to its optimum, whatever is asked of steps.
        solved = self.optimizer == "auto" and optimizer == "lbfgs"
        lr, max_epochs = (None, None) if solved else (self.lr, self.max_epochs)
        fitted_first = frozen or target.is_fitted_first  # frozen, the head is all that trains
        share = 1.0 if fitted_first else STAGES_SHARE
        lr = default_lr(optimizer, frozen=frozen) / share if lr is None else lr
        given = self.get_params(deep=False)
        asked = {f.name: given[f.name] for f in fields(TrainingPlan) if f.name in given}
        decided = {
            "optimizer": optimizer,
            "lr": lr,
            "backbone_lr": lr * share if self.backbone_lr is None else self.backbone_lr,
            "max_epochs": max_epochs or default_max_epochs(optimizer),
            "n_iter_no_change": self.n_iter_no_change if self.early_stopping else None,
            "seed": seed,
            "verbose": lines_wanted(int(self.verbose)),
        }
        if self.unfreeze == "auto" or frozen:
            decided["unfreeze"] = "head_first" if fitted_first else "at_once"
        if partial:
            decided |= {"schedule": "constant", "warmup": 0.0, "max_epochs": 1}
            decided["unfreeze"] = "at_once"
        return TrainingPlan(**{"label_smoothing": 0.0} | asked | decided)

    def _choose_optimizer(self, target: Target, frozen: bool, partial: bool) -> OptimizerChoice:
        """What "auto" stands for; all rows at once will do where nothing asks for steps."""
        asks_for_steps = {
            f"dropout={self.dropout!r}": self.dropout,
            f"mixup={self.mixup!r}": self.mixup,
            f"cutmix={self.cutmix!r}": self.cutmix,
            "n_views=None": self.augment is not None and self.n_views is None,
            "early_stopping=True": self.early_stopping,
            f"ema_decay={self.ema_decay!r}": self.ema_decay,
            f"max_grad_norm={self.max_grad_norm!r}": self.max_grad_norm,
            f"accumulation_steps={self.accumulation_steps!r}": self.accumulation_steps > 1,
            "partial_fit": partial,
        }
        asking = [name for name, asks in asks_for_steps.items() if asks]
        convex = frozen and self.head in HEADS and target.is_solved(self.criterion)
        optimizer = choose_optimizer(self.optimizer, convex=convex and not asking)
        if optimizer == "lbfgs" and (not frozen or asking):
            reason = asking[0] if frozen else f"freeze={shown(self.freeze)}"
            raise ValueError(
                f"optimizer={shown(self.optimizer)} works on all rows at once, so it needs "
                f'freeze="all" and nothing that happens step by step; got {reason}. Choose '
                'optimizer="adamw".'
            )
        return optimizer

    def _set_fitted(self, fit: Fit, given: Given, partial: bool) -> None:
        for name in ("best_epoch_", "validation_indices_"):
            self.__dict__.pop(name, None)
        self.__dict__.update(self._fitted_attributes(fit.model, given))
        if fit.validation is not None:
            self.best_epoch_ = fit.outcome.best_epoch
            self.validation_indices_ = fit.validation

    def _fitted_attributes(self, model: Model, given: Given) -> dict[str, Any]:
        return given.attributes | {
            "_model": model,
            "history_": history_rows(model.net),
            "n_iter_": n_iterations(model.net),
            "stages_": list(model.backbone.stages),
            "freeze_": model.depth,
            "net_": model.net,
            "weight_decay_": float(model.net.plan.head_decay),
            "device_": model.device,
            "precision_": model.precision,
        }

    def _outputs(self, X: Any) -> npt.NDArray[np.float64]:
        check_is_fitted(self)
        images = self._open(X, reset=False)

        def compute() -> tuple[npt.NDArray[np.float64], Unreadable]:
            outputs, unreadable = self._model.outputs(images, self._cache(), self._n_jobs())
            return np.asarray(outputs, dtype=np.float64), unreadable

        none = "Their predictions are NaN, or None from predict; score leaves them out."
        return self._answer(images, compute, none)

    def _unanswered(self, outputs: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Whose outputs are NaN since the image can't be read."""
        if self.on_error != "skip":
            return np.zeros(len(outputs), dtype=bool)
        return np.asarray(np.isnan(outputs).all(axis=1))

    def _score(
        self,
        metric: Callable[..., float],
        y: Any,
        predicted: npt.NDArray[Any],
        unanswered: npt.NDArray[np.bool_],
        sample_weight: Any,
    ) -> float:
        """Score the predictions of images that can be read."""
        check_consistent_length(predicted, y, sample_weight)
        answered = np.flatnonzero(~unanswered)
        if not len(answered):
            raise ValueError("None of the images in X can be read, so there is no score.")
        if len(answered) < len(predicted):
            y, predicted, sample_weight = (
                rows_at(rows, answered) for rows in (y, predicted, sample_weight)
            )
        return float(metric(y, predicted, sample_weight=sample_weight))

    def _open_to_explain(self, X: Any, method: str) -> Images:
        """Open X for an explanation, whose method must be one."""
        check_is_fitted(self)
        if method not in EXPLANATIONS:
            raise ValueError(f"method={shown(method)} is not one of {sorted(EXPLANATIONS)}.")
        return self._open(X, reset=False)

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Compute the features that the head reads.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images

        Returns
        -------
        float32 ndarray of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        images = self._open(X, reset=False)
        compute = partial(self._model.pooled, images, self._cache(), self._n_jobs())
        return self._answer(images, compute, "Their features are NaN.")

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """Name the features that :meth:`transform` gives.

        Parameters
        ----------
        input_features : ignored

        Returns
        -------
        ndarray of str of shape (n_features,)
            "penultimate_number" of what the network hands to its classifier, before them
            "stage_channel" of stages that the head reads beside it.
        """
        check_is_fitted(self)
        model = self._model
        names = names_of_features(model.backbone, None, model.pooling, model.head.in_features)
        return np.asarray(names, dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_model")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags

    def __sktl_backbone__(self) -> Backbone:
        return self._model.backbone if self.__sklearn_is_fitted__() else super().__sktl_backbone__()

    def __sktl_path__(self) -> tuple[Sequence[nn.Module], int]:
        model = self._model
        parts = (model.backbone.prefix(model.depth, model.pooling), model.net.module_.suffix)
        return parts, model.head.in_features

    def _summary(self) -> Summary:
        n_trained = sum(parameter.numel() for parameter in self.net_.module_.parameters())
        facts = [
            ("Backbone", name_of(self._model.backbone.architecture.source)),
            ("Trained parameters", f"{n_trained:,}"),
            self._fact_of_y(),
            ("Device", str(self.device_)),
            ("Precision", self.precision_),
        ]
        stages = self.stages_
        return Summary(facts, stages[: self.freeze_], [*stages[self.freeze_ :], "head"])

    def _store(self, state: dict[str, Any], pack: Packer) -> dict[str, Any]:
        for name in ("net_", "device_", "precision_", "weight_decay_"):
            del state[name]
        return state | {
            "history_": plain_rows(self.history_),
            "_model": store_model(self._model, self.precision, pack),
        }

    def _restore(self, state: dict[str, Any]) -> dict[str, Any]:
        if "_model" in state:
            model = restore_model(state["_model"])
            state |= {
                "_model": model,
                "net_": model.net,
                "device_": model.device,
                "precision_": model.precision,
                "weight_decay_": float(model.net.plan.head_decay),
            }
            state.setdefault("skipped_", np.arange(0))  # older files lack it
            state["history_"] = read_rows(state["history_"])
        return state


def _check_classes(given: Given, left: npt.NDArray[np.int64], error: UnreadableImagesError) -> None:
    """Refuse to do without classes whose images can't be read, any of them."""
    lost = given.target.lost(given.y[left])
    if len(lost):
        classes = shown_several(given.attributes["classes_"][lost].tolist())
        raise ValueError(
            f"on_error='skip' leaves no image of the classes {classes}: {error} To do without the "
            "classes, leave them out of y as well."
        ) from error


def _check_callback(callback: Any) -> type[Callback]:
    """Accept what skorch does: a callback, or a pair of a name and one; a class will do.

    Returns
    -------
    type
        Of the callback.
    """
    pair = isinstance(callback, tuple) and len(callback) == 2 and isinstance(callback[0], str)
    kind = callback[1] if pair else callback
    kind = kind if isinstance(kind, type) else type(kind)
    if not issubclass(kind, Callback):
        raise TypeError(
            f"callbacks holds {shown(callback)}, which is not a skorch callback. Pass a list of "
            "skorch.callbacks.Callback instances, or of pairs of a name and one."
        )
    if issubclass(kind, InputShapeSetter):
        raise ValueError(
            f"callbacks holds an {kind.__name__}, which rebuilds the network for the shape of its "
            "input. sktl has built it for the features of your backbone; leave the callback out."
        )
    return kind
