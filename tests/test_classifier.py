"""PretrainedImageClassifier as a user sees it: what goes in and what comes out."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone

from sktl import PretrainedImageClassifier

SIZE = 32


pytestmark = pytest.mark.usefixtures("one_thread")


def make(**params):
    settings = {"image_size": SIZE, "random_state": 0, "precision": "float32"}
    return PretrainedImageClassifier(**(settings | params))


@pytest.fixture(scope="module")
def rows(digits):
    """30 digits of three classes, as rows of 64 values from 0 to 16."""
    X, y = digits
    return X[:30], y[:30] % 3


@pytest.fixture(scope="module")
def expected(rows):
    """Predictions for the rows, whatever they are wrapped in."""
    return make().fit(*rows).predict_proba(rows[0])


# Outputs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(rows):
    return make().fit(rows[0], np.array(["a", "b", "c"])[rows[1]])


@pytest.fixture(scope="module")
def two(rows):
    return make().fit(rows[0], rows[1] > 0)


def test_outputs_of_three_classes(three, rows):
    X, y = rows
    proba, decision = three.predict_proba(X), three.decision_function(X)
    assert list(three.classes_) == ["a", "b", "c"]
    assert proba.shape == decision.shape == (30, 3)
    assert proba.dtype == decision.dtype == np.float64
    assert proba.sum(1) == pytest.approx(np.ones(30), abs=1e-12)
    assert (proba > 0).all()
    assert three.predict_log_proba(X) == pytest.approx(np.log(proba), abs=1e-9)
    assert np.array_equal(decision.argmax(1), proba.argmax(1))
    assert np.array_equal(three.predict(X), three.classes_[proba.argmax(1)])
    assert three.score(X, np.array(["a", "b", "c"])[y]) == 1
    softmax = np.exp(decision) / np.exp(decision).sum(1, keepdims=True)
    assert proba == pytest.approx(softmax, abs=1e-9)


def test_outputs_of_two_classes(two, rows):
    X, y = rows
    proba, decision = two.predict_proba(X), two.decision_function(X)
    assert list(two.classes_) == [False, True]
    assert proba.shape == (30, 2)
    assert decision.shape == (30,)
    assert proba[:, 1] == pytest.approx(1 / (1 + np.exp(-decision)), abs=1e-9)
    assert np.array_equal(two.predict(X), decision > 0)
    assert two.predict(X).dtype == bool
    assert two.score(X, y > 0) == 1


def test_log_probabilities_of_a_sure_model_are_finite(rows):
    """Where the probability itself would be rounded to 0."""
    clf = make(weight_decay=0, optimizer="sgd", lr=1e3, max_epochs=40).fit(*rows)
    log_proba = clf.predict_log_proba(rows[0])
    assert log_proba.min() < -800
    assert np.isfinite(log_proba).all()


def test_fitted_attributes(three, rows):
    assert three.n_features_in_ == 64
    assert not hasattr(three, "feature_names_in_")
    assert three.stages_ == ["stem", *(f"features.{i}" for i in range(1, 8))]
    assert three.freeze_ == 8
    assert three.pixel_range_ == (0, 16)
    assert three.device_ == torch.device("cpu") or three.device_.type != "cpu"
    assert three.precision_ == "float32"
    assert three.n_iter_ >= 1
    assert len(three.history_) == 1
    assert three.fit(*rows) is three


def test_a_fit_forgets_the_one_before(rows, photographs):
    clf = make().fit(pd.DataFrame(rows[0], columns=[f"p{i}" for i in range(64)]), rows[1])
    assert clf.n_features_in_ == len(clf.feature_names_in_) == 64
    clf.fit(*photographs)
    assert not hasattr(clf, "n_features_in_")
    assert not hasattr(clf, "feature_names_in_")
    assert clf.pixel_range_ == (0, 255)
    assert list(clf.classes_) == [0, 1]


@pytest.mark.parametrize(
    ("params", "width"),
    [({}, 1664), ({"head": (16,)}, 1280), ({"pooling": "avg"}, 1280)],
)
def test_transform(rows, params, width):
    X, y = rows
    clf = make(**params, max_epochs=200).fit(X, y)
    features = clf.transform(X)
    assert features.shape == (30, width)
    assert features.dtype == np.float32
    assert features.std() > 0
    names = clf.get_feature_names_out()
    sides = {"features.4": 80, "features.5": 112, "features.6": 192} if width == 1664 else {}
    widths = sides | {"penultimate": 1280}
    assert list(names) == [f"{name}_{i}" for name, n in widths.items() for i in range(n)]
    head = clf.net_.module_.head
    with torch.no_grad():
        logits = head(torch.from_numpy(features).to(head[-1].weight.dtype)).numpy()
    assert clf.decision_function(X) == pytest.approx(logits, abs=1e-4)


def test_transform_after_training_stages(rows):
    X, y = rows
    clf = make(freeze=-1, max_epochs=1).fit(X, y)
    assert clf.transform(X).shape == (30, 1280)
    untrained = make(pooling="network").fit(X, y).transform(X)
    assert not np.allclose(clf.transform(X), untrained, atol=1e-4)


def test_one_image_at_a_time(three, rows):
    X = rows[0][:3]
    one_by_one = np.concatenate([three.predict_proba(X[[i]]) for i in range(3)])
    assert one_by_one == pytest.approx(three.predict_proba(X), abs=1e-6)


# Labels -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        list,
        tuple,
        pd.Series,
        torch.tensor,
        lambda y: y.astype(np.float32),
        lambda y: y.astype(np.uint8),
        lambda y: pd.Series(y, dtype="Int64", index=range(100, 130)),
        lambda y: pd.Series(y, dtype="category"),
    ],
)
def test_labels_in_other_containers(rows, expected, wrap):
    X, y = rows
    clf = make().fit(X, wrap(y))
    assert list(clf.classes_) == [0, 1, 2]
    assert np.array_equal(clf.predict_proba(X), expected)


@pytest.mark.parametrize(
    "names",
    [
        np.array(["a", "b", "c"]),
        np.array(["a", "b", "c"], dtype=object),
        np.array([-5, 0, 7]),
        pd.Series(["a", "b", "c"], dtype="string"),
    ],
)
def test_labels_of_other_kinds(rows, expected, names):
    X, y = rows
    clf = make().fit(X, names[y])
    assert list(clf.classes_) == list(names)
    assert np.array_equal(clf.predict_proba(X), expected)
    assert list(clf.predict(X)) == list(names[y])


def test_a_column_of_labels_warns(rows, expected):
    X, y = rows
    with pytest.warns(UserWarning, match="column-vector y"):
        clf = make().fit(X, y[:, None])
    assert np.array_equal(clf.predict_proba(X), expected)


# Images -------------------------------------------------------------------------------

OF_ROWS = {
    "DataFrame": pd.DataFrame,
    "list of lists": lambda X: X.tolist(),
    "tensor": torch.tensor,
    "Fortran order": np.asfortranarray,
    "float32": lambda X: X.astype(np.float32),
    "float16": lambda X: X.astype(np.float16),
    "int64": lambda X: X.astype(np.int64),
    "(n, h, w)": lambda X: X.reshape(-1, 8, 8),
    "(n, h, w, 1)": lambda X: X.reshape(-1, 8, 8, 1),
    "(n, 1, h, w)": lambda X: X.reshape(-1, 1, 8, 8),
    "(n, h, w, 3)": lambda X: np.repeat(X.reshape(-1, 8, 8, 1), 3, axis=3),
    "(n, 3, h, w) tensor": lambda X: torch.tensor(X).reshape(-1, 1, 8, 8).repeat(1, 3, 1, 1),
    "list of images": lambda X: list(X.reshape(-1, 8, 8)),
    "list of tensors": lambda X: list(torch.tensor(X).reshape(-1, 8, 8)),
}


@pytest.mark.parametrize("name", OF_ROWS)
def test_containers_of_numbers(rows, expected, name):
    X, y = rows
    wrapped = OF_ROWS[name](X)
    clf = make().fit(wrapped, y)
    assert clf.pixel_range_ == (0, 16)
    assert clf.predict_proba(wrapped) == pytest.approx(expected, abs=1e-6)
    if "(n" not in name and "images" not in name and "tensors" not in name:
        assert clf.n_features_in_ == 64


def test_predicting_from_another_container(three, rows):
    X = rows[0]
    of_rows = three.predict_proba(X)
    for name, wrap in OF_ROWS.items():
        assert three.predict_proba(wrap(X)) == pytest.approx(of_rows, abs=1e-6), name


@pytest.mark.parametrize(
    ("scale", "pixel_range"),
    [(1 / 16, (0, 1)), (255 / 16, (0, 255)), (65535 / 16, (0, 65535)), (1, (0, 16))],
)
def test_ranges_of_numbers(rows, expected, scale, pixel_range):
    X, y = rows
    clf = make().fit(X * scale, y)
    assert clf.pixel_range_ == pixel_range
    assert clf.predict_proba(X * scale) == pytest.approx(expected, abs=1e-6)
    half = make(pixel_range=(0, 2 * pixel_range[1])).fit(X * scale, y)
    assert half.pixel_range_ == (0, 2 * pixel_range[1])
    assert half.predict_proba(X * scale) != pytest.approx(expected, abs=1e-4)


def test_the_range_is_kept_for_predict(three, rows):
    """Darker pictures stay darker, though their own values would fit a smaller range."""
    dark = rows[0] / 16
    alone = make().fit(dark, rows[1]).predict_proba(dark)
    assert three.predict_proba(dark) != pytest.approx(alone, abs=1e-2)


@pytest.fixture(scope="module")
def files(photographs, tmp_path_factory):
    """The photographs as lossless files, of several formats."""
    folder = tmp_path_factory.mktemp("photographs")
    paths = []
    for i, image in enumerate(photographs[0]):
        path = folder / f"{i}.{('png', 'bmp', 'tiff', 'webp')[i % 4]}"
        Image.fromarray(image).save(path, **({"lossless": True} if i % 4 == 3 else {}))
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def of_photographs(photographs):
    return make().fit(*photographs).predict_proba(photographs[0])


def rgba(X):
    return np.concatenate([X, np.full((*X.shape[:3], 1), 255, np.uint8)], axis=3)


def object_array(items):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


OF_PHOTOGRAPHS = {
    "(n, 3, h, w)": lambda X: X.transpose(0, 3, 1, 2),
    "tensor": lambda X: torch.tensor(X).permute(0, 3, 1, 2).contiguous(),
    "[0, 1]": lambda X: X / 255,
    "float32": lambda X: X.astype(np.float32),
    "RGBA": rgba,
    "rows": lambda X: X.reshape(len(X), -1),
    "list": list,
    "tuple of tensors": lambda X: tuple(torch.tensor(X)),
    "object array": lambda X: object_array(list(X)),
    "PIL": lambda X: [Image.fromarray(x) for x in X],
    "PIL and arrays": lambda X: [Image.fromarray(X[0]), *X[1:]],
    "PIL RGBA": lambda X: [Image.fromarray(x) for x in rgba(X)],
}


@pytest.mark.parametrize("name", OF_PHOTOGRAPHS)
def test_containers_of_photographs(photographs, of_photographs, name):
    X, y = photographs
    wrapped = OF_PHOTOGRAPHS[name](X)
    proba = make().fit(wrapped, y).predict_proba(wrapped)
    assert proba == pytest.approx(of_photographs, abs=1e-5)


OF_PATHS = {
    "Path": list,
    "str": lambda paths: [str(path) for path in paths],
    "array of str": lambda paths: np.array([str(path) for path in paths]),
    "object array": object_array,
    "column": lambda paths: np.array([[str(path)] for path in paths]),
    "Series": lambda paths: pd.Series([str(p) for p in paths], index=range(50, 62)),
    "DataFrame": lambda paths: pd.DataFrame({"path": [str(path) for path in paths]}),
}


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize("name", OF_PATHS)
def test_containers_of_paths(photographs, files, of_photographs, name, n_jobs):
    X = OF_PATHS[name](files)
    clf = make(n_jobs=n_jobs).fit(X, photographs[1])
    assert not hasattr(clf, "n_features_in_")
    assert clf.predict_proba(X) == pytest.approx(of_photographs, abs=1e-5)
    assert clf.predict_proba(photographs[0]) == pytest.approx(of_photographs, abs=1e-5)


def test_images_of_differing_sizes(photographs):
    """Each is seen as it would be alone."""
    X, y = photographs
    cut = [image[: 240 - 10 * i, : 100 + 10 * i] for i, image in enumerate(X)]
    clf = make().fit(cut, y)
    proba = clf.predict_proba(cut)
    alone = np.concatenate([clf.predict_proba(image[np.newaxis]) for image in cut])
    assert proba == pytest.approx(alone, abs=1e-5)
    assert clf.score(cut, y) == 1


def test_grey_images(photographs):
    X, y = photographs
    pictures = [Image.fromarray(image).convert("L") for image in X]
    grey = np.stack([np.asarray(picture) for picture in pictures])
    as_colour = np.repeat(grey[..., np.newaxis], 3, axis=3)
    proba = make().fit(grey, y).predict_proba(grey)
    assert make().fit(pictures, y).predict_proba(pictures) == pytest.approx(proba, abs=1e-5)
    assert make().fit(as_colour, y).predict_proba(as_colour) == pytest.approx(proba, abs=1e-5)
    colour = make().fit(X, y).predict_proba(X)
    assert colour != pytest.approx(proba, abs=1e-4)


def test_rows_of_a_given_shape(photographs):
    X, y = photographs
    X = np.ascontiguousarray(X[:, ::4, ::6].transpose(0, 3, 1, 2))  # (n, 3, 60, 40)
    flat = X.reshape(12, -1)
    clf = make(image_shape=(3, 60, 40)).fit(flat, y)
    proba = make().fit(X, y).predict_proba(X)
    assert clf.predict_proba(flat) == pytest.approx(proba, abs=1e-5)
    assert clf.predict_proba(X) == pytest.approx(proba, abs=1e-5)
    planes = make(image_shape=[60, 120]).fit(flat, y).predict_proba(flat)
    assert planes != pytest.approx(proba, abs=1e-4)


def test_X_is_not_changed(photographs, rows):
    for X, y in (photographs, rows):
        before = X.copy()
        make(freeze=0, max_epochs=1, backbone="resnet18", weights=None).fit(X, y).predict(X)
        assert np.array_equal(X, before)


# Cache and precision ------------------------------------------------------------------


@pytest.mark.parametrize("params", [{}, {"freeze": -1, "max_epochs": 1}])
def test_with_a_cache_and_without(photographs, tmp_path, params):
    X, y = photographs
    proba = {}
    for name, cache in [("none", None), ("memory", "memory"), ("new", tmp_path), ("old", tmp_path)]:
        clf = make(cache=cache, **params).fit(X, y)
        proba[name] = clf.predict_proba(X)
    assert proba["memory"] == pytest.approx(proba["none"], abs=1e-5)
    assert proba["new"] == pytest.approx(proba["none"], abs=1e-5)
    assert np.array_equal(proba["old"], proba["new"])
    assert any(tmp_path.iterdir())


def test_a_cached_fit_gives_the_same_twice(photographs):
    X, y = photographs
    order = np.random.RandomState(0).permutation(len(y))
    clf = make().fit(X, y)
    shuffled = make().fit(X[order], y[order])
    assert np.array_equal(clone(clf).fit(X, y).predict_proba(X), clf.predict_proba(X))
    assert shuffled.predict_proba(X) == pytest.approx(clf.predict_proba(X), abs=1e-5)


def test_bfloat16_is_near(photographs):
    X, y = photographs
    half = make(precision="bfloat16").fit(X, y)
    full = make().fit(X, y)
    assert half.precision_ == "bfloat16"
    assert half.predict_proba(X) == pytest.approx(full.predict_proba(X), abs=0.1)
    assert not np.array_equal(half.transform(X), full.transform(X))


# Other networks -----------------------------------------------------------------------


def test_the_vgg16_recipe(digits):
    X, y = digits[0][:16], digits[1][:16] % 2
    clf = PretrainedImageClassifier(
        "vgg16", weights=None, pooling="flatten", head=(1024,), optimizer="adam",
        image_size=64, max_epochs=3, random_state=0,
    )  # fmt: skip
    clf.fit(X, y)
    layers = [m for m in clf.net_.module_.head if isinstance(m, torch.nn.Linear)]
    # 512 maps of 2 x 2 pixels; at 224 pixels 7 x 7
    assert [(m.in_features, m.out_features) for m in layers] == [(2048, 1024), (1024, 2)]
    assert type(clf.net_.optimizer_) is torch.optim.Adam
    assert clf.transform(X).shape == (16, 2048)
    assert clf.n_iter_ == 3
    assert clf.predict_proba(X).shape == (16, 2)
    assert clf.history_[-1]["train_loss"] < clf.history_[0]["train_loss"]


def squeezenet():
    from torchvision.models import squeezenet1_1

    return squeezenet1_1(weights=None)


def test_a_network_that_a_callable_makes(photographs):
    X, y = photographs
    by_callable, by_name = (
        make(backbone=backbone, weights=None, image_size=64).fit(X, y).transform(X)
        for backbone in (squeezenet, "squeezenet1_1")
    )
    assert by_callable.shape[1] >= 512
    assert by_callable == pytest.approx(by_name, abs=1e-4)  # one seed, so the same weights
