"""The image classifier."""

from __future__ import annotations

import os
import warnings
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import Bunch, Tags
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from .constraints import StrOptions
from .files.classifier_file import CLASSIFIER
from .files.document import savable
from .files.pickling import Packer
from .images.reading import Images
from .labels import (
    check_indicators,
    check_labels,
    check_sample_weight,
    check_weights,
    class_numbers,
    has_several_labels,
    weights_of_labels,
)
from .messages import shown, shown_several
from .model.adapt import METHODS, Adaptation, Job, adapt_model
from .model.explain import explain_images
from .model.export import TorchClassifier, to_onnx, to_torch
from .model.fit import Fit
from .model.joined import Model
from .model.source_domain import LabelledFeatures, Settings
from .predictor import Given, ImagePredictor
from .summary import listed
from .training.progress import with_callbacks
from .training.targets import Classes, Indicators


@savable(CLASSIFIER)
class PretrainedImageClassifier(ClassifierMixin, ImagePredictor):
    """Classify images with a pretrained network and a new head.

    The network is cut at the freeze depth. What lies before is computed once for an image
    and kept; what follows, and the head, are trained.

    Parameters
    ----------
    backbone : str, torch.nn.Module or callable, default="efficientnet_lite0"
        A name of :func:`sktl.list_backbones`, "timm/<name>", "hf/<repository>" of Hugging Face's
        hub, a network, or what returns one. The default's ImageNet weights are installed with sktl,
        so it needs no network connection.
    weights : str, path, torchvision WeightsEnum or None, default="DEFAULT"
        Weights by torchvision's names, the path of a state dict (.pth or .safetensors), or
        None for random ones. A module keeps its own.
    freeze : {"all", "none"}, int or str, default="all"
        Which stages keep their weights, batch-norm statistics included: all of them (only the
        head trains), none, the first k (-1 leaves the last stage to train), or those up to and
        including the one with this name. ``stages_`` lists them.
    pooling : {"auto", "stages", "network", "avg", "flatten"}, default="auto"
        What the head reads. "network" is what the network itself hands to its last linear layer.
        "stages" is that and, beside it, quarters of the means over positions of up to three stages
        before the last [7]_. "avg" is the mean over positions of the last stage's map, and
        "flatten" all its positions. "auto" is "stages" where all stages are frozen and make maps,
        as those of convolutional networks do, for a head of one layer without `warm_start`; it is
        "network" elsewhere.
    head : {"auto", "linear", "root"}, tuple of int or callable, default="auto"
        A linear layer, one on the features' square roots, hidden layers of these widths with ReLU,
        or what makes a module of ``(in_features, n_classes)``. "auto" is "root" where features
        are never negative, as behind a ReLU, or are those of several stages, and "linear"
        elsewhere [4]_, also where stages train on several labels.
    dropout : float, default=0.0
        Share of its inputs that each linear layer of the head loses in training. Dropout that the
        network brings is left out where stages train.
    augment : {"light", "trivialaugment", "randaugment"}, callable or None, default=None
        Random variations of the images in training. "light" crops, turns, mirrors and changes
        the light a little; the next two are torchvision's; a callable, such as a transform of
        :mod:`torchvision.transforms.v2`, maps a uint8 tensor (3, h, w) to another of that shape.
    n_views : int or None, default=4
        With `augment` and frozen stages: of how many views of each image, the image itself among
        them, the features are computed and kept. That costs as many passes over the images, once.
        None draws a new view in each epoch, which costs a pass an epoch. Where nothing is frozen
        each epoch has new views anyway.
    mixup, cutmix : float, default=0.0
        Parameter of the Beta distribution by which pairs of images are blended, or parts of one
        pasted into another; 0 is without. Where stages are frozen, it is their output that is
        blended [2]_. `cutmix` needs maps, so not all stages may be frozen.
    criterion : "cross_entropy" or callable, default="cross_entropy"
        The loss; a callable maps logits (n, n_classes) and labels (n,) to losses (n,). With several
        labels it is the sum of their binary cross-entropies; a callable's labels are 0 and 1, of
        shape (n, n_labels).
    label_smoothing : float, default=0.0
        Share of the target probability that is spread over all classes.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, as in scikit-learn's classifiers. With several labels a dict has
        those of 0 and 1, for all labels, and "balanced" is for each label alone.
    optimizer : {"auto", "lbfgs", "sgd", "adam", "adamw"} or class, default="auto"
        "auto" solves the convex problem of a frozen backbone with a linear head to its optimum,
        whatever `lr` and `max_epochs` are, and trains everything else by "adamw". It is "adamw",
        too, if something random or stepwise is asked for (`dropout`, `mixup`, `ema_decay`,
        `max_grad_norm`, `accumulation_steps`, `early_stopping`, ``n_views=None`` with `augment`).
        "lbfgs" works on all rows at once in float64; a linear head's optimum it finds by
        Newton's method (see :mod:`sktl.training.newton`). "sgd" has a momentum of 0.9. A class
        is a subclass of :class:`torch.optim.Optimizer`.
    lr : float or None, default=None
        Learning rate of the head, at its highest, where training takes steps. None is 1e-3, and
        1e-2 for "sgd"; three tenths of that where stages train, and with several labels three
        times that.
    backbone_lr : float or None, default=None
        Learning rate of the last stage that trains. None is `lr`, and with several labels a tenth
        of it.
    layer_decay : float, default=1.0
        What a stage's learning rate is of that of the stage after it.
    weight_decay : float or "auto", default=1e-3
        L2 penalty of the weights (not of biases and norms). Half of it times the squared norm of
        the head's weights is added to the mean loss, whichever way the head is trained. For stages
        that train, and for the head with a class as `optimizer`, it is the optimizer's parameter.
        "auto" chooses the penalty of a head that is solved for, and the temperature by which its
        logits are divided [5]_, by three-fold cross-validation on the features; also where stages
        that train go on from such a head. For stages, and for a head that takes steps alone, it
        is 1e-3. Several labels need a number.
    schedule : {"cosine", "constant", "one_cycle"} or callable, default="cosine"
        How learning rates change from step to step: down to zero by a cosine, not at all, or up
        and down while momentum goes down and up. A callable makes a torch scheduler of the
        optimizer, such as ``functools.partial(StepLR, step_size=5)``.
    warmup : float or None, default=None
        Share of the steps in which the rates of a named schedule grow. None is 0.1 for "cosine",
        0 for "constant" and 0.3 for "one_cycle".
    unfreeze : {"auto", "head_first", "at_once", "gradual"}, default="auto"
        How stages that aren't frozen begin: after the head has been fitted to the features as
        they are [1]_, together with a new head, or after the head, one by one from the last to
        the first over the epochs [3]_. "auto" is "head_first", and "at_once" for several labels.
        A fitted head of one layer has the penalty and the temperature of ``weight_decay="auto"``,
        whatever `weight_decay` is. For several labels it has the given penalty, and a new one
        begins at zero.
    max_epochs : int or None, default=None
        Passes over the images; for ``optimizer="lbfgs"``, the most iterations. None is 20, and
        1000 for "lbfgs".
    batch_size : int, default=32
        Images a batch. "lbfgs" uses all.
    accumulation_steps : int, default=1
        Batches whose gradients make one step: as if batches were that much larger, in the memory
        of one.
    max_grad_norm : float or None, default=None
        Longer gradients are shortened to this norm.
    ema_decay : float or None, default=None
        Keep the exponential moving average of the weights, with this decay a step, in place of
        the last ones. Each call of `fit` or `partial_fit` begins one.
    early_stopping : bool, default=False
        Set aside some images of each class or label [6]_, stop when they are no longer classified
        better, and bring back the best weights. Better is a higher accuracy, or the same with a
        lower loss.
    validation_fraction : float, default=0.1
        Share of the images that is set aside.
    n_iter_no_change : int, default=5
        Epochs without progress after which training stops.
    warm_start : bool, default=False
        Whether `fit` goes on from the last fit's weights, for another `max_epochs`. After a fit
        with ``freeze="all"`` it may go on to another freeze depth.
    image_size : int, tuple of (int, int) or None, default=None
        Height and width in pixels at which the network sees the images, one number where they are
        the same. None is what its weights were trained with. Most convolutional networks take a
        height and a width that differ; vision transformers don't.
    resize_mode : {"auto", "crop", "squash", "pad"}, default="auto"
        What becomes of a picture whose shape isn't that of `image_size`. "crop" resizes it until it
        covers somewhat more than that, and cuts out the centre; what lies at the ends is lost.
        "squash" resizes all of it to that shape. "pad" resizes all of it to fit in, and fills what
        is left with the mean colour. "auto" is that of `preprocessing` where this is given, else
        "squash".
    preprocessing : Recipe, object, dict or None, default=None
        The size, interpolation, mean and deviation by which pictures are prepared: a
        :class:`sktl.Recipe`; weights of torchvision or their ``transforms()``, or a Compose of its
        transforms for evaluation; a data configuration of timm, a ``preprocess_cfg`` of open_clip,
        or an image processor of transformers, as objects or dicts. None is what comes with the
        network, or else, with a warning, what most networks of ImageNet take. `image_size` and
        `resize_mode` go before it.
    image_shape : tuple of int or None, default=None
        Shape of the image in a row of two-dimensional X, (h, w), (h, w, c) or (c, h, w). None
        takes it from the width where that can be told.
    pixel_range : tuple of (float, float) or None, default=None
        The values that mean black and white in arrays, and in files and PIL images of more than 8
        bits. None decides in `fit`: 0 to 255 for 8 bits, else from 0 to the nearest of 1, 16, 255,
        1023, 4095, 16383 and 65535 that covers the values, or the least and the greatest with a
        warning. Of files of more than 8 bits, at most 32 are looked at, evenly spread over X.
    bands : (int, int, int), "all" or None, default=None
        Which channels of arrays, files and PIL images are red, green and blue, counted from 0:
        (3, 2, 1) of Sentinel-2's thirteen, (2, 1, 0) of a BGR picture, (0, 1, 1) of two. The others
        aren't looked at. A tuple of numbers in place of one is the mean of those channels. "all"
        takes as many as the first picture has: red is the mean of 0, 3, 6, ..., green of 1, 4, 7,
        ..., blue of 2, 5, 8, .... None is for grey, RGB and RGBA, which is laid on white.
    cache : "memory", path or None, default="memory"
        Where the features of the frozen stages are kept: in this process, in a directory that
        processes share, or nowhere.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Number format of the frozen stages. "auto" is bfloat16 where the hardware multiplies
        matrices in it.
    device : str or torch.device, default="auto"
        "auto" is the GPU where there is one.
    n_jobs : int or None, default=None
        Threads that read images, as in joblib.
    on_error : {"raise", "skip"}, default="raise"
        What to do with files that can't be read. "raise" is an error that names them all, before
        training. "skip" is a warning that names them; `fit` leaves them out, and predictions for
        them are NaN, or None from `predict`.
    callbacks : list of skorch callbacks or None, default=None
        See the guide on training. An ``LRScheduler`` sets the rates in the place of `schedule`.
    random_state : int, RandomState instance or None, default=None
        Seed of the head's initial weights, the order of the batches, dropout, augmentation, the
        split for `early_stopping`, and of random backbone weights. Views that are kept (see
        `n_views`) depend on the image alone, so that fits share them. The guide on training tells
        what another number of threads changes.
    verbose : int, default=0
        1 shows progress bars on a terminal or in a notebook. Elsewhere, as in a log file, it prints
        a line every 30 seconds of the pass over the images, and a line an epoch. 2 does both. In
        scikit-learn's searches, from its version 1.9 on, both say which fit of how many it is.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        With several labels, the numbers of y's columns.
    multilabel_ : bool
        Whether it was fitted to several labels.
    weight_decay_ : float
        The head's penalty, given or chosen.
    n_features_in_ : int
        Width of X, where it is two-dimensional.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Column names of X, where it has such.
    net_ : skorch.NeuralNetClassifier
        The suffix and head; its X are features at the freeze depth.
    history_ : list of dict
        A row an epoch: its number, losses, the validation accuracy, learning rates at its end,
        how many stages train, seconds. ``pandas.DataFrame(clf.history_)`` makes a table of it.
    n_iter_ : int
        Epochs run, or iterations of a solved head and of "lbfgs".
    best_epoch_ : int
        The epoch whose weights were kept. With `early_stopping` only.
    validation_indices_ : ndarray of shape (n_validation,)
        Rows of X that were set aside. With `early_stopping` only.
    skipped_ : ndarray of shape (n_skipped,)
        Rows of X that the last fit left out, since they can't be read; see `on_error`.
    stages_ : list of str
        Names of the backbone's stages in forward order.
    freeze_ : int
        Number of frozen stages.
    pixel_range_ : tuple of (float, float)
        The values taken as black and white.
    device_ : torch.device
    precision_ : {"float32", "bfloat16"}

    See Also
    --------
    PretrainedImageFeatures : The frozen network as a transformer.

    Notes
    -----
    Batch norm that has learned statistics keeps them, in stages that train as well; only that of
    random weights learns them.

    References
    ----------
    .. [1] A. Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform
       Out-of-Distribution (2022), arXiv:2202.10054.
    .. [2] V. Verma et al., Manifold Mixup (2019), arXiv:1806.05236.
    .. [3] J. Howard and S. Ruder, Universal Language Model Fine-tuning for Text Classification
       (2018), arXiv:1801.06146.
    .. [4] S. Yang et al., Free Lunch for Few-shot Learning: Distribution Calibration (2021),
       arXiv:2101.06395.
    .. [5] C. Guo et al., On Calibration of Modern Neural Networks (2017), arXiv:1706.04599.
    .. [6] K. Sechidis et al., On the Stratification of Multi-Label Data (2011), ECML PKDD.
    .. [7] U. Evci et al., Head2Toe: Utilizing Intermediate Representations for Better Transfer
       Learning (2022), arXiv:2201.03529.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktl import PretrainedImageClassifier
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> clf = PretrainedImageClassifier(image_size=64).fit(X[:20], y[:20])
    >>> clf.predict(X[20:24])
    array([1, 1, 1, 0])
    """

    _parameter_constraints: dict[str, list[Any]] = ImagePredictor._parameter_constraints | {
        "criterion": [StrOptions(set(Classes.criteria)), callable],
        "class_weight": [dict, StrOptions({"balanced"}), None],
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
        criterion: Any = "cross_entropy",
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        optimizer: Any = "auto",
        lr: float | None = None,
        backbone_lr: float | None = None,
        layer_decay: float = 1.0,
        weight_decay: float | str = 1e-3,
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
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
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
            Arrays of shape (n, h, w), (n, h, w, c) or (n, c, h, w), rows of one flattened image
            each, PIL images, or paths of image files.
        y : array-like of shape (n_samples,), or array or sparse matrix (n_samples, n_labels)
            Class labels; or where an image has several labels or none, 1 for each that it has and
            0 for the others.
        sample_weight : array-like of shape (n_samples,), default=None
            The loss is ``sum(w * loss) / sum(w)``.

        Returns
        -------
        self : PretrainedImageClassifier

        Raises
        ------
        ValueError
            If a parameter, X or y is not as it must be, or training diverges. The estimator
            is then as before, as it is after any exception.
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
        UserWarning
            If none or all of the images have one of several labels.
        """
        goes_on = self.warm_start and self.__sklearn_is_fitted__()
        self._fit_or_nothing(X, y, sample_weight, goes_on=goes_on)
        return self

    @with_callbacks
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch on some images, and keep what was learned before.

        The optimizer takes steps of a constant size, "adamw" where `optimizer` is "auto". How X
        is to be read is learned from the first call.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images
        y : array-like of shape (n_samples,), or array or sparse matrix (n_samples, n_labels)
        classes : array-like of shape (n_classes,), default=None
            All labels that will ever occur. The first call needs it, but for y of several labels.
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        self : PretrainedImageClassifier

        Raises
        ------
        ValueError
            As :meth:`fit`; or if the first call lacks `classes`, or y has a label that isn't
            among them.
        """
        self._fit_or_nothing(X, y, sample_weight, goes_on=True, partial=True, all_classes=classes)
        return self

    def _check_training_params(self) -> None:
        super()._check_training_params()
        if self.criterion not in Classes.criteria and self.label_smoothing:
            raise ValueError(
                f"label_smoothing={self.label_smoothing!r} is part of the cross-entropy, but "
                f"criterion={shown(self.criterion)}. Set label_smoothing=0, or smooth in the "
                "criterion."
            )

    def _read_y(
        self,
        y: Any,
        sample_weight: Any,
        *,
        start: Model | None,
        partial: bool,
        **how: Any,
    ) -> Given:
        if y is not None and has_several_labels(y):
            return self._read_indicators(y, sample_weight, start, **how)
        if start is not None and isinstance(start.target, Indicators):
            raise ValueError(
                f"The last fit was to {start.target.n_labels} labels, and y has no columns. To "
                "begin anew, call fit with warm_start=False."
            )
        if partial:
            classes, labels = self._check_part_of_y(y, how["all_classes"])
        else:
            classes, labels = check_labels(y, type(self).__name__)
        weights = check_weights(sample_weight, self.class_weight, classes, labels)
        if start is not None and not np.array_equal(classes, self.classes_):
            raise ValueError(
                "warm_start=True goes on from a fit with the classes "
                f"{shown_several(self.classes_.tolist())}, but y has "
                f"{shown_several(classes.tolist())}. Set warm_start=False to begin anew."
            )
        return Given(Classes(len(classes)), labels, weights, {"classes_": classes})

    def _read_indicators(
        self, y: Any, sample_weight: Any, start: Model | None, **how: Any
    ) -> Given:
        """Check y where it tells of several labels, each of its own."""
        partial = "all_classes" in how
        indicators = check_indicators(y, type(self).__name__)
        n, n_labels = indicators.shape
        if start is not None and not (self.multilabel_ and len(self.classes_) == n_labels):
            kind = "labels" if self.multilabel_ else "classes"
            raise ValueError(
                f"The last fit was to {len(self.classes_)} {kind}, and y has {n_labels} columns. "
                "To begin anew, call fit with warm_start=False."
            )
        if self.weight_decay == "auto":
            raise ValueError(
                'weight_decay="auto" chooses for classes, but y tells of several labels. Pass a '
                "number, or search over some with GridSearchCV."
            )
        if self.class_weight is not None and self.criterion not in Indicators.criteria:
            raise ValueError(
                f"class_weight={shown(self.class_weight)} weighs the cross-entropy of each label, "
                f"but criterion={shown(self.criterion)}. Leave it out, or weigh in the criterion."
            )
        weights = check_sample_weight(sample_weight, n)
        if partial:
            self._check_part_of_indicators(how["all_classes"], n_labels)
        else:
            _warn_of_constant_labels(indicators[weights > 0])
        by_label = weights_of_labels(self.class_weight, indicators, weights)
        attributes = {"classes_": np.arange(n_labels)}
        return Given(Indicators(n_labels, by_label), indicators, weights, attributes)

    def _check_part_of_indicators(self, all_classes: Any, n_labels: int) -> None:
        if isinstance(self.class_weight, str):
            raise ValueError(
                f"class_weight={shown(self.class_weight)} can't be known from a part of the "
                "images. Pass a dict of weights of 0 and 1 to use partial_fit."
            )
        if all_classes is not None and not np.array_equal(all_classes, np.arange(n_labels)):
            raise ValueError(
                f"y has {n_labels} columns, so classes must be 0 to {n_labels - 1} or None; got "
                f"{shown(all_classes)}."
            )

    def _check_part_of_y(
        self, y: Any, all_classes: Any
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """All classes, and the class numbers of labels that needn't hold each of them."""
        fitted = self.__sklearn_is_fitted__()
        if all_classes is None and not fitted:
            raise ValueError(
                "The first call of partial_fit needs classes: all labels that will ever occur."
            )
        if all_classes is None:
            classes = self.classes_
        else:
            classes, _ = check_labels(all_classes, type(self).__name__)
        if fitted and not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"classes={shown_several(classes.tolist())} differ from those of the earlier call, "
                f"{shown_several(self.classes_.tolist())}."
            )
        if isinstance(self.class_weight, str):
            raise ValueError(
                f"class_weight={shown(self.class_weight)} can't be known from a part of the "
                "images. Pass a dict from class to weight to use partial_fit."
            )
        return classes, class_numbers("y", y, classes)

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Compute confidence scores.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images
            See :meth:`fit`; the kind may differ.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples,) with two classes
            The logits; with two classes, that of the second less that of the first. With several
            labels, (n_samples, n_labels): above zero where the image has the label.
        """
        logits = self._outputs(X)
        if self.multilabel_ or len(self.classes_) > 2:
            return logits
        margin: npt.NDArray[np.float64] = logits[:, 1] - logits[:, 0]
        return margin

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Compute class probabilities.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Columns in the order of ``classes_``. With several labels, (n_samples, n_labels): of
            each label, that the image has it.
        """
        logits = self._outputs(X)
        probabilities: npt.NDArray[np.float64]
        probabilities = expit(logits) if self.multilabel_ else softmax(logits, axis=1)
        return probabilities

    def predict_log_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Compute logarithms of class probabilities.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        logits = self._outputs(X)
        logarithms: npt.NDArray[np.float64]
        logarithms = log_expit(logits) if self.multilabel_ else log_softmax(logits, axis=1)
        return logarithms

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Predict class labels.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images

        Returns
        -------
        ndarray of shape (n_samples,)
            With several labels, (n_samples, n_labels): 1 where the image has the label, and 0.
            Where images can't be read and ``on_error="skip"``, an array of objects with None in
            their places.
        """
        logits = self._outputs(X)
        labels, unanswered = self._labels(logits), self._unanswered(logits)
        if unanswered.any():
            labels = labels.astype(object)
            labels[unanswered] = None
        return labels

    def _labels(self, logits: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
        if self.multilabel_:
            return (logits > 0).astype(np.int64)
        labels: npt.NDArray[Any] = self.classes_[logits.argmax(axis=1)]
        return labels

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Compute the accuracy on images with labels.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        float
            The share of right predictions, of the images that can be read. With several labels, a
            prediction is right where all labels are.
        """
        logits = self._outputs(X)
        if self.multilabel_:
            y = check_indicators(y, type(self).__name__)
        unanswered = self._unanswered(logits)
        return self._score(accuracy_score, y, self._labels(logits), unanswered, sample_weight)

    def adapt(
        self,
        X: Any,
        X_source: Any = None,
        y_source: Any = None,
        *,
        method: str = "pseudo_labels",
        check: bool = True,
    ) -> Self:
        """Make a classifier for images of another source, of which none is labelled.

        Another camera, another hospital, another artist: the classes are the same, the pictures
        look different. The more images the better; some tens will do.

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images
            Unlabelled images of the other source, such as those that are to be classified.
        X_source : array, list, Series or DataFrame of n_source images, default=None
            Images of the fit. None is the features of up to 1,000 of them, at most 4 MiB, which
            the classifier has kept.
        y_source : array-like of shape (n_source,), default=None
            Their labels.
        method : str, default="pseudo_labels"
            How to adapt. All but "label_shift" make a new linear head (also in the place of one
            with hidden layers), from what the frozen or fine-tuned network makes of the images:

            - "coral": the source's features are given the target's means, spreads and
              correlations [1]_, with the classes weighted as they seem to occur in the target,
              and the head is fitted to them.
            - "pseudo_labels": like "coral", and then ten times to more and more of the target's
              images as well, under the labels that the head gives them, beginning with the
              surest [2]_.
            - "standardize": features are standardised by the means and spreads of each source.
            - "label_shift": the head stays, but for how frequent it takes the classes to be [3]_.
              For images that look the same and come in other proportions only.
            - "adabn": batch norm uses the statistics of each source [4]_, and the head is made as
              in "coral". Needs `X_source` and `y_source`.
            - "tent": like "coral", and then scales and shifts of the network's norms are adjusted
              until the head is surer of the images [5]_.

            The last two change the network, which then runs anew on all images.
        check : bool, default=True
            Whether to leave the classifier as it is, with a warning, where the images look like
            those of the fit: heads are as sure of them as of images of the fit that are new to
            the heads. Twice as many as those of the fit are used nevertheless, if adapted heads
            recognise no fewer of the latter. "label_shift" is always done.

        Returns
        -------
        PretrainedImageClassifier
            A fitted copy for the target's images; this estimator stays as it is. Its
            ``adaptation_`` has the fields `method`, `adapted` (False where `check` has found no
            reason to), `n_images`, `proportions` (mean probability
            of each class among the images), `source_accuracy` (on images of the source that a
            head hasn't seen) and `expected_accuracy` (on the images, judged by the confidence
            that is lost on them [6]_); both are None where a class has one image only.

        Raises
        ------
        ValueError
            If the method or X is not as it must be, or the method needs what isn't given.

        Warns
        -----
        DomainShiftWarning
            If the accuracy to be expected is less than three quarters of that on the source.
        NoDomainShiftWarning
            If `check` has found no reason to adapt.

        References
        ----------
        .. [1] B. Sun et al., Return of Frustratingly Easy Domain Adaptation (2016),
           arXiv:1511.05547.
        .. [2] Y. Zou et al., Unsupervised Domain Adaptation for Semantic Segmentation via
           Class-Balanced Self-Training (2018), arXiv:1810.07911.
        .. [3] Z. Lipton et al., Detecting and Correcting for Label Shift with Black Box
           Predictors (2018), arXiv:1802.03916.
        .. [4] Y. Li et al., Revisiting Batch Normalization For Practical Domain Adaptation
           (2016), arXiv:1603.04779.
        .. [5] D. Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization (2021),
           arXiv:2006.10726.
        .. [6] D. Guillory et al., Predicting with Confidence on Unseen Distributions (2021),
           arXiv:2107.03315.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sktl import PretrainedImageClassifier
        >>> X, y = load_digits(return_X_y=True)
        >>> clf = PretrainedImageClassifier(image_size=32).fit(X[:200], y[:200])
        >>> inverted = 16 - X[200:400]
        >>> clf.adapt(inverted).score(inverted, y[200:400]) > clf.score(inverted, y[200:400])
        True
        """
        check_is_fitted(self)
        if self.multilabel_:
            raise ValueError(
                "adapt is for classes, of which each image has one; this classifier was fitted to "
                "several labels. Fit one classifier for each label to adapt it."
            )
        if method not in METHODS:
            raise ValueError(f"method={shown(method)} is not one of {sorted(METHODS)}.")
        kept = (self._cache(), self._n_jobs())
        settings = Settings(self.weight_decay_, self.label_smoothing)
        (source, source_images), _ = self._skip_unreadable(self._source, X_source, y_source)

        def run(X: Any) -> tuple[Adaptation, int]:
            images = self._open(X, reset=False)
            job = Job(self._model, images, source, source_images, settings, *kept)
            return adapt_model(job, method, check), len(images)

        (done, n_images), _ = self._skip_unreadable(run, X)
        adapted = object.__new__(type(self))
        adapted.__dict__.update(self.__dict__)
        adapted._model = done.model
        adapted.net_, adapted.freeze_ = done.model.net, done.model.depth
        # Another network makes other features of the source's images.
        adapted._sample = self._sample if done.model.depth == self._model.depth else None
        adapted.adaptation_ = Bunch(
            method=method,
            adapted=done.adapted,
            n_images=n_images,
            proportions=done.proportions,
            source_accuracy=done.source_accuracy,
            expected_accuracy=done.expected_accuracy,
        )
        return adapted

    def _source(self, X: Any, y: Any) -> tuple[LabelledFeatures, Images | None]:
        """Features with labels, of the images given or of those that were kept in fit."""
        if X is None and y is None:
            if self._sample is None:
                raise ValueError(
                    "This classifier has kept no images of its fit, as after partial_fit, after a "
                    "change of its network, or in a file that was saved without its backbone. "
                    "Pass X_source and y_source."
                )
            return self._sample, None
        if X is None or y is None:
            raise ValueError("X_source and y_source belong together; got one without the other.")
        images = self._open(X, reset=False)
        labels = class_numbers("y_source", y, self.classes_)
        check_consistent_length(np.empty(len(images)), labels)
        missing = np.setdiff1d(np.arange(len(self.classes_)), labels)
        if len(missing):
            lacking = shown_several(self.classes_[missing].tolist())
            raise ValueError(f"y_source lacks the classes {lacking}.")
        weights = check_weights(None, self.class_weight, self.classes_, labels)
        features, unreadable = self._model.pooled(images, self._cache(), self._n_jobs())
        images.refuse(unreadable)
        rows = LabelledFeatures(
            torch.as_tensor(features),
            torch.as_tensor(labels),
            torch.as_tensor(weights),
            len(self.classes_),
        )
        return rows, images

    def to_torch(self) -> TorchClassifier:
        """Make a torch module of the classifier: images in, probabilities out.

        Resizing, cropping and normalising are inside. The module is a copy, and needs neither the
        classifier nor its cache. :func:`torch.export.export`, :func:`torch.jit.trace` and
        :func:`torch.compile` take it, for any number of images of any size. What the first two
        save runs without sktl; a pickled module needs it.

        Returns
        -------
        torch.nn.Module
            In evaluation mode, in float32 on the CPU, with weights that ask for no gradient. It
            maps a tensor of RGB images (n, 3, h, w) to probabilities (n, n_classes), float32, in
            the order of its attribute `classes`, a list.

            uint8 images are read as 0 to 255, or by the parameter `pixel_range` where it is given;
            floats by ``pixel_range_``, clipped, and rounded to 256 grey levels. As in
            :meth:`predict_proba`, images are refused whose range `fit` could not know: floats,
            where it saw 8-bit images only, and uint8, where it saw floats of a range such as 0 to
            16. Floats that are not finite aren't refused. With the parameter `bands`, the three
            channels are those, or their means, in its order.

        Raises
        ------
        NotFittedError
            If the classifier isn't fitted.

        See Also
        --------
        to_onnx : The same in a file for other runtimes.

        Notes
        -----
        Pixels are those of :meth:`predict_proba`, and probabilities those with
        ``precision="float32"`` but for the last digits. Exported, traced and compiled programs
        resize by matrix products, which of pictures of many megapixels takes longer than the
        network; shrink them first.

        Examples
        --------
        >>> import torch
        >>> from sklearn.datasets import load_digits
        >>> from sktl import PretrainedImageClassifier
        >>> X, y = load_digits(n_class=2, return_X_y=True)
        >>> clf = PretrainedImageClassifier(image_size=32).fit(X[:20], y[:20])
        >>> module = clf.to_torch()
        >>> images = torch.tensor(X[20:24]).reshape(4, 1, 8, 8).expand(4, 3, 8, 8)
        >>> module(images).argmax(1)
        tensor([1, 1, 1, 0])
        """
        check_is_fitted(self)
        module: TorchClassifier = to_torch(
            self._model, self._format, classes=self.classes_.tolist()
        )
        return module

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the classifier as an ONNX file: images in, probabilities out.

        Resizing, cropping and normalising are inside. The file's input ``images`` takes uint8 RGB
        images (n, 3, h, w), any number of any size; its output ``probabilities`` is float32
        (n, n_classes). Images are read as 0 to 255, like those of files, or by the parameter
        `pixel_range` where it is given; with `bands`, the three channels are those, in its order.
        Of a pipeline, ``pipe[-1].to_onnx(path)`` writes the last step, and what earlier steps do
        to X isn't in the file.

        The file's ``metadata_props`` tell what is what: ``classes`` is a JSON list of the labels
        in the order of the probabilities, ``input`` and ``output`` are text, and
        ``sktl_version`` is the version that wrote it. Whoever reads it while it is written finds
        the whole old file or the whole new one.

        Parameters
        ----------
        path : str or path
            Such as "model.onnx".

        Raises
        ------
        ImportError
            If onnx or onnxscript is missing; ``pip install sktl[onnx]`` brings them.
        NotFittedError
            If the classifier isn't fitted.
        OSError
            If the file can't be written.
        ValueError
            If the network, or how its images are resized, can't be written as ONNX, or the weights
            take more than the 2 GiB of an ONNX file. The file is then as it was.

        See Also
        --------
        to_torch : The same as a torch module.

        Notes
        -----
        Probabilities are those of :meth:`predict_proba` with ``precision="float32"`` but for the
        last digits. As ONNX's own Resize rounds otherwise than torch, the file resizes by matrix
        products in float64. Of pictures of many megapixels that takes longer than the network;
        shrink them first.
        """
        check_is_fitted(self)
        to_onnx(self._model, self._format, path, classes=self.classes_.tolist())

    def explain(
        self, X: Any, target: Any = None, *, method: str = "grad_cam"
    ) -> npt.NDArray[np.float32]:
        """Find the pixels that speak for a class. Needs captum: ``pip install sktl[explain]``.

        The whole network is looked at, frozen stages included, in float32. Pixels are those that
        it sees: of the image as it is brought to `image_size` (see `resize_mode`).

        Parameters
        ----------
        X : array, list, Series or DataFrame of n_samples images
        target : label or array-like of shape (n_samples,), default=None
            The class to explain, one for all images or one for each. None is the predicted one; of
            several labels, the most probable one.
        method : {"grad_cam", "integrated_gradients"}, default="grad_cam"
            - "grad_cam": how much a place of the last stage's output speaks for the class, at
              least 0 [1]_, brought to the size of the image. Where that output has fewer than
              4 x 4 places, an earlier stage's is taken. Where the head reads a class token alone,
              as a ViT's does, it is the tokens that the last block reads. Quick and coarse; of a
              ViT that was trained, the other method is the surer one.
            - "integrated_gradients": what each pixel adds to the class's logit, or takes from it,
              on the way from an image of the mean colour of the network's training [2]_. They
              sum nearly to the difference of the two logits. It runs the network 50 times an image.

        Returns
        -------
        float32 ndarray of shape (n_samples, h, w)
            Of the height and width in `image_size`. With "squash", resizing it to a picture's own
            shape lays it on the picture; :class:`sktl.plotting.ExplanationDisplay` does so.

        Raises
        ------
        ImportError
            If captum isn't installed.
        NotFittedError
            If the estimator isn't fitted.
        ValueError
            If the method, `target` or X is not as it must be; or "grad_cam" is to explain a
            network that has no maps or tokens between its stages.

        References
        ----------
        .. [1] R. Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via
           Gradient-based Localization (2017), arXiv:1610.02391.
        .. [2] M. Sundararajan et al., Axiomatic Attribution for Deep Networks (2017),
           arXiv:1703.01365.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sktl import PretrainedImageClassifier
        >>> X, y = load_digits(return_X_y=True)
        >>> clf = PretrainedImageClassifier(image_size=64).fit(X[:100], y[:100])
        >>> clf.explain(X[100:104]).shape
        (4, 64, 64)
        """
        images = self._open_to_explain(X, method)
        if target is None:
            targets = self._outputs(X).argmax(axis=1)
        else:
            labels = np.full(len(images), target) if np.ndim(target) == 0 else target
            targets = class_numbers("target", labels, self.classes_)
            check_consistent_length(np.empty(len(images)), targets)
        return explain_images(self._model, images, targets, method)

    @property
    def multilabel_(self) -> bool:
        """Whether it was fitted to several labels, of which an image has any number."""
        check_is_fitted(self)
        return isinstance(self._model.target, Indicators)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _set_fitted(self, fit: Fit, given: Given, partial: bool) -> None:
        super()._set_fitted(fit, given, partial)
        self._sample = None if partial else fit.sample  # a part may lack whole classes
        self.__dict__.pop("adaptation_", None)

    def _fact_of_y(self) -> tuple[str, str]:
        return "Labels" if self.multilabel_ else "Classes", listed(self.classes_.tolist())

    def _store(self, state: dict[str, Any], pack: Packer) -> dict[str, Any]:
        state = super()._store(state, pack)
        if "adaptation_" in state:
            state["adaptation_"] = dict(state["adaptation_"])
        sample = self._sample and {k: np.asarray(v) for k, v in vars(self._sample).items()}
        return state | {"_sample": sample}

    def _restore(self, state: dict[str, Any]) -> dict[str, Any]:
        state = super()._restore(state)
        if "_model" in state:
            state["_sample"] = _restore_sample(state.get("_sample"))
        if "adaptation_" in state:
            state["adaptation_"] = Bunch(**{"adapted": True} | state["adaptation_"])
        return state


def _warn_of_constant_labels(indicators: npt.NDArray[np.uint8]) -> None:
    """Warn of labels that nothing can be learned of, as scikit-learn's OneVsRestClassifier does."""
    counts = indicators.sum(axis=0, dtype=np.int64)
    for who, n in (("No image has", 0), ("All images have", len(indicators))):
        labels = np.flatnonzero(counts == n).tolist()
        if labels:
            warnings.warn(
                f"{who} the labels {shown_several(labels)}, counted from 0; what tells them can't "
                "be learned.",
                UserWarning,
                stacklevel=9,
            )


def _restore_sample(stored: dict[str, Any] | None) -> LabelledFeatures | None:
    if stored is None:
        return None
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in stored.items() if k != "n_classes"}
    return LabelledFeatures(**tensors, n_classes=int(stored["n_classes"]))
