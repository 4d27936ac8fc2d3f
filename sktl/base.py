"""What the two estimators share: reading X, choosing hardware, and their state in a file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import Parameter, signature
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from joblib import effective_n_jobs
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.utils import Tags
from sklearn.utils.validation import validate_data
from torch import nn
from torchvision.models import WeightsEnum

from .backbones import Backbone, load_backbone
from .cache import FeatureCache, open_cache
from .compat import html_above, new_object
from .constraints import Interval, StrOptions, check_parameters
from .files.pickling import (
    InconsistentVersionWarning,
    Packer,
    refuse_what_needs_pickle,
    to_settings,
    unpack,
)
from .files.saving import save
from .files.state import BEFORE
from .frozen.stage_names import recall_stages, remember_stages
from .hardware import (
    PRECISIONS,
    choose_device,
    choose_precision,
    is_out_of_memory,
    warn_if_emulated,
)
from .images.descriptions import read_recipe
from .images.errors import Unreadable, UnreadableImagesError, UnreadableImageWarning, name_files
from .images.format import ImageFormat, learn_format
from .images.kinds import kind_of, looks_like_one_picture, one_picture_message
from .images.preprocessing import RESIZE_MODES
from .images.reading import Images, open_images
from .images.sizes import checked_size
from .summary import Summary
from .version import __version__

_Result = TypeVar("_Result")
_Rows = TypeVar("_Rows", bound=np.floating[Any])


class ImageEstimator(BaseEstimator):
    """Base of the estimators that look at images through a pretrained backbone."""

    device_: torch.device
    precision_: str

    _parameter_constraints: dict[str, list[Any]] = {
        "backbone": [str, callable],
        "weights": [str, os.PathLike, WeightsEnum, None],
        "pooling": [StrOptions({"auto", "avg", "flatten"})],
        "image_size": [Interval(Integral, 2, None, closed="left"), tuple, list, None],
        "resize_mode": [StrOptions({"auto", *RESIZE_MODES})],
        "image_shape": [tuple, list, None],
        "pixel_range": [tuple, list, None],
        "bands": [tuple, list, StrOptions({"all"}), None],
        "cache": [str, os.PathLike, None],
        "precision": [StrOptions({"auto", *PRECISIONS})],
        "device": [str, torch.device],
        "n_jobs": [Integral, None],
        "on_error": [StrOptions({"raise", "skip"})],
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
                X,
                image_shape=self.image_shape,
                pixel_range=self.pixel_range,
                bands=self.bands,
                rows=counts,
            )
            self.pixel_range_ = self._format.pixel_range
            if looks_like_one_picture(X):
                warnings.warn(one_picture_message(X.shape), UserWarning, stacklevel=4)
        return open_images(X, self._format)

    def _answer(
        self,
        images: Images,
        compute: Callable[[], tuple[npt.NDArray[_Rows], Unreadable]],
        none: str,
    ) -> npt.NDArray[_Rows]:
        """Compute rows for images; those that can't be read get NaN, or are an error."""
        warn_if_emulated(self.precision_, self.device_)
        answers, unreadable = compute()
        answers[self._report(images, unreadable, none)] = np.nan
        return answers

    def _report(self, images: Images, unreadable: Unreadable, consequence: str) -> list[int]:
        """Warn of images that can't be read, or raise an error; give their rows."""
        if not unreadable:
            return []
        if self.on_error == "raise":
            images.refuse(unreadable)
        files = images.error_of(unreadable).files
        _warn_of(files, len(unreadable), len(images), consequence)
        return sorted(unreadable)

    def _skip_unreadable(
        self,
        compute: Callable[..., _Result],
        X: Any,
        *aligned: Any,
        check_left: Callable[[npt.NDArray[np.int64], UnreadableImagesError], None] | None = None,
    ) -> tuple[_Result, npt.NDArray[np.int64]]:
        """Compute something of all images, or else of all that can be read.

        Which those are shows in the first attempt; what it has cached the second one finds.

        Parameters
        ----------
        compute : callable
            Takes X and `aligned`.
        X : object
        *aligned : object
            What has a row for each image: labels first, then weights. Any may be None.
        check_left : callable, default=None
            Takes the rows of X that are left and why the others aren't, and raises an error if
            they won't do.

        Returns
        -------
        result : object
        skipped : int array
            The rows of X that were left out.
        """
        files: list[tuple[str, str]] = []
        left, given = np.arange(0), (X, *aligned)
        while True:
            try:
                result = compute(*given)
                break
            except UnreadableImagesError as error:
                if self.on_error == "raise":
                    raise
                left = left if files else np.arange(n_rows(X))
                files += error.files
                left = np.delete(left, error.rows)
                if not len(left):
                    raise
                given = tuple(rows_at(rows, left) for rows in (X, *aligned))
                if check_left is not None:
                    check_left(left, error)
        if not files:
            return result, left
        skipped = np.setdiff1d(np.arange(n_rows(X)), left)
        _warn_of(files, len(skipped), n_rows(X), "They were left out.")
        return result, skipped

    # What modules that draw or store estimators may ask of them, named as scikit-learn names such.

    def __sktl_backbone__(self) -> Backbone:
        """Return the backbone of the fit; before one, that which fit would load."""
        return self._load_backbone(seed=0)

    def __sktl_path__(self) -> tuple[Sequence[nn.Module], int]:
        """Return what an image goes through in a fitted estimator, and the number of features."""
        raise NotImplementedError

    def _load_backbone(self, seed: int | None = None) -> Backbone:
        cache = self._cache()
        backbone = load_backbone(
            self.backbone,
            self.weights,
            checked_size(self.image_size),
            seed,
            partial(recall_stages, cache),
            self.resize_mode,
            self.preprocessing,
        )
        remember_stages(cache, backbone)
        return backbone

    def _choose_hardware(self) -> tuple[torch.device, str]:
        device = choose_device(self.device)
        precision = choose_precision(self.precision, device)
        warn_if_emulated(precision, device)
        return device, precision

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

    def _get_params_html(self, *args: Any, **kwargs: Any) -> Any:
        """scikit-learn's table of parameters in a notebook, below what fit has learned."""
        params = super()._get_params_html(*args, **kwargs)
        if self.__sklearn_is_fitted__():
            return html_above(params, lambda: self._summary().to_html())
        return params

    def _validate_params(self) -> None:
        """Check all parameters, as scikit-learn's method of this name does."""
        parameters = self.get_params(deep=False)
        check_parameters(parameters, self._parameter_constraints, type(self).__name__)
        if self.preprocessing is not None:
            read_recipe(self.preprocessing)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        pack = Packer()
        state = dict(super().__getstate__())
        state |= {k: pack(k, v) for k, v in state.items() if k in self.get_params(deep=False)}
        if "_format" in state:
            state["_format"] = to_settings(state["_format"])
        if self.__sklearn_is_fitted__():
            state = self._store(state, pack)
        return state | {"_sktl_version": __version__}

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return new_object(), (type(self),), self.__getstate__()

    def __reduce__(self) -> tuple[Any, ...]:
        """What skops asks for, while pickle and copy ask for `__reduce_ex__`."""
        refuse_what_needs_pickle(self.__getstate__())
        return self.__reduce_ex__(2)

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = {name: unpack(value) for name, value in state.items()}
        written, current = state.pop("_sktl_version", "unknown"), __version__
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
        super().__setstate__(_defaults(type(self)) | BEFORE | state)

    def __sklearn_is_fitted__(self) -> bool:
        raise NotImplementedError

    def _summary(self) -> Summary:
        """What to tell of the fitted estimator."""
        raise NotImplementedError

    def _store(self, state: dict[str, Any], pack: Packer) -> dict[str, Any]:
        """Replace what can't go into a file."""
        raise NotImplementedError

    def _restore(self, state: dict[str, Any]) -> dict[str, Any]:
        """Undo `_store`."""
        raise NotImplementedError


