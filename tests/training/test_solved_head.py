"""A frozen linear head is solved, whatever is asked of steps, and once for all that need it."""

import inspect
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score

import sktl.training.newton
from sktl import PretrainedImageClassifier, load_image_folder
from sktl.cache import MemoryCache, open_cache
from sktl.training.newton import Solution
from sktl.training.solutions import recall_or_solve

pytestmark = pytest.mark.usefixtures("one_thread")
GUIDE = Path(__file__).parents[2] / "docs" / "training.md"


def make(**params):
    settings = {"image_size": 32, "precision": "float32", "random_state": 0}
    return PretrainedImageClassifier(**(settings | params))


def of_each_class(y, n):
    """Places of the first n of each class."""
    return np.sort(np.concatenate([np.flatnonzero(y == label)[:n] for label in np.unique(y)]))


@pytest.fixture(scope="module")
def few_stamps(stamps):
    folder = load_image_folder(stamps)
    kept = of_each_class(folder.target, 6)
    return [folder.data[i] for i in kept], folder.target[kept]


@pytest.fixture(scope="module")
def few_digits(digits):
    X, y = digits
    kept = of_each_class(y, 6)
    return X[kept], y[kept]


@pytest.fixture
def solved(monkeypatch):
    """The heads that have been solved, by their weight decay."""
    decays = []
    solve = sktl.training.newton.solve

    def note(*args, weight_decay, **settings):
        decays.append(weight_decay)
        return solve(*args, weight_decay=weight_decay, **settings)

    monkeypatch.setattr(sktl.training.newton, "solve", note)
    return decays


# Whatever is asked of steps -----------------------------------------------------------


