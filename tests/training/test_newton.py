"""The optimum of multinomial logistic regression."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from sktl.training import newton
from sktl.training.newton import (
    loss_and_error,
    soft_targets,
    solve,
)
from sktl.training.preconditioning import largest_uncertainties


def problem(n, n_features, n_classes, seed=0):
    """Correlated, not quite separable features."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % n_classes
    mixing = torch.randn(n_features, n_features, generator=generator, dtype=torch.float64)
    mixing /= torch.arange(1, n_features + 1).sqrt()[:, None]
    centres = torch.randn(n_classes, n_features, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, n_features, generator=generator, dtype=torch.float64)
    return (0.7 * centres[labels] + noise) @ mixing + 3, labels


def objective(weight, bias, features, labels, weights, weight_decay, smoothing):
    losses = F.cross_entropy(
        features @ weight.T + bias, labels, reduction="none", label_smoothing=smoothing
    )
    return (losses * weights).mean() + weight_decay / 2 * weight.square().sum()


@pytest.mark.parametrize("shape", [(200, 20), (40, 200), (60, 80)])
@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("weight_decay", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_gradient_vanishes_at_the_solution(shape, n_classes, weight_decay, smoothing):
    features, labels = problem(*shape, n_classes)
    weights = torch.linspace(0, 2, len(labels), dtype=torch.float64)
    found = solve(
        features,
        labels,
        weights,
        n_classes,
        weight_decay=weight_decay,
        label_smoothing=smoothing,
    )
    weight, bias = found.weight.requires_grad_(), found.bias.requires_grad_()
    value = objective(weight, bias, features, labels, weights, weight_decay, smoothing)
    value.backward()
    assert found.loss == pytest.approx(float(value.detach()), rel=1e-9)
    assert weight.grad.abs().max() < 1e-8
    assert bias.grad.abs().max() < 1e-8
    assert abs(float(bias.sum().detach())) < 1e-6 * max(1, float(bias.abs().max().detach()))


def test_it_is_scikit_learns_solution():
    features, labels = problem(300, 30, 4)
    found = solve(features, labels, torch.ones(300), 4, weight_decay=1e-2)
    model = LogisticRegression(C=1 / (300 * 1e-2), tol=1e-10, max_iter=10_000)
    model.fit(features.numpy(), labels.numpy())
    assert found.weight.numpy() == pytest.approx(model.coef_, abs=1e-3)
    intercept = model.intercept_ - model.intercept_.mean()
    assert found.bias.numpy() == pytest.approx(intercept, abs=1e-3 * np.abs(intercept).max())


def test_many_classes_have_scikit_learns_solution():
    features, labels = problem(120, 40, 20)
    found = solve(features, labels, torch.ones(120), 20, weight_decay=1e-2)
    model = LogisticRegression(C=1 / (120 * 1e-2), tol=1e-9, max_iter=10_000)
    model.fit(features.numpy(), labels.numpy())
    proba = torch.softmax(features @ found.weight.T + found.bias, 1)
    assert proba.numpy() == pytest.approx(model.predict_proba(features.numpy()), abs=1e-3)


def test_no_step_betters_the_solution_of_more_classes_than_features():
    """The loss is convex and its curvature at least the penalty's, so its gradient bounds it."""
    features, labels = problem(720, 40, 120)
    weights = torch.ones(720, dtype=torch.float64)
    found = solve(features, labels, weights, 120, weight_decay=1e-2)
    weight, bias = found.weight.requires_grad_(), found.bias
    objective(weight, bias, features, labels, weights, 1e-2, 0.0).backward()
    assert weight.grad.square().sum() / (2 * 1e-2) < newton._CLOSE


def test_a_large_problem_ends_near_its_optimum(monkeypatch):
    """Its last digits cost too much; the loss and the classes are those of the optimum."""
    features, labels = problem(400, 60, 8)
    settings = {"n_classes": 8, "weight_decay": 1e-3}
    exact = solve(features, labels, torch.ones(400), **settings)
    monkeypatch.setattr(newton, "_LITTLE", 0)
    near = solve(features, labels, torch.ones(400), **settings)
    assert near.n_iter < exact.n_iter
    assert 0 <= near.loss - exact.loss < 2 * newton._CLOSE
    found, wanted = (torch.softmax(features @ it.weight.T + it.bias, 1) for it in (near, exact))
    assert (found - wanted).abs().max() < 0.01


def test_weights_count_as_repeated_rows():
    features, labels = problem(90, 12, 3)
    times = torch.arange(90) // 3 % 3
    settings = {"n_classes": 3, "weight_decay": 1e-3}
    repeated = features.repeat_interleave(times, 0), labels.repeat_interleave(times)
    n = int(times.sum())
    some = solve(*repeated, torch.ones(n), **settings)
    weighted = solve(features, labels, times / times.double().mean(), **settings)
    assert torch.allclose(some.weight, weighted.weight, rtol=0, atol=1e-7)


def test_rows_of_no_weight_count_for_nothing():
    features, labels = problem(120, 10, 3)
    weights = (torch.arange(120) % 4 > 0).double()
    kept = weights > 0
    settings = {"n_classes": 3, "weight_decay": 1e-3}
    some = solve(features[kept], labels[kept], torch.ones(90), **settings)
    all_ = solve(features, labels, weights / weights.mean(), **settings)
    assert torch.allclose(some.weight, all_.weight, rtol=1e-8, atol=1e-9)


def test_the_iterations_are_bounded():
    features, labels = problem(100, 10, 3)
    assert solve(features, labels, torch.ones(100), 3, weight_decay=1e-6, max_iter=2).n_iter == 2


@pytest.mark.parametrize("weight_decay", [0.0, 1e-12])
def test_separable_rows_come_to_an_end(weight_decay):
    """Without a penalty there is no optimum; with next to none it is far away."""
    features, labels = problem(20, 200, 2)
    found = solve(features, labels, torch.ones(20), 2, weight_decay=weight_decay, max_iter=200)
    assert found.weight.isfinite().all()
    assert found.loss < 1e-4
    predicted = (features @ found.weight.T + found.bias).argmax(1)
    assert torch.equal(predicted, labels)


@pytest.mark.parametrize("weight_decay", [0.0, 1e-9])
def test_next_to_no_penalty_takes_few_steps(weight_decay):
    features, labels = problem(160, 100, 10)
    found = solve(features, labels, torch.ones(160), 10, weight_decay=weight_decay)
    assert found.n_iter < 100
    assert found.loss < 1e-4


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e6])
def test_features_of_any_scale(scale):
    features, labels = problem(60, 8, 3)
    found = solve(features * scale, labels, torch.ones(60), 3, weight_decay=1e-3)
    assert found.weight.isfinite().all()
    assert found.loss <= np.log(3) + 1e-12


