"""What the regressor can't learn from is one clear error, and changes nothing."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse
from sklearn.metrics import r2_score

import sktl
from sktl import PretrainedImageClassifier, PretrainedImageRegressor

pytestmark = pytest.mark.usefixtures("one_thread")


def make(**params):
    settings = {"image_size": 32, "precision": "float32", "random_state": 0}
    return PretrainedImageRegressor(**(settings | params))


BAD = {
    "NaN": ([1.0, np.nan, 2.0], ValueError, "Input y contains NaN"),
    "infinity": ([1.0, np.inf, 2.0], ValueError, "Input y contains infinity"),
    "None": ([1.0, None, 2.0], ValueError, "Input y contains None"),
    "no y": (None, ValueError, "requires y to be passed, but the target y is None"),
    "text": (["a", "b", "c"], ValueError, "y holds 'a', but .* For classes, use"),
    "text of numbers": (["1", "2", "3"], ValueError, "y holds '1'"),
    "text among numbers": ([1.0, "2", 3.0], ValueError, "y holds '2'"),
    "objects of text": (np.array([1, "b", 2], dtype=object), ValueError, "y holds 'b'"),
    "bytes": (np.array([b"a", b"b", b"c"]), ValueError, "y holds"),
    "categories": (pd.Categorical(["a", "b", "c"]), ValueError, "y holds 'a'"),
    "dates": (pd.date_range("2020-01-01", periods=3), ValueError, "y holds"),
    "complex": (np.array([1j, 2, 3]), ValueError, "Complex data not supported"),
    "sparse": (sparse.csr_array([[1.0], [2.0], [3.0]]), TypeError, "y is sparse.*toarray"),
    "three dimensions": (np.zeros((3, 2, 2)), ValueError, r"y has shape \(3, 2, 2\)"),
    "no columns": (np.zeros((3, 0)), ValueError, r"y has shape \(3, 0\)"),
    "ragged": ([[1.0], [1.0, 2.0], [3.0]], ValueError, "inhomogeneous|can't be read"),
    "dicts": ([{}, {}, {}], ValueError, "can't be read as numbers"),
    "missing value of pandas": (
        pd.array([1, None, 2]),
        ValueError,
        "read as numbers|NaN",
    ),
    "too few": ([1.0, 2.0], ValueError, "inconsistent numbers of samples"),
    "too many": ([1.0, 2.0, 3.0, 4.0], ValueError, "inconsistent numbers of samples"),
    "too large": ([1e308, -1e308, 1e308], ValueError, "too large for float64"),
}


@pytest.mark.parametrize(("y", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_y_is_refused(digits, y, kind, message):
    reg = make()
    with pytest.raises(kind, match=message):
        reg.fit(digits[0][:3], y)
    assert not reg.__sklearn_is_fitted__()
    assert set(vars(reg)) == set(reg.get_params())


@pytest.mark.parametrize("y", [value for value, _, _ in BAD.values()], ids=BAD)
def test_a_fitted_one_stays_as_it_was(digits, y):
    X, numbers = digits[0][:3], [1.0, 2.0, 4.0]
    reg = make().fit(X, numbers)
    before = reg.predict(X)
    with pytest.raises((ValueError, TypeError)):
        reg.fit(X, y)
    np.testing.assert_array_equal(reg.predict(X), before)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"weight_decay": "gcv"}, "'weight_decay' parameter .*'auto'"),
        ({"weight_decay": -1.0}, "'weight_decay' parameter"),
        ({"criterion": "cross_entropy"}, "'criterion' parameter .*'huber', 'mae', 'mse'"),
    ],
)
def test_bad_parameters_are_refused(digits, params, message):
    with pytest.raises(ValueError, match=message):
        make(**params).fit(digits[0][:3], [1.0, 2.0, 3.0])


def test_what_only_classes_have_is_not_a_parameter():
    classifier = set(PretrainedImageClassifier().get_params())
    regressor = set(PretrainedImageRegressor().get_params())
    assert classifier - regressor == {"class_weight", "label_smoothing"}
    assert regressor - classifier == set()


@pytest.mark.parametrize("weights", [[0, 0, 0], [-1, 1, 1], [1, 1], [np.nan, 1, 1]])
def test_bad_weights_are_refused(digits, weights):
    with pytest.raises(ValueError, match="sample_weight"):
        make().fit(digits[0][:3], [1.0, 2.0, 3.0], weights)


def test_files_that_can_not_be_read(tmp_path, photographs):
    paths = []
    for i, photograph in enumerate(photographs[0]):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(photograph).save(paths[-1])
    y = photographs[0].mean((1, 2, 3))
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(sktl.UnreadableImagesError):
        make().fit(paths, y)
    reg = make(on_error="skip")
    with pytest.warns(sktl.UnreadableImageWarning):
        reg.fit(paths, y)
    assert reg.skipped_.tolist() == [0]
    with pytest.warns(sktl.UnreadableImageWarning):
        predicted = reg.predict(paths)
    assert np.flatnonzero(np.isnan(predicted)).tolist() == [0]
    with pytest.warns(sktl.UnreadableImageWarning):
        score = reg.score(paths, y, np.ones(len(y)))
    assert score == pytest.approx(r2_score(y[1:], predicted[1:]))
    with pytest.warns(sktl.UnreadableImageWarning), pytest.raises(ValueError, match="no score"):
        reg.score(paths[:1], y[:1])
