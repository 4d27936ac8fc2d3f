"""Independent logistic regressions are at their optima."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sktl.training import binary
from sktl.training.binary import binary_losses, binary_targets


def make_problem(n, n_features, n_labels, seed=0):
    """Correlated features, and labels that depend on them, some of few images."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(n_features, n_features)) / np.arange(1, n_features + 1)
    X = rng.normal(size=(n, n_features)) @ mixing + 3
    logits = X @ rng.normal(size=(n_features, n_labels)) / 2
    logits -= np.quantile(logits, np.linspace(0.3, 0.9, n_labels), axis=0).diagonal()
    Y = logits + rng.logistic(size=logits.shape) > 0
    return torch.as_tensor(X, dtype=torch.float32), torch.as_tensor(Y, dtype=torch.float32)


def loss_of(solution, X, Y, weights, decay, smoothing=0.0, label_weights=None):
    weight = solution.weight.clone().requires_grad_()
    bias = solution.bias.clone().requires_grad_()
    losses = binary_losses(
        X.double() @ weight.T + bias, *binary_targets(Y.double(), smoothing, label_weights)
    )
    loss = (weights.double() @ losses).sum() / len(X) + decay / 2 * weight.square().sum()
    loss.backward()
    return loss.item(), torch.cat([weight.grad.ravel(), bias.grad]).norm().item()


@pytest.mark.parametrize("decay", [1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize("shape", [(300, 20), (40, 100)], ids=["tall", "wide"])
def test_gradient_vanishes_at_the_solution(shape, decay):
    X, Y = make_problem(*shape, 5)
    weights = torch.rand(len(X), generator=torch.Generator().manual_seed(0))
    weights[:5] = 0
    weights /= weights.mean()
    solution = binary.solve(X, Y, weights, weight_decay=decay)
    loss, slope = loss_of(solution, X, Y, weights, decay)
    assert solution.loss == pytest.approx(loss, rel=1e-9)
    assert slope < 1e-6
    assert solution.n_iter < 40


def test_labels_are_those_of_separate_logistic_regressions():
    X, Y = make_problem(200, 10, 4)
    decay = 1e-3
    solution = binary.solve(X, Y, torch.ones(200), weight_decay=decay)
    for label in range(4):
        alone = LogisticRegression(C=1 / (200 * decay), tol=1e-10, max_iter=10_000)
        alone.fit(X.double().numpy(), Y[:, label].numpy())
        assert solution.weight[label].numpy() == pytest.approx(alone.coef_[0], abs=1e-4)
        assert solution.bias[label].item() == pytest.approx(alone.intercept_[0], abs=1e-3)


def test_smoothing_and_weights_of_labels_are_in_the_optimum():
    X, Y = make_problem(150, 8, 3)
    label_weights = torch.tensor([[1.0, 0.5, 2.0], [3.0, 1.0, 0.1]])
    solution = binary.solve(
        X,
        Y,
        torch.ones(150),
        weight_decay=1e-3,
        label_smoothing=0.2,
        label_weights=label_weights,
    )
    _, slope = loss_of(solution, X, Y, torch.ones(150), 1e-3, 0.2, label_weights)
    assert slope < 1e-6


def test_weights_of_labels_are_those_of_their_images():
    X, Y = make_problem(150, 8, 2)
    label_weights = torch.tensor([[1.0, 1.0], [3.0, 1.0]])
    solution = binary.solve(X, Y, torch.ones(150), weight_decay=1e-3, label_weights=label_weights)
    by_hand = LogisticRegression(C=1 / (150 * 1e-3), tol=1e-10, max_iter=10_000)
    weights = np.where(Y[:, 0] > 0, 3, 1)
    by_hand.fit(X.double().numpy(), Y[:, 0].numpy(), sample_weight=weights)
    assert solution.weight[0].numpy() == pytest.approx(by_hand.coef_[0], abs=1e-4)


def test_labels_of_all_and_of_no_images_get_a_bias_alone():
    X, Y = make_problem(60, 5, 4)
    Y[:, 1], Y[:, 2] = 0, 1
    solution = binary.solve(X, Y, torch.ones(60), weight_decay=1e-3)
    proba = torch.sigmoid(X.double() @ solution.weight.T + solution.bias)
    assert not solution.weight[1:3].any()
    assert proba[:, 1].numpy() == pytest.approx(1e-10)
    assert 1 - proba[:, 2].numpy() == pytest.approx(1e-10)
    others = binary.solve(X, Y[:, [0, 3]], torch.ones(60), weight_decay=1e-3)
    torch.testing.assert_close(solution.weight[[0, 3]], others.weight, rtol=1e-3, atol=1e-4)


def test_a_smoothed_label_of_no_images_has_the_probability_that_it_shall_have():
    X, Y = make_problem(60, 5, 2)
    Y[:, 0] = 0
    solution = binary.solve(X, Y, torch.ones(60), weight_decay=1e-3, label_smoothing=0.1)
    assert torch.sigmoid(X.double() @ solution.weight.T + solution.bias)[:, 0].numpy() == (
        pytest.approx(0.05)
    )


def test_without_a_penalty_separable_labels_come_to_an_end():
    X, Y = make_problem(30, 60, 3)
    solution = binary.solve(X, Y, torch.ones(30), weight_decay=0.0)
    logits = X.double() @ solution.weight.T + solution.bias
    assert bool(((logits > 0) == (Y > 0)).all())
    assert solution.loss < 1e-6
    assert solution.n_iter < 100


def test_features_of_many_sizes_of_separable_labels_do_not_stall():
    """Single precision can't follow a loss that has no minimum all the way."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(0, -3, 200)
    X = torch.randn(100, 200, generator=generator) * sizes
    Y = (torch.rand(100, 3, generator=generator) > 0.5).float()
    solution = binary.solve(X, Y, torch.ones(100), weight_decay=0.0)
    assert solution.loss < 3e-6
    assert solution.n_iter <= 12


def test_parts_of_the_labels_are_solved_alike(monkeypatch):
    X, Y = make_problem(100, 10, 5)
    label_weights = torch.rand(2, 5) + 0.5
    whole = binary.solve(X, Y, torch.ones(100), weight_decay=1e-3, label_weights=label_weights)
    monkeypatch.setattr(binary, "_AT_ONCE", 200)
    parts = binary.solve(X, Y, torch.ones(100), weight_decay=1e-3, label_weights=label_weights)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-3, atol=1e-4)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-8)


def test_iterations_end_where_they_shall():
    X, Y = make_problem(100, 10, 3)
    solution = binary.solve(X, Y, torch.ones(100), weight_decay=1e-6, max_iter=2)
    assert solution.n_iter == 2
