"""When training stops, and how it goes on."""

import numpy as np
import pandas as pd
import pytest
from finetuned import SmallerNetwork, SmallNetwork, same, weights_of
from skorch.callbacks import Callback

pytestmark = pytest.mark.usefixtures("one_thread")


# Stopping -----------------------------------------------------------------------------


def test_early_stopping_keeps_the_best_epoch(make, data):
    X, y = data
    clf = make(
        early_stopping=True, validation_fraction=0.25, n_iter_no_change=2, max_epochs=40, lr=0.02,
        freeze="all",
    ).fit(X, y)  # fmt: skip
    held = clf.validation_indices_
    assert len(held) == 9
    assert set(np.bincount(y[held])) == {3} or len(set(y[held])) == 3
    history = pd.DataFrame(clf.history_)
    best = history.sort_values(["valid_acc", "valid_loss"], ascending=[False, True]).iloc[0]
    assert clf.best_epoch_ == best["epoch"]
    assert clf.score(X[held], y[held]) == pytest.approx(best["valid_acc"])
    assert clf.n_iter_ == min(40, clf.best_epoch_ + 2)


def test_rows_held_back_do_not_train(make, data):
    X, y = data
    settings = {"early_stopping": True, "validation_fraction": 0.25, "max_epochs": 2}
    clf = make(**settings).fit(X, y)
    y_wrong = y.copy()
    held = clf.validation_indices_
    X_other = X.copy()
    X_other[held] = X_other[held][:, ::-1]
    other = make(n_iter_no_change=5, unfreeze="head_first", **settings).fit(X_other, y_wrong)
    assert np.array_equal(other.validation_indices_, held)
    losses = [[row["train_loss"] for row in c.history_] for c in (clf, other)]
    assert losses[0] == losses[1]
    assert clf.history_[0]["valid_loss"] != other.history_[0]["valid_loss"]


def test_early_stopping_needs_images_of_each_class(make, data):
    X, y = data
    few = np.concatenate([np.flatnonzero(y == 0), np.flatnonzero(y == 1)[:1]])
    clf = make(early_stopping=True)
    with pytest.raises(ValueError, match="early_stopping=True sets aside"):
        clf.fit(X[few], y[few])
    assert not clf.__sklearn_is_fitted__()


def test_a_later_fit_without_stopping_forgets_the_split(make, data):
    clf = make(early_stopping=True, validation_fraction=0.25, max_epochs=1).fit(*data)
    assert hasattr(clf, "best_epoch_")
    clf.set_params(early_stopping=False).fit(*data)
    assert not hasattr(clf, "best_epoch_")
    assert not hasattr(clf, "validation_indices_")


@pytest.mark.parametrize(
    "params",
    [
        {"early_stopping": True},
        {"mixup": 0.1},
        {"augment": "light", "n_views": None},
        {"ema_decay": 0.9},
        {"max_grad_norm": 1.0},
        {"accumulation_steps": 2},
    ],
)
def test_what_happens_step_by_step_is_refused_by_lbfgs(make, data, params):
    with pytest.raises(ValueError, match="works on all rows at once"):
        make(freeze="all", optimizer="lbfgs", **params).fit(*data)


# Going on -----------------------------------------------------------------------------


def test_warm_start_goes_on(make, data):
    clf = make(warm_start=True, max_epochs=2, lr=1e-2).fit(*data)
    first = weights_of(clf)
    model = clf._model
    clf.fit(*data)
    assert not same(first, weights_of(clf))
    assert same(first, model.net.module_.state_dict())  # the earlier fit isn't changed
    assert [row["epoch"] for row in clf.history_] == [1, 2, 3, 4]
    assert clf.history_[2]["train_loss"] < clf.history_[0]["train_loss"]


def test_without_warm_start_a_fit_begins_anew(make, data):
    clf = make(max_epochs=2).fit(*data)
    first = weights_of(clf)
    assert same(first, weights_of(clf.fit(*data)))


def test_a_fitted_head_goes_on_to_deeper_training(make, data):
    clf = make(freeze="all", warm_start=True, max_epochs=None).fit(*data)
    frozen = clf.predict_proba(data[0])
    clf.set_params(freeze=-1, lr=1e-12, max_epochs=1).fit(*data)
    assert clf.predict_proba(data[0]) == pytest.approx(frozen, abs=2e-3)


@pytest.mark.parametrize(
    ("params", "message"),
    [({"freeze": -1}, "freeze depth"), ({"head": (4,)}, "another head")],
)
def test_warm_start_needs_the_same_model(make, data, params, message):
    clf = make(warm_start=True, max_epochs=1).fit(*data)
    before = clf.predict_proba(data[0])
    with pytest.raises(ValueError, match=message):
        clf.set_params(**params).fit(*data)
    assert np.array_equal(clf.predict_proba(data[0]), before)


