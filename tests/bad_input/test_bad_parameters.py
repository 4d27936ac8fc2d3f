"""Bad parameters are one clear error, and change nothing."""

import re

import numpy as np
import pytest
import torch
from refusals import SIZE, N, assert_says, learned
from sklearn.exceptions import NotFittedError
from skorch.callbacks import InputShapeSetter
from torch import nn

from sktl import PretrainedImageClassifier, PretrainedImageFeatures
from sktl.constraints import InvalidParameterError


def no_module():
    return "resnet18"


def of_no_module(in_features, n_classes):
    return n_classes


def too_wide(in_features, n_classes):
    return nn.Linear(in_features, n_classes + 1)


def too_narrow(in_features, n_classes):
    return nn.Linear(in_features, n_classes - 1)


def other_input(in_features, n_classes):
    return nn.Linear(in_features + 1, n_classes)


INVALID = InvalidParameterError
BAD_PARAMS = [
    ("backbone", "resnt18", ValueError, ["'resnt18'", "'resnet18'", "list_backbones"]),
    ("backbone", "", ValueError, ["Unknown backbone ''", "list_backbones"]),
    ("backbone", 5, INVALID, ["backbone", "Got 5"]),
    ("backbone", None, INVALID, ["backbone", "Got None"]),
    ("backbone", no_module, TypeError, ["backbone callable", "torch.nn.Module", "got str"]),
    ("weights", "IMAGENET", ValueError, ["'IMAGENET'", "'DEFAULT'", "path"]),
    ("weights", 5, INVALID, ["weights", "Got 5"]),
    ("weights", "/nowhere/net.pth", ValueError, ["/nowhere/net.pth", "no such file"]),
    ("freeze", "layer9", ValueError, ["'layer9'", '"all"', "features.7"]),
    ("freeze", 9, ValueError, ["freeze=9", "from -8 to 8"]),
    ("freeze", -9, ValueError, ["freeze=-9", "from -8 to 8"]),
    ("freeze", 1.5, INVALID, ["freeze", '"all", "none"', "Got 1.5"]),
    ("freeze", None, INVALID, ["freeze", '"all", "none"', "Got None"]),
    ("freeze", True, INVALID, ["freeze", '"all", "none"', "Got True"]),
    ("freeze", False, INVALID, ["freeze", '"all", "none"', "Got False"]),
    ("freeze", np.True_, INVALID, ["freeze", '"all", "none"', "Got np.True_"]),
    ("head", (True,), ValueError, [r"head=\(True,\)", "positive integers"]),
    ("bands", (0, 1), ValueError, [r"\(0, 1\)", "red, green and blue"]),
    ("bands", 3, INVALID, ["bands", "Got 3"]),
    ("pooling", "max", INVALID, ["pooling", "'avg'", "Got 'max'"]),
    ("head", "mlp", INVALID, ["head", "'linear'", "Got 'mlp'"]),
    ("head", (0,), ValueError, [r"head=\(0,\)", "positive integers"]),
    ("head", (), ValueError, [r"head=\(\)", "positive integers"]),
    ("head", (64, 1.5), ValueError, [r"head=\(64, 1.5\)", "positive integers"]),
    ("head", [64], INVALID, ["head", "tuple", r"Got \[64\]"]),
    ("head", nn.Linear(8, 3), TypeError, ["head=Linear", "callable"]),
    ("head", of_no_module, TypeError, ["head callable", "torch.nn.Module", "got int"]),
    ("head", too_wide, ValueError, [r"\(n, 3\)", r"gave \(2, 4\)", "n_outputs"]),
    ("head", too_narrow, ValueError, [r"\(n, 3\)", r"gave \(2, 2\)", "n_outputs"]),
    ("head", other_input, ValueError, [r"\(n, 1280\)", "it failed", "1281"]),
    ("dropout", 1.5, INVALID, ["dropout", "Got 1.5"]),
    ("dropout", -0.5, INVALID, ["dropout", "Got -0.5"]),
    ("criterion", "mse", INVALID, ["criterion", "'cross_entropy'", "Got 'mse'"]),
    ("criterion", nn.CrossEntropyLoss(), ValueError, [r"\(24,\)", r"got \(\)", "reduction"]),
    ("label_smoothing", 1.0, INVALID, ["label_smoothing", "Got 1.0"]),
    ("label_smoothing", -0.1, INVALID, ["label_smoothing", "Got -0.1"]),
    ("class_weight", "balance", INVALID, ["class_weight", "'balanced'", "Got 'balance'"]),
    ("class_weight", [1, 1, 1], INVALID, ["class_weight", "Got"]),
    ("class_weight", {0: 1, 7: 2}, ValueError, ["class_weight", r"\[7\]", r"\[0, 1, 2\]"]),
    ("class_weight", {0: -1}, ValueError, ["class_weight", "-1 to class 0", "at least 0"]),
    ("class_weight", {0: np.nan}, ValueError, ["class_weight", "nan to class 0", "at least 0"]),
    ("class_weight", {0: 0, 1: 0, 2: 0}, ValueError, ["class_weight is zero for every image"]),
    ("optimizer", "addam", INVALID, ["optimizer", "'adam'", "Got 'addam'"]),
    ("optimizer", nn.Linear, ValueError, ["optimizer", "Linear", "torch.optim.Optimizer"]),
    ("lr", -1e-3, INVALID, ["lr", "Got -0.001"]),
    ("lr", 0, INVALID, ["lr", "Got 0"]),
    ("lr", np.nan, INVALID, ["lr", "Got nan"]),
    ("lr", "fast", INVALID, ["lr", "Got 'fast'"]),
    ("backbone_lr", -1, INVALID, ["backbone_lr", "Got -1"]),
    ("weight_decay", -1, INVALID, ["weight_decay", "Got -1"]),
    ("max_epochs", 0, INVALID, ["max_epochs", "Got 0"]),
    ("batch_size", 0, INVALID, ["batch_size", "Got 0"]),
    ("batch_size", 2.5, INVALID, ["batch_size", "Got 2.5"]),
    ("image_size", 0, INVALID, ["image_size", "Got 0"]),
    ("image_size", "64", INVALID, ["image_size", "Got '64'"]),
    ("image_shape", (4, 4), ValueError, [r"image_shape=\(4, 4\)", "16", "64"]),
    ("image_shape", (64,), ValueError, [r"\(64,\)", r"\(h, w\)"]),
    ("image_shape", (0, 8), ValueError, [r"\(0, 8\)", r"\(h, w\)"]),
    ("image_shape", (True, 64), ValueError, [r"\(True, 64\)", r"\(h, w\)"]),
    ("pixel_range", (False, True), ValueError, [r"\(False, True\)", "low < high"]),
    ("image_shape", 64, INVALID, ["image_shape", "Got 64"]),
    ("pixel_range", (16, 0), ValueError, [r"\(16, 0\)", "low < high"]),
    ("pixel_range", (0, np.inf), ValueError, [r"\(0, inf\)", "finite"]),
    ("pixel_range", 16, INVALID, ["pixel_range", "Got 16"]),
    ("cache", 5, INVALID, ["cache", "Got 5"]),
    ("precision", "float16", INVALID, ["precision", "'bfloat16'", "Got 'float16'"]),
    ("device", "gpu", ValueError, ["'gpu'", '"cuda"', '"cpu"']),
    ("device", "cuda:99", ValueError, ["'cuda:99'", "'cpu'", '"auto"']),
    ("device", 0, INVALID, ["device", "Got 0"]),
    ("n_jobs", "two", INVALID, ["n_jobs", "Got 'two'"]),
    ("n_jobs", 0, ValueError, ["n_jobs == 0"]),
    ("callbacks", 5, INVALID, ["callbacks", "list", "Got 5"]),
    ("callbacks", [5], TypeError, ["callbacks holds 5", "skorch.callbacks"]),
    ("callbacks", [("stop", print)], TypeError, ["callbacks holds", "skorch.callbacks"]),
    ("callbacks", [InputShapeSetter()], ValueError, ["InputShapeSetter", "leave the callback out"]),
    ("random_state", "lucky", INVALID, ["random_state", "Got 'lucky'"]),
    ("verbose", "loud", INVALID, ["verbose", "Got 'loud'"]),
]


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    BAD_PARAMS,
    ids=[f"{name}={str(value)[:20]}" for name, value, *_ in BAD_PARAMS],
)
def test_bad_parameter(refuses, name, value, error, words):
    refuses(error, words, **{name: value})


