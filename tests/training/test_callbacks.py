"""skorch's callbacks, each of which does here what it does in skorch."""

import json

import joblib
import numpy as np
import pandas as pd
import pytest
import skorch.callbacks
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import (
    BatchScoring,
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    EpochTimer,
    Freezer,
    GradientNormClipping,
    Initializer,
    LoadInitState,
    LRScheduler,
    ParamMapper,
    PassthroughScoring,
    PrintLog,
    ProgressBar,
    TensorBoard,
    TrainEndCheckpoint,
    Unfreezer,
    WarmRestartLR,
)
from torch import nn

from sktl import PretrainedImageClassifier

pytestmark = pytest.mark.usefixtures("one_thread")


class Network(nn.Module):
    """Three stages of convolutions."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(block(3, 8), block(8, 12), block(12, 16))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.features(x)), 1))


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.ReLU())


# How the classifier trains: its head to the optimum, its head by steps, a stage as well.
WAYS = {
    "solved": {},
    "frozen": {"optimizer": "adamw", "lr": 1e-2, "max_epochs": 3, "early_stopping": True},
    "trained": {"freeze": -1, "lr": 1e-3, "max_epochs": 3, "early_stopping": True},
}
STEPS = ["frozen", "trained"]
N_TRAIN, N_VALID = 39, 10  # whose batches aren't of one size
COMMON = {"image_size": 32, "batch_size": 16, "validation_fraction": 0.2, "random_state": 0}


def make(way, *callbacks, **params):
    torch.manual_seed(0)
    return PretrainedImageClassifier(
        Network(), callbacks=list(callbacks), **COMMON | WAYS[way] | params
    )


@pytest.fixture(scope="module")
def data():
    X, y = load_digits(n_class=3, return_X_y=True)
    n = N_TRAIN + N_VALID
    return X[:n], np.array(["nought", "one", "two"])[y[:n]]


def rows(clf):
    """skorch's own history; that of single batches aside."""
    return pd.DataFrame([{k: v for k, v in row.items() if k != "batches"} for row in history(clf)])


def history(clf):
    return list(clf.net_.history)


class Biases(Callback):
    """Keep the head's biases, as they are after each epoch."""

    def __init__(self):
        self.seen_ = []

    def on_epoch_end(self, net, **kwargs):
        self.seen_.append(biases(net))


def biases(net):
    return net.module_.head[-1].bias.detach().clone()


class Batches(Callback):
    """Keep each batch, and whether it trains."""

    def __init__(self):
        self.seen_ = []

    def on_batch_end(self, net, batch, training, **kwargs):
        self.seen_.append((training, batch))


# All of them, in each way of training ---------------------------------------------------


def zero(parameter):
    nn.init.zeros_(parameter)


def tensorboard(path):
    module = pytest.importorskip("torch.utils.tensorboard", exc_type=ImportError)
    return TensorBoard(module.SummaryWriter(path))


# A callback by the name of what is monitored and a folder for files.
CALLBACKS = {
    "BatchScoring": lambda loss, path: BatchScoring("accuracy", on_train=True),
    "Callback": lambda loss, path: Callback(),
    "Checkpoint": lambda loss, path: Checkpoint(f"{loss}_best", dirname=path),
    "EarlyStopping": lambda loss, path: EarlyStopping(loss),
    "EpochScoring": lambda loss, path: EpochScoring("accuracy", on_train=True),
    "EpochTimer": lambda loss, path: EpochTimer(),
    "Freezer": lambda loss, path: Freezer("*.bias"),
    "GradientNormClipping": lambda loss, path: GradientNormClipping(1.0),
    "Initializer": lambda loss, path: Initializer("head.*", fn=zero),
    "LRScheduler": lambda loss, path: LRScheduler("StepLR", step_size=1),
    "LoadInitState": lambda loss, path: LoadInitState(Checkpoint(dirname=path)),
    "ParamMapper": lambda loss, path: ParamMapper("head.*", fn=zero),
    "PassthroughScoring": lambda loss, path: PassthroughScoring(loss, on_train="train" in loss),
    "PrintLog": lambda loss, path: PrintLog(sink=str),
    "ProgressBar": lambda loss, path: ProgressBar(),
    "TensorBoard": lambda loss, path: tensorboard(path),
    "TrainEndCheckpoint": lambda loss, path: TrainEndCheckpoint(dirname=path),
    "Unfreezer": lambda loss, path: Unfreezer("*", at=2),
    "WarmRestartLR": lambda loss, path: LRScheduler(WarmRestartLR, min_lr=1e-4, max_lr=1e-2),
}
LEFT_OUT = {
    "InputShapeSetter": "rebuilds the network, and is refused; see bad_input",
    "MlflowLogger": "needs a server of MLflow, or its package with a database",
    "NeptuneLogger": "needs an account with a service",
    "SacredLogger": "needs the package sacred, which isn't kept up for today's Python",
    "WandbLogger": "needs an account with a service",
}