@pytest.mark.parametrize("pictures", ["few_stamps", "few_digits"])
def test_a_grid_is_fair_to_the_frozen_head(pictures, request):
    X, y = request.getfixturevalue(pictures)
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    grid = [
        {
            "freeze": ["all"],
            "lr": [1e-4, 3e-2],
            "max_epochs": [1, 10],
            "weight_decay": [1e-3, 1e-1],
        },
        {"freeze": [-1], "lr": [1e-4], "max_epochs": [1], "weight_decay": [1e-3]},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        search = GridSearchCV(make(), grid, cv=folds).fit(X, y)
    results = search.cv_results_
    plain = {
        decay: cross_val_score(make(weight_decay=decay), X, y, cv=folds) for decay in (1e-3, 1e-1)
    }
    of_all = [i for i, params in enumerate(results["params"]) if params["freeze"] == "all"]
    assert len(of_all) == 8
    for i in of_all:
        scores = [results[f"split{fold}_test_score"][i] for fold in range(2)]
        assert scores == list(plain[results["params"][i]["weight_decay"]])


# What a fit with a solved head accepts and doesn't use, as the guide's table has it.
NOT_USED = {
    "lr": 1e-5, "backbone_lr": 1e-5, "layer_decay": 0.5, "schedule": "constant", "warmup": 0.5,
    "unfreeze": "gradual", "max_epochs": 1, "batch_size": 3, "n_views": 2, "random_state": 7,
    "validation_fraction": 0.3, "n_iter_no_change": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_USED)
def test_what_a_solved_head_does_not_use(name, few_digits, solved):
    X, y = few_digits
    plain = make().fit(X, y)
    other = make(**{name: NOT_USED[name]}).fit(X, y)
    assert np.array_equal(other.predict_proba(X), plain.predict_proba(X))
    assert other.n_iter_ == plain.n_iter_
    assert other.history_[0]["train_loss"] == plain.history_[0]["train_loss"]
    assert len(solved) <= 1


def table_of_the_guide():
    """Rows of the table of what is used: a parameter, and a mark for each way to train."""
    lines = (
        GUIDE.read_text()
        .partition("## What a fit doesn't use")[2]
        .partition("\n## ")[0]
        .splitlines()
    )
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    heading, _, *rest = [[cell.strip() for cell in row] for row in rows]
    return {
        name.strip(" `"): dict(zip(heading[1:], marks, strict=True))
        for names, *marks in rest
        for name in names.split(",")
    }


def test_the_guide_tells_what_is_not_used():
    table = table_of_the_guide()
    assert set(table) <= set(inspect.signature(PretrainedImageClassifier).parameters)
    unused = {name for name, used in table.items() if used["solved head"] == "no"}
    # These are used where there is something random, or something to vary.
    assert unused == set(NOT_USED) - {"random_state", "n_views"}


# The penalty --------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 1e-2), ("adam", 1e-2), ("sgd", 0.1)])
@pytest.mark.parametrize("how", [{}, {"max_grad_norm": 1e9}])
def test_steps_lead_to_the_solved_head(optimizer, lr, how, few_digits):
    """So weight_decay means the same for both; clipping to that norm changes how steps are made."""
    X, y = few_digits
    X, y = X[y < 3], y[y < 3]
    solved = make(weight_decay=1.0).fit(X, y)
    steps = {"optimizer": optimizer, "lr": lr, "max_epochs": 300, "batch_size": len(y)}
    stepped = make(weight_decay=1.0, **steps, **how).fit(X, y)
    weight, found = (clf.net_.module_.head[-1].weight.detach() for clf in (solved, stepped))
    assert float((found - weight).norm()) < 0.05 * float(weight.norm())
    assert np.abs(stepped.predict_proba(X) - solved.predict_proba(X)).max() < 0.02


# Once ---------------------------------------------------------------------------------


def test_candidates_that_differ_in_what_is_not_used_cost_one_solution(few_digits, solved):
    X, y = few_digits
    grid = {"lr": [1e-3, 1e-2, None], "max_epochs": [3, None], "weight_decay": [1e-3, 1e-2]}
    GridSearchCV(make(cache="memory", image_size=33), grid, cv=2).fit(X, y)
    assert sorted(solved[:-1]) == [1e-3] * 2 + [1e-2] * 2  # and one for the refit
    assert len(solved) == 5


CHANGES = {
    "weight_decay": {"weight_decay": 2e-3},
    "label_smoothing": {"label_smoothing": 0.1},
    "head": {"head": "linear"},
    "class_weight": {"class_weight": {0: 2.0}},
    "pictures": {"image_size": 36},
    "iterations": {"optimizer": "lbfgs", "max_epochs": 1},
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_the_solution_depends_on_is_solved_anew(what, few_digits, solved):
    X, y = few_digits
    make().fit(X, y)
    before = len(solved)
    changed = make(**CHANGES[what]).fit(X, y)
    alone = make(cache=None, **CHANGES[what]).fit(X, y)
    assert len(solved) > before
    assert np.allclose(changed.predict_proba(X), alone.predict_proba(X), rtol=0, atol=1e-6)


def test_labels_and_weights_of_images_count(few_digits, solved):
    X, y = few_digits
    make().fit(X, y)
    for n_solved, (labels, weights) in enumerate([(y[::-1], None), (y, 1.0 + np.arange(len(y)))]):
        found = make().fit(X, labels, weights).predict_proba(X)
        alone = make(cache=None).fit(X, labels, weights).predict_proba(X)
        assert len(solved) >= 2 * (n_solved + 1)
        assert np.allclose(found, alone, rtol=0, atol=1e-6)


def test_without_a_cache_nothing_is_kept(few_digits, solved):
    for _ in range(2):
        make(cache=None).fit(*few_digits)
    assert len(solved) == 2


def test_a_directory_keeps_solutions_for_other_processes(few_digits, solved, tmp_path):
    first = make(cache=tmp_path).fit(*few_digits)
    open_cache("memory").clear()
    second = make(cache=tmp_path).fit(*few_digits)
    assert len(solved) == 1
    X = few_digits[0]
    assert np.array_equal(first.predict_proba(X), second.predict_proba(X))
    assert first.n_iter_ == second.n_iter_
    assert first.history_[0]["train_loss"] == second.history_[0]["train_loss"]


def test_the_head_of_a_fine_tuned_fit_is_solved_once_for_all_rates(few_digits, solved):
    X, y = few_digits
    X, y = X[::3], y[::3]
    for lr in (1e-4, 1e-3):
        make(freeze=-1, lr=lr, max_epochs=1).fit(X, y)
    assert len(solved) <= 1


def test_a_solution_comes_back_as_it_was():
    solution = Solution(torch.randn(3, 5).double(), torch.randn(3).double(), 0.25, 17, 1e-3)
    cache = MemoryCache(2**20)
    cache.put([b"odd"], torch.zeros(1, 3, dtype=torch.uint8))
    tensors, facts = (torch.arange(7.0), torch.arange(3)), ("root", 1e-3)
    for solve in (lambda: solution, lambda: pytest.fail("it was solved before")):
        found = recall_or_solve(cache, tensors, facts, (3, 5), solve)
        assert torch.equal(found.weight, solution.weight)
        assert torch.equal(found.bias, solution.bias)
        assert (found.loss, found.n_iter) == (0.25, 17)
    others = [
        ((torch.arange(7.0).view(7, 1), tensors[1]), facts),
        ((tensors[0].double(), tensors[1]), facts),
        ((tensors[0] + 1, tensors[1]), facts),
        (tensors, ("linear", 1e-3)),
    ]
    other = Solution(solution.weight + 1, solution.bias, 0.5, 1, 1e-3)
    for changed, changed_facts in others:
        found = recall_or_solve(cache, changed, changed_facts, (3, 5), lambda: other)
        assert found.loss == 0.5
