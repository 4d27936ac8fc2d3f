"""The penalty and the temperature that cross-validation chooses."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_classification
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from sktl.training.newton import solve
from sktl.training.selection import _folds, choose


def split(X, y, train_size):
    parts = train_test_split(X, y, train_size=train_size, stratify=y, random_state=0)
    return [torch.as_tensor(part) for part in parts]


def proba(solution, X, temperature=1.0):
    logits = X.double() @ solution.weight.T + solution.bias
    return torch.softmax(logits / temperature, 1).numpy()


def fitted(X, y, weight_decay):
    return solve(X, y, torch.ones(len(y)), int(y.max()) + 1, weight_decay=weight_decay)


@pytest.fixture
def noisy():
    """Many features, most of which say nothing, and labels of which a tenth is wrong."""
    X, y = make_classification(
        1200, 120, n_informative=8, n_classes=3, flip_y=0.1, class_sep=0.6, random_state=0
    )
    return split(X.astype(np.float32), y, 300)


def test_unseen_images_get_better_probabilities(noisy):
    X, X_test, y, y_test = noisy
    choice = choose(X, y, torch.ones(len(y)), 3)
    chosen = fitted(X, y, choice.weight_decay)
    usual = log_loss(y_test, proba(fitted(X, y, 1e-3), X_test))
    assert log_loss(y_test, proba(chosen, X_test, choice.temperature)) < 0.8 * usual
    # The temperature does a part of it, or at least no harm.
    alone = log_loss(y_test, proba(chosen, X_test))
    assert log_loss(y_test, proba(chosen, X_test, choice.temperature)) < alone + 0.01


def test_clear_features_get_a_weaker_penalty(noisy):
    X, _, y, _ = noisy
    clear, _, digits, _ = split(*load_digits(return_X_y=True), 500)
    of_noise = choose(X, y, torch.ones(len(y)), 3)
    of_digits = choose(clear.float(), digits, torch.ones(500), 10)
    share = [
        choice.weight_decay / float(rows.var(0).sum())
        for choice, rows in ((of_noise, X), (of_digits, clear))
    ]
    assert share[1] < 0.5 * share[0]


def test_choice_grows_with_the_scale_of_the_features(noisy):
    X, _, y, _ = noisy
    ones = torch.ones(len(y))
    choice = choose(X, y, ones, 3)
    larger = choose(10 * X, y, ones, 3)
    assert larger.weight_decay == pytest.approx(100 * choice.weight_decay, rel=1e-4)
    assert larger.temperature == pytest.approx(choice.temperature, rel=0.02)


def test_views_of_an_image_are_in_one_fold():
    labels = torch.tensor([1, 0, 1, 0, 0, 1, 1]).repeat(3)
    folds = _folds(labels, torch.ones(21), 3).reshape(3, 7)
    assert torch.equal(folds[0], folds[1])
    assert torch.equal(folds[0], folds[2])
    for label in (0, 1):
        assert set(folds[0][labels[:7] == label].tolist()) == {0, 1, 2}


def test_views_tell_no_more_than_their_images(noisy):
    X, _, y, _ = noisy
    ones = torch.ones(len(y))
    once = choose(X, y, ones, 3)
    views = choose(X.repeat(2, 1), y.repeat(2), ones.repeat(2), 3, n_views=2)
    assert views.weight_decay == pytest.approx(once.weight_decay, rel=1e-4)
    assert views.temperature == pytest.approx(once.temperature, rel=0.02)


def test_weightless_images_don_t_count(noisy):
    X, X_test, y, y_test = noisy
    both, labels = torch.cat([X, X_test]), torch.cat([y, (y_test + 1) % 3])
    weights = torch.cat([torch.ones(len(y)), torch.zeros(len(y_test))])
    choice = choose(both, labels, weights, 3)
    alone = choose(X, y, torch.ones(len(y)), 3)
    assert choice.weight_decay == pytest.approx(alone.weight_decay, rel=1e-4)


def test_classes_of_one_image(noisy):
    X, _, y, _ = noisy
    few = torch.stack([torch.nonzero(y == k)[0, 0] for k in range(3)])
    choice = choose(X[few], y[few], torch.ones(3), 3)
    assert (choice.weight_decay, choice.temperature) == (1e-3, 1.0)
    # One class of one image among others isn't judged by, and does no harm.
    rows = torch.cat([torch.nonzero(y < 2)[:, 0], few[2:]])
    choice = choose(X[rows], y[rows], torch.ones(len(rows)), 3)
    assert choice.weight_decay != 1e-3


def test_images_that_are_all_the_same():
    X, y = torch.ones(12, 5), torch.arange(12) % 3
    choice = choose(X, y, torch.ones(12), 3)
    assert np.isfinite([choice.weight_decay, choice.temperature]).all()
