"""The new head: from pooled features to logits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..randomness import seeded

Head = str | tuple[int, ...] | Callable[[int, int], nn.Module]

ONE_LAYER = ("linear", "root")
HEADS = ("auto", *ONE_LAYER)
_SMALL = 1e-3  # keeps the root's slope at zero finite, since networks train through it


class SquareRoot(nn.Module):
    """Square roots of features, with the features' signs.

    What a ReLU leaves of a map has a mean that is small for most images and large for a few. Linear
    classifiers do better when the few don't weigh so much [1]_, also when they learn from few
    images [2]_.

    References
    ----------
    .. [1] F. Perronnin et al., Improving the Fisher Kernel for Large-Scale Image Classification
       (2010), section 3.2.
    .. [2] S. Yang et al., Free Lunch for Few-shot Learning: Distribution Calibration (2021),
       arXiv:2101.06395.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Take the root of each feature."""
        return features * (features.abs() + _SMALL).rsqrt()


@dataclass(frozen=True)
class HeadShape:
    """What builds a head.

    Attributes
    ----------
    head : "linear", "root", tuple of int or callable
    n_outputs : int
    dropout : float
    in_features : int
    """

    head: Head
    n_outputs: int
    dropout: float
    in_features: int

    @property
    def has_one_layer(self) -> bool:
        """Whether there is one layer with weights."""
        return self.head in ONE_LAYER

    @property
    def is_convex(self) -> bool:
        """Whether a fit to features that are given is a convex problem."""
        return self.has_one_layer and not self.dropout

    def make(self, seed: int) -> nn.Module:
        """Build it, with weights that depend on the seed alone."""
        if callable(self.head):
            with seeded(seed):
                return _made_by(self.head, self.in_features, self.n_outputs)
        generator = torch.Generator().manual_seed(seed)
        return make_head(self.head, self.in_features, self.n_outputs, self.dropout, generator)


def choose_head(head: Head, features: Tensor, *, of_stages: bool = False) -> Head:
    """Find what "auto" stands for: the root where features are those of a ReLU, or of stages.

    Stages differ in the size of their features, which the root makes more alike.
    """
    if head != "auto":
        return head
    return "root" if of_stages or bool((features >= 0).all()) else "linear"


def linear_inputs(head: Head, features: Tensor) -> Tensor:
    """What the one layer of a head reads of the features."""
    return SquareRoot()(features) if head == "root" else features


def make_head(
    head: str | tuple[int, ...],
    in_features: int,
    n_outputs: int,
    dropout: float,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Build a head.

    Parameters
    ----------
    head : "linear", "root" or tuple of int
        One linear layer on features or their square roots, or hidden widths with ReLU between the
        layers.
    in_features, n_outputs : int
    dropout : float
        Share of its inputs that each linear layer loses in training.
    generator : torch.Generator or None, default=None
        Draws the weights to begin with; None is torch's global one.

    Returns
    -------
    torch.nn.Module
        From features to logits.
    """
    widths = (in_features, *(() if head in ONE_LAYER else head), n_outputs)
    layers: list[nn.Module] = [SquareRoot()] if head == "root" else []
    for i, (width, following) in enumerate(zip(widths, widths[1:], strict=False)):
        layers += [nn.ReLU()] if i else []
        layers += [nn.Dropout(dropout)] if dropout else []
        layers.append(_linear(width, following, generator))
    return nn.Sequential(*layers)


def _linear(in_features: int, out_features: int, generator: torch.Generator | None) -> nn.Linear:
    """Make a layer with the weights that torch gives one, drawn from a generator."""
    layer: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, in_features, out_features
    )
    bound = 1 / math.sqrt(in_features)
    for part in (layer.weight, layer.bias):
        nn.init.uniform_(part, -bound, bound, generator)
    return layer


def _made_by(head: Callable[[int, int], nn.Module], in_features: int, n_outputs: int) -> nn.Module:
    """Have a callable build a head, and see that it maps features to logits."""
    made = head(in_features, n_outputs)
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"The head callable must return a torch.nn.Module, got {type(made).__name__}."
        )
    module = copy.deepcopy(made).cpu()  # it may return one module each time
    wanted = f"map features of shape (n, {in_features}) to logits of shape (n, {n_outputs})"
    with torch.no_grad():
        try:
            logits = module.eval()(torch.zeros(2, in_features))
        except Exception as error:
            raise ValueError(
                f"The head callable's module must {wanted}, but it failed: "
                f"{type(error).__name__}: {error}"
            ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, n_outputs):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"The head callable's module must {wanted}, but for n=2 it gave {got}. The callable "
            "gets both widths: (in_features, n_outputs)."
        )
    return module
