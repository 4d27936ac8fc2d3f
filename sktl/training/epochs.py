"""Training a net on features: epochs, and when they end."""

from __future__ import annotations

import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from torch import Tensor

from ..cache import FeatureCache
from ..compat import is_early_stopping
from ..parallel import processes
from ..randomness import seeded
from ..threads import suited_threads
from .averaging import Snapshot
from .batches import FeatureRows
from .net import SuffixNet
from .progress import print_line

_SHOWN = {
    "train_loss": ".5g",
    "valid_loss": ".5g",
    "valid_acc": ".4f",
    "valid_r2": ".4f",
    "lr": ".2e",
    "backbone_lr": ".2e",
    "unfrozen_stages": "d",
}
_WAITS = 8  # benchmarks/threads.py shows what steps of many layers cost in one thread and in two
_SEEDS_APART = 2**32  # between processes that train together, of which each draws for its rows


class Observer(Protocol):
    """Who is told of the epochs."""

    def epoch_begins(self) -> None:
        """An epoch is about to begin."""

    def epoch_ends(self, row: dict[str, Any]) -> bool:
        """An epoch is over; say whether training shall stop."""


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes
    ----------
    best_epoch : int or None
        The epoch whose weights were kept, from 1; None without rows to watch.
    interrupted : bool
        Whether the user stopped it; the weights are those of the last whole epoch.
    """

    best_epoch: int | None = None
    interrupted: bool = False


def train(
    net: SuffixNet,
    rows: FeatureRows,
    valid_rows: FeatureRows | None = None,
    observer: Observer | None = None,
    *,
    cache: FeatureCache | None = None,
    keep_epochs: bool = False,
) -> Outcome:
    """Fit the net.

    Parameters
    ----------
    net : SuffixNet
    rows : FeatureRows
        Of the weights only the proportions count: the loss is sum(w l) / sum(w) over all rows.
    valid_rows : FeatureRows or None, default=None
        Rows that don't train. With the plan's `n_iter_no_change`, training stops when they are
        no longer answered better, and the best weights come back.
    observer : Observer or None, default=None
    cache : FeatureCache or None, default=None
        Where solved heads are found and kept.
    keep_epochs : bool, default=False
        Whether a KeyboardInterrupt ends training with the last whole epoch.

    Returns
    -------
    Outcome

    Raises
    ------
    ValueError
        If training diverges.
    KeyboardInterrupt
        If the user stops it, and no whole epoch is to be kept. An EarlyStopping callback ends it
        in the regular way.
    """
    counts = _counts(rows)
    rows = _as_the_net_needs(net, rows)
    if valid_rows is not None:
        valid_rows = _as_the_net_needs(net, valid_rows)
    with _random_numbers(net), suited_threads(_products_in_a_step(net, rows)):
        net.begin(len(rows), valid_rows, cache, counts)
        net.notify("on_train_begin", X=rows, y=None)
        outcome = _run_epochs(net, rows, observer, keep_epochs)
        net.notify("on_train_end", X=rows, y=None)
    _warn_unless_converged(net)
    return outcome


def _counts(rows: FeatureRows) -> Tensor:
    """How many images each row stands for.

    A whole number as weight says how often an image was seen; another one, how much it matters.
    """
    weights = rows.weights
    whole = bool((weights == weights.round()).all())
    return weights if whole else (weights > 0).to(weights)


def _random_numbers(net: SuffixNet) -> AbstractContextManager[None]:
    """Seed them; fits that draw none need not take turns at them."""
    if net.draws_nothing:
        return nullcontext()
    return seeded(net.seed + len(net.history) + _SEEDS_APART * processes().rank, net.device)


def _as_the_net_needs(net: SuffixNet, rows: FeatureRows) -> FeatureRows:
    dtype = net.plan.dtype
    features = rows.features
    if (net.full_batch or features.ndim == 2) and not net.takes_features_as_they_are:
        features = features.to(dtype)
    weights = (rows.weights / rows.weights.mean()).to(dtype)
    made = FeatureRows(features, rows.labels, weights)
    return made.all_views() if net.full_batch and made.n_views > 1 else made


def _run_epochs(
    net: SuffixNet, rows: FeatureRows, observer: Observer | None, keep_epochs: bool
) -> Outcome:
    """Do what skorch's partial_fit does, one epoch at a time."""
    plan = net.plan
    best = _Best(net) if net.valid_rows is not None else None
    whole: Snapshot | None = None
    for epoch in range(net.max_epochs):
        gradual = plan.unfreeze == "gradual"
        net.unfreeze(1 + epoch * net.n_stages // net.max_epochs if gradual else net.n_stages)
        if observer is not None:
            observer.epoch_begins()
        n_whole = len(net.history)
        stop = False
        try:
            net.fit_loop(rows, None, epochs=1)
        except KeyboardInterrupt as error:
            stop = is_early_stopping(error)
            if not stop:
                if whole is None:
                    raise
                return _back_to(whole, net, n_whole)
        if plan.verbose:
            print_line(_described(net, epoch))
        if keep_epochs:
            with net.averaged():
                whole = Snapshot(net.module_)
        stop = (best is not None and best.is_enough()) or stop
        if observer is not None:
            with net.averaged():
                stop = observer.epoch_ends(history_rows(net)[-1]) or stop
        if stop:
            break
    net.finish()
    return Outcome(None if best is None else best.restore())


def _described(net: SuffixNet, epoch: int) -> str:
    """What the last epoch came to, in one line; a full-batch fit has no epochs."""
    row = history_rows(net)[-1]
    if net.full_batch:
        return (
            f"head solved in {n_iterations(net)} iterations: train_loss {row['train_loss']:.5g}, "
            f"{row['seconds']:.3g} s"
        )
    number = row["epoch"]
    of = f" of {number + net.max_epochs - epoch - 1}" if net.max_epochs > 1 else ""
    values = [
        f"{name} {row[name]:{form}}" for name, form in _SHOWN.items() if row.get(name) is not None
    ]
    return f"epoch {number}{of}: {', '.join(values)}, {row['seconds']:.3g} s"


def _back_to(whole: Snapshot, net: SuffixNet, n_epochs: int) -> Outcome:
    """Leave the net as it was after its last whole epoch."""
    del net.history[n_epochs:]
    net.finish()
    whole.restore()
    return Outcome(interrupted=True)


class _Best:
    """The weights that answered the watched rows best."""

    def __init__(self, net: SuffixNet) -> None:
        self._net = net
        self._score: tuple[float, ...] = (-np.inf,)
        self._epoch = 0
        self._weights = Snapshot(net.module_)

    def is_enough(self) -> bool:
        """Look at the last epoch; say whether there was no progress for too long."""
        net = self._net
        row = net.history[-1]
        score = net.target.progress(row[f"valid_{net.target.score_name}"], row["valid_loss"])
        if score > self._score:
            self._score, self._epoch = score, row["epoch"]
            with net.averaged():
                self._weights = Snapshot(net.module_)
        patience = net.plan.n_iter_no_change
        return patience is not None and row["epoch"] - self._epoch >= patience

    def restore(self) -> int:
        """Bring the best weights back; give their epoch."""
        self._weights.restore()
        return self._epoch


def _products_in_a_step(net: SuffixNet, rows: FeatureRows) -> int:
    """Multiplications of a step, as :func:`sktl.threads.suited_threads` takes them."""
    n: int = min(net.batch_size, len(rows))
    if net.prepare is not None:
        return sys.maxsize
    if any(True for _ in net.module_.suffix.parameters()):
        if net.device != "cpu":
            return sys.maxsize
        # Back costs twice what forth does. Each layer's loops wait for all threads, and a head is
        # one layer: with many, there must be more to share.
        return 3 * n * _products_of_a_row(net, rows) // _WAITS
    # A step on all rows also multiplies matrices that are far from flat.
    n = 10 * len(rows) if net.full_batch else n
    return n * sum(int(p.numel()) for p in net.module_.head.parameters())


def _products_of_a_row(net: SuffixNet, rows: FeatureRows) -> int:
    """Multiplications of suffix and head on one image."""
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    net.module_.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.module_(rows.features[:1])
    n_operations: int = counter.get_total_flops()  # multiplications and additions
    return n_operations // 2


def _warn_unless_converged(net: SuffixNet) -> None:
    if net.full_batch and n_iterations(net) >= net.optimizer__max_iter:
        warnings.warn(
            f"Training stopped after {net.optimizer__max_iter} iterations without having "
            'converged. Raise weight_decay, or with optimizer="lbfgs" max_epochs.',
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
    """A row an epoch: its number, seconds, losses, validation accuracy and learning rates."""
    names = {"dur": "seconds"}
    own = {"batches", "train_batch_count", "valid_batch_count"}
    own |= {
        f"{name}_best" for name in ("train_loss", "valid_loss", f"valid_{net.target.score_name}")
    }
    return [
        {names.get(k, k): _plain(value) for k, value in row.items() if k not in own}
        for row in net.history
    ]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def seed_of(random_state: Any) -> int:
    """Draw a seed for torch from scikit-learn's `random_state`."""
    seed = torch.tensor(check_random_state(random_state).randint(np.iinfo(np.int32).max))
    processes().agree(seed)
    return int(seed)
