"""The skorch net that trains: suffix and head, from features to logits."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import skorch
import torch
from skorch.callbacks import Callback, EpochTimer, LRScheduler, PassthroughScoring
from skorch.utils import FirstStepAccumulator, to_device
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..cache import FeatureCache
from ..parallel import processes
from . import newton
from .batches import FeatureRows, Mixer, TensorBatches
from .depthwise import train_depthwise_fast
from .heads import SquareRoot
from .optimization import (
    OPTIMIZERS,
    StepSizes,
    TrainingPlan,
    default_lr,
    has_decay,
    optimizer_settings,
    parameter_groups,
    quick_step,
)
from .solutions import recall_or_solve

_MIN_MOMENTUM = 0.1  # torch's default for batch norm
_BATCH_EVENTS = ("on_batch_begin", "on_batch_end", "on_grad_computed")
_TARGETS_AT_ONCE = 2**20  # numbers
_ROWS_AT_ONCE = 4096
_PREDICT_BATCH = {"rows": 4096, "maps": 64}

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

Batch = tuple[Tensor, tuple[Tensor, Tensor]]


class SuffixAndHead(nn.Module):
    """What trains: the stages after the freeze depth, and the head.

    Parameters
    ----------
    suffix, head : torch.nn.Module
    precision : {"float32", "bfloat16"}
        Of the suffix's arithmetic; its weights are float32.
    """

    def __init__(self, suffix: nn.Module, head: nn.Module, precision: str = "float32") -> None:
        super().__init__()
        self.suffix = suffix.to(memory_format=torch.channels_last)
        self.head = head
        self.low_precision = precision == "bfloat16"

    def forward(self, features: Tensor) -> Tensor:
        """From features at the freeze depth to logits."""
        logits: Tensor = self.head(self._pooled(features))
        return logits

    def _pooled(self, features: Tensor) -> Tensor:
        weight = next(self.head.parameters(), None)
        if features.dtype is torch.bfloat16 and not self.low_precision:
            features = features.float()
        if features.ndim == 4:
            features = features.contiguous(memory_format=torch.channels_last)
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.low_precision):
            pooled: Tensor = self.suffix(features)
        return pooled.to(torch.float32 if weight is None else weight.dtype)


class _RowLoss(nn.Module):
    """One loss for each row, so that rows can be weighted."""

    def __init__(self, criterion: Any = "cross_entropy", label_smoothing: float = 0.0) -> None:
        super().__init__()
        # skorch moves it to the net's device, and the user's own stays where it is.
        self.criterion = copy.deepcopy(criterion)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.criterion != "cross_entropy":
            losses: Tensor = self.criterion(logits, labels)
            if not isinstance(losses, Tensor) or losses.shape != labels.shape:
                is_tensor = isinstance(losses, Tensor)
                got = tuple(losses.shape) if is_tensor else type(losses).__name__
                raise ValueError(
                    f"criterion must give one loss for each row, of shape {tuple(labels.shape)}, "
                    f'got {got}. A torch loss does with reduction="none".'
                )
            return losses
        return F.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.label_smoothing
        )


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
    """

    def __init__(
        self,
        *args: Any,
        plan: TrainingPlan,
        stages: dict[str, int] | None = None,
        prepare: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.plan = plan
        self.stages = stages
        self.prepare = prepare
        self.valid_rows: FeatureRows | None = None
        self.cache: FeatureCache | None = None
        self._is_ready = False

    @property
    def full_batch(self) -> bool:
        """Whether every step sees all rows."""
        return self.plan.full_batch

    @property
    def seed(self) -> int:
        """Of all that is random in training."""
        return self.plan.seed

    def _is_logistic(self) -> bool:
        """Whether training is logistic regression on the features."""
        return (
            type(self.module_.suffix) is nn.Identity
            and _is_linear(self.module_.head)
            and self.criterion_.criterion == "cross_entropy"
        )

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        loss = PassthroughScoring(name="train_loss", on_train=True)
        return [("epoch_timer", EpochTimer()), ("train_loss", loss)]

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
        labels = None if y is None else torch.as_tensor(np.asarray(y), dtype=torch.int64)
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
    ) -> None:
        """Get ready to train on so many rows, to watch others, and to find solved heads."""
        plan = self.plan
        n_batches = max(1, -(-n_rows // plan.batch_size))
        n_steps = plan.max_epochs * -(-n_batches // plan.accumulation_steps)
        self._get_ready(plan, n_steps)
        self.valid_rows = valid_rows
        self.cache = cache

    def _get_ready(self, plan: TrainingPlan, n_steps: int) -> None:
        self.valid_rows = None
        processes().agree(*self.module_.parameters(), *self.module_.buffers())
        penalised = self.module_.head.named_parameters() if plan.head_penalty else ()
        self._penalised = [p for name, p in penalised if has_decay(name, p)]
        if any(isinstance(callback, LRScheduler) for _, callback in self.callbacks_):
            plan = replace(plan, schedule="constant", warmup=0.0)  # the callback sets the rates
        self._step_sizes = StepSizes(self.optimizer_, plan, n_steps)
        self._mixer = Mixer(plan.mixup, plan.cutmix) if plan.mixup or plan.cutmix else None
        self._average = WeightAverage(self.module_, plan.ema_decay) if plan.ema_decay else None
        self._frozen: list[nn.Module] = list(self._learned_norms)
        self._n_unfrozen = self.n_stages
        self._read: tuple[FeatureRows, FeatureRows] | None = None
        self._is_ready = True

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Who calls skorch's own methods trains with steps of a constant size."""
        if not self._is_ready:
            self._get_ready(replace(self.plan, schedule="constant", warmup=0.0, ema_decay=None), 1)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Be ready for nothing more."""
        self._step_sizes.finish()
        self._is_ready = False
        self._read = None
        self.cache = None

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
            if module in self._learned_norms or (self.stages or {}).get(name, first) < first
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
        if self._is_plain():
            iterator.dataset = self._as_read(iterator.dataset)
            losses, sizes = self._logistic_steps(iterator)
        else:
            losses, sizes = self._steps(iterator)
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

    @property
    def draws_nothing(self) -> bool:
        """Whether training is without random numbers of torch's global generator."""
        return not self.callbacks and (self._is_solved() or self._is_plain())

    @property
    def takes_features_as_they_are(self) -> bool:
        """Whether training brings them to the head's number format by itself."""
        return self._is_solved() if self.full_batch else self._is_plain()

    def _is_solved(self) -> bool:
        """Whether training is logistic regression, to its optimum."""
        return (
            self.full_batch
            and self._is_logistic()
            and self.lr == default_lr("lbfgs")
            and self._all_of_it_trains()
        )

    def _is_plain(self) -> bool:
        """Whether training is logistic regression, and nobody asks for more than its steps."""
        plan = self.plan
        return (
            self._is_logistic()
            and type(self.optimizer_) in OPTIMIZERS.values()
            and self._all_of_it_trains()
            and not any((self.prepare, plan.mixup, plan.cutmix, plan.ema_decay, plan.max_grad_norm))
            and plan.accumulation_steps == processes().size == 1
            and not self._is_watched()
        )

    def _all_of_it_trains(self) -> bool:
        """Whether no callback has frozen a part of the head or suffix."""
        return all(parameter.requires_grad for parameter in self.module_.parameters())

    def _as_read(self, rows: FeatureRows) -> FeatureRows:
        """What the linear layer reads of the rows, found once for all epochs."""
        if self._read is None or self._read[0] is not rows:
            features = self._linear_inputs(rows.features)
            self._read = rows, FeatureRows(features, rows.labels, rows.weights)
        return self._read[1]

    @torch.no_grad()
    def _linear_inputs(self, features: Tensor) -> Tensor:
        """What the linear layer reads, in single precision; made in parts, without large copies."""
        before = self.module_.head[:-1]
        if not len(before):
            return features.float()
        inputs = torch.empty_like(features, dtype=torch.float32)
        parts = (torch.split(rows, _ROWS_AT_ONCE) for rows in (features, inputs))
        for part, made in zip(*parts, strict=True):
            made.copy_(before(part.float()))
        return inputs

    @torch.no_grad()
    def _logistic_steps(self, batches: TensorBatches) -> tuple[list[Tensor], list[int]]:
        """Do as `_steps` does, by the gradient that logistic regression is known to have.

        A step on a small head costs less than all that usually surrounds it. Classes come first:
        products of flat matrices are the faster ones.
        """
        weight, bias = self.module_.head[-1].weight, self.module_.head[-1].bias
        column = bias[:, None]
        step = quick_step(self.optimizer_)
        features, sizes = batches.dataset.features, batches.sizes
        order, places = batches.draw()
        losses = []
        parts = zip(
            torch.split(places, sizes), self._targets(batches.dataset, order, sizes), strict=True
        )
        for place, (targets, shares) in parts:
            rows = features.index_select(0, place).to(weight.device)
            self._step_sizes.before_step()
            logits = torch.addmm(column, weight, rows.T)
            loss, error = newton.loss_and_error(logits, targets, shares)
            weight.grad, bias.grad = error @ rows, error.sum(1)
            self._add_penalty()
            step()
            self._step_sizes.after_step()
            losses.append(loss)
        return losses, sizes

    def _targets(
        self, rows: FeatureRows, order: Tensor, sizes: list[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Give each batch's targets, multiplied by its images' shares in the loss, and the shares.

        They are computed for many batches at a time.
        """
        n_at_once = max(1, _TARGETS_AT_ONCE // (len(self._soft_targets) * max(sizes)))
        images = iter(torch.split(order, sizes))
        for start in range(0, len(sizes), n_at_once):
            some = sizes[start : start + n_at_once]
            index = torch.cat(list(islice(images, len(some))))
            n_beside = torch.tensor(some).repeat_interleave(torch.tensor(some))
            shares = (rows.weights[index] / n_beside).to(self.device)
            targets = self._soft_targets[:, rows.labels[index].to(self.device)] * shares
            yield from zip(torch.split(targets, some, 1), torch.split(shares, some), strict=True)

    def _steps(self, batches: Iterable[Batch]) -> tuple[list[Tensor], list[int]]:
        """Take all steps of an epoch; give loss and number of rows of each batch."""
        watched = self._is_watched()
        losses, sizes = [], []
        remaining = iter(batches)
        while group := list(islice(remaining, self.plan.accumulation_steps)):
            results = self._watched_step(group) if watched else self._step(group)
            losses += [loss for loss, _ in results]
            sizes += [len(batch[0]) for batch in group]
        return losses, sizes

    def _step(self, group: Sequence[Batch], watched: bool = False) -> list[tuple[Tensor, Tensor]]:
        """Take one step on a group of batches; give loss and logits of each."""
        results: list[tuple[Tensor, Tensor]] = []

        def compute_gradient() -> Tensor | None:
            self.optimizer_.zero_grad()
            results[:] = [self._add_part_of_gradient(batch, 1 / len(group)) for batch in group]
            processes().add_gradients(self.module_)
            self._add_penalty()
            if self.plan.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.module_.parameters(), self.plan.max_grad_norm)
            if watched:
                named = list(self.module_.named_parameters())
                self.notify(
                    "on_grad_computed", named_parameters=named, batch=group[-1], training=True
                )
            return None if known else torch.stack([loss for loss, _ in results]).mean()

        known = type(self.optimizer_) in OPTIMIZERS.values()
        self._step_sizes.before_step()
        if known:
            compute_gradient()
            self.optimizer_.step()
        else:
            self.optimizer_.step(compute_gradient)  # it may want to look more than once
        self._step_sizes.after_step()
        if self._average is not None:
            self._average.update()
        return results

    def _watched_step(self, group: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
        """Do as `_step` does, and tell callbacks what skorch would tell."""
        for batch in group:
            self.notify("on_batch_begin", batch=batch, training=True)
        results = self._step(group, watched=True)
        rows = self.history[-1]["batches"][-len(group) :]
        for batch, (loss, logits), row in zip(group, results, rows, strict=True):
            row.update(train_loss=float(loss), train_batch_size=len(batch[0]))
            self.notify("on_batch_end", batch=batch, training=True, loss=loss, y_pred=logits)
        return results

    def _add_part_of_gradient(self, batch: Batch, share: float) -> tuple[Tensor, Tensor]:
        """Add the gradient of this process's rows; give their part of the loss, and logits."""
        features, (labels, weights) = batch
        n, part = len(labels), processes().part(len(labels))
        n_own = part.stop - part.start
        if n_own == n:
            return self._add_gradient(batch, share)
        if n_own == 0:
            return torch.zeros((), device=self.device), torch.empty(0, device=self.device)
        own = features[part], (labels[part], weights[part])
        loss, logits = self._add_gradient(own, share * n_own / n)
        return loss * (n_own / n), logits

    def _add_gradient(self, batch: Batch, share: float) -> tuple[Tensor, Tensor]:
        features, (labels, weights) = self._on_device(batch)
        if self.prepare is not None:
            features = self.prepare(features).to(labels.device)
        if self._mixer is None:
            logits = self.module_(features)
            loss = self.get_loss(logits, (labels, weights), training=True)
        else:
            features, partner, own = self._mixer(features)
            logits = self.module_(features)
            loss = own * self.get_loss(logits, (labels, weights), training=True)
            others = labels[partner], weights[partner]
            loss = loss + (1 - own) * self.get_loss(logits, others, training=True)
        (share * loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), logits.detach()

    @torch.no_grad()
    def _add_penalty(self) -> None:
        """Add the gradient of the head's L2 penalty, where the optimizer doesn't."""
        for weight in self._penalised:
            if weight.grad is not None:
                weight.grad.add_(weight, alpha=self.plan.head_penalty)

    def _on_device(self, batch: Batch) -> Batch:
        # Looking at the batch is not free.
        return batch if self.device == "cpu" else to_device(batch, self.device)

    @cached_property
    def _soft_targets(self) -> Tensor:
        n_classes, smoothing = self.module_.head[-1].out_features, self.criterion_.label_smoothing
        return newton.soft_targets(n_classes, smoothing).float().to(self.device)

    def _is_watched(self) -> bool:
        """Whether a callback wants to know of batches or gradients."""
        return any(
            getattr(type(callback), event) is not getattr(Callback, event)
            for _, callback in self.callbacks_
            for event in _BATCH_EVENTS
        )

    @torch.no_grad()
    def _validate(self, batches: TensorBatches) -> None:
        """Record the loss and accuracy of the rows that don't train."""
        self.module_.eval()
        self.criterion_.eval()
        totals = torch.zeros(3, dtype=torch.float64)
        evaluate = self._watched_sums if self._is_watched() else self._sums
        with self.averaged():
            for batch in batches:
                sums, _ = evaluate(batch)
                totals += sums.cpu().double()
        processes().agree(totals)  # so that all stop after the same epoch
        loss, right, weight = totals.tolist()
        self.history.record("valid_batch_count", len(batches))
        self._record_score("valid_loss", loss / weight, sign=-1)
        self._record_score("valid_acc", right / weight, sign=1)

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A batch's loss, right answers and weights, each summed up; and its logits."""
        features, (labels, weights) = to_device(batch, self.device)
        logits = self.module_(features)
        losses = self.criterion_(logits, labels)
        right = logits.argmax(1) == labels
        sums = [(weights * losses).sum(), (weights * right).sum(), weights.sum()]
        return torch.stack(sums), logits

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
        if self._average is None:
            yield
            return
        with self._average.in_place():
            yield

    def finish(self) -> None:
        """Keep the averaged weights, if there are such, and see that all are finite."""
        if self._average is not None:
            self._average.keep()
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
            self._step_sizes.after_epoch(watched)

    def _raise_diverged(self, what: str) -> None:
        raise ValueError(
            f"Training diverged with lr={self.lr:g}: {what} in epoch {len(self.history)}. Choose a "
            "smaller lr."
        )

    # The full-batch method --------------------------------------------------------------

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Take one step; in logistic regression on all rows, the only one."""
        if not self._is_solved():
            step: dict[str, Any] = super().train_step(batch, **fit_params)
            return step
        features, (labels, weights) = batch
        solution = self._solution(features, labels, weights)
        linear = self.module_.head[-1]
        with torch.no_grad():
            linear.weight.copy_(solution.weight)
            linear.bias.copy_(solution.bias)
        self.n_steps_ = solution.n_iter
        logits = self.infer(features) if self._is_watched() else torch.empty(0)
        return {"loss": torch.tensor(solution.loss), "y_pred": logits}

    def _solution(self, features: Tensor, labels: Tensor, weights: Tensor) -> newton.Solution:
        """The optimum; a fit with all that it depends on may have found it before."""
        linear = self.module_.head[-1]
        settings = {
            "weight_decay": self.plan.weight_decay,
            "label_smoothing": self.criterion_.label_smoothing,
            "max_iter": self.optimizer__max_iter,
        }
        layers = [type(layer).__name__ for layer in self.module_.head]

        def solve() -> newton.Solution:
            inputs = self._linear_inputs(features.to(self.device))
            rest = labels.to(self.device), weights.to(self.device)
            return newton.solve(inputs, *rest, linear.out_features, **settings)

        return recall_or_solve(
            self.cache,
            (features, labels, weights),
            (*layers, *settings.items(), self.device),
            (linear.out_features, linear.in_features),
            solve,
        )

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
        if training and self.full_batch and self.plan.weight_decay:
            squares = [p.square().sum() for p in self.module_.parameters() if p.ndim > 1]
            loss = loss + 0.5 * self.plan.weight_decay * sum(squares)
        return loss


class WeightAverage:
    """The exponential moving average of a module's weights and statistics.

    Parameters
    ----------
    module : torch.nn.Module
    decay : float
        What the average keeps of itself in a step, once there have been many.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._n = 0
        tensors = [*module.parameters(), *module.buffers()]
        self._current = [t.detach() for t in tensors if t.is_floating_point()]
        self._average = [t.clone() for t in self._current]

    @torch.no_grad()
    def update(self) -> None:
        """Count in the weights as they are now."""
        self._n += 1
        decay = min(self.decay, (1 + self._n) / (10 + self._n))  # else the start would stay long
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(self._average, self._current, self._n)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the average in the module for a while."""
        kept = [t.clone() for t in self._current]
        self.keep()
        try:
            yield
        finally:
            _copy(kept, self._current)

    def keep(self) -> None:
        """Put the average into the module."""
        _copy(self._average, self._current)


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)


class Snapshot:
    """A copy of a module's weights and statistics, to go back to."""

    def __init__(self, module: nn.Module) -> None:
        self._tensors = [*module.parameters(), *module.buffers()]
        self._values = [t.detach().clone() for t in self._tensors]

    def restore(self) -> None:
        """Go back."""
        _copy(self._values, [t.detach() for t in self._tensors])


def _is_linear(head: nn.Module) -> bool:
    """Whether :func:`make_head` made one linear layer, on features or their roots."""
    if type(head) is not nn.Sequential or type(head[-1]) is not nn.Linear:
        return False
    return all(type(layer) is SquareRoot for layer in head[:-1])


def _softmax(logits: Tensor) -> Tensor:
    return F.softmax(logits, dim=1)


def make_net(
    suffix: nn.Module,
    head: nn.Module,
    plan: TrainingPlan,
    precision: str,
    device: torch.device,
    *,
    n_classes: int,
    stages: dict[str, int] | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
    callbacks: Any = None,
) -> SuffixNet:
    """Set up a net that is ready to be fitted; it knows classes by their numbers."""
    train_depthwise_fast(suffix)
    module = SuffixAndHead(suffix, head.to(plan.dtype), precision)
    module.requires_grad_(True)
    learned = _learned_norms(suffix)
    net = SuffixNet(
        module,
        plan=plan,
        stages=stages,
        prepare=prepare,
        criterion=_RowLoss,
        criterion__criterion=plan.criterion,
        criterion__label_smoothing=plan.label_smoothing,
        train_split=None,
        classes=np.arange(n_classes),
        predict_nonlinearity=_softmax,
        max_epochs=1 if plan.full_batch else plan.max_epochs,
        batch_size=-1 if plan.full_batch else plan.batch_size,
        iterator_valid__batch_size=_predict_batch(suffix),
        device="cpu" if plan.full_batch and device.type == "mps" else str(device),  # no float64
        callbacks=callbacks,
        verbose=plan.verbose,
        **optimizer_settings(plan),
    )
    net._learned_norms = learned
    net.initialize()
    return net


def _learned_norms(suffix: nn.Module) -> set[nn.Module]:
    """Find batch norm that has learned statistics, and quicken that which has not.

    Some networks are built with a momentum for months of ImageNet; from random weights,
    evaluation would normalise by statistics of the start what training normalised by others.
    """
    learned: set[nn.Module] = set()
    for layer in suffix.modules():
        if not isinstance(layer, BATCH_NORMS):
            continue
        mean, variance = layer.running_mean, layer.running_var
        if mean is None or variance is None:
            continue
        if bool(mean.any()) or bool((variance != 1).any()):
            learned.add(layer)
        elif layer.momentum is not None:
            layer.momentum = max(layer.momentum, _MIN_MOMENTUM)
    return learned


def _predict_batch(suffix: nn.Module) -> int:
    trains = any(True for _ in suffix.parameters())
    return _PREDICT_BATCH["maps" if trains else "rows"]
