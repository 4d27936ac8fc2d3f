"""The image regressor."""

from __future__ import annotations

import os
from numbers import Integral
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from .constraints import StrOptions
from .files.document import savable
from .files.pickling import Packer
from .files.regressor_file import REGRESSOR
from .labels import check_numbers, check_sample_weight, standardization
from .messages import shown
from .model.explain import explain_images
from .model.export import TorchRegressor, to_onnx, to_torch
from .model.joined import Model
from .predictor import Given, ImagePredictor
from .training.progress import with_callbacks
from .training.targets import Numbers


@savable(REGRESSOR)
class PretrainedImageRegressor(RegressorMixin, ImagePredictor):
    """Predict numbers from images with a pretrained network and a new head.

    An image has one number, such as an age, a weight or a price, or several. As in
    :class:`PretrainedImageClassifier`, the network is cut at the freeze depth; what lies before is
    computed once for an image and kept, what follows, and the head, are trained. y is standardised
    inside, and predictions are in its own units.

    Parameters
    ----------
    criterion : {"mse", "mae", "huber"} or callable, default="mse"
        The loss: squared errors, absolute ones, or squared ones up to a standard deviation of y
        and absolute ones beyond. Those of several outputs are added up. A callable maps outputs and
        standardised y, both (n, n_outputs), to losses (n,).
    weight_decay : float or "auto", default="auto"
        L2 penalty of the weights (not of biases and norms). Half of it times the squared norm of
        the head's weights is added to the mean loss, whichever way the head is trained; in terms
        of :class:`sklearn.linear_model.Ridge`, `alpha` is half of it times the number of images.
        "auto" is what leave-one-out cross-validation prefers, in closed form [1]_ as in
        :class:`sklearn.linear_model.RidgeCV`, for a linear head, also where steps or stages that
        train follow on its solution. For other heads, and for stages that train, it is 1e-3. For
        stages, and for the head with a class as `optimizer`, it is the optimizer's parameter.
    optimizer : {"auto", "lbfgs", "sgd", "adam", "adamw"} or class, default="auto"
        "auto" solves a linear head of a frozen backbone in closed form where the loss is "mse"
        (ridge regression), whatever `lr` and `max_epochs` are, and trains everything else by
        "adamw". It is "adamw", too, if something random or stepwise is asked for, as in
        :class:`PretrainedImageClassifier`.
    early_stopping : bool, default=False
        Set aside some images, stop when their loss doesn't fall any more, and bring back the best
        weights.
    head : {"auto", "linear", "root"}, tuple of int or callable, default="auto"
        As in :class:`PretrainedImageClassifier`; a callable makes a module of ``(in_features,
        n_outputs)``. "auto" is "linear" where stages train.
    lr : float or None, default=None
        Learning rate of the head, at its highest, where training takes steps. None is 1e-3, and
        1e-2 for "sgd"; three times that where stages train.
    backbone_lr : float or None, default=None
        Learning rate of the last stage that trains. None is a tenth of `lr`.
    unfreeze : {"auto", "at_once", "head_first", "gradual"}, default="auto"
        How stages that aren't frozen begin: together with a head that answers the mean of y, after
        the head has been fitted to the features as they are, or after the head, one by one from the
        last to the first over the epochs. "auto" is "at_once": a fitted head leaves hardly an error
        that stages could learn by, where there are fewer images than features.
    backbone, weights, freeze, pooling, dropout, augment, n_views, mixup, cutmix, layer_decay, \
schedule, warmup, max_epochs, batch_size, accumulation_steps, max_grad_norm, ema_decay, \
validation_fraction, n_iter_no_change, warm_start, image_size, resize_mode, preprocessing, \
image_shape, pixel_range, bands, cache, precision, device, n_jobs, on_error, callbacks, \
random_state, verbose
        See :class:`PretrainedImageClassifier`. Predictions for files that can't be read are NaN.

    Attributes
    ----------
    n_outputs_ : int
        Numbers of an image.
    weight_decay_ : float
        The head's penalty, given or chosen.
    n_features_in_ : int
        Width of X, where it is two-dimensional.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Column names of X, where it has such.
    net_ : skorch.NeuralNet
        The suffix and head; its X are features at the freeze depth, its y is standardised.
    history_ : list of dict
        A row an epoch: its number, losses of standardised y, with `early_stopping` the R2 of what
        was set aside as "valid_r2", learning rates, how many stages train, seconds.
    n_iter_ : int
        Epochs run, or iterations of "lbfgs"; 1 for a head in closed form.
    best_epoch_, validation_indices_, skipped_, stages_, freeze_, pixel_range_, device_, precision_
        See :class:`PretrainedImageClassifier`.

    See Also
    --------
    PretrainedImageClassifier : The same for classes.
    PretrainedImageFeatures : The frozen network as a transformer.

    Notes
    -----
    For "auto", sample weights that are whole numbers count how often an image was seen. Others say
    how much it matters, and only their proportions count.

    References
    ----------
    .. [1] R. Rifkin and R. Lippert, Notes on Regularized Least Squares (2007),
       MIT-CSAIL-TR-2007-025.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktl import PretrainedImageRegressor
    >>> X, y = load_digits(return_X_y=True)
    >>> reg = PretrainedImageRegressor(image_size=64).fit(X[:600], y[:600])
    >>> reg.score(X[600:800], y[600:800]) > 0.7
    True
    """

    _parameter_constraints: dict[str, list[Any]] = ImagePredictor._parameter_constraints | {
        "criterion": [StrOptions(set(Numbers.criteria)), callable],
    }

    def __init__(
        self,
        backbone: Any = "efficientnet_lite0",
        *,
        weights: Any = "DEFAULT",
        freeze: Any = "all",
        pooling: Any = "auto",
        head: Any = "auto",
        dropout: float = 0.0,
        augment: Any = None,
        n_views: int | None = 4,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        criterion: Any = "mse",
        optimizer: Any = "auto",
        lr: float | None = None,
        backbone_lr: float | None = None,
        layer_decay: float = 1.0,
        weight_decay: float | str = "auto",
        schedule: Any = "cosine",
        warmup: float | None = None,
        unfreeze: str = "auto",
        max_epochs: int | None = None,
        batch_size: int = 32,
        accumulation_steps: int = 1,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        warm_start: bool = False,
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
        callbacks: Any = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.freeze = freeze
        self.pooling = pooling
        self.head = head
        self.dropout = dropout
        self.augment = augment
        self.n_views = n_views
        self.mixup = mixup
        self.cutmix = cutmix
        self.criterion = criterion
        self.optimizer = optimizer
        self.lr = lr
        self.backbone_lr = backbone_lr
        self.layer_decay = layer_decay
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.warmup = warmup
        self.unfreeze = unfreeze
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.accumulation_steps = accumulation_steps
        self.max_grad_norm = max_grad_norm
        self.ema_decay = ema_decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
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
        self.callbacks = callbacks
        self.random_state = random_state
        self.verbose = verbose

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train the head, and the stages that aren't frozen.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images
            See :meth:`PretrainedImageClassifier.fit`.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Numbers, finite. Integers are fine.
        sample_weight : array-like of shape (n_samples,), default=None
            The loss is ``sum(w * loss) / sum(w)``.

        Returns
        -------
        self : PretrainedImageRegressor

        Raises
        ------
        ValueError
            If a parameter, X or y is not as it must be, or training diverges. The estimator
            is then as before, as it is after any exception.
        TypeError
            If y is sparse.
        UnreadableImagesError
            A ValueError whose `files` lists all images that can't be read, with the reasons; or
            with ``on_error="skip"``, if none can.
        KeyboardInterrupt
            If the user stops it. The estimator is as before, or, with `warm_start`, as it was
            after the last whole epoch.

        Warns
        -----
        UnreadableImageWarning
            If images were left out; see `on_error`.
        """
        goes_on = self.warm_start and self.__sklearn_is_fitted__()
        self._fit_or_nothing(X, y, sample_weight, goes_on=goes_on)
        return self

    @with_callbacks
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch on some images, and keep what was learned before.

        The optimizer takes steps of a constant size, "adamw" where `optimizer` is "auto". The mean
        and spread by which y is standardised are those of the first call, as is how X is to be
        read.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        self : PretrainedImageRegressor

        Raises
        ------
        ValueError
            As :meth:`fit`; or if y has another number of outputs than before.
        """
        self._fit_or_nothing(X, y, sample_weight, goes_on=True, partial=True)
        return self

    def _read_y(
        self, y: Any, sample_weight: Any, *, start: Model | None, partial: bool, **how: Any
    ) -> Given:
        values = check_numbers(y, type(self).__name__)
        weights = check_sample_weight(sample_weight, len(values))
        columns = values.reshape(len(values), -1)
        target = Numbers(*standardization(columns, weights), flat=values.ndim == 1)
        if start is not None:
            before = start.target
            assert isinstance(before, Numbers)
            if (before.n_outputs, before.flat) != (target.n_outputs, target.flat):
                raise ValueError(
                    f"y has shape {values.shape}, but that of the fit which goes on had "
                    f"{'one dimension' if before.flat else f'{before.n_outputs} columns'}. Set "
                    "warm_start=False and call fit to begin anew."
                )
            target = before
        standardised = (columns - target.mean) / target.scale
        return Given(target, standardised, weights, {"n_outputs_": target.n_outputs})

    def predict(self, X: Any) -> npt.NDArray[np.float64]:
        """Predict numbers.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images
            See :meth:`fit`; the kind may differ.

        Returns
        -------
        float64 ndarray of shape (n_samples,) or (n_samples, n_outputs)
            As y had one dimension or two. NaN where images can't be read and ``on_error="skip"``.
        """
        return self._numbers(self._outputs(X))

    def _numbers(self, outputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        numbers: npt.NDArray[np.float64]
        numbers = self._model.target.answers(torch.as_tensor(outputs)).numpy()
        return numbers

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Compute the coefficient of determination R2 on images with numbers.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        float
            1 less the squared error's share in the variance of y, of the images that can be read;
            of several outputs, the mean.
        """
        outputs = self._outputs(X)
        unanswered = self._unanswered(outputs)
        return self._score(r2_score, y, self._numbers(outputs), unanswered, sample_weight)

    @property
    def adapt(self) -> NoReturn:
        """Not there: see :meth:`PretrainedImageClassifier.adapt`, which needs classes.

        An AttributeError says so, and ``hasattr(reg, "adapt")`` is False.
        """
        raise AttributeError(
            f"{type(self).__name__} has no adapt: it aligns the features of two sources class by "
            "class, and numbers have no classes. Fit to some images of the new source whose "
            "numbers are known."
        )

    def to_torch(self) -> TorchRegressor:
        """Make a torch module of the regressor: images in, numbers in y's units out.

        See :meth:`PretrainedImageClassifier.to_torch`, which tells how images are read and what
        exports the module.

        Returns
        -------
        torch.nn.Module
            In evaluation mode, in float32 on the CPU. It maps a tensor of RGB images (n, 3, h, w)
            to numbers, float32, of shape (n,) or (n, n_outputs), as y had one dimension or two.

        Raises
        ------
        NotFittedError
            If the regressor isn't fitted.
        """
        check_is_fitted(self)
        module: TorchRegressor = to_torch(self._model, self._format)
        return module

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the regressor as an ONNX file: images in, numbers in y's units out.

        See :meth:`PretrainedImageClassifier.to_onnx`. The output is ``numbers``, float32 of shape
        (n,) or (n, n_outputs).

        Parameters
        ----------
        path : str or path
            Such as "model.onnx".

        Raises
        ------
        ImportError
            If onnx or onnxscript is missing; ``pip install sktl[onnx]`` brings them.
        NotFittedError
            If the regressor isn't fitted.
        OSError
            If the file can't be written.
        ValueError
            If the network, or how its images are resized, can't be written as ONNX.
        """
        check_is_fitted(self)
        to_onnx(self._model, self._format, path)

    def explain(
        self, X: Any, target: Any = None, *, method: str = "grad_cam"
    ) -> npt.NDArray[np.float32]:
        """Find the pixels that speak for a greater number. Needs captum.

        See :meth:`PretrainedImageClassifier.explain`.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images
        target : int, default=None
            Which output to explain, counted from 0. None will do where there is one.
        method : {"grad_cam", "integrated_gradients"}, default="grad_cam"
            "grad_cam" is how much a place speaks for a greater number, at least 0;
            "integrated_gradients" what each pixel adds to the number, or takes from it, in y's
            units, on the way from an image of the mean colour.

        Returns
        -------
        float32 ndarray of shape (n_samples, h, w)

        Raises
        ------
        ImportError
            If captum isn't installed.
        NotFittedError
            If the estimator isn't fitted.
        ValueError
            If the method, `target` or X is not as it must be; or "grad_cam" is to explain a
            network that has no maps or tokens between its stages.
        """
        images = self._open_to_explain(X, method)
        output = self._output_number(target)
        known = self._model.target
        assert isinstance(known, Numbers)
        found = explain_images(self._model, images, np.full(len(images), output), method)
        scaled: npt.NDArray[np.float32] = found * np.float32(known.scale[output])
        return scaled

    def _output_number(self, target: Any) -> int:
        n = self.n_outputs_
        if target is None and n == 1:
            return 0
        whole = isinstance(target, Integral) and not isinstance(target, bool | np.bool_)
        if not whole or not 0 <= int(target) < n:
            raise ValueError(
                f"target={shown(target)} is not the number of an output: the images have {n}, "
                "counted from 0."
            )
        return int(target)

    def _store(self, state: dict[str, Any], pack: Packer) -> dict[str, Any]:
        del state["n_outputs_"]  # the model has it
        return super()._store(state, pack)

    def _restore(self, state: dict[str, Any]) -> dict[str, Any]:
        state = super()._restore(state)
        if "_model" in state:
            state["n_outputs_"] = state["_model"].target.n_outputs
        return state

    def _fact_of_y(self) -> tuple[str, str]:
        return "Outputs", f"{self.n_outputs_:,}"

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