def test_warm_start_needs_the_same_classes_and_backbone(make, data):
    X, y = data
    clf = make(warm_start=True, max_epochs=1).fit(X, y)
    with pytest.raises(ValueError, match="with the classes"):
        clf.fit(X, y + 1)
    for freeze, other in ((-1, SmallNetwork), ("none", SmallerNetwork)):
        clf = make(warm_start=True, max_epochs=1, freeze=freeze).fit(X, y)
        before = clf.predict_proba(X)
        with pytest.raises(ValueError, match="same backbone"):
            clf.set_params(backbone=other).fit(X, y)
        assert np.array_equal(clf.predict_proba(X), before)


class Interrupt(Callback):
    """What Ctrl-C does, in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == self.epoch and len(net.history[-1]["batches"]) == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("params", [{}, {"ema_decay": 0.8}])
def test_an_interrupted_fit_keeps_the_last_whole_epoch(make, data, params):
    settings = {"warm_start": True, "schedule": "constant", "lr": 1e-2} | params
    clf = make(callbacks=[Interrupt(3)], max_epochs=5, **settings)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(*data)
    whole = make(max_epochs=2, **settings).fit(*data)
    assert same(weights_of(clf), weights_of(whole))
    assert len(clf.history_) == 2
    assert np.array_equal(clf.predict_proba(data[0]), whole.predict_proba(data[0]))


@pytest.mark.parametrize(("warm_start", "epoch"), [(False, 3), (True, 1)])
def test_an_interrupted_fit_with_nothing_to_keep_stays_unfitted(make, data, warm_start, epoch):
    clf = make(callbacks=[Interrupt(epoch)], max_epochs=5, warm_start=warm_start)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(*data)
    assert not clf.__sklearn_is_fitted__()
    assert not hasattr(clf, "classes_")


@pytest.mark.parametrize(
    ("freeze", "settings"), [("all", {"head": "linear", "lr": 0.1}), (-1, {"lr": 1e-3})]
)
def test_partial_fit(make, data, freeze, settings):
    X, y = data
    clf = make(freeze=freeze, **settings)
    halves = np.flatnonzero(y < 2), np.arange(len(y))
    clf.partial_fit(X[halves[0]], y[halves[0]], classes=[0, 1, 2])
    assert clf.classes_.tolist() == [0, 1, 2]
    assert clf.predict_proba(X).shape == (36, 3)
    for _ in range(15):
        clf.partial_fit(X[halves[1]], y[halves[1]])
    assert clf.n_iter_ == 16
    losses = [row["train_loss"] for row in clf.history_]
    assert losses[-1] < 0.8 * losses[1]
    assert clf.score(X, y) > 0.6


def test_partial_fit_goes_on_with_the_steps_of_the_optimizer(make, data):
    """Two calls are two epochs of one fit."""
    settings = {"schedule": "constant", "lr": 1e-2, "unfreeze": "at_once", "batch_size": 36}
    whole = make(max_epochs=2, **settings).fit(*data)
    parts = make(**settings).partial_fit(*data, classes=[0, 1, 2]).partial_fit(*data)
    assert parts.predict_proba(data[0]) == pytest.approx(whole.predict_proba(data[0]), abs=1e-5)


def test_partial_fit_after_fit(make, data):
    clf = make(freeze="all", max_epochs=None).fit(*data)
    before = clf.predict_proba(data[0])
    clf.set_params(lr=1e-9).partial_fit(*data)
    assert clf.predict_proba(data[0]) == pytest.approx(before, abs=1e-4)


def test_partial_fit_refuses(make, data):
    X, y = data
    with pytest.raises(ValueError, match="can't be known from a part"):
        make(class_weight="balanced").partial_fit(X, y, classes=[0, 1, 2])
    clf = make()
    with pytest.raises(ValueError, match="needs classes"):
        clf.partial_fit(X, y)
    with pytest.raises(ValueError, match=r"y holds \[2\]"):
        clf.partial_fit(X, y, classes=[0, 1])
    assert not clf.__sklearn_is_fitted__()
    clf.partial_fit(X, y, classes=[0, 1, 2])
    before = clf.predict_proba(X)
    with pytest.raises(ValueError, match="differ from those"):
        clf.partial_fit(X, y, classes=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="diverged"):
        clf.set_params(lr=1e30).partial_fit(X, y)
    assert np.array_equal(clf.predict_proba(X), before)