def test_none_is_forgotten():
    assert {*CALLBACKS, *LEFT_OUT} >= set(skorch.callbacks.__all__)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_fit(name, way, data, tmp_path):
    loss = "train_loss" if way == "solved" else "valid_loss"
    callback = CALLBACKS[name](loss, str(tmp_path))
    clf = make(way, callback).fit(*data)
    assert callback in [given for _, given in clf.net_.callbacks_]
    assert clf.n_iter_ == (clf.n_iter_ if way == "solved" else 3)
    assert clf.predict_proba(data[0]).shape == (len(data[0]), 3)
    assert callback.get_params() is not None
    joblib.dump(clf, tmp_path / "clf.joblib")


@pytest.mark.parametrize("way", WAYS)
def test_a_search(way, data, tmp_path):
    loss = "train_loss" if way == "solved" else "valid_loss"
    named = CALLBACKS.items() - {("TensorBoard", CALLBACKS["TensorBoard"])}  # can't be copied
    given = [make_one(loss, str(tmp_path / name)) for name, make_one in sorted(named)]
    grid = {"callbacks": [[callback] for callback in given]}
    search = GridSearchCV(make(way), grid, cv=2, error_score="raise").fit(*data)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    (own,) = search.best_estimator_.callbacks
    assert own in [callback for _, callback in search.best_estimator_.net_.callbacks_]
    assert own not in given  # each fit has its own, as of any parameter


# Scores ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_net_knows_its_classes_by_number(way, data, tmp_path):
    clf = make(way).fit(*data)
    assert clf.net_.classes_.tolist() == [0, 1, 2]
    joblib.dump(clf, tmp_path / "clf.joblib")
    for fitted in (joblib.load(tmp_path / "clf.joblib"), clf.adapt(data[0], check=False)):
        assert fitted.net_.classes_.tolist() == [0, 1, 2]


@pytest.mark.parametrize("way", STEPS)
def test_what_is_recorded(way, data):
    clf = make(way, max_epochs=6).fit(*data)
    recorded = rows(clf)
    for name, sign in [("train_loss", -1), ("valid_loss", -1), ("valid_acc", 1)]:
        best = (sign * recorded[name]).cummax()
        expected = best > best.shift(fill_value=-np.inf)
        assert recorded[f"{name}_best"].tolist() == expected.tolist()
    assert recorded["train_batch_count"].eq(3).all()
    columns = {"epoch", "train_loss", "valid_loss", "valid_acc", "lr", "seconds"}
    assert columns <= set(clf.history_[0])
    assert not any("best" in name or "batch" in name for name in clf.history_[0])


@pytest.mark.parametrize("use_caching", [True, False])
@pytest.mark.parametrize("way", STEPS)
def test_scores_of_the_rows_that_are_watched(way, use_caching, data):
    X, y = data
    log_loss = EpochScoring("neg_log_loss", name="log", use_caching=use_caching)
    accuracy = EpochScoring("accuracy", lower_is_better=False, use_caching=use_caching)
    clf = make(way, accuracy, log_loss).fit(X, y)
    recorded = rows(clf)
    np.testing.assert_allclose(recorded["accuracy"], recorded["valid_acc"])
    np.testing.assert_allclose(-recorded["log"], recorded["valid_loss"], rtol=1e-5)
    assert recorded["accuracy_best"].tolist() == recorded["valid_acc_best"].tolist()
    best = clf.validation_indices_
    assert clf.score(X[best], y[best]) == recorded["accuracy"].max()


