"""Sample weights where every layer trains.

A weight and a repeated row are not the same there: repeated rows make other batches. So what
weights must do is shown by what is learned from them.
"""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from skorch.callbacks import Callback
from torch import nn

from sktl import PretrainedImageClassifier

SEEDS = range(3)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def zeros_and_ones():
    """Handwritten digits: 160 to learn from, 100 to be tested on, with labels."""
    X, y = load_digits(n_class=2, return_X_y=True)
    return X[:160], y[:160], X[160:260], y[160:260]


def small_network():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def make(seed=0, **params):
    settings = {
        "freeze": "none",
        "image_size": 32,
        "lr": 3e-3,
        "backbone_lr": 3e-3,
        "max_epochs": 8,
        "batch_size": 16,
        "schedule": "constant",
    }
    return PretrainedImageClassifier(small_network, random_state=seed, **(settings | params))


def test_a_wrong_label_of_weight_zero_does_as_little_as_an_image_left_out(zeros_and_ones):
    X, y, X_test, y_test = zeros_and_ones
    right = np.random.default_rng(0).random(len(y)) < 0.5
    given = np.where(right, y, 1 - y)

    def accuracy(*args):
        return np.mean([make(seed).fit(*args).score(X_test, y_test) for seed in SEEDS])

    weighted = accuracy(X, given, right.astype(float))
    left_out = accuracy(X[right], given[right])
    unweighted = accuracy(X, given)
    assert left_out > 0.9
    assert weighted > left_out - 0.05
    assert unweighted < 0.75  # so that weights which were ignored would be found out


def test_a_class_of_more_weight_is_predicted_more(zeros_and_ones):
    X, y, X_test, _ = zeros_and_ones
    # A third of the labels is wrong, so that there is something to be unsure about.
    given = np.where(np.random.default_rng(0).random(len(y)) < 1 / 3, 1 - y, y)

    def share_of_ones(weight_of_zero, weight_of_one):
        weights = np.where(given == 1, weight_of_one, weight_of_zero)
        fitted = [make(seed).fit(X, given, weights) for seed in SEEDS]
        return np.mean([clf.predict_proba(X_test)[:, 1].mean() for clf in fitted])

    # The seeds are the same, so if weights were ignored there would be no difference at all.
    # One fit's share moves by some 0.1 with the seed.
    assert share_of_ones(1, 5) - share_of_ones(5, 1) > 0.15


class RowsSeen(Callback):
    """Count the rows that are trained on, and the most that were handed over at once."""

    def __init__(self):
        self.given = []
        self.trained = 0

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.given.append(len(X))

    def on_batch_end(self, net, batch=None, training=None, **kwargs):
        self.trained += len(batch[0]) if training else 0


@pytest.mark.parametrize("freeze", ["none", "all"])
def test_weights_add_no_rows(zeros_and_ones, freeze):
    X, y, _, _ = zeros_and_ones
    weights = np.where(np.arange(len(y)) % 2, 1_000_000.0, 0.5)
    seen = RowsSeen()
    # "auto" would solve for the head of the frozen network, whatever max_epochs is.
    make(freeze=freeze, max_epochs=2, optimizer="adamw", callbacks=[seen]).fit(X, y, weights)
    assert seen.given == [len(y)]
    assert seen.trained == 2 * len(y)