CONSTRAINTS = PretrainedImageClassifier._parameter_constraints
NUMBERS = [
    name for name, kinds in CONSTRAINTS.items() if not {"boolean", "verbose"} & set(map(str, kinds))
]


@pytest.mark.parametrize("value", [True, np.False_])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_bool_is_no_number(rows, name, value):
    clf = PretrainedImageClassifier(image_size=SIZE).set_params(**{name: value})
    message = rf"The '{name}' parameter .* Got {re.escape(repr(value))} instead"
    with pytest.raises(INVALID, match=message):
        clf.fit(*rows)


def test_bools_that_are_meant(rows):
    clf = PretrainedImageClassifier(image_size=SIZE, early_stopping=np.False_, verbose=False)
    assert clf.fit(*rows).classes_.tolist() == [0, 1, 2]


class Long:
    """What shows itself at length, as networks and pictures do."""

    def __repr__(self):
        return "x" * 100_000


class LongText(str):
    def __repr__(self):
        return "x" * 100_000


LONG_VALUES = [Long(), "y" * 100_000, b"z" * 100_000, list(range(100_000)), LongText("long")]


@pytest.mark.parametrize("value", LONG_VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", [*NUMBERS, "early_stopping", "warm_start", "verbose"])
def test_long_values_are_shown_in_short(rows, name, value):
    clf = PretrainedImageClassifier(image_size=SIZE).set_params(**{name: value})
    accepted = [("cache", str), ("callbacks", list)]
    if any(name == known and isinstance(value, kind) for known, kind in accepted):
        return
    with pytest.raises((TypeError, ValueError, OSError)) as caught:
        clf.fit(*rows)
    assert len(str(caught.value)) < 1000
    assert not re.search(r"([xyz])\1{64}", str(caught.value))


@pytest.mark.parametrize("value", LONG_VALUES, ids=lambda value: type(value).__name__)
def test_long_values_in_X_and_y(rows, fitted, value):
    X, y = rows
    for wrong in ([value] * N, [X[0], *[value] * 23], [(value, value)] * N, value):
        with pytest.raises((TypeError, ValueError)) as caught:
            PretrainedImageClassifier(image_size=SIZE).fit(wrong, y)
        assert len(str(caught.value)) < 5000
    for labels in ([*[value] * 12, *range(12)], [value] * N):
        with pytest.raises((TypeError, ValueError)) as caught:
            PretrainedImageClassifier(image_size=SIZE).fit(X, labels)
        assert len(str(caught.value)) < 1000
    for method in (fitted.explain, fitted.adapt):
        with pytest.raises((TypeError, ValueError)) as caught:
            method(X, method=value)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"optimizer": "lbfgs", "dropout": 0.5}, ["'lbfgs'", "dropout=0.5", "dropout=0"]),
        ({"optimizer": "lbfgs", "freeze": -1}, ["'lbfgs'", "freeze=-1", 'freeze="all"']),
        ({"optimizer": torch.optim.LBFGS, "freeze": 0}, ["LBFGS", "freeze=0", 'freeze="all"']),
        (
            {"criterion": nn.CrossEntropyLoss(reduction="none"), "label_smoothing": 0.1},
            ["label_smoothing=0.1", "CrossEntropyLoss", "label_smoothing=0"],
        ),
        (
            {"backbone": "alexnet", "weights": None, "image_size": 16},
            ["16 x 16 pixels", "another image_size"],
        ),
        (
            {"backbone": "resnet18", "weights": "IMAGENET1K_V7"},
            ["'IMAGENET1K_V7'", "'IMAGENET1K_V1'"],
        ),
    ],
)
def test_parameters_that_do_not_go_together(refuses, params, words):
    refuses(ValueError, words, **params)


