"""What the two estimators share: reading X, choosing hardware, and their state in a file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from numbers import Integral
from typing import Any

import numpy.typing as npt
import torch
from joblib import effective_n_jobs
from sklearn.base import BaseEstimator
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import validate_data
from torchvision.models import WeightsEnum

from .backbones import Backbone, load_backbone
from .cache import FeatureCache, open_cache
from .hardware import PRECISIONS, choose_device, choose_precision, is_out_of_memory
from .images import ImageFormat, Images, kind_of, learn_format, open_images
from .persistence import InconsistentVersionWarning, Packer, to_settings, unpack
from .prefix import recall_stages, remember_stages
from .saving import save


class ImageEstimator(BaseEstimator):
    """Base of the estimators that look at images through a pretrained backbone."""

    _parameter_constraints: dict[str, list[Any]] = {
        "backbone": [str, callable],
        "weights": [str, os.PathLike, WeightsEnum, None],
        "pooling": [StrOptions({"auto", "avg", "flatten"})],
        "image_size": [Interval(Integral, 2, None, closed="left"), None],
        "image_shape": [tuple, list, None],
        "pixel_range": [tuple, list, None],
        "cache": [str, os.PathLike, None],
        "precision": [StrOptions({"auto", *PRECISIONS})],
        "device": [str, torch.device],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    def _open(self, X: Any, *, reset: bool, counts: npt.NDArray[Any] | None = None) -> Images:
        """Open X; with `reset`, learn from the samples that count how to read it."""
        if kind_of(X) == "rows":
            X = validate_data(self, X, reset=reset, dtype="numeric")
        elif reset:
            for name in ("n_features_in_", "feature_names_in_"):
                self.__dict__.pop(name, None)
        if reset:
            self._format = learn_format(
                X, image_shape=self.image_shape, pixel_range=self.pixel_range, rows=counts
            )
            self.pixel_range_ = self._format.pixel_range
        return open_images(X, self._format)

    def _load_backbone(self, seed: int | None = None) -> Backbone:
        cache = self._cache()
        backbone = load_backbone(
            self.backbone, self.weights, self.image_size, seed, partial(recall_stages, cache)
        )
        remember_stages(cache, backbone)
        return backbone

    def _choose_hardware(self) -> tuple[torch.device, str]:
        device = choose_device(self.device)
        return device, choose_precision(self.precision, device)

    def _cache(self) -> FeatureCache | None:
        return open_cache(self.cache)

    def _n_jobs(self) -> int:
        return int(effective_n_jobs(self.n_jobs))

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """A fit that fails leaves the estimator as it was."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException as error:
            self.__dict__.clear()
            self.__dict__.update(before)
            if is_out_of_memory(error):
                error.add_note(
                    "The fit ran out of memory. A smaller image_size or batch_size takes less, and "
                    "so do more frozen stages."
                )
            raise

    def save(self, path: str | os.PathLike[str], *, include_backbone: bool = True) -> None:
        """Write the fitted estimator to a file that holds no code; :func:`sktl.load` reads it.

        The file holds numbers and names only, so that a file of unknown origin can be loaded
        without harm. What was given as a module, callable or class can't be saved in it. Whoever
        loads it while it is written finds the whole old file or the whole new one.

        Parameters
        ----------
        path : str or path
            Such as "model.sktl".
        include_backbone : bool, default=True
            False leaves out the weights of the frozen stages, which are then found by the
            parameter `weights` in loading, and the features that
            :meth:`PretrainedImageClassifier.adapt` works on.

        Raises
        ------
        NotSavableError
            If a parameter or attribute can't be saved; the message names it. The file is then as
            it was.
        NotFittedError
            If the estimator isn't fitted.
        OSError
            If the file can't be written.
        """
        save(self, path, include_backbone=include_backbone)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        pack = Packer()
        state = dict(super().__getstate__())
        state |= {k: pack(k, v) for k, v in state.items() if k in self._get_param_names()}
        if "_format" in state:
            state["_format"] = to_settings(state["_format"])
        if self.__sklearn_is_fitted__():
            state = self._store(state, pack)
        return state | {"_sktl_version": version("sktl")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = {name: unpack(value) for name, value in state.items()}
        written, current = state.pop("_sktl_version", "unknown"), version("sktl")
        if written != current:
            warnings.warn(
                InconsistentVersionWarning(
                    estimator_name=type(self).__name__,
                    current_version=current,
                    original_version=written,
                ),
                stacklevel=2,
            )
        state = self._restore(state)
        if "_format" in state:
            state["_format"] = ImageFormat(**state["_format"])
        super().__setstate__(state)

    def __sklearn_is_fitted__(self) -> bool:
        raise NotImplementedError

    def _store(self, state: dict[str, Any], pack: Packer) -> dict[str, Any]:
        """Replace what can't go into a file."""
        raise NotImplementedError

    def _restore(self, state: dict[str, Any]) -> dict[str, Any]:
        """Undo `_store`."""
        raise NotImplementedError
