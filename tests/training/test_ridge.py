"""Ridge regression in closed form, beside scikit-learn's and beside its definition."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV

from sktl.training import ridge
from sktl.training.batches import FeatureRows
from sktl.training.epochs import _counts

SHAPES = {"more features": (30, 50), "more images": (60, 12), "as many": (24, 24)}


def problem(n, n_features, n_outputs=2, seed=0):
    """Correlated features, and numbers that depend on some of them."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n_features, n_features)) * np.geomspace(1, 0.01, n_features)
    X = 5 + rng.normal(size=(n, n_features)) @ mixed
    y = X[:, :3] @ rng.normal(size=(3, n_outputs)) + rng.normal(size=(n, n_outputs)) - 7
    return X, y


def solve(X, y, weights=None, **settings):
    weights = np.ones(len(X)) if weights is None else np.asarray(weights, dtype=float)
    tensors = (torch.as_tensor(part) for part in (X, y, weights / weights.mean()))
    return ridge.solve(*tensors, **settings)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("weight_decay", [1e-4, 0.1, 10.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_scikit_learns_ridge(shape, weight_decay, weighted):
    X, y = problem(*shape)
    weights = np.random.default_rng(1).uniform(0.1, 3, len(X)) if weighted else np.ones(len(X))
    found = solve(X, y, weights, weight_decay=weight_decay)
    theirs = Ridge(alpha=weight_decay / 2 * weights.sum()).fit(X, y, weights)
    np.testing.assert_allclose(found.weight.numpy(), theirs.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.bias.numpy(), theirs.intercept_, rtol=1e-6)
    errors = ((theirs.predict(X) - y) ** 2).sum(1)
    loss = np.average(errors, weights=weights) + weight_decay / 2 * (theirs.coef_**2).sum()
    assert found.loss == pytest.approx(loss)
    assert (found.weight_decay, found.n_iter) == (weight_decay, 1)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_without_a_penalty_it_is_least_squares_of_the_smallest_norm(shape):
    X, y = problem(*shape)
    found = solve(X, y, weight_decay=0.0)
    centred = X - X.mean(0)
    expected = np.linalg.lstsq(centred, y - y.mean(0), rcond=None)[0].T
    np.testing.assert_allclose(found.weight.numpy(), expected, rtol=1e-5, atol=1e-7)


def left_out(X, y, weight_decay):
    """The error by its definition: each image's, of a fit to the others."""
    errors = []
    for i in range(len(X)):
        others = np.delete(np.arange(len(X)), i)
        # The penalty stays what it is beside the sum of the errors.
        fitted = Ridge(alpha=weight_decay / 2 * len(X)).fit(X[others], y[others])
        errors.append(((fitted.predict(X[[i]]) - y[[i]]) ** 2).sum())
    return np.mean(errors)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_auto_has_the_least_leave_one_out_error(shape, n_outputs):
    X, y = problem(*shape, n_outputs)
    found = solve(X, y, weight_decay="auto")
    least = left_out(X, y, found.weight_decay)
    others = found.weight_decay * np.geomspace(1e-3, 1e3, 25)
    assert least <= 1.01 * min(left_out(X, y, other) for other in others)
    given = solve(X, y, weight_decay=found.weight_decay)
    torch.testing.assert_close(given.weight, found.weight)


def test_auto_is_what_ridgecv_chooses():
    X, y = problem(60, 80, 1)
    found = solve(X, y, weight_decay="auto")
    alphas = found.weight_decay / 2 * len(X) * np.geomspace(1e-4, 1e4, 81)
    theirs = RidgeCV(alphas).fit(X, y[:, 0])
    assert 0.7 < theirs.alpha_ / (found.weight_decay / 2 * len(X)) < 1.4


def test_auto_of_several_views_looks_at_the_images_themselves():
    X, y = problem(30, 50)
    views = X + np.random.default_rng(4).normal(size=X.shape)
    found = solve(np.r_[X, views], np.r_[y, y], weight_decay="auto", counts=torch.ones(30).double())
    assert found.weight_decay == solve(X, y, weight_decay="auto").weight_decay
    given = solve(np.r_[X, views], np.r_[y, y], weight_decay=found.weight_decay)
    torch.testing.assert_close(given.weight, found.weight)


def test_auto_shrinks_what_is_noise_and_keeps_what_is_none():
    X, y = problem(40, 60)
    noise = np.random.default_rng(2).normal(size=y.shape)
    exact = X[:, :2]
    for_noise = solve(X, noise, weight_decay="auto")
    for_exact = solve(X[:, :20], exact, weight_decay="auto")
    assert for_noise.weight_decay > 1e3 * for_exact.weight_decay
    assert for_exact.loss < 1e-4 * np.var(exact)


def test_a_weight_of_whole_numbers_is_the_row_so_many_times():
    X, y = problem(30, 50)
    weights = np.random.default_rng(3).integers(0, 4, 30)
    repeated = np.repeat(np.arange(30), weights)
    weighted = solve(X, y, weights, weight_decay="auto", counts=torch.as_tensor(weights))
    again = solve(X[repeated], y[repeated], weight_decay="auto")
    assert weighted.weight_decay == pytest.approx(again.weight_decay)
    torch.testing.assert_close(weighted.weight, again.weight)


@pytest.mark.parametrize(
    ("weights", "counts"),
    [([1, 1, 1], [1, 1, 1]), ([2, 0, 3], [2, 0, 3]), ([0.5, 0, 0.25], [1, 0, 1])],
)
def test_how_many_images_weights_count(weights, counts):
    rows = FeatureRows(torch.zeros(3, 2), torch.zeros(3, 1), torch.tensor(weights))
    assert _counts(rows).tolist() == counts


def test_images_that_are_all_the_same():
    X, y = np.ones((5, 3)), np.arange(10.0).reshape(5, 2)
    found = solve(X, y, weight_decay="auto")
    np.testing.assert_array_equal(found.weight.numpy(), np.zeros((2, 3)))
    np.testing.assert_allclose(found.bias.numpy(), y.mean(0))


def test_a_single_image():
    found = solve(np.ones((1, 3)), np.array([[4.0]]), weight_decay="auto")
    assert found.bias.tolist() == [4.0]
