"""Linear heads come to their optimum, whatever finds it."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def optimum(features, y, weight_decay, sample_weight=None):
    """What scikit-learn finds for the same problem."""
    total = len(y) if sample_weight is None else sum(sample_weight)
    # With two classes it penalises one difference of weights, where we penalise both halves.
    halves = 2 if len(np.unique(y)) == 2 else 1
    model = LogisticRegression(C=halves / (total * weight_decay), tol=1e-10, max_iter=10_000)
    return model.fit(features, y, sample_weight=sample_weight)


@pytest.mark.parametrize("weight_decay", [1e-1, 1e-3])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("head", ["linear", "root"])
def test_auto_finds_the_optimum(embedded, three_kinds, weight_decay, n_classes, weighted, head):
    X, y = (part[three_kinds[1] < n_classes] for part in three_kinds)
    weights = np.random.RandomState(0).uniform(0, 3, len(y)) if weighted else None
    clf = embedded(weight_decay=weight_decay, head=head).fit(X, y, sample_weight=weights)
    features = clf.transform(X).astype(np.float64)
    if head == "root":
        features = features / np.sqrt(np.abs(features) + 1e-3)
    expected = optimum(features, y, weight_decay, weights)

    assert type(clf.net_.optimizer_) is torch.optim.LBFGS
    linear = clf.net_.module_.head[-1]
    assert linear.weight.dtype == torch.float64
    assert clf.predict_proba(X) == pytest.approx(expected.predict_proba(features), abs=2e-5)
    if n_classes == 3:
        coefficients = linear.weight.detach().numpy()
        assert coefficients == pytest.approx(expected.coef_, abs=1e-3 * abs(expected.coef_).max())
    assert clf.n_iter_ > 1
    assert len(clf.history_) == 1


def test_the_optimum_needs_no_seed(embedded, three_kinds):
    first, second = (
        embedded(random_state=seed).fit(*three_kinds).predict_proba(three_kinds[0])
        for seed in (0, 1)
    )
    assert np.array_equal(first, second)


def test_lbfgs_that_has_not_converged_warns(embedded, three_kinds):
    with pytest.warns(ConvergenceWarning, match="after 3 iterations .*max_epochs"):
        clf = embedded(optimizer="lbfgs", max_epochs=3).fit(*three_kinds)
    assert clf.n_iter_ == 3


@pytest.mark.parametrize(
    ("params", "optimizer", "dtype"),
    [
        ({}, "LBFGS", torch.float64),
        ({"label_smoothing": 0.1}, "LBFGS", torch.float64),
        ({"class_weight": "balanced"}, "LBFGS", torch.float64),
        ({"freeze": 4}, "LBFGS", torch.float64),
        ({"lr": 1e-3}, "LBFGS", torch.float64),
        ({"optimizer": "adamw", "lr": 1e-3}, "AdamW", torch.float32),
        ({"dropout": 0.1}, "AdamW", torch.float32),
        ({"head": (4,)}, "AdamW", torch.float32),
        ({"head": nn.Linear}, "AdamW", torch.float32),
        ({"freeze": -1}, "AdamW", torch.float32),
        ({"freeze": "none"}, "AdamW", torch.float32),
        ({"criterion": nn.CrossEntropyLoss(reduction="none")}, "AdamW", torch.float32),
        ({"optimizer": "lbfgs", "lr": 0.5}, "LBFGS", torch.float64),
        ({"optimizer": "lbfgs", "head": (4,)}, "LBFGS", torch.float64),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS", torch.float64),
        ({"optimizer": "sgd"}, "SGD", torch.float32),
        ({"optimizer": "adam"}, "Adam", torch.float32),
        ({"optimizer": torch.optim.RMSprop}, "RMSprop", torch.float32),
    ],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_which_optimizer(make, three_kinds, params, optimizer, dtype):
    clf = make(max_epochs=3, **params).fit(*three_kinds)
    assert type(clf.net_.optimizer_).__name__ == optimizer
    assert all(p.dtype == dtype for p in clf.net_.module_.head.parameters())
    if "optimizer" in params and "lr" in params:
        assert clf.net_.lr == params["lr"]


def test_the_class_means_the_same_as_the_name(make, three_kinds):
    X, y = three_kinds
    for name, kind in [("sgd", torch.optim.SGD), ("lbfgs", torch.optim.LBFGS)]:
        by_name, by_class = (make(optimizer=o).fit(X, y) for o in (name, kind))
        assert by_name.n_iter_ == by_class.n_iter_
        assert np.array_equal(by_name.predict_proba(X), by_class.predict_proba(X))


@pytest.mark.parametrize("head", ["linear", "root", (16,), (32, 16), nn.Linear])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_heads_and_optimizers_learn(embedded, three_kinds, head, optimizer):
    lr = 0.05 if optimizer == "sgd" else 3e-3
    clf = embedded(head=head, optimizer=optimizer, lr=lr, max_epochs=20, schedule="constant")
    clf.fit(*three_kinds)
    losses = [row["train_loss"] for row in clf.history_]
    assert losses[-1] < 0.7 * losses[0]
    assert clf.score(*three_kinds) > 0.8
    linears = [m for m in clf.net_.module_.head.modules() if isinstance(m, nn.Linear)]
    widths = head if isinstance(head, tuple) else ()
    assert [m.out_features for m in linears] == [*widths, 3]
