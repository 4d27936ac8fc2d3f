"""What can't work is one clear error, and changes nothing."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from skorch.callbacks import Callback, EarlyStopping, InputShapeSetter
from torch import nn

from sktl import PretrainedImageClassifier, PretrainedImageFeatures
from sktl.constraints import InvalidParameterError
from sktl.images.errors import UnreadableImagesError

N = 24
SIZE = 32


@pytest.fixture(scope="module")
def rows(digits):
    X, y = digits
    return X[:N], y[:N] % 3


@pytest.fixture(scope="module")
def fitted(rows):
    return PretrainedImageClassifier(image_size=SIZE).fit(*rows)


@pytest.fixture(scope="module")
def fitted_proba(fitted, rows):
    return fitted.predict_proba(rows[0])


def learned(estimator):
    """All attributes but the parameters."""
    params = estimator.get_params(deep=False)
    return {name: value for name, value in vars(estimator).items() if name not in params}


def assert_says(error, words):
    for word in words:
        assert re.search(word, str(error)), f"{word!r} is not in: {error}"


@pytest.fixture
def refuses(rows, fitted, fitted_proba):
    """Check that a fit fails as it should, on a fresh and on a fitted estimator."""

    def check(error, words, X=rows[0], y=rows[1], sample_weight=None, **params):
        fresh = PretrainedImageClassifier(**{"image_size": SIZE, **params})
        with pytest.raises(error) as caught:
            fresh.fit(X, y, sample_weight=sample_weight)
        assert type(caught.value) is not RuntimeError
        assert_says(caught.value, words)
        assert learned(fresh) == {}
        with pytest.raises(NotFittedError):
            fresh.predict(rows[0])

        before, good = learned(fitted), fitted.get_params(deep=False)
        fitted.set_params(**params)
        try:
            with pytest.raises(error):
                fitted.fit(X, y, sample_weight=sample_weight)
        finally:
            fitted.set_params(**good)
        assert learned(fitted).keys() == before.keys()
        assert all(value is before[name] for name, value in learned(fitted).items())
        assert np.array_equal(fitted.predict_proba(rows[0]), fitted_proba)

    return check


# X and y ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("X", "y"),
    [
        (np.empty((0, 64)), []),
        (np.empty((0, 8, 8)), np.empty(0)),
        (np.empty((0, 8, 8, 3), dtype=np.uint8), np.empty(0, dtype=int)),
        ([], []),
        (np.empty(0, dtype=object), []),
        (pd.DataFrame({"path": []}), pd.Series([], dtype=str)),
    ],
)
def test_empty_X(refuses, X, y):
    refuses(ValueError, ["0 sample", "minimum of 2"], X=X, y=y)


@pytest.mark.parametrize("container", [np.asarray, list, pd.DataFrame])
def test_lengths_that_differ(refuses, rows, container):
    X = rows[0].reshape(-1, 8, 8) if container is list else rows[0]
    refuses(
        ValueError, ["inconsistent numbers of samples", r"\[24, 5\]"], X=container(X), y=[0] * 5
    )


def broken(X, value):
    X = X.copy()
    X[3, 4] = value
    return X


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity")])
@pytest.mark.parametrize("kind", ["rows", "arrays", "list", "tensor"])
def test_nan_and_infinity(refuses, rows, value, word, kind):
    X = broken(rows[0], value)
    shaped = X.reshape(-1, 8, 8)
    X = {"rows": X, "arrays": shaped, "list": list(shaped), "tensor": torch.tensor(shaped)}[kind]
    refuses(ValueError, ["Input X contains", f"{word}|infinity"], X=X)


ZERO_PIXELS = [
    np.zeros((N, 0, 8)),
    np.zeros((N, 8, 0, 3), dtype=np.uint8),
    [np.zeros((0, 8))] * N,
    [Image.new("L", (0, 8))] * N,
]


@pytest.mark.parametrize("X", ZERO_PIXELS)
def test_images_without_pixels(refuses, X):
    refuses(ValueError, [r"X\[0\] has no pixels"], X=X)


@pytest.mark.parametrize(
    ("X", "error", "words"),
    [
        (["a.png", *[np.zeros((8, 8))] * 23], TypeError, ["a.png", r"\(8, 8\)", "Pass paths only"]),
        ([Image.new("L", (8, 8)), *["b.png"] * 23], TypeError, ["Image", "b.png", "Pass paths"]),
        ("flower.png", ValueError, ["single sample, 'flower.png'", "Put it in a list"]),
        (Image.new("L", (8, 8)), ValueError, ["single sample", "Put it in a list"]),
        (np.zeros((N, 5, 8, 8)), ValueError, [r"\(24, 5, 8, 8\)", "1, 3 or 4 channels"]),
        (np.zeros((N, 50)), ValueError, ["50", "image_shape"]),
        (np.zeros((75, 19, 3)), ValueError, ["75 grey pictures", r"\[image\]", "24 rows"]),
        (np.zeros((75, 19, 4)), ValueError, ["75 grey pictures", r"\[image\]", "24 rows"]),
        (np.zeros(N), ValueError, ["Expected 2D array", "Reshape your data"]),
        (np.zeros((N, 1, 1, 1, 1)), ValueError, ["dim 5"]),
        (np.zeros((N, 8, 8), dtype=complex), ValueError, ["Complex data not supported"]),
        (np.full((N, 4), "a"), ValueError, ["[Cc]onvert your data to numeric"]),
        (5, TypeError, ["Expected sequence or array-like"]),
    ],
)
def test_X_that_holds_no_images(refuses, X, error, words):
    refuses(error, words, X=X)


@pytest.mark.parametrize(
    ("y", "error", "words"),
    [
        (None, ValueError, ["requires y", "None"]),
        ([7] * N, ValueError, [r"one class only, \[7\]", "at least 2 classes"]),
        (2 * np.eye(N, 3), ValueError, [r"\(24, 3\)", "0 or 1", "MultiOutputClassifier"]),
        (np.linspace(0, 1, N), ValueError, ["continuous"]),
        (np.array([0.0, np.nan] * 12), ValueError, ["y contains NaN"]),
        (np.array([0.0, np.inf] * 12), ValueError, ["y contains infinity"]),
        ([0, None] * 12, ValueError, ["y contains None", "Leave out"]),
        (["cat", None] * 12, ValueError, ["y contains None", "Leave out"]),
        (np.array(["cat", np.nan] * 12, dtype=object), ValueError, ["contains nan", "Leave out"]),
        (pd.Series(["cat", None] * 12, dtype="string"), ValueError, ["contains <NA>", "Leave out"]),
        (pd.Series([1, None] * 12, dtype="Int64"), ValueError, ["y contains NaN"]),
        (["cat", 1] * 12, TypeError, [r"mixes text with 1 \(int\)", "one kind"]),
        (np.array([1, "cat"] * 12, dtype=object), TypeError, [r"text with 1 \(int\)", "one kind"]),
        (np.zeros((N, 1, 1)), ValueError, ["dim"]),
        (3, TypeError, ["array-like"]),
    ],
)
def test_bad_y(refuses, y, error, words):
    refuses(error, words, y=y)


@pytest.mark.parametrize(
    ("sample_weight", "words"),
    [
        (-np.ones(N), ["[Nn]egative", "sample_weight"]),
        (np.full(N, np.nan), ["sample_weight contains NaN"]),
        (np.full(N, np.inf), ["sample_weight contains infinity"]),
        (np.ones(5), [r"\(5,\)", r"\(24,\)"]),
        (np.ones((N, 2)), ["1D array"]),
        (np.zeros(N), ["[Ss]ample.weight", "at least one"]),
    ],
)
def test_bad_sample_weight(refuses, sample_weight, words):
    refuses(ValueError, words, sample_weight=sample_weight)


# Files --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(photographs, tmp_path_factory):
    """12 good files, and labels."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{i}.png" for i in range(12)]
    for image, path in zip(photographs[0], paths, strict=True):
        Image.fromarray(image[:64, :64]).save(path)
    return paths, photographs[1]


