"""What y is, once it is read: how wide the head is, its loss, and what its outputs become.

One class a kind. All else that trains, stores or exports a model asks its target, and doesn't
know the kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit
from torch import Tensor
from torch.nn import functional as F

from . import binary, newton, ridge, selection
from .ridge import WeightDecay

Encoded = npt.NDArray[Any]  # y as a net learns it


class Target(ABC):
    """A kind of y.

    Encoded y has a row for each image; `outputs` are what the head gives, of shape (n, n_outputs).

    Attributes
    ----------
    kind : str
        Its name in files.
    score_name : str
        What the history calls the score of rows that are watched, after "valid_".
    criteria : tuple of str
        The losses that have a name.
    is_fitted_first : bool
        Whether stages train best after a head has been fitted, by default. Else it begins linear
        and at zero, which is the mean of standardised numbers, and learns faster than they do.
    """

    kind: ClassVar[str]
    score_name: ClassVar[str]
    criteria: ClassVar[tuple[str, ...]]
    is_fitted_first: ClassVar[bool] = False

    @property
    @abstractmethod
    def n_outputs(self) -> int:
        """Width of the head."""

    @abstractmethod
    def tensor(self, y: Any) -> Tensor:
        """Encoded y as a tensor."""

    @abstractmethod
    def is_solved(self, criterion: Any) -> bool:
        """Whether a linear head's optimum by this loss is found on all rows at once."""

    @abstractmethod
    def first_criterion(self, criterion: Any) -> Any:
        """The loss by which a head is fitted that steps go on from."""

    def decay_to_start(self, weight_decay: WeightDecay) -> WeightDecay:
        """Penalty of a head that stages begin to train under."""
        return weight_decay

    @abstractmethod
    def solve(
        self,
        features: Tensor,
        y: Tensor,
        weights: Tensor,
        *,
        weight_decay: WeightDecay,
        counts: Tensor | None,
        label_smoothing: float,
        max_iter: int,
    ) -> newton.Solution:
        """Find that optimum.

        Parameters
        ----------
        features, y, weights : tensors with a row for each image, or each view of one
        weight_decay : float or "auto"
            Half of it times the squared norm of the weights is added to the mean loss.
        counts : tensor of shape (n_images,) or None
            How many images each row stands for, where that decides what "auto" is; further rows
            are other views of the same.
        label_smoothing : float
        max_iter : int
        """

    @abstractmethod
    def losses(self, outputs: Tensor, y: Tensor, criterion: str, label_smoothing: float) -> Tensor:
        """Loss of each row, by a criterion with a name."""

    def steps_by(self, criterion: Any) -> bool:
        """Whether the loss's gradient is known to `loss_and_error`: of each that has a name."""
        return isinstance(criterion, str)

    @abstractmethod
    def wanted(self, y: Tensor, shares: Tensor, label_smoothing: float) -> Tensor:
        """What `loss_and_error` compares outputs with, of shape (n_outputs, n).

        Parameters
        ----------
        y : tensor
            Encoded.
        shares : tensor of shape (n,)
            Of each row in its batch's loss.
        label_smoothing : float
        """

    @abstractmethod
    def loss_and_error(
        self, outputs: Tensor, wanted: Tensor, shares: Tensor, criterion: str
    ) -> tuple[Tensor, Tensor]:
        """Weighted loss, and its derivative by outputs of shape (n_outputs, n)."""

    @abstractmethod
    def answers(self, outputs: Tensor) -> Tensor:
        """What the head's outputs mean: probabilities, or numbers in y's units."""

    @abstractmethod
    def score_sums(self, outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        """What a batch of watched rows adds to the sums that the score is made of."""

    @abstractmethod
    def score(self, sums: npt.NDArray[np.float64], total_weight: float) -> float:
        """Score of all watched rows; the higher the better."""

    @abstractmethod
    def progress(self, score: float, loss: float) -> tuple[float, ...]:
        """What grows where watched rows are answered better."""

    def lost(self, y: Encoded) -> npt.NDArray[np.int64]:
        """Outputs that can't be learned of these rows alone; of most kinds, all can."""
        return np.arange(0)

    @abstractmethod
    def hold_out(self, y: Encoded, share: float, seed: int) -> npt.NDArray[np.int64]:
        """Choose rows to watch.

        Raises
        ------
        ValueError
            If there are too few; the message says of what.
        """


class _ByCrossEntropy(Target):
    """What is answered with probabilities: learned by cross-entropy, judged by right answers."""

    score_name: ClassVar[str] = "acc"
    criteria: ClassVar[tuple[str, ...]] = ("cross_entropy",)

    def is_solved(self, criterion: Any) -> bool:
        """Cross-entropy is."""
        return isinstance(criterion, str)

    def first_criterion(self, criterion: Any) -> Any:
        """The same."""
        return criterion

    def score(self, sums: npt.NDArray[np.float64], total_weight: float) -> float:
        """Share of images that are answered right, by weight."""
        return float(sums[0] / total_weight)

    def progress(self, score: float, loss: float) -> tuple[float, ...]:
        """More right answers, or as many that are surer."""
        return score, -loss


@dataclass(frozen=True)
class Classes(_ByCrossEntropy):
    """Each image is of one class; encoded y is its number, int64 of shape (n,).

    Attributes
    ----------
    n_classes : int
    """

    n_classes: int

    kind: ClassVar[str] = "classes"
    is_fitted_first: ClassVar[bool] = True

    @property
    def n_outputs(self) -> int:
        """Width of the head."""
        return self.n_classes

    def decay_to_start(self, weight_decay: WeightDecay) -> WeightDecay:
        """One with which the head is as sure of these images as it may be of others.

        A head that is sure to be right leaves stages hardly anything to learn.
        """
        return "auto"

    def tensor(self, y: Any) -> Tensor:
        """Class numbers."""
        return torch.as_tensor(np.asarray(y), dtype=torch.int64)

    def solve(
        self,
        features: Tensor,
        y: Tensor,
        weights: Tensor,
        *,
        weight_decay: WeightDecay,
        counts: Tensor | None,
        label_smoothing: float,
        max_iter: int,
    ) -> newton.Solution:
        """Multinomial logistic regression."""
        temperature = 1.0
        if isinstance(weight_decay, str):
            choice = selection.choose(
                features,
                y,
                weights,
                self.n_classes,
                n_views=1 if counts is None else len(y) // len(counts),
                label_smoothing=label_smoothing,
            )
            weight_decay, temperature = choice.weight_decay, choice.temperature
        solution = newton.solve(
            features,
            y,
            weights,
            self.n_classes,
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
            max_iter=max_iter,
        )
        return solution.divided_by(temperature)

    def losses(self, outputs: Tensor, y: Tensor, criterion: str, label_smoothing: float) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(outputs, y, reduction="none", label_smoothing=label_smoothing)

    def wanted(self, y: Tensor, shares: Tensor, label_smoothing: float) -> Tensor:
        """Probabilities, multiplied by the shares."""
        soft = newton.soft_targets(self.n_classes, label_smoothing).to(shares)
        return soft[:, y] * shares

    def loss_and_error(
        self, outputs: Tensor, wanted: Tensor, shares: Tensor, criterion: str
    ) -> tuple[Tensor, Tensor]:
        """Of the cross-entropy."""
        return newton.loss_and_error(outputs, wanted, shares)

    def answers(self, outputs: Tensor) -> Tensor:
        """Probabilities."""
        return torch.softmax(outputs, dim=1)

    def score_sums(self, outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        """Weights of right answers."""
        return (weights * (outputs.argmax(1) == y)).sum()[None]

    def lost(self, y: Encoded) -> npt.NDArray[np.int64]:
        """Classes that none of the images has."""
        return np.setdiff1d(np.arange(self.n_classes), y)

    def hold_out(self, y: Encoded, share: float, seed: int) -> npt.NDArray[np.int64]:
        """Some of each class."""
        splitter = StratifiedShuffleSplit(1, test_size=share, random_state=seed)
        _, chosen = next(splitter.split(y, y))
        return np.asarray(chosen, dtype=np.int64)


@dataclass(frozen=True)
class Indicators(_ByCrossEntropy):
    """Each image has several labels, one or none; encoded y is 0 and 1, of shape (n, n_labels).

    Losses of the labels are added up, so that each is fitted as it would be alone.

    Attributes
    ----------
    n_labels : int
    label_weights : tuple of two tuples of float, or None
        What each label's absence and presence weighs in the loss.
    """

    n_labels: int
    label_weights: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    kind: ClassVar[str] = "indicators"

    @property
    def n_outputs(self) -> int:
        """Width of the head."""
        return self.n_labels

    def tensor(self, y: Any) -> Tensor:
        """Zeros and ones."""
        return torch.as_tensor(np.asarray(y), dtype=torch.float32)

    def solve(
        self,
        features: Tensor,
        y: Tensor,
        weights: Tensor,
        *,
        weight_decay: WeightDecay,
        counts: Tensor | None,
        label_smoothing: float,
        max_iter: int,
    ) -> newton.Solution:
        """Logistic regressions, one a label."""
        assert not isinstance(weight_decay, str), "nothing chooses it for labels"
        return binary.solve(
            features,
            y,
            weights,
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
            label_weights=self._label_weights(features),
            max_iter=max_iter,
        )

    def losses(self, outputs: Tensor, y: Tensor, criterion: str, label_smoothing: float) -> Tensor:
        """Sum of the labels' cross-entropies."""
        evidence = binary.binary_targets(
            y.to(outputs), label_smoothing, self._label_weights(outputs)
        )
        return binary.binary_losses(outputs, *evidence).sum(1)

    def wanted(self, y: Tensor, shares: Tensor, label_smoothing: float) -> Tensor:
        """What speaks for the labels and, below, against them, multiplied by the shares."""
        evidence = binary.binary_targets(y.to(shares), label_smoothing, self._label_weights(shares))
        return torch.cat(evidence, 1).T * shares

    def loss_and_error(
        self, outputs: Tensor, wanted: Tensor, shares: Tensor, criterion: str
    ) -> tuple[Tensor, Tensor]:
        """Of the cross-entropy."""
        present, absent = wanted.chunk(2)
        error = torch.sigmoid(outputs) * (present + absent) - present
        return binary.binary_losses(outputs, present, absent).sum(), error

    def answers(self, outputs: Tensor) -> Tensor:
        """Probabilities, each of its own."""
        return torch.sigmoid(outputs)

    def score_sums(self, outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        """Weights of images of which all labels are right."""
        right = ((outputs > 0) == (y > 0)).all(1)
        return (weights * right).sum()[None]

    def hold_out(self, y: Encoded, share: float, seed: int) -> npt.NDArray[np.int64]:
        """Some of each label's images."""
        return hold_out_of_each(y, share, seed)

    def _label_weights(self, like: Tensor) -> Tensor | None:
        return None if self.label_weights is None else like.new_tensor(self.label_weights)


def hold_out_of_each(y: Encoded, share: float, seed: int) -> npt.NDArray[np.int64]:
    """Choose rows such that of each label's images nearly that share is among them.

    Labels are gone through from the rarest on, and each row goes to the part that lacks most.

    Parameters
    ----------
    y : array of shape (n, n_labels)
        0 and 1.
    share : float
    seed : int

    Returns
    -------
    int64 array
        Sorted.

    Raises
    ------
    ValueError
        If none or all would be chosen.

    References
    ----------
    K. Sechidis et al., On the Stratification of Multi-Label Data (2011), ECML PKDD.
    """
    rng = np.random.default_rng(seed)
    shares = np.array([1 - share, share])
    has = np.asarray(y) > 0
    lacks = np.outer(shares, has.sum(0))  # images of each label, by part
    room = shares * len(has)
    chosen = np.zeros(len(has), dtype=bool)
    left = np.ones(len(has), dtype=bool)
    while left.any():
        counts = has[left].sum(0)
        if counts.any():
            label = int(np.where(counts, counts, len(has) + 1).argmin())
            rows, wanted = np.flatnonzero(left & has[:, label]), lacks[:, label]
        else:
            rows, wanted = np.flatnonzero(left), room
        for row in rng.permutation(rows).tolist():
            # Equal lacks differ by rounding.
            part = max((0, 1), key=lambda p: (round(float(wanted[p]), 9), round(float(room[p]), 9)))
            chosen[row] = part == 1
            lacks[part] -= has[row]
            room[part] -= 1
        left[rows] = False
    if chosen.all() or not chosen.any():
        raise ValueError(f"{chosen.sum()} of {len(chosen)} images would be set aside.")
    return np.flatnonzero(chosen).astype(np.int64)


_LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
}
_SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "mse": lambda residual: 2 * residual,
    "mae": torch.sign,
    "huber": lambda residual: residual.clamp(-1, 1),
}


@dataclass(frozen=True)
class Numbers(Target):
    """Each image has one number or several; encoded y is standardised, float64 (n, n_outputs).

    Losses of several outputs are added up, so that each is fitted as it would be alone.

    Attributes
    ----------
    mean, scale : tuple of float
        Of each output, by which y was standardised.
    flat : bool
        Whether y had one dimension.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    flat: bool

    kind: ClassVar[str] = "numbers"
    score_name: ClassVar[str] = "r2"
    criteria: ClassVar[tuple[str, ...]] = tuple(_LOSSES)

    @property
    def n_outputs(self) -> int:
        """Width of the head."""
        return len(self.mean)

    def tensor(self, y: Any) -> Tensor:
        """Standardised numbers."""
        return torch.as_tensor(np.asarray(y), dtype=torch.float64).reshape(-1, self.n_outputs)

    def is_solved(self, criterion: Any) -> bool:
        """The mean squared error is."""
        return bool(criterion == "mse")

    def first_criterion(self, criterion: Any) -> Any:
        """The mean squared error, whose optimum is near those of the others."""
        return "mse" if isinstance(criterion, str) else criterion

    def solve(
        self,
        features: Tensor,
        y: Tensor,
        weights: Tensor,
        *,
        weight_decay: WeightDecay,
        counts: Tensor | None,
        label_smoothing: float,
        max_iter: int,
    ) -> newton.Solution:
        """Ridge regression."""
        return ridge.solve(features, y, weights, weight_decay=weight_decay, counts=counts)

    def losses(self, outputs: Tensor, y: Tensor, criterion: str, label_smoothing: float) -> Tensor:
        """Sum over the outputs."""
        return _LOSSES[criterion](outputs, y.to(outputs), reduction="none").sum(1)

    def wanted(self, y: Tensor, shares: Tensor, label_smoothing: float) -> Tensor:
        """The numbers."""
        return y.T.to(shares)

    def loss_and_error(
        self, outputs: Tensor, wanted: Tensor, shares: Tensor, criterion: str
    ) -> tuple[Tensor, Tensor]:
        """Of any loss with a name."""
        residual = outputs - wanted
        losses = _LOSSES[criterion](outputs, wanted, reduction="none")
        return (losses * shares).sum(), _SLOPES[criterion](residual) * shares

    def answers(self, outputs: Tensor) -> Tensor:
        """Numbers in y's units."""
        mean, scale = (outputs.new_tensor(values) for values in (self.mean, self.scale))
        numbers = outputs * scale + mean
        return numbers[:, 0] if self.flat else numbers

    def score_sums(self, outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        """Squared errors, numbers and their squares, of each output."""
        y, column = y.to(outputs), weights.to(outputs)[:, None]
        parts = ((outputs - y).square(), y, y.square())
        return torch.cat([(column * part).sum(0) for part in parts])

    def score(self, sums: npt.NDArray[np.float64], total_weight: float) -> float:
        """R2, the mean over the outputs."""
        residual, total, squares = np.split(sums, 3)
        spread = squares - total**2 / total_weight
        constant = spread <= 1e-12 * np.maximum(squares, 1e-300)
        share = np.where(constant, np.where(residual > 0, 1.0, 0.0), 1.0)
        np.divide(residual, spread, out=share, where=~constant)
        return float(np.mean(1 - share))

    def progress(self, score: float, loss: float) -> tuple[float, ...]:
        """A lower loss."""
        return (-loss,)

    def hold_out(self, y: Encoded, share: float, seed: int) -> npt.NDArray[np.int64]:
        """Some of all."""
        splitter = ShuffleSplit(1, test_size=share, random_state=seed)
        _, chosen = next(splitter.split(y))
        return np.asarray(chosen, dtype=np.int64)


KINDS: dict[str, type[Target]] = {kind.kind: kind for kind in (Classes, Indicators, Numbers)}