def _defaults(cls: type) -> dict[str, Any]:
    """Parameters that an older version's state may lack."""
    parameters = signature(cls).parameters.items()
    return {name: p.default for name, p in parameters if p.default is not Parameter.empty}


def rows_at(rows: Any, places: npt.NDArray[np.int64]) -> Any:
    """Take some rows of what has one for each image, in a container of the same kind."""
    if rows is None or np.isscalar(rows):
        return rows
    if issparse(rows):
        return rows.tocsr()[places]
    if hasattr(rows, "iloc"):  # of pandas
        return rows.iloc[places]
    if isinstance(rows, torch.Tensor):
        return rows[torch.as_tensor(places)]
    if hasattr(rows, "shape"):
        return rows[places]
    if hasattr(rows, "take"):  # of Arrow
        return rows.take(places)
    taken = [rows[i] for i in places]
    return tuple(taken) if isinstance(rows, tuple) else taken


def n_rows(X: Any) -> int:
    """Count images, of which X has one a row."""
    shape = getattr(X, "shape", None)
    return len(X) if shape is None else int(shape[0])


def _warn_of(files: list[tuple[str, str]], n_bad: int, n: int, consequence: str) -> None:
    """Count and name images that can't be read, and say what becomes of them."""
    warnings.warn(
        f"{n_bad} of {n} images can't be read. {consequence}\n{name_files(files)}",
        UnreadableImageWarning,
        stacklevel=6,  # whoever called fit, predict or transform
    )
