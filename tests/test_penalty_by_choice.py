"""weight_decay="auto" of the classifier."""

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split

import sktl
from sktl import PretrainedImageClassifier


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(
        X, y, train_size=300, test_size=500, stratify=y, random_state=0
    )
    return X, y, X_test, y_test


def make(**parameters):
    return PretrainedImageClassifier(image_size=32, random_state=0, **parameters)


@pytest.fixture(scope="module")
def fitted(digits):
    return make(weight_decay="auto").fit(*digits[:2])


def test_wrong_labels_make_it_less_sure(digits):
    X, y, X_test, y_test = digits
    y = np.where(np.random.default_rng(0).random(len(y)) < 0.2, (y + 1) % 10, y)
    usual, chosen = make().fit(X, y), make(weight_decay="auto").fit(X, y)
    loss = log_loss(y_test, chosen.predict_proba(X_test))
    assert loss < log_loss(y_test, usual.predict_proba(X_test)) - 0.05
    assert chosen.score(X_test, y_test) > usual.score(X_test, y_test)
    assert chosen.weight_decay_ > usual.weight_decay_ == 1e-3


def test_where_the_default_is_right_it_is_hardly_worse(fitted, digits):
    X, y, X_test, y_test = digits
    usual = make().fit(X, y)
    loss = log_loss(y_test, fitted.predict_proba(X_test))
    assert loss < log_loss(y_test, usual.predict_proba(X_test)) + 0.05
    assert fitted.score(X_test, y_test) > usual.score(X_test, y_test) - 0.01


def test_again_is_the_same(fitted, digits):
    again = make(weight_decay="auto", cache=None).fit(*digits[:2])
    assert again.weight_decay_ == fitted.weight_decay_
    np.testing.assert_allclose(
        again.decision_function(digits[2]), fitted.decision_function(digits[2]), atol=1e-4
    )


def test_files_keep_it(fitted, digits, tmp_path):
    fitted.save(tmp_path / "model.sktl")
    joblib.dump(fitted, tmp_path / "model.joblib")
    for loaded in (sktl.load(tmp_path / "model.sktl"), joblib.load(tmp_path / "model.joblib")):
        assert loaded.weight_decay_ == fitted.weight_decay_
        assert loaded.weight_decay == "auto"
        assert np.array_equal(loaded.predict_proba(digits[2]), fitted.predict_proba(digits[2]))


def test_stages_that_train_go_on_from_it(fitted, digits):
    X, y, _, _ = digits
    tuned = make(weight_decay="auto", freeze=-1, max_epochs=1).fit(X[:100], y[:100])
    frozen = make(weight_decay="auto", pooling="network").fit(X[:100], y[:100])
    assert tuned.weight_decay_ == frozen.weight_decay_
    assert tuned.score(X, y) > 0.5


def test_steps_alone_have_the_default(digits):
    X, y, _, _ = digits
    by_steps = make(weight_decay="auto", optimizer="adamw", max_epochs=2).fit(X, y)
    same = make(optimizer="adamw", max_epochs=2).fit(X, y)
    assert by_steps.weight_decay_ == 1e-3
    assert np.array_equal(by_steps.predict_proba(X), same.predict_proba(X))


def test_views_of_augmentation(digits):
    X, y, _, _ = digits
    clf = make(weight_decay="auto", augment="light", n_views=2).fit(X[:100], y[:100])
    assert clf.weight_decay_ > 0


def test_in_a_search(digits):
    X, y, _, _ = digits
    search = GridSearchCV(make(), {"weight_decay": ["auto", 1e-3], "lr": [1e-3, 1e-2]}, cv=2)
    search.fit(X, y)
    scores = search.cv_results_["mean_test_score"].reshape(2, 2)
    assert (scores[0] == scores[1]).all()


@pytest.mark.parametrize("value", ["best", -1.0, None])
def test_what_it_can_t_be(value, digits):
    with pytest.raises(ValueError, match="weight_decay"):
        make(weight_decay=value).fit(*digits[:2])


def test_one_image_of_each_class(digits):
    X, y, _, _ = digits
    first = [int(np.flatnonzero(y == k)[0]) for k in range(10)]
    assert make(weight_decay="auto").fit(X[first], y[first]).weight_decay_ == 1e-3


def test_several_labels_need_a_number(digits):
    X, y, _, _ = digits
    with pytest.raises(ValueError, match="several labels. Pass a number"):
        make(weight_decay="auto").fit(X, np.c_[y > 4, y % 2].astype(int))
