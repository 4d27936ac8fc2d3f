"""A fitted model for images of another source, where nothing is labelled."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..cache import FeatureCache
from ..frozen.module import FrozenModule
from ..frozen.passes import run_on_images
from ..hardware import PRECISIONS
from ..images.reading import Images
from ..training.heads import Head, HeadShape, linear_inputs
from ..training.optimization import TrainingPlan, default_lr
from ..training.suffix import BATCH_NORMS
from .alignment import (
    Home,
    LabelledFeatures,
    LinearHead,
    Settings,
    aligned_head,
    class_shift,
    expected_accuracy,
    fit_head,
    gain_at_home,
    held_out_proba,
    looks_the_same,
    standardized_head,
)
from .joined import Model, assemble_net, copy_tensors

_TRUSTED = 0.75  # share of the accuracy at home that must be expected
_MANY = 2  # images for a labelled one, from which those that look alike teach a head something
_RARE = 1e-3  # a class that isn't seen may still occur
_MOST_IMAGES = 5000  # more of the target teach the head nothing new
_BATCH = 64
_TENT_EPOCHS = 5
_TENT_LR = 1e-3
_NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)
_ANY_NETWORK = 'The methods "pseudo_labels", "coral" and "standardize" do with any network.'


class DomainShiftWarning(UserWarning):
    """The images look too different from those of the fit for predictions to be trusted."""


class NoDomainShiftWarning(UserWarning):
    """Nothing was adapted: the images look like those of the fit, or none tells if it helps."""


@dataclass(frozen=True)
class Adaptation:
    """An adapted model, and what was learned about the images.

    Attributes
    ----------
    model : Model
    adapted : bool
        Whether it is another model than that which was to be adapted.
    proportions : float64 array of shape (n_classes,)
        Mean probability of each class among the images.
    source_accuracy, expected_accuracy : float or None
        On images of the source that a head hasn't seen, and what is to be expected on these.
    """

    model: Model
    adapted: bool
    proportions: npt.NDArray[np.float64]
    source_accuracy: float | None
    expected_accuracy: float | None


# Adapting ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What is to be adapted, and to what.

    Attributes
    ----------
    model : Model
        It isn't changed.
    images : Images
        Of the target, without labels.
    labelled : LabelledFeatures
        What the head reads of images of the source.
    source_images : Images or None
        The images themselves, which "adabn" looks at once more.
    settings : Settings
    cache : FeatureCache or None
    n_jobs : int
    """

    model: Model
    images: Images
    labelled: LabelledFeatures
    source_images: Images | None
    settings: Settings
    cache: FeatureCache | None
    n_jobs: int

    @cached_property
    def features(self) -> Tensor:
        """What the head reads of the target's images."""
        with self.images.naming_all():
            features = self.model.pooled(self.images, self.cache, self.n_jobs)
        return torch.as_tensor(features)

    @property
    def head(self) -> Head:
        """Of one layer, as the adapted model's is."""
        return self.model.head.head if self.model.head.has_one_layer else "linear"

    @cached_property
    def source(self) -> LabelledFeatures:
        """What a linear layer reads of the source's images."""
        features = linear_inputs(self.head, self.labelled.features)
        return replace(self.labelled, features=features)

    @cached_property
    def target(self) -> Tensor:
        """What a linear layer reads of as many images as teach it something."""
        step = max(1, -(-len(self.features) // _MOST_IMAGES))
        return linear_inputs(self.head, self.features[::step])

    @cached_property
    def home(self) -> Home:
        """The source, and the heads that know it."""
        return Home(self.source, self.settings)


def adapt_model(job: Job, method: str, check: bool) -> Adaptation:
    """Make a model for images of another source.

    Parameters
    ----------
    job : Job
    method : str
        One of `METHODS`.
    check : bool
        Whether to leave the model as it is where nothing speaks for a change.

    Returns
    -------
    Adaptation

    Raises
    ------
    ValueError
        If the method needs what the job or the network doesn't have.
    UnreadableImagesError
        If images can't be read.

    Warns
    -----
    DomainShiftWarning
        If much of the accuracy must be expected to be lost.
    NoDomainShiftWarning
        If the model is left as it is.
    """
    _refuse_the_impossible(job, method)
    reason = _why_not_called_for(job, method) if check else None
    adapts = reason is None
    model, features = METHODS[method](job) if adapts else (replace(job.model), job.features)
    proportions = torch.softmax(model.outputs_of(features).double(), dim=1).mean(0)
    judged = expected_accuracy(job.home, job.target)
    if not adapts:
        warnings.warn(
            f"{reason}, so the classifier stays as it is. Pass check=False to adapt it all the "
            "same.",
            NoDomainShiftWarning,
            stacklevel=5,  # whoever called adapt
        )
    elif judged is not None:
        _warn_if_too_different(*judged)
    return Adaptation(model, adapts, proportions.numpy(), *(judged or (None, None)))


def _refuse_the_impossible(job: Job, method: str) -> None:
    """Raise an error where a method can't be used, whether or not it is called for."""
    if method == "adabn" and job.source_images is None:
        raise ValueError(
            'method="adabn" runs the network on the images of the fit once more. Pass them as '
            "X_source, with their labels as y_source."
        )
    if method == "adabn" and not _modules(job.model.whole_network(), BATCH_NORMS):
        raise ValueError(
            f'method="adabn" needs batch norm, which this network doesn\'t have. {_ANY_NETWORK}'
        )
    if method == "tent" and not _scales_and_shifts(job.model.whole_network()):
        raise ValueError(
            f'method="tent" adjusts norms, which this network doesn\'t have. {_ANY_NETWORK}'
        )


def _modules(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kinds)]


def _scales_and_shifts(network: nn.Module) -> list[nn.Parameter]:
    return [p for norm in _modules(network, _NORMS) for p in norm.parameters()]


def _why_not_called_for(job: Job, method: str) -> str | None:
    """Say so where the images look like the source's and are few or don't help with those."""
    if method == "label_shift":
        return None
    if job.home.held_out is None:
        return "A class of the fit has one image only, and whether adapting helps can't be checked"
    if not looks_the_same(job.home, job.target):
        return None
    if len(job.features) >= _MANY * len(job.source.labels):
        adapted_head = _HEADS.get(method, _HEADS["coral"])
        if gain_at_home(job.home, job.target, adapted_head) >= 0:
            return None
    return "The images look like those of the fit and would not teach the classifier more"


def _warn_if_too_different(at_home: float, expected: float) -> None:
    if expected < _TRUSTED * at_home:
        warnings.warn(
            "The images differ much from those of the fit: an accuracy of about "
            f"{expected:.2f} is to be expected, where it was {at_home:.2f}. Look at some "
            "predictions; if they are wrong, label some of the images and fit anew.",
            DomainShiftWarning,
            stacklevel=6,  # whoever called adapt
        )


# An adapted model, and what its head reads of the target's images.
Adapted = tuple[Model, Tensor]


_HEADS: dict[str, Callable[[Home, Tensor], LinearHead]] = {
    "pseudo_labels": partial(aligned_head, pseudo_labels=True),
    "coral": partial(aligned_head, pseudo_labels=False),
    "standardize": standardized_head,
}


def _other_head(method: str, job: Job) -> Adapted:
    return _with_head(job, _HEADS[method](job.home, job.target))


def _correct_frequencies(job: Job) -> Adapted:
    head = _linear_head(job)
    held_out = held_out_proba(job.source, job.settings)
    if held_out is None:
        raise ValueError(
            'method="label_shift" sets aside some images of each class, and needs two of each at '
            "least. Choose another method, or pass more images as X_source and y_source."
        )
    ratios = class_shift(held_out, job.source, head.proba(job.target).mean(0))
    return _with_head(job, LinearHead(head.weight, head.bias + ratios.clamp_min(_RARE).log()))


def _linear_head(job: Job) -> LinearHead:
    """The model's own, or one in the place of hidden layers."""
    if not job.model.head.has_one_layer:
        return fit_head(job.source, job.settings)
    last = job.model.net.module_.head[-1]
    return LinearHead(*(part.detach().cpu().double() for part in (last.weight, last.bias)))


def _own_statistics(job: Job) -> Adapted:
    """Batch norm by each source's own statistics, and a head that knows no others.

    References
    ----------
    Y. Li et al., Revisiting Batch Normalization For Practical Domain Adaptation (2016),
    arXiv:1603.04779.
    """
    assert job.source_images is not None
    network = job.model.whole_network()
    norms = _modules(network, BATCH_NORMS)
    features = []
    for images in (job.source_images, job.images):
        _learn_statistics(network, norms, _batches(job, images))
        frozen = FrozenModule(network, job.model.precision, job.model.device)
        features.append(run_on_images(frozen, job.model.backbone.recipe, images, n_jobs=job.n_jobs))
    of_source, of_target = features
    home = Home(replace(job.source, features=linear_inputs(job.head, of_source)), job.settings)
    head = aligned_head(home, linear_inputs(job.head, of_target), pseudo_labels=False)
    return _with_network(job, network, head), of_target


@torch.no_grad()
def _learn_statistics(
    network: nn.Module, norms: Sequence[nn.Module], batches: Iterator[Tensor]
) -> None:
    for norm in norms:
        norm.reset_running_stats()  # type: ignore[operator]
        norm.momentum = None  # type: ignore[assignment]  # the mean over all batches
        norm.train()
    for batch in batches:
        if len(batch) > 1:
            network(batch)
    network.eval()


def _lower_entropy(job: Job) -> Adapted:
    """Adjust the scales and shifts of norms until the head is surer of the images.

    Statistics stay those that the network has learned.

    References
    ----------
    D. Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization (2021),
    arXiv:2006.10726.
    """
    network = job.model.whole_network().requires_grad_(False)
    adjusted = _scales_and_shifts(network)
    for parameter in adjusted:
        parameter.requires_grad_(True)
    head = aligned_head(job.home, job.target, pseudo_labels=False)
    weight, bias = (part.float().to(job.model.device) for part in (head.weight, head.bias))
    optimizer = torch.optim.Adam(adjusted, lr=_TENT_LR)
    low = PRECISIONS[job.model.precision] is torch.bfloat16
    for epoch in range(_TENT_EPOCHS):
        for batch in _batches(job, job.images, epoch):
            with torch.autocast(job.model.device.type, torch.bfloat16, enabled=low):
                features = network(batch)
            read = linear_inputs(job.head, features.float())
            log_proba = torch.log_softmax(read @ weight.T + bias, dim=1)
            entropy = -(log_proba.exp() * log_proba).sum(dim=1).mean()
            optimizer.zero_grad()
            entropy.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    adapted = _with_network(job, network, head)
    return adapted, torch.as_tensor(adapted.pooled(job.images, None, job.n_jobs))


METHODS: dict[str, Callable[[Job], Adapted]] = {
    **{method: partial(_other_head, method) for method in _HEADS},
    "label_shift": _correct_frequencies,
    "adabn": _own_statistics,
    "tent": _lower_entropy,
}


# Images through a network -------------------------------------------------------------


def _batches(job: Job, images: Images, seed: int = 0) -> Iterator[Tensor]:
    """Prepared images in a random order, so that a batch is like the whole."""
    order = np.random.default_rng(seed).permutation(len(images))
    for start in range(0, len(order), _BATCH):
        batch = job.model.backbone.recipe.read(images, order[start : start + _BATCH].tolist())
        yield batch.to(job.model.device)


# Models ------------------------------------------------------------------------------


def _with_head(job: Job, head: LinearHead) -> Adapted:
    """The same network with another head, which reads the same features."""
    adapted = _assembled(job, job.model.depth, job.model.plan, head)
    copy_tensors(job.model.net.module_.suffix, adapted.net.module_.suffix)
    return adapted, job.features


def _with_network(job: Job, network: nn.Module, head: LinearHead) -> Model:
    """A model none of whose stages is frozen, since all of them have changed."""
    plan = replace(job.model.plan, optimizer="adamw", lr=default_lr("adamw", frozen=False))
    adapted = _assembled(job, 0, plan, head)
    copy_tensors(network, adapted.net.module_.suffix)
    return adapted


def _assembled(job: Job, depth: int, plan: TrainingPlan, head: LinearHead) -> Model:
    model = job.model
    n_classes, in_features = head.weight.shape
    shape = HeadShape(job.head, n_classes, 0.0, in_features)
    parts = (model.backbone, depth, model.pooling)
    net = assemble_net(*parts, model.target, shape, plan, model.precision, model.device)
    linear = net.module_.head[-1]
    with torch.no_grad():
        linear.weight.copy_(head.weight)
        linear.bias.copy_(head.bias)
    return Model(*parts, model.precision, model.device, model.target, shape, plan, net)
