"""The skorch net that trains: suffix and head, from features to logits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import skorch
import torch
from skorch.callbacks import EpochTimer, LRScheduler, PassthroughScoring
from skorch.utils import FirstStepAccumulator, to_device
from torch import Tensor, nn

from ..cache import FeatureCache
from ..parallel import processes
from .averaging import WeightAverage
from .batches import FeatureRows, Mixer, TensorBatches
from .depthwise import train_depthwise_fast
from .optimization import (
    StepSizes,
    TrainingPlan,
    has_decay,
    optimizer_settings,
    parameter_groups,
)
from .steps import (
    Batch,
    Course,
    GradientSteps,
    LinearSteps,
    SolvedHead,
    Steps,
    is_plain,
    is_solved,
    is_watched,
)
from .suffix import RowLoss, SuffixAndHead, dropout_of, learned_norms
from .targets import Target

_PREDICT_BATCH = {"rows": 4096, "maps": 64}


class _LastStepAccumulator(FirstStepAccumulator):
    def store_step(self, step: Any) -> None:
        self.step = step


class SuffixNet(skorch.NeuralNetClassifier):
    """The skorch net behind :class:`PretrainedImageClassifier`; its X are features.

    Parameters
    ----------
    plan : TrainingPlan
    stages : dict of str to int, or None
        The number of the stage that a module or weight of the suffix belongs to, by name.
    prepare : callable or None, default=None
        What training does to a batch first: augmentation, or all that leads to features.
    kept_in_evaluation : frozenset of torch.nn.Module, default=frozenset()
        Layers that train as they are in evaluation: those of batch norm that keep the statistics
        which they have learned, and dropout that the network brings.
    """

    def __init__(
        self,
        *args: Any,
        plan: TrainingPlan,
        stages: dict[str, int] | None = None,
        prepare: Callable[[Tensor], Tensor] | None = None,
        kept_in_evaluation: frozenset[nn.Module] = frozenset(),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.plan = plan
        self.stages = stages
        self.prepare = prepare
        self.kept_in_evaluation = kept_in_evaluation
        self._course: Course | None = None
        self._steps: LinearSteps | GradientSteps | None = None
        self._frozen: list[nn.Module] = []
        self._n_unfrozen = 0

    @property
    def full_batch(self) -> bool:
        """Whether every step sees all rows."""
        return self.plan.full_batch

    @property
    def seed(self) -> int:
        """Of all that is random in training."""
        return self.plan.seed

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        loss = PassthroughScoring(name="train_loss", on_train=True)
        return [("epoch_timer", EpochTimer()), ("train_loss", loss)]

    @property
    def target(self) -> Target:
        """What y is."""
        target: Target = self.criterion_.target
        return target

    def notify(self, method_name: str, **kwargs: Any) -> None:
        """Tell callbacks what skorch tells them: y are labels, and weights those to be kept."""
        if "batch" in kwargs:
            features, (labels, _) = kwargs["batch"]
            kwargs["batch"] = features, labels
        kept = self.averaged() if method_name == "on_epoch_end" else contextlib.nullcontext()
        with kept:
            super().notify(method_name, **kwargs)

    def check_data(self, X: Any, y: Any) -> None:
        """Look for nothing: the classes are known, and who makes the rows has checked them."""

    def get_dataset(self, X: Any, y: Any = None) -> FeatureRows:
        """Wrap features that aren't wrapped yet."""
        if isinstance(X, FeatureRows):
            return X
        labels = None if y is None else self.target.tensor(y)
        return FeatureRows(torch.as_tensor(X), labels)

    def get_split_datasets(
        self, X: Any, y: Any = None, **fit_params: Any
    ) -> tuple[FeatureRows, FeatureRows | None]:
        """The rows that train, and those that don't and are watched."""
        return self.get_dataset(X, y), self.valid_rows

    def get_iterator(self, dataset: FeatureRows, training: bool = False) -> TensorBatches:
        """Slices of the tensors; in training, shuffled in an order of the epoch's own."""
        if not training:
            return TensorBatches(dataset, self.iterator_valid__batch_size)
        if self.full_batch:
            return TensorBatches(dataset, len(dataset))
        seed = self.seed + len(self.history)
        return TensorBatches(dataset, self.batch_size, torch.Generator().manual_seed(seed))

    def get_params_for_optimizer(self, prefix: str, named_parameters: Any) -> tuple[Any, Any]:
        """Smaller steps for pretrained layers, and no decay of biases and norms."""
        named = list(named_parameters)
        args, settings = super().get_params_for_optimizer(prefix, named)
        if self.full_batch:
            return args, settings
        return (parameter_groups(named, self._stage_of, self.n_stages, self.plan),), settings

    def _stage_of(self, name: str) -> int | None:
        """The stage of a module or weight; None for the head."""
        part, _, rest = name.partition(".")
        return (self.stages or {}).get(rest, 0) if part == "suffix" else None

    @property
    def n_stages(self) -> int:
        """Number of stages that train."""
        return max((self.stages or {}).values(), default=0) + 1

    # An epoch -------------------------------------------------------------------------

    def begin(
        self,
        n_rows: int,
        valid_rows: FeatureRows | None = None,
        cache: FeatureCache | None = None,
        counts: Tensor | None = None,
    ) -> None:
        """Get ready to train on so many rows, to watch others, and to find solved heads.

        `counts` are how many images each row stands for; further rows are other views of them.
        """
        plan = self.plan
        n_batches = max(1, -(-n_rows // plan.batch_size))
        n_steps = plan.max_epochs * -(-n_batches // plan.accumulation_steps)
        self._get_ready(plan, n_steps)
        self._known_course.valid_rows = valid_rows
        self._known_course.cache = cache
        self._known_course.counts = counts

    def _get_ready(self, plan: TrainingPlan, n_steps: int) -> None:
        processes().agree(*self.module_.parameters(), *self.module_.buffers())
        penalised = self.module_.head.named_parameters() if plan.head_penalty else ()
        if any(isinstance(callback, LRScheduler) for _, callback in self.callbacks_):
            plan = replace(plan, schedule="constant", warmup=0.0)  # the callback sets the rates
        self._course = Course(
            StepSizes(self.optimizer_, plan, n_steps),
            [p for name, p in penalised if has_decay(name, p)],
            Mixer(plan.mixup, plan.cutmix) if plan.mixup or plan.cutmix else None,
            WeightAverage(self.module_, plan.ema_decay) if plan.ema_decay else None,
        )
        self._steps = None
        self._frozen = list(self.kept_in_evaluation)
        self._n_unfrozen = self.n_stages

    @property
    def _known_course(self) -> Course:
        assert self._course is not None, "training has not begun"
        return self._course

    @property
    def valid_rows(self) -> FeatureRows | None:
        """Rows that don't train and are watched."""
        return None if self._course is None else self._course.valid_rows

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Who calls skorch's own methods trains with steps of a constant size."""
        if self._course is None:
            self._get_ready(replace(self.plan, schedule="constant", warmup=0.0, ema_decay=None), 1)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Be ready for nothing more."""
        self._known_course.step_sizes.finish()
        self._course = self._steps = None

    def unfreeze(self, n_stages: int) -> None:
        """Let the last stages train, and none before them.

        Only stages that begin or cease to train are touched, so that what a callback has frozen
        stays so. Batch norm that has learned statistics keeps them: those of a small batch of few
        images are a worse guide.
        """
        before, first = self.n_stages - self._n_unfrozen, self.n_stages - n_stages
        self._n_unfrozen = n_stages
        for name, parameter in self.module_.named_parameters():
            stage = self._stage_of(name)
            if stage is not None and (stage >= first) != (stage >= before):
                parameter.requires_grad_(stage >= first)
        self._frozen = [
            module
            for name, module in self.module_.suffix.named_modules()
            if module in self.kept_in_evaluation or (self.stages or {}).get(name, first) < first
        ]

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        """Run an epoch; where nobody watches single batches, without telling of them."""
        if iterator is None:
            return
        if not training:
            self._validate(iterator)
        elif self.full_batch:
            super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
        else:
            self._train_epoch(iterator)

    def _train_epoch(self, iterator: TensorBatches) -> None:
        self.module_.train()
        self.criterion_.train()
        for module in self._frozen:
            module.training = False  # batch norm keeps its statistics, dropout is off
        losses, sizes = self._choose_steps().take(iterator)
        processes().agree(*self.module_.buffers())
        rows = self.history[-1]["batches"]
        while len(rows) < len(sizes):
            self.history.new_batch()
        values = processes().total(torch.stack(losses)).tolist()
        for row, value, size in zip(rows, values, sizes, strict=True):
            row.update(train_loss=value, train_batch_size=size)
        self.history.record("train_batch_count", len(sizes))
        rates = {group["distance"]: group["lr"] for group in self.optimizer_.param_groups}
        self.history.record("lr", rates[min(rates)])
        of_stages = [distance for distance in rates if distance > 0]
        if of_stages:
            self.history.record("backbone_lr", rates[min(of_stages)])
        if self.stages is not None:
            self.history.record("unfrozen_stages", self._n_unfrozen)

    def _choose_steps(self) -> Steps:
        """How to take an epoch's steps; callbacks may freeze or watch from one to the next."""
        way = LinearSteps if is_plain(self) else GradientSteps
        if not isinstance(self._steps, way):
            self._steps = way(self, self._known_course)
        return self._steps

    @property
    def draws_nothing(self) -> bool:
        """Whether training is without random numbers of torch's global generator."""
        return not self.callbacks and (is_solved(self) or is_plain(self))

    @property
    def takes_features_as_they_are(self) -> bool:
        """Whether training brings them to the head's number format by itself."""
        return is_solved(self) if self.full_batch else is_plain(self)

    @torch.no_grad()
    def _validate(self, batches: TensorBatches) -> None:
        """Record the loss and score of the rows that don't train."""
        self.module_.eval()
        self.criterion_.eval()
        evaluate = self._watched_sums if is_watched(self) else self._sums
        with self.averaged():
            totals = torch.stack([evaluate(batch)[0].cpu().double() for batch in batches]).sum(0)
        processes().agree(totals)  # so that all stop after the same epoch
        loss, weight, *rest = totals.tolist()
        self.history.record("valid_batch_count", len(batches))
        self._record_score("valid_loss", loss / weight, sign=-1)
        score = self.target.score(np.array(rest), weight)
        self._record_score(f"valid_{self.target.score_name}", score, sign=1)

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A batch's loss, weights and what its score is made of, summed up; and its outputs."""
        features, (y, weights) = to_device(batch, self.device)
        outputs = self.module_(features)
        losses = self.criterion_(outputs, y)
        sums = torch.stack([(weights * losses).sum(), weights.sum()])
        return torch.cat([sums, self.target.score_sums(outputs, y, weights).to(sums)]), outputs

    def _watched_sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Do as `_sums` does, and tell callbacks what skorch would tell."""
        self.notify("on_batch_begin", batch=batch, training=False)
        sums, logits = self._sums(batch)
        loss = sums[0] / len(logits)
        self.history.record_batch("valid_loss", float(loss))
        self.history.record_batch("valid_batch_size", len(logits))
        self.notify("on_batch_end", batch=batch, training=False, loss=loss, y_pred=logits)
        return sums, logits

    def _record_score(self, name: str, score: float, sign: int) -> None:
        """Record an epoch's score and, as skorch does, whether it is the best so far."""
        earlier = [row[name] for row in list(self.history)[:-1] if name in row]
        self.history.record(name, score)
        self.history.record(f"{name}_best", all(sign * score > sign * other for other in earlier))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the averaged weights for a while, if there are such."""
        average = None if self._course is None else self._course.average
        if average is None:
            yield
            return
        with average.in_place():
            yield

    def finish(self) -> None:
        """Keep the averaged weights, if there are such, and see that all are finite."""
        average = self._known_course.average
        if average is not None:
            average.keep()
        self.module_.requires_grad_(True)
        processes().agree(*self.module_.parameters(), *self.module_.buffers())
        if not all(bool(p.isfinite().all()) for p in self.module_.parameters()):
            self._raise_diverged("weights were no longer finite")

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Stop when training has diverged: nothing after it makes sense."""
        losses = np.asarray(self.history[-1, "batches", :, "train_loss"])
        if not np.isfinite(losses).all():
            self._raise_diverged(f"the loss was {losses[~np.isfinite(losses)][0]}")
        if not self.full_batch:
            watched = self.history[-1].get("valid_loss", float(losses.mean()))
            self._known_course.step_sizes.after_epoch(watched)

    def _raise_diverged(self, what: str) -> None:
        raise ValueError(
            f"Training diverged with lr={self.lr:g}: {what} in epoch {len(self.history)}. Choose a "
            "smaller lr."
        )

    # The full-batch method --------------------------------------------------------------

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Take one step; of a head that is solved, the only one."""
        if not is_solved(self):
            step: dict[str, Any] = super().train_step(batch, **fit_params)
            return step
        solution = SolvedHead(self, self._known_course, self.optimizer__max_iter).take(batch)
        self.n_steps_ = solution.n_iter
        if self.plan.weight_decay == "auto":
            self.plan = replace(self.plan, chosen_decay=solution.weight_decay)
        logits = self.infer(batch[0]) if is_watched(self) else torch.empty(0)
        return {"loss": torch.tensor(solution.loss), "y_pred": logits}

    def get_train_step_accumulator(self) -> FirstStepAccumulator:
        """Of the evaluations that a full-batch step makes, the last tells its result."""
        return _LastStepAccumulator() if self.full_batch else FirstStepAccumulator()

    def get_loss(
        self, y_pred: Tensor, y_true: Any, X: Any = None, training: bool = False
    ) -> Tensor:
        """Mean loss of the rows, weighted, plus the L2 penalty of a full-batch fit."""
        labels, weights = (part.to(y_pred.device) for part in y_true)
        losses = self.criterion_(y_pred, labels)
        loss: Tensor = (losses * weights.to(losses.dtype)).mean()
        if training and self.full_batch and self.plan.head_decay:
            squares = [p.square().sum() for p in self.module_.parameters() if p.ndim > 1]
            loss = loss + 0.5 * self.plan.head_decay * sum(squares)
        return loss


def make_net(
    suffix: nn.Module,
    head: nn.Module,
    plan: TrainingPlan,
    precision: str,
    device: torch.device,
    *,
    target: Target,
    stages: dict[str, int] | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
    callbacks: Any = None,
) -> SuffixNet:
    """Set up a net that is ready to be fitted; its y is encoded."""
    train_depthwise_fast(suffix)
    kept = learned_norms(suffix) | dropout_of(suffix)
    module = SuffixAndHead(suffix, head.to(plan.dtype), precision)
    module.requires_grad_(True)
    net = SuffixNet(
        module,
        plan=plan,
        stages=stages,
        prepare=prepare,
        kept_in_evaluation=kept,
        criterion=RowLoss,
        criterion__target=target,
        criterion__criterion=plan.criterion,
        criterion__label_smoothing=plan.label_smoothing,
        train_split=None,
        classes=np.arange(target.n_outputs),
        predict_nonlinearity=target.answers,
        max_epochs=1 if plan.full_batch else plan.max_epochs,
        batch_size=-1 if plan.full_batch else plan.batch_size,
        iterator_valid__batch_size=_predict_batch(suffix),
        device="cpu" if plan.full_batch and device.type == "mps" else str(device),  # no float64
        callbacks=callbacks,
        verbose=plan.verbose,
        **optimizer_settings(plan),
    )
    net.initialize()
    return net


def _predict_batch(suffix: nn.Module) -> int:
    trains = any(True for _ in suffix.parameters())
    return _PREDICT_BATCH["maps" if trains else "rows"]