@pytest.mark.parametrize("use_caching", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_scores_of_the_rows_that_train(way, use_caching, data):
    X, y = data
    scoring = EpochScoring("accuracy", on_train=True, use_caching=use_caching)
    settings = {} if way == "solved" else {"early_stopping": False, "lr": 1e-12}
    clf = make(way, scoring, **settings).fit(X, y)
    assert rows(clf)["accuracy"].tolist() == [clf.score(X, y)] * len(clf.history_)


@pytest.mark.parametrize("way", STEPS)
def test_scores_of_batches(way, data):
    callbacks = [BatchScoring("accuracy", name="a"), PassthroughScoring("valid_loss")]
    recorded = rows(make(way, *callbacks).fit(*data))
    np.testing.assert_allclose(recorded["a"], recorded["valid_acc"])
    unwatched = rows(make(way).fit(*data))
    np.testing.assert_allclose(recorded["valid_loss"], unwatched["valid_loss"], rtol=1e-6)


def test_a_batch_is_features_and_labels(data):
    X, y = data
    batches = Batches()
    clf = make("frozen", batches, max_epochs=1).fit(X, y)
    counts = []
    for kind, n in [(True, N_TRAIN), (False, N_VALID)]:
        labels = torch.cat([labels for training, (_, labels) in batches.seen_ if training is kind])
        features = [features for training, (features, _) in batches.seen_ if training is kind]
        assert len(labels) == sum(map(len, features)) == n
        counts.append(np.bincount(labels))
    assert sum(counts).tolist() == [(y == name).sum() for name in clf.classes_]


# Stopping, keeping and going on ---------------------------------------------------------


@pytest.mark.parametrize("way", STEPS)
@pytest.mark.parametrize("monitor", ["valid_acc", "valid_loss"])
def test_stopping_by_what_is_watched(way, monitor, data):
    lower = monitor == "valid_loss"
    settings = {"threshold": 10, "threshold_mode": "abs", "lower_is_better": lower, "sink": str}
    clf = make(way, EarlyStopping(monitor, patience=2, **settings), max_epochs=9).fit(*data)
    assert clf.n_iter_ == 3


@pytest.mark.parametrize("way", STEPS)
@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_best_epoch_comes_back_from_a_file(way, ema_decay, data, tmp_path):
    X, y = data
    settings = {"max_epochs": 6, "lr": 0.3, "ema_decay": ema_decay, "early_stopping": True}
    checkpoint = Checkpoint(dirname=str(tmp_path), load_best=True)
    clf = make(way, checkpoint, **settings).fit(X, y)
    written = json.loads((tmp_path / "history.json").read_text())
    best = min(row["valid_loss"] for row in written)
    assert written[-1]["valid_loss"] == best
    held = clf.validation_indices_
    right = np.searchsorted(clf.classes_, y[held])
    found = -clf.predict_log_proba(X[held])[np.arange(len(held)), right].mean()
    assert found == pytest.approx(best, rel=1e-5)


def test_a_fit_goes_on_from_a_file(data, tmp_path):
    end = TrainEndCheckpoint(dirname=str(tmp_path))
    first = make("frozen", end, max_epochs=2).fit(*data)
    on = make("frozen", LoadInitState(end), max_epochs=3).fit(*data)
    assert [row["epoch"] for row in on.history_] == [1, 2, 3, 4, 5]
    assert on.history_[1]["train_loss"] == first.history_[1]["train_loss"]
    assert on.history_[2]["train_loss"] < first.history_[0]["train_loss"]


# Weights and rates ----------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_what_a_callback_freezes_stays(way, data):
    frozen, free = Biases(), Biases()
    start = biases(make(way).fit(*data).net_) * 0 if way == "solved" else None
    make(way, Freezer("head.*bias"), frozen).fit(*data)
    make(way, free).fit(*data)
    start = frozen.seen_[0] if start is None else start
    assert all(torch.equal(bias, start) for bias in frozen.seen_)
    assert not torch.equal(free.seen_[-1], start)


def test_a_frozen_part_may_train_later(data):
    look = Biases()
    make("trained", Freezer("head.*"), Unfreezer("head.*", at=3), look).fit(*data)
    first, second, third = look.seen_
    assert torch.equal(first, second)
    assert not torch.equal(second, third)


def test_gradual_unfreezing_keeps_what_a_callback_has_frozen(data):
    look = Biases()
    settings = {"freeze": "none", "unfreeze": "gradual", "max_epochs": 3}
    clf = make("trained", Freezer("head.*"), look, **settings).fit(*data)
    assert [row["unfrozen_stages"] for row in clf.history_] == [1, 2, 3]
    assert all(torch.equal(bias, look.seen_[0]) for bias in look.seen_)


@pytest.mark.parametrize("way", STEPS)
def test_a_scheduler_sets_the_rates(way, data):
    clf = make(way, LRScheduler("StepLR", step_size=1, gamma=0.5), lr=0.08, max_epochs=3)
    found = [row["lr"] for row in clf.fit(*data).history_]
    assert found == pytest.approx([0.08, 0.04, 0.02])


@pytest.mark.parametrize("params", [{"warmup": 0.1}, {"schedule": "one_cycle"}])
def test_two_cannot_set_the_rates(params, data):
    with pytest.raises(ValueError, match="LRScheduler, which sets learning rates, as schedule="):
        make("frozen", LRScheduler("StepLR", step_size=1), **params).fit(*data)


# Other packages -------------------------------------------------------------------------


@pytest.mark.parametrize("way", STEPS)
def test_optuna_prunes_by_what_is_watched(way, data):
    optuna = pytest.importorskip("optuna")
    integration = pytest.importorskip("optuna_integration")
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    class AfterTwo(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 1 and trial.last_step >= 1

    def objective(trial):
        lr = trial.suggest_float("lr", 1e-3, 1e-2, log=True)
        pruning = integration.SkorchPruningCallback(trial, "valid_acc")
        return make(way, pruning, lr=lr).fit(*data).score(*data)

    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=AfterTwo())
    study.optimize(objective, n_trials=2)
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "PRUNED"]
    assert [len(trial.intermediate_values) for trial in study.trials] == [3, 2]