@pytest.fixture(scope="module")
def bad_files(pictures, tmp_path_factory):
    """A file that isn't there, one of text, a truncated one and a folder, with the reasons."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.png").write_text("not a picture")
    whole = pictures[0][0].read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    return {
        str(folder / "missing.png"): "No such file",
        str(folder / "text.png"): "not an image",
        str(folder / "truncated.png"): "truncated",
        str(folder / "empty.jpg"): "not an image",
        str(folder): "is a directory",
    }


@pytest.mark.parametrize("freeze", ["all", "none"])
@pytest.mark.parametrize("i", range(5))
def test_one_bad_file(refuses, pictures, bad_files, i, freeze):
    paths, y = pictures
    path, reason = list(bad_files.items())[i]
    X = [*paths[:-1], path]
    words = ["1 image in X can't be read", f"{re.escape(path)}: .*{reason}", "Mend them"]
    refuses(UnreadableImagesError, words, X=X, y=y, freeze=freeze)


@pytest.mark.parametrize("cache", ["memory", None])
def test_all_bad_files_are_named(refuses, pictures, bad_files, cache):
    paths, y = pictures
    without_missing = [path for path in bad_files if "missing" not in path]
    for bad in (list(bad_files), without_missing[:-1]):  # found when opened, when decoded
        X = [bad[0], *paths[: 12 - len(bad)], *bad[1:]]
        words = [f"{len(bad)} images in X can't be read", *map(re.escape, bad)]
        refuses(UnreadableImagesError, words, X=X, y=y, cache=cache)


def test_ten_of_many_bad_files_are_named(pictures, tmp_path):
    paths, y = pictures
    bad = [str(tmp_path / f"gone{i}.png") for i in range(13)]
    clf = PretrainedImageClassifier(image_size=SIZE)
    with pytest.raises(ValueError) as caught:
        clf.fit([*paths, *bad], [*y, *[0] * 13])
    text = str(caught.value)
    assert text.startswith("13 images in X can't be read")
    assert [path in text for path in bad] == [True] * 10 + [False] * 3
    assert "and 3 more" in text
    assert len(caught.value.files) == 13


def test_a_bad_file_in_predict(fitted, pictures, bad_files):
    for path in bad_files:
        with pytest.raises(UnreadableImagesError, match=re.escape(path)):
            fitted.predict([pictures[0][0], path])


# Parameters ---------------------------------------------------------------------------


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


# Predicting ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["predict", "predict_proba", "predict_log_proba", "decision_function", "transform"]
)
def test_not_fitted(rows, method):
    clf = PretrainedImageClassifier(image_size=SIZE)
    with pytest.raises(NotFittedError, match="PretrainedImageClassifier.*not fitted.*'fit'"):
        getattr(clf, method)(rows[0])
    with pytest.raises(NotFittedError):
        clf.score(*rows)
    with pytest.raises(NotFittedError):
        clf.get_feature_names_out()


@pytest.fixture(scope="module")
def fitted_to(rows):
    """Classifiers fitted to the same pictures in other containers."""
    X, y = rows
    grey = np.rint(X.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    kinds = {"rows": X, "uint8": grey, "sixteen": X.reshape(-1, 8, 8)}
    return {
        kind: PretrainedImageClassifier(image_size=SIZE).fit(data, y)
        for kind, data in kinds.items()
    }


@pytest.mark.parametrize(
    ("kind", "X", "words"),
    [
        ("rows", np.zeros((2, 49)), ["49 features", "64 features"]),
        ("rows", np.empty((0, 64)), ["0 sample"]),
        ("rows", np.full((2, 64), np.nan), ["NaN"]),
        ("uint8", np.zeros((2, 64)), ["fit saw arrays", "Set image_shape"]),
        ("uint8", np.zeros((2, 8, 8)), ["float64", "8-bit", "set pixel_range"]),
        ("uint8", [np.zeros((8, 8))], ["float64", "8-bit", "set pixel_range"]),
        ("uint8", [], ["0 sample"]),
        ("sixteen", np.zeros((2, 8, 8), np.uint8), ["uint8", "from 0 to 16", "set pixel_range"]),
        ("sixteen", [np.zeros((8, 8), np.uint8)], ["uint8", "from 0 to 16", "dtype that fit saw"]),
        ("sixteen", np.zeros((2, 0, 8)), ["no pixels"]),
        ("sixteen", "flower.png", ["single sample"]),
    ],
)
def test_predicting_another_kind(fitted_to, kind, X, words):
    with pytest.raises(ValueError) as caught:
        fitted_to[kind].predict(X)
    assert_says(caught.value, words)


def test_predicting_with_other_columns(rows):
    names = [f"pixel{i}" for i in range(64)]
    X = pd.DataFrame(rows[0], columns=names)
    clf = PretrainedImageClassifier(image_size=SIZE).fit(X, rows[1])
    assert list(clf.feature_names_in_) == names
    with pytest.raises(ValueError, match="feature names should match"):
        clf.predict(X[names[::-1]])


# Training -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {"optimizer": "sgd", "lr": 1e30, "max_epochs": 3},
        {"optimizer": "sgd", "lr": 1e5, "head": (8, 8), "max_epochs": 20, "batch_size": 4},
        # The only loss is that before the only step.
        {"optimizer": "sgd", "lr": 3e38, "weight_decay": 1e3, "max_epochs": 1, "batch_size": N},
    ],
)
def test_training_that_diverges(refuses, params):
    """ValueError, as SGDClassifier and MLPClassifier of scikit-learn."""
    words = ["Training diverged", re.escape(f"lr={params['lr']:g}"), "smaller lr"]
    refuses(ValueError, words, random_state=0, **params)


class Interrupt(Callback):
    """What pressing Ctrl-C, or any trouble, looks like from inside."""

    def __init__(self, error, when):
        self.error = error
        self.when = when

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.when:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("params", [{"optimizer": "adamw", "max_epochs": 4}, {}])
def test_an_interrupted_fit(refuses, error, params):
    when = 2 if params else 1
    refuses(error, [], callbacks=[Interrupt(error, when)], **params)


def test_an_interrupt_while_early_stopping_waits(refuses):
    patient = EarlyStopping("train_loss", patience=100, sink=str)
    callbacks = [patient, Interrupt(KeyboardInterrupt, 2)]
    refuses(KeyboardInterrupt, [], callbacks=callbacks, optimizer="adamw")


def test_early_stopping_is_no_interrupt(rows):
    """It raises a KeyboardInterrupt, too; skorch means it as the regular end."""
    stopper = EarlyStopping("train_loss", patience=2, threshold=10, threshold_mode="abs", sink=str)
    clf = PretrainedImageClassifier(
        image_size=SIZE, optimizer="adamw", max_epochs=9, callbacks=[stopper], random_state=0
    )
    try:
        clf.fit(*rows)
    except KeyboardInterrupt:  # would end pytest
        pytest.fail("early stopping was taken for the user's interrupt")
    assert 2 <= clf.n_iter_ < 9
    assert len(clf.predict(rows[0])) == N
    assert clone(clf).fit(*rows).n_iter_ == clf.n_iter_


# A last batch of one image ------------------------------------------------------------


def normed(in_features, n_classes):
    return nn.Sequential(nn.BatchNorm1d(in_features), nn.Linear(in_features, n_classes))


def test_a_last_batch_of_one(rows):
    X, y = rows
    clf = PretrainedImageClassifier(
        image_size=SIZE, head=normed, batch_size=8, max_epochs=2, random_state=0
    ).fit(X[:17], y[:17])
    sizes = [batch["train_batch_size"] for batch in clf.net_.history[-1, "batches"]]
    assert sizes == [8, 9]
