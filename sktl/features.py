"""The frozen network as a transformer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from numbers import Integral
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from .backbones import Backbone, names_of_features
from .base import ImageEstimator
from .cache import empty_rows
from .constraints import Options, StrOptions
from .files.document import savable
from .files.features_file import FEATURES
from .files.pickling import Packer
from .files.state import restore_backbone, restore_frozen, store_backbone
from .frozen.prefix import FrozenPrefix, frozen_stage_of
from .hardware import restore_device, restore_precision
from .images.errors import Unreadable
from .images.reading import Images
from .summary import Summary, name_of
from .training.progress import progress_bar

_SEED = 0  # of random weights, which must be the same in every fit
_BLOCK = 2048  # images whose features are held beside the output

Floats = npt.NDArray[np.floating[Any]]


@savable(FEATURES)
class PretrainedImageFeatures(TransformerMixin, ImageEstimator):
    """Turn images into the features of a pretrained network.

    Parameters
    ----------
    backbone : str, torch.nn.Module or callable, default="efficientnet_lite0"
        A name of :func:`sktl.list_backbones`, "timm/<name>", "hf/<repository>" of Hugging Face's
        hub, a network, or what returns one.
    weights : str, path, torchvision WeightsEnum or None, default="DEFAULT"
        Weights by torchvision's names, the path of a state dict (.pth or .safetensors), or
        None for random ones, the same in every fit. A module keeps its own.
    stage : str, int, None, or a list or tuple of these, default=None
        The stage whose output to give, by its name or number (-1 is the last). None is what
        the network's classifier reads. Of several stages, the network runs once, and their
        features stand side by side in the order given.
    pooling : {"auto", "avg", "flatten"}, default="auto"
        How a map becomes a vector: as the network itself does, by the mean over positions
        (also what "auto" does at a stage that is named), or by laying all positions side by
        side.
    dtype : {np.float32, np.float16, "float32", "float16"}, default=np.float32
        Of the features. float16 takes half the memory, and has three to four digits; features
        beyond its range, 65504, are an error.
    image_size, resize_mode, preprocessing, image_shape, pixel_range, bands
        See :class:`PretrainedImageClassifier`.
    cache, precision, device, n_jobs
        See :class:`PretrainedImageClassifier`.
    on_error : {"raise", "skip"}, default="raise"
        What to do with files that can't be read. "raise" is an error that names them all, "skip" a
        warning, and NaN as their features.
    verbose : int, default=0
        1 shows a progress bar on a terminal or in a notebook, and elsewhere prints a line every 30
        seconds and at the end.

    Attributes
    ----------
    n_features_in_ : int
        Width of X, where it is two-dimensional.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Column names of X, where it has such.
    stages_ : list of str
        Names of the backbone's stages in forward order.
    pixel_range_ : tuple of (float, float)
        The values taken as black and white.
    device_ : torch.device
    precision_ : {"float32", "bfloat16"}

    See Also
    --------
    PretrainedImageClassifier : The network with a new head.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktl import PretrainedImageFeatures
    >>> X, _ = load_digits(return_X_y=True)
    >>> PretrainedImageFeatures(image_size=64).fit_transform(X[:10]).shape
    (10, 1280)
    """

    _parameter_constraints: dict[str, list[Any]] = ImageEstimator._parameter_constraints | {
        "stage": [str, Integral, list, tuple, None],
        "dtype": [StrOptions({"float32", "float16"}), Options(type, {np.float32, np.float16})],
    }

    def __init__(
        self,
        backbone: Any = "efficientnet_lite0",
        *,
        weights: Any = "DEFAULT",
        stage: Any = None,
        pooling: Any = "auto",
        dtype: Any = np.float32,
        image_size: Any = None,
        resize_mode: str = "auto",
        preprocessing: Any = None,
        image_shape: Any = None,
        pixel_range: Any = None,
        bands: Any = None,
        cache: Any = "memory",
        precision: str = "auto",
        device: Any = "auto",
        n_jobs: int | None = None,
        on_error: str = "raise",
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.stage = stage
        self.pooling = pooling
        self.dtype = dtype
        self.image_size = image_size
        self.resize_mode = resize_mode
        self.preprocessing = preprocessing
        self.image_shape = image_shape
        self.pixel_range = pixel_range
        self.bands = bands
        self.cache = cache
        self.precision = precision
        self.device = device
        self.n_jobs = n_jobs
        self.on_error = on_error
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the network and learn how to read X.

        With a cache, the features of X are computed, too, and :meth:`transform` finds them.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images
            See :meth:`PretrainedImageClassifier.fit`.
        y : ignored

        Returns
        -------
        self : PretrainedImageFeatures

        Raises
        ------
        UnreadableImagesError
            A ValueError that names all images that can't be read, unless ``on_error="skip"``.
        """
        with self._all_or_nothing():
            images = self._learn(X)
            # One image shows the width; without a cache, the others would be computed in vain.
            unreadable: Unreadable = {}
            for _, rows, bad in self._blocks(images, 1 if self.cache is None else len(images)):
                self._n_features_out = rows.shape[1]
                unreadable.update(bad)
            self._report(images, unreadable, "Their features will be NaN.")
        return self

    def fit_transform(self, X: Any, y: Any = None) -> Floats:
        """Fit to X and compute its features.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images
        y : ignored

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Of the parameter `dtype`.
        """
        with self._all_or_nothing():
            features = self._answer_with_features(self._learn(X))
            self._n_features_out = features.shape[1]
        return features

    def _learn(self, X: Any) -> Images:
        self._validate_params()
        self.device_, self.precision_ = self._choose_hardware()
        images = self._open(X, reset=True)
        self._backbone = self._load_backbone(_SEED)
        self._stage = self._backbone.find_stages(self.stage)
        self._pooling = self.pooling
        self._dtype = np.dtype(self.dtype).name
        self.stages_ = list(self._backbone.stages)
        self._prefix = self._make_prefix(self._backbone)
        return images

    def _make_prefix(self, backbone: Backbone) -> FrozenPrefix:
        return frozen_stage_of(backbone, self._stage, self._pooling, self.precision_, self.device_)

    def transform(self, X: Any) -> Floats:
        """Compute features.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Of the parameter `dtype`.
        """
        check_is_fitted(self)
        return self._answer_with_features(self._open(X, reset=False))

    def _answer_with_features(self, images: Images) -> Floats:
        return self._answer(images, partial(self._features, images), "Their features are NaN.")

    def _blocks(self, images: Images, n: int) -> Iterator[tuple[range, Tensor, Unreadable]]:
        cache, n_jobs = self._cache(), self._n_jobs()
        with progress_bar("features", n, "image", self.verbose) as tell:
            for start in range(0, n, _BLOCK):
                block = range(start, min(start + _BLOCK, n))
                yield (
                    block,
                    *self._prefix.compute_readable(images, cache, n_jobs, block, tell=tell),
                )

    def _features(self, images: Images) -> tuple[Floats, Unreadable]:
        unreadable: Unreadable = {}
        for block, rows, bad in self._blocks(images, len(images)):
            unreadable.update(bad)
            if block.start == 0:
                like = rows[:1].to(getattr(torch, self._dtype))
                features: Floats = empty_rows(len(images), like).numpy()
            _write(rows, features[block.start : block.stop])
            del rows  # before the next block is computed
        return features, unreadable

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """Name the features that :meth:`transform` gives.

        Parameters
        ----------
        input_features : ignored

        Returns
        -------
        ndarray of str of shape (n_features,)
            "stage_channel", or with `pooling="flatten"` "stage_channel_row_column", of tokens
            "stage_token_channel". What the classifier reads is "penultimate_number".
        """
        check_is_fitted(self)
        place = (self._backbone, self._stage, self._pooling)
        return np.asarray(names_of_features(*place, self._n_features_out), dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_prefix")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags

    def __sktl_backbone__(self) -> Backbone:
        return self._backbone if self.__sklearn_is_fitted__() else super().__sktl_backbone__()

    def __sktl_path__(self) -> tuple[Sequence[nn.Module], int]:
        part = self._backbone.stage_features(self._stage, self._pooling)
        return (part,), self._n_features_out

    def _summary(self) -> Summary:
        facts = [
            ("Backbone", name_of(self._backbone.architecture.source)),
            ("Features", f"{self._n_features_out:,}, {self._dtype}"),
            ("Device", str(self.device_)),
            ("Precision", self.precision_),
        ]
        chosen = self._stage if isinstance(self._stage, tuple) else (self._stage,)
        last = max(len(self.stages_) - 1 if stage is None else stage for stage in chosen)
        return Summary(facts, self.stages_[: last + 1])

    def _store(self, state: dict[str, Any], pack: Packer) -> dict[str, Any]:
        for name in ("_prefix", "device_", "precision_"):
            del state[name]
        frozen = self._backbone.stage_features(self._stage, self._pooling)
        stored = store_backbone(self._backbone, frozen, pack)
        hardware = {
            "device": str(self.device_),
            "precision": self.precision_,
            "asked_precision": self.precision,
        }
        return state | {"_backbone": stored | hardware}

    def _restore(self, state: dict[str, Any]) -> dict[str, Any]:
        if "_backbone" not in state:
            return state
        stored = state["_backbone"]
        backbone = restore_backbone(stored, _SEED)
        device = restore_device(stored["device"])
        precision = restore_precision(stored["asked_precision"], stored["precision"], device)
        stage, pooling = state["_stage"], state["_pooling"]
        restore_frozen(backbone, backbone.stage_features(stage, pooling), stored)
        return state | {
            "_backbone": backbone,
            "_prefix": frozen_stage_of(backbone, stage, pooling, precision, device),
            "device_": device,
            "precision_": precision,
        }


def _write(rows: Tensor, features: Floats) -> None:
    """Fill features with rows, in the number format of the former."""
    try:
        with np.errstate(over="raise"):
            features[...] = rows.float().numpy()
    except FloatingPointError as error:
        raise ValueError(
            f"Some features are beyond the range of {features.dtype}, up to "
            f"{np.finfo(features.dtype).max:g}. Choose dtype=np.float32."
        ) from error
