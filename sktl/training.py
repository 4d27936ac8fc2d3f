"""Training the suffix and the head on features, as a skorch net."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import skorch
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from skorch.callbacks import Callback, EarlyStopping, EpochTimer, PassthroughScoring, PrintLog
from skorch.utils import FirstStepAccumulator, to_device
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from . import logistic
from .hardware import suited_threads

Head = str | tuple[int, ...] | Callable[[int, int], nn.Module]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "lbfgs": torch.optim.LBFGS,
}
_DEFAULT_LR = {"sgd": 1e-2, "lbfgs": 1.0}
_OTHER_LR = 1e-3
# Pretrained stages take a tenth of the head's step, so that they are adjusted, not overwritten.
_BACKBONE_SHARE = 0.1
_MIN_MOMENTUM = 0.1  # torch's default for batch norm
_MAX_EPOCHS = {"lbfgs": 1000}
_OTHER_MAX_EPOCHS = 20
_BATCH_EVENTS = ("on_batch_begin", "on_batch_end", "on_grad_computed")
_SHUFFLED_AT_ONCE = 2**26  # bytes of features that are put in an epoch's order by copying
_PREDICT_BATCH = {"rows": 4096, "maps": 64}


@dataclass(frozen=True)
class TrainingPlan:
    """Settings of one training run, with nothing left to decide.

    Attributes
    ----------
    optimizer : str or type of torch.optim.Optimizer
        A key of `OPTIMIZERS` or a class.
    lr, backbone_lr : float
        Step sizes of the head and of the suffix.
    weight_decay : float
        L2 penalty: half of it times the squared norm of the weights is added to the mean loss
        for "lbfgs"; for others it is the optimizer's own parameter. Biases and norms have none.
    max_epochs, batch_size : int
        For "lbfgs", iterations over all rows at once.
    label_smoothing : float
    criterion : "cross_entropy" or callable
    seed : int
    verbose : int
    """

    optimizer: str | type[torch.optim.Optimizer]
    lr: float
    backbone_lr: float
    weight_decay: float
    max_epochs: int
    batch_size: int
    label_smoothing: float
    criterion: str | Callable[[Tensor, Tensor], Tensor]
    seed: int
    verbose: int

    @property
    def full_batch(self) -> bool:
        """Whether every step sees all rows."""
        return self.optimizer == "lbfgs"

    @property
    def dtype(self) -> torch.dtype:
        """Number format of head and suffix; a second-order method needs the digits."""
        return torch.float64 if self.full_batch else torch.float32


def choose_optimizer(
    optimizer: str | type[torch.optim.Optimizer], *, convex: bool, lr: float | None
) -> str | type[torch.optim.Optimizer]:
    """Find what "auto" stands for, and the name of torch's own classes.

    Parameters
    ----------
    optimizer : str or type
    convex : bool
        Whether only a linear head trains and nothing in training is random.
    lr : float or None
        A learning rate that is given always counts, so it asks for a method with steps.
    """
    if isinstance(optimizer, type):  # torch's classes are the same as their names
        return {kind: name for name, kind in OPTIMIZERS.items()}.get(optimizer, optimizer)
    if optimizer != "auto":
        return optimizer
    return "lbfgs" if convex and lr is None else "adamw"


def default_lr(optimizer: str | type[torch.optim.Optimizer]) -> float:
    """Learning rate of the head where none is given."""
    return _DEFAULT_LR.get(optimizer, _OTHER_LR) if isinstance(optimizer, str) else _OTHER_LR


def default_backbone_lr(lr: float) -> float:
    """Learning rate of pretrained stages where none is given."""
    return lr * _BACKBONE_SHARE


def default_max_epochs(optimizer: str | type[torch.optim.Optimizer]) -> int:
    """Number of passes over the images where none is given."""
    return _MAX_EPOCHS.get(optimizer, _OTHER_MAX_EPOCHS) if isinstance(optimizer, str) else 20


def make_head(head: Head, in_features: int, n_classes: int, dropout: float) -> nn.Module:
    """Build a head.

    Parameters
    ----------
    head : "linear", tuple of int or callable
        Hidden widths with ReLU between them, or what makes a module of
        ``(in_features, n_classes)``.
    in_features, n_classes : int
    dropout : float
        Share of its inputs that each linear layer loses in training.

    Returns
    -------
    torch.nn.Module
        From features to logits.

    Raises
    ------
    TypeError
        If a callable returns something else.
    ValueError
        If its module doesn't map features to logits.
    """
    if callable(head):
        return _made_by(head, in_features, n_classes)
    widths = (in_features, *(() if head == "linear" else head), n_classes)
    layers: list[nn.Module] = []
    for i, (width, following) in enumerate(zip(widths, widths[1:], strict=False)):
        layers += [nn.ReLU()] if i else []
        layers += [nn.Dropout(dropout)] if dropout else []
        layers.append(nn.Linear(width, following))
    return nn.Sequential(*layers)


def _made_by(head: Callable[[int, int], nn.Module], in_features: int, n_classes: int) -> nn.Module:
    made = head(in_features, n_classes)
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"The head callable must return a torch.nn.Module, got {type(made).__name__}."
        )
    module = copy.deepcopy(made).cpu()  # it may return one module each time
    wanted = f"map features of shape (n, {in_features}) to logits of shape (n, {n_classes})"
    with torch.no_grad():
        try:
            logits = module.eval()(torch.zeros(2, in_features))
        except Exception as error:
            raise ValueError(
                f"The head callable's module must {wanted}, but it failed: "
                f"{type(error).__name__}: {error}"
            ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, n_classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"The head callable's module must {wanted}, but for n=2 it gave {got}. The callable "
            "gets both widths: (in_features, n_classes)."
        )
    return module


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


class FeatureRows(Dataset[tuple[Tensor, tuple[Tensor, Tensor]]]):
    """Features in one tensor, with labels and weights.

    Parameters
    ----------
    features : tensor of shape (n, ...)
    labels : int64 tensor of shape (n,), or None
    weights : tensor of shape (n,), or None
        Of mean one.
    """

    def __init__(
        self, features: Tensor, labels: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        self.features = features
        n = len(features)
        self.labels = torch.zeros(n, dtype=torch.int64) if labels is None else labels
        self.weights = torch.ones(n) if weights is None else weights

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Rows by anything that indexes a tensor."""
        features, labels, weights = self.at(index)
        return features, (labels, weights)

    def at(self, index: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Features, labels and weights of some rows."""
        return self.features[index], self.labels[index], self.weights[index]


class TensorBatches:
    """Iterate over slices of a dataset's tensors, with no workers and no collation.

    Parameters
    ----------
    dataset : FeatureRows
    batch_size : int
        A last batch of one row is merged into the one before it: batch norm can't train on it.
    generator : torch.Generator or None
        Shuffles anew in each epoch.
    """

    def __init__(
        self, dataset: FeatureRows, batch_size: int, generator: torch.Generator | None = None
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.generator = generator

    def __len__(self) -> int:
        return len(self._bounds())

    def __iter__(self) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
        n = len(self.dataset)
        whole = self.batch_size >= n
        shuffled = self.generator is not None and not whole
        dataset, order = self.dataset, None
        if shuffled:
            order = torch.randperm(n, generator=self.generator)
            if dataset.features.nbytes <= _SHUFFLED_AT_ONCE:
                dataset, order = FeatureRows(*dataset.at(order)), None
        for start, stop in self._bounds():
            yield dataset[slice(start, stop) if order is None else order[start:stop]]

    def _bounds(self) -> list[tuple[int, int]]:
        n = len(self.dataset)
        starts = list(range(0, n, self.batch_size))
        if len(starts) > 1 and n - starts[-1] == 1:
            starts.pop()
        return list(zip(starts, [*starts[1:], n], strict=True))


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
    """The skorch net behind :class:`PretrainedImageClassifier`; its X are features."""

    def __init__(
        self,
        *args: Any,
        backbone_lr: float = 0.0,
        weight_decay: float = 0.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.backbone_lr = backbone_lr
        self.weight_decay = weight_decay
        self.seed = seed

    @property
    def full_batch(self) -> bool:
        """Whether every step sees all rows."""
        return bool(self.batch_size < 0)

    def _is_logistic(self) -> bool:
        """Whether training is logistic regression on the features."""
        return (
            not any(True for _ in self.module_.suffix.parameters())
            and _is_linear(self.module_.head)
            and self.criterion_.criterion == "cross_entropy"
        )

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        log = [("print_log", PrintLog())] if self.verbose else []
        loss = PassthroughScoring(name="train_loss", on_train=True)
        return [("epoch_timer", EpochTimer()), ("train_loss", loss), *log]

    def get_dataset(self, X: Any, y: Any = None) -> FeatureRows:
        """Wrap features that aren't wrapped yet."""
        if isinstance(X, FeatureRows):
            return X
        labels = None if y is None else torch.as_tensor(np.asarray(y), dtype=torch.int64)
        return FeatureRows(torch.as_tensor(X), labels)

    def get_iterator(self, dataset: FeatureRows, training: bool = False) -> TensorBatches:
        """Slices of the tensors; shuffled in training."""
        if not training:
            return TensorBatches(dataset, self.iterator_valid__batch_size)
        generator = torch.Generator().manual_seed(self.seed)
        size = len(dataset) if self.full_batch else self.batch_size
        return TensorBatches(dataset, size, generator)

    def get_params_for_optimizer(self, prefix: str, named_parameters: Any) -> tuple[Any, Any]:
        """Smaller steps for pretrained layers, and no decay of biases and norms."""
        named = list(named_parameters)
        args, settings = super().get_params_for_optimizer(prefix, named)
        if self.full_batch:
            return args, settings
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        for name, parameter in named:
            kind = (name.startswith("suffix."), parameter.ndim > 1)
            groups.setdefault(kind, []).append(parameter)
        return (
            [
                {
                    "params": parameters,
                    "lr": self.backbone_lr if pretrained else self.lr,
                    "weight_decay": self.weight_decay if matrices else 0.0,
                }
                for (pretrained, matrices), parameters in groups.items()
            ],
        ), settings

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Stop when training has diverged: nothing after it makes sense."""
        losses = np.asarray(self.history[-1, "batches", :, "train_loss"])
        if not np.isfinite(losses).all():
            self._raise_diverged(f"the loss was {losses[~np.isfinite(losses)][0]}")

    def check_result(self) -> None:
        """Raise ValueError if the weights aren't finite."""
        if not all(bool(p.isfinite().all()) for p in self.module_.parameters()):
            self._raise_diverged("weights were no longer finite")

    def _raise_diverged(self, what: str) -> None:
        raise ValueError(
            f"Training diverged with lr={self.lr:g}: {what} in epoch {len(self.history)}. Choose a "
            "smaller lr."
        )

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        """Run an epoch; where nobody watches single batches, without telling of them."""
        known = type(self.optimizer_) in OPTIMIZERS.values()  # others may want a closure
        if self.full_batch or not training or not known or self._is_watched():
            super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
            return
        self.module_.train()
        self.criterion_.train()
        step = self._linear_step if self._is_logistic() else self._step
        elsewhere = self.device != "cpu"
        losses, sizes = [], []
        for batch in iterator:
            losses.append(step(*(to_device(batch, self.device) if elsewhere else batch)))
            sizes.append(len(batch[0]))
        for value, size in zip(torch.stack(losses).tolist(), sizes, strict=True):
            self.history.new_batch()
            self.history.record_batch(f"{prefix}_loss", value)
            self.history.record_batch(f"{prefix}_batch_size", size)
        self.history.record(f"{prefix}_batch_count", len(sizes))

    def _step(self, features: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        self.optimizer_.zero_grad()
        loss = self.get_loss(self.module_(features), target, training=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer_.step()
        return loss.detach()

    @torch.no_grad()
    def _linear_step(self, features: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        """Do as `_step` does, with the gradient that logistic regression is known to have."""
        labels, weights = target
        linear = self.module_.head[0]
        rows = self.module_.suffix(features).to(linear.weight.dtype)
        loss, error = logistic.loss_and_error(
            linear(rows), self._soft_targets[labels], (weights / len(rows))[:, None], dim=1
        )
        linear.weight.grad, linear.bias.grad = error.T @ rows, error.sum(0)
        self.optimizer_.step()
        return loss

    @cached_property
    def _soft_targets(self) -> Tensor:
        n_classes, smoothing = self.module_.head[0].out_features, self.criterion_.label_smoothing
        return logistic.soft_targets(n_classes, smoothing).float().to(self.device)

    def _is_watched(self) -> bool:
        """Whether a callback wants to know of batches or gradients."""
        return any(
            getattr(type(callback), event) is not getattr(Callback, event)
            for _, callback in self.callbacks_
            for event in _BATCH_EVENTS
        )

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Take one step; in logistic regression on all rows, the only one."""
        if not (self.full_batch and self._is_logistic() and self.lr == _DEFAULT_LR["lbfgs"]):
            step: dict[str, Any] = super().train_step(batch, **fit_params)
            return step
        features, (labels, weights) = (to_device(part, self.device) for part in batch)
        linear = self.module_.head[0]
        solution = logistic.solve(
            self.module_.suffix(features),
            labels,
            weights,
            linear.out_features,
            weight_decay=self.weight_decay,
            label_smoothing=self.criterion_.label_smoothing,
            max_iter=self.optimizer__max_iter,
        )
        with torch.no_grad():
            linear.weight.copy_(solution.weight)
            linear.bias.copy_(solution.bias)
            logits = linear(features.to(linear.weight.dtype))
        self.n_steps_ = solution.n_iter
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
        if training and self.full_batch and self.weight_decay:
            squares = [p.square().sum() for p in self.module_.parameters() if p.ndim > 1]
            loss = loss + 0.5 * self.weight_decay * sum(squares)
        return loss


def _is_linear(head: nn.Module) -> bool:
    """Whether :func:`make_head` made one linear layer and nothing else."""
    return type(head) is nn.Sequential and len(head) == 1 and type(head[0]) is nn.Linear


def _softmax(logits: Tensor) -> Tensor:
    return F.softmax(logits, dim=1)


def make_net(
    suffix: nn.Module,
    head: nn.Module,
    plan: TrainingPlan,
    precision: str,
    device: torch.device,
    callbacks: Any = None,
) -> SuffixNet:
    """Set up a net that is ready to be fitted."""
    module = SuffixAndHead(suffix, head.to(plan.dtype), precision)
    module.requires_grad_(True)
    _quicken_statistics(suffix)
    net = SuffixNet(
        module,
        criterion=_RowLoss,
        criterion__criterion=plan.criterion,
        criterion__label_smoothing=plan.label_smoothing,
        train_split=None,
        predict_nonlinearity=_softmax,
        max_epochs=1 if plan.full_batch else plan.max_epochs,
        batch_size=-1 if plan.full_batch else plan.batch_size,
        iterator_valid__batch_size=_predict_batch(suffix),
        device="cpu" if plan.full_batch and device.type == "mps" else str(device),  # no float64
        callbacks=callbacks,
        verbose=plan.verbose,
        backbone_lr=plan.backbone_lr,
        weight_decay=plan.weight_decay,
        seed=plan.seed,
        **_optimizer_settings(plan),
    )
    net.initialize()
    return net


def _quicken_statistics(suffix: nn.Module) -> None:
    """Let batch-norm statistics follow within an epoch or two.

    Some networks were trained with a momentum for months of ImageNet; with it, evaluation would
    normalise by the old statistics what training normalised by the new.
    """
    for layer in suffix.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.momentum is not None:
            layer.momentum = max(layer.momentum, _MIN_MOMENTUM)


def _predict_batch(suffix: nn.Module) -> int:
    trains = any(True for _ in suffix.parameters())
    return _PREDICT_BATCH["maps" if trains else "rows"]


def _optimizer_settings(plan: TrainingPlan) -> dict[str, Any]:
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
        settings["optimizer__momentum"] = 0.9
    if kind in OPTIMIZERS.values():
        settings["optimizer__fused"] = True  # one kernel for all weights
    return settings


def train(
    net: SuffixNet, features: Tensor, labels: npt.NDArray[np.int64], weights: npt.NDArray[Any]
) -> None:
    """Fit the net.

    Parameters
    ----------
    net : SuffixNet
    features : tensor of shape (n, ...)
    labels : array of shape (n,)
        Class numbers.
    weights : array of shape (n,)
        Only their proportions count: the loss is sum(w l) / sum(w) over all rows.

    Raises
    ------
    ValueError
        If training diverges.
    KeyboardInterrupt
        If the user stops it. An EarlyStopping callback ends it in the regular way.
    """
    dtype = torch.float64 if net.full_batch else torch.float32
    normalised = torch.as_tensor(weights / weights.mean(), dtype=dtype)
    if net.full_batch or features.ndim == 2:
        features = features.to(dtype)
    rows = FeatureRows(features, torch.as_tensor(labels), normalised)
    with torch.random.fork_rng(devices=_cuda_devices(net.device)):
        seed = torch.manual_seed if "cuda" in net.device else torch.default_generator.manual_seed
        seed(net.seed)
        with suited_threads(_products_in_a_step(net, rows)):
            _run_epochs(net, rows)
    net.check_result()
    _warn_unless_converged(net)


def _products_in_a_step(net: SuffixNet, rows: FeatureRows) -> int:
    """Multiplications of a step on the head; with stages to train, far more than that."""
    if any(True for _ in net.module_.suffix.parameters()):
        return sys.maxsize
    # A step on all rows also multiplies matrices that are far from flat.
    n = 10 * len(rows) if net.full_batch else min(net.batch_size, len(rows))
    return n * sum(int(p.numel()) for p in net.module_.head.parameters())


def _run_epochs(net: SuffixNet, rows: FeatureRows) -> None:
    """Do what skorch's partial_fit does, but let the user's KeyboardInterrupt through."""
    net.notify("on_train_begin", X=rows, y=None)
    try:
        net.fit_loop(rows, None)
    except KeyboardInterrupt:
        if not _stopped_early(net):
            raise
    net.notify("on_train_end", X=rows, y=None)


def _stopped_early(net: SuffixNet) -> bool:
    """Whether skorch's EarlyStopping, which raises a KeyboardInterrupt, has lost patience."""
    stoppers = (c for _, c in net.callbacks_ if isinstance(c, EarlyStopping))
    return any(stopper.misses_ >= stopper.patience for stopper in stoppers)


def _cuda_devices(device: str) -> list[torch.device]:
    return [torch.device(device)] if device.startswith("cuda") else []


def _warn_unless_converged(net: SuffixNet) -> None:
    if net.full_batch and n_iterations(net) >= net.optimizer__max_iter:
        warnings.warn(
            f"Training stopped after max_epochs={net.optimizer__max_iter} iterations without "
            "having converged. Raise max_epochs or weight_decay.",
            ConvergenceWarning,
            stacklevel=3,
        )


def n_iterations(net: SuffixNet) -> int:
    """Number of epochs, or of iterations of a full-batch method."""
    if not net.full_batch:
        return len(net.history)
    if hasattr(net, "n_steps_"):
        return int(net.n_steps_)
    state = net.optimizer_.state[net.optimizer_.param_groups[0]["params"][0]]
    return int(state.get("n_iter", 0))


def history_rows(net: SuffixNet) -> list[dict[str, Any]]:
    """A row an epoch: its number, seconds and mean loss."""
    names = {"epoch": "epoch", "dur": "seconds", "train_loss": "train_loss"}
    own = {"batches", "train_batch_count", "train_loss_best"}
    return [
        {names.get(k, k): _plain(value) for k, value in row.items() if k not in own}
        for row in net.history
    ]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def seed_of(random_state: Any) -> int:
    """Draw a seed for torch from scikit-learn's `random_state`."""
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