def test_weights_that_are_no_state_dict(refuses, tmp_path):
    torch.save([1, 2, 3], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("list.pth", "text.pth", "text.safetensors"):
        refuses(ValueError, [name, "state dict"], weights=tmp_path / name)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    refuses(
        ValueError,
        ["other.pth", "do not fit", "missing", "unexpected"],
        weights=str(tmp_path / "other.pth"),
    )


BAD_FEATURES = [
    ("backbone", "resnt18", ValueError, ["'resnt18'", "'resnet18'"]),
    ("stage", "layer9", ValueError, ["'layer9'", "features.7"]),
    ("stage", 8, ValueError, ["stage 8", "from -8 to 7"]),
    ("stage", -9, ValueError, ["stage -9", "from -8 to 7"]),
    ("stage", 0.5, INVALID, ["stage", "Got 0.5"]),
    ("pooling", "max", INVALID, ["pooling", "Got 'max'"]),
    ("device", "gpu", ValueError, ["'gpu'"]),
    ("image_shape", (4, 4), ValueError, ["image_shape"]),
]


@pytest.mark.parametrize(("name", "value", "error", "words"), BAD_FEATURES)
def test_bad_parameter_of_the_features(rows, name, value, error, words):
    fresh = PretrainedImageFeatures(image_size=SIZE, **{name: value})
    with pytest.raises(error) as caught:
        fresh.fit(rows[0])
    assert_says(caught.value, words)
    assert learned(fresh) == {}
    with pytest.raises(NotFittedError):
        fresh.transform(rows[0])
