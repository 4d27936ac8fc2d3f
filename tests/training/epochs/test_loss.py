"""Which loss is trained on: weights, classes, smoothing, and criteria of one's own."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils import compute_sample_weight
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


STILL = {"optimizer": "sgd", "lr": 1e-20, "weight_decay": 0, "max_epochs": 1, "batch_size": 7}


def test_the_loss_is_weighted_over_the_fit(embedded, three_kinds):
    """The one an epoch reports, with steps too small to change it, and batches that differ."""
    X, y = three_kinds
    weights = np.random.RandomState(0).uniform(0, 3, len(y)) * np.where(y == 0, 100, 1)
    clf = embedded(**STILL).fit(X, y, sample_weight=weights)
    expected = log_loss(y, clf.predict_proba(X), sample_weight=weights)
    assert clf.history_[0]["train_loss"] == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(log_loss(y, clf.predict_proba(X)), rel=1e-2)


@pytest.mark.parametrize(
    "params", [{}, {"optimizer": "adamw", "lr": 1e-2, "batch_size": 100, "max_epochs": 5}]
)
def test_only_proportions_of_weights_count(embedded, three_kinds, params):
    X, y = three_kinds
    weights = 1.0 + y
    small, large = (
        embedded(**params).fit(X, y, sample_weight=weights * scale).predict_proba(X)
        for scale in (1, 1024)
    )
    assert small == pytest.approx(large, abs=1e-5)


def test_a_whole_weight_is_a_repetition_and_zero_an_omission(embedded, three_kinds):
    X, y = three_kinds
    weights = np.arange(len(y)) % 3
    weighted = embedded(weight_decay=0.01).fit(X, y, sample_weight=weights)
    repeated = embedded(weight_decay=0.01).fit(np.repeat(X, weights, 0), np.repeat(y, weights))
    assert weighted.predict_proba(X) == pytest.approx(repeated.predict_proba(X), abs=1e-5)


@pytest.mark.parametrize("params", [{}, {"optimizer": "adamw", "lr": 1e-2, "max_epochs": 3}])
@pytest.mark.parametrize("class_weight", ["balanced", {0: 5, 1: 0.5, 2: 1}, {2: 10.0}])
def test_class_weight_is_a_sample_weight(embedded, three_kinds, class_weight, params):
    X, y = three_kinds
    by_class = embedded(class_weight=class_weight, **params).fit(X, y).predict_proba(X)
    weights = compute_sample_weight(class_weight, y)
    by_sample = embedded(**params).fit(X, y, sample_weight=weights).predict_proba(X)
    plain = embedded(**params).fit(X, y).predict_proba(X)
    assert by_class == pytest.approx(by_sample, abs=1e-6)
    assert by_class != pytest.approx(plain, abs=1e-4)


def test_class_weight_and_sample_weight_multiply(embedded, three_kinds):
    X, y = three_kinds
    own = 1.0 + np.arange(len(y)) % 4
    both = embedded(class_weight={0: 3}).fit(X, y, sample_weight=own).predict_proba(X)
    product = embedded().fit(X, y, sample_weight=own * np.where(y == 0, 3, 1)).predict_proba(X)
    assert both == pytest.approx(product, abs=1e-6)


def test_class_weight_of_text_labels(embedded, three_kinds):
    X, y = three_kinds
    names = np.array(["nought", "one", "two"])
    text = embedded(class_weight={"one": 4}).fit(X, names[y]).predict_proba(X)
    numbers = embedded(class_weight={1: 4}).fit(X, y).predict_proba(X)
    assert np.array_equal(text, numbers)


def test_label_smoothing(embedded, three_kinds):
    X, y = three_kinds
    clf = embedded(label_smoothing=0.3, **STILL).fit(X, y)
    proba = clf.predict_proba(X)
    expected = 0.7 * log_loss(y, proba) - 0.3 * np.log(proba).mean()
    assert clf.history_[0]["train_loss"] == pytest.approx(expected, rel=1e-4)
    sure, unsure = (embedded(label_smoothing=s).fit(X, y).predict_proba(X) for s in (0, 0.3))
    assert unsure.max(1).mean() < sure.max(1).mean() - 0.05


def focal_loss(logits, labels):
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    return (1 - torch.exp(-losses)) ** 2 * losses


def test_own_criterion(embedded, three_kinds):
    X, y = three_kinds
    clf = embedded(criterion=focal_loss, **STILL).fit(X, y)
    of_label = clf.predict_proba(X)[np.arange(len(y)), y]
    expected = np.mean((1 - of_label) ** 2 * -np.log(of_label))
    assert clf.history_[0]["train_loss"] == pytest.approx(expected, rel=1e-4)
    learned = embedded(criterion=focal_loss, lr=1e-2, max_epochs=10).fit(X, y)
    assert learned.history_[-1]["train_loss"] < 0.5 * learned.history_[0]["train_loss"]


def test_dropout_is_for_training_only(embedded, three_kinds):
    X, y = three_kinds
    with_dropout = embedded(dropout=0.9, **STILL).fit(X, y)
    without = embedded(**STILL).fit(X, y)
    first, second = with_dropout.predict_proba(X), with_dropout.predict_proba(X)
    assert np.array_equal(first, second)
    assert first == pytest.approx(without.predict_proba(X), abs=1e-6)
    assert without.history_[0]["train_loss"] == pytest.approx(log_loss(y, first), rel=1e-4)
    assert with_dropout.history_[0]["train_loss"] != pytest.approx(log_loss(y, first), rel=1e-3)
