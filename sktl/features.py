"""The frozen network as a transformer."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from .backbones import Backbone
from .base import ImageEstimator
from .hardware import restore_device, restore_precision
from .images import Images
from .persistence import Packer, restore_backbone, restore_frozen, store_backbone
from .prefix import FrozenPrefix, freeze_stage

_SEED = 0  # of random weights, which must be the same in every fit


class PretrainedImageFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ImageEstimator):
    """Turn images into the features of a pretrained network.

    Parameters
    ----------
    backbone : str, torch.nn.Module or callable, default="efficientnet_lite0"
        A name of :func:`sktl.list_backbones`, a network, or what returns one.
    weights : str, path, torchvision WeightsEnum or None, default="DEFAULT"
        Weights by torchvision's names, the path of a state dict (.pth or .safetensors), or
        None for random ones, the same in every fit. A module keeps its own.
    stage : str, int or None, default=None
        The stage whose output to give, by its name or number (-1 is the last). None is what
        the network's classifier reads.
    pooling : {"auto", "avg", "flatten"}, default="auto"
        How a map becomes a vector: as the network itself does, by the mean over positions
        (also what "auto" does at a stage that is named), or by laying all positions side by
        side.
    image_size, image_shape, pixel_range, cache, precision, device, n_jobs
        See :class:`PretrainedImageClassifier`.
    verbose : int, default=0

    Attributes
    ----------
    n_features_in_ : int
        Width of X, where it is two-dimensional.
    feature_names_in_ : ndarray of shape (n_features_in_,)
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
        "stage": [str, Integral, None],
    }

    def __init__(
        self,
        backbone: Any = "efficientnet_lite0",
        *,
        weights: Any = "DEFAULT",
        stage: Any = None,
        pooling: Any = "auto",
        image_size: int | None = None,
        image_shape: Any = None,
        pixel_range: Any = None,
        cache: Any = "memory",
        precision: str = "auto",
        device: Any = "auto",
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.stage = stage
        self.pooling = pooling
        self.image_size = image_size
        self.image_shape = image_shape
        self.pixel_range = pixel_range
        self.cache = cache
        self.precision = precision
        self.device = device
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the network and learn how to read X.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images
            See :meth:`PretrainedImageClassifier.fit`.
        y : ignored

        Returns
        -------
        self : PretrainedImageFeatures
        """
        with self._all_or_nothing():
            self._fit(X)
        return self

    def _fit(self, X: Any) -> npt.NDArray[np.float32]:
        self._validate_params()
        self.device_, self.precision_ = self._choose_hardware()
        images = self._open(X, reset=True)
        self._backbone = self._load_backbone(_SEED)
        self._stage = self._backbone.stage_index(self.stage)
        self._pooling = self.pooling
        self.stages_ = list(self._backbone.stages)
        self._prefix = self._make_prefix(self._backbone)
        # Shows that X can be read and what the width is; the cache keeps it for transform.
        features = self._features(images)
        self._n_features_out = features.shape[1]
        return features

    def fit_transform(self, X: Any, y: Any = None) -> npt.NDArray[np.float32]:
        """Fit to X and compute its features.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images
        y : ignored

        Returns
        -------
        float32 ndarray of shape (n_samples, n_features)
        """
        return self.fit(X).transform(X)

    def _make_prefix(self, backbone: Backbone) -> FrozenPrefix:
        return freeze_stage(backbone, self._stage, self._pooling, self.precision_, self.device_)

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Compute features.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images

        Returns
        -------
        float32 ndarray of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        images = self._open(X, reset=False)
        return self._features(images)

    def _features(self, images: Images) -> npt.NDArray[np.float32]:
        rows = self._prefix.compute(images, self._cache(), self._n_jobs())
        features: npt.NDArray[np.float32] = rows.float().numpy()
        return features

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_prefix")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags

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
            "_prefix": freeze_stage(backbone, stage, pooling, precision, device),
            "device_": device,
            "precision_": precision,
        }