def test_uncertainties_are_terms_of_the_covariance():
    """All together they are all of it, and a few of them the largest."""
    generator = torch.Generator().manual_seed(0)
    proba = torch.softmax(3 * torch.randn(5, 7, generator=generator, dtype=torch.float64), 0)
    shares = torch.linspace(0, 1, 7, dtype=torch.float64)
    index, factors = largest_uncertainties(proba, shares, 100)
    found = torch.zeros(7, 5, 5, dtype=torch.float64)
    found.index_add_(0, index, torch.einsum("ar,br->rab", factors, factors))
    covariance = torch.diag_embed(proba.T) - torch.einsum("an,bn->nab", proba, proba)
    assert torch.allclose(found, covariance * shares[:, None, None], atol=1e-12)
    some, some_factors = largest_uncertainties(proba, shares, 3)
    assert torch.equal(some, index[:3])
    assert torch.equal(some_factors, factors[:, :3])


def test_error_is_the_derivative_of_the_loss():
    logits = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    labels, shares = torch.arange(7) % 4, torch.linspace(0.1, 1, 7, dtype=torch.float64)
    expected = (
        F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1) * shares
    ).sum()
    expected.backward()
    targets = soft_targets(4, 0.1).double()[labels]
    targets = targets * shares[:, None]
    loss, error = loss_and_error(logits.detach().T, targets.T, shares)
    assert float(loss) == pytest.approx(float(expected.detach()))
    assert torch.allclose(error.T, logits.grad, atol=1e-7)
