"""What a fit tells, what it leaves to chance, and how rows are divided into batches."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from finetuned import SIZE
from skorch.callbacks import Callback

from sktl import PretrainedImageClassifier
from sktl.training.batches import FeatureRows, TensorBatches

pytestmark = pytest.mark.usefixtures("one_thread")


# What a fit tells ---------------------------------------------------------------------


class Count(Callback):
    def __init__(self):
        self.calls = []

    def on_train_begin(self, net, **kwargs):
        self.calls.append("begin")

    def on_batch_end(self, net, training, **kwargs):
        self.calls.append("batch")

    def on_epoch_end(self, net, **kwargs):
        self.calls.append("epoch")

    def on_train_end(self, net, **kwargs):
        self.calls.append("end")


def test_callbacks_are_called(make, three_kinds):
    count = Count()
    make(optimizer="adamw", max_epochs=2, batch_size=18, callbacks=[count]).fit(*three_kinds)
    epoch = ["batch", "batch", "epoch"]
    assert count.calls == ["begin", *epoch, *epoch, "end"]


def test_callbacks_of_lbfgs(make, three_kinds):
    count = Count()
    make(callbacks=[("count", count)]).fit(*three_kinds)
    assert count.calls == ["begin", "batch", "epoch", "end"]


def test_history(make, three_kinds):
    clf = make(optimizer="adamw", max_epochs=4).fit(*three_kinds)
    assert clf.n_iter_ == 4
    frame = pd.DataFrame(clf.history_)
    assert list(frame["epoch"]) == [1, 2, 3, 4]
    assert np.isfinite(frame["train_loss"]).all()
    assert (frame["seconds"] >= 0).all()
    assert all(type(value) in (int, float) for row in clf.history_ for value in row.values())


class Threads(Callback):
    """Notes in how many threads torch computes while training."""

    def __init__(self):
        self.seen = set()

    def on_epoch_end(self, net, **kwargs):
        self.seen.add(torch.get_num_threads())


@pytest.mark.parametrize(("image_size", "n_threads"), [(32, 1), (224, 2)])
def test_small_steps_of_stages_run_in_one_thread(photographs, image_size, n_threads):
    threads = Threads()
    clf = PretrainedImageClassifier(
        freeze=-2,
        unfreeze="at_once",
        image_size=image_size,
        max_epochs=1,
        callbacks=[("threads", threads)],
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        clf.fit(*photographs)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert threads.seen == {n_threads}


# Threads ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params", [{}, {"optimizer": "adamw", "max_epochs": 3}, {"head": (16,), "max_epochs": 3}]
)
def test_frozen_fits_do_not_depend_on_the_number_of_threads(digits, params):
    X, y = digits[0][:24], digits[1][:24]
    found = []
    before = torch.get_num_threads()
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        settings = {"image_size": SIZE, "random_state": 0, "cache": None} | params
        clf = PretrainedImageClassifier(precision="float32", **settings).fit(X, y)
        found.append(clf.predict_proba(X))
    torch.set_num_threads(before)
    np.testing.assert_allclose(*found, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(*(proba.argmax(1) for proba in found))


# Chance -------------------------------------------------------------------------------

RANDOM = [
    {"optimizer": "adamw", "lr": 1e-2},
    {"lr": 1e-2, "dropout": 0.5, "head": (8,)},
    {"freeze": -1, "dropout": 0.5},
    {"freeze": "none"},
    {"backbone": "squeezenet1_1", "weights": None},
]


@pytest.mark.parametrize("params", RANDOM)
def test_the_seed_decides_all(make, photographs, params):
    X, y = photographs
    params = {"max_epochs": 2, "batch_size": 5, "lr": 1e-2} | params
    proba = []
    for seed in (3, 3, 4, np.random.RandomState(3)):
        torch.manual_seed(len(proba))  # what others draw must not matter
        proba.append(make(random_state=seed, **params).fit(X, y).predict_proba(X))
    assert np.array_equal(proba[0], proba[1])
    assert not np.array_equal(proba[0], proba[2])
    assert np.array_equal(proba[0], proba[3])


def global_state():
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [name, keys.tolist(), *rest],
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("params", [{}, *RANDOM])
def test_global_state_is_untouched(make, photographs, params):
    X, y = photographs
    before = global_state()
    clf = make(max_epochs=1, **params).fit(X, y)
    assert global_state() == before
    clf.predict_proba(X)
    clf.transform(X)
    assert global_state() == before


def test_no_seed_means_numpy_s_own(make, photographs):
    """As everywhere in scikit-learn; torch's state stays as it is."""
    X, y = photographs
    before = global_state()
    clf = make(random_state=None, optimizer="adamw", lr=1e-2, max_epochs=1)
    proba = []
    for seed in (0, 0, 1):
        with_seed = np.random.get_state()
        np.random.seed(seed)
        proba.append(clf.fit(X, y).predict_proba(X))
        np.random.set_state(with_seed)
    assert np.array_equal(proba[0], proba[1])
    assert not np.array_equal(proba[0], proba[2])
    assert global_state() == before


# Batches ------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [
        (1, 1, [1]),
        (1, 4, [1]),
        (2, 1, [2]),
        (3, 1, [1, 2]),
        (8, 4, [4, 4]),
        (9, 4, [4, 5]),
        (10, 4, [4, 4, 2]),
        (5, 4, [5]),
        (3, 100, [3]),
    ],
)
def test_batches_cover_every_row_once(n, size, expected, shuffled):
    rows = FeatureRows(torch.arange(n), torch.arange(n) + 100, torch.arange(n) + 0.5)
    generator = torch.Generator().manual_seed(0) if shuffled else None
    batches = TensorBatches(rows, size, generator)
    assert len(batches) == len(expected)
    orders = []
    for _ in range(2):
        seen = list(batches)
        assert [len(features) for features, _ in seen] == expected
        features = torch.cat([features for features, _ in seen])
        assert sorted(features.tolist()) == list(range(n))
        for part, (labels, weights) in seen:
            assert torch.equal(labels, part + 100)
            assert torch.equal(weights, part + 0.5)
        orders.append(features.tolist())
    if not shuffled:
        assert orders == [list(range(n))] * 2
    elif len(expected) > 1 and n > 4:
        assert orders[0] != orders[1]


@pytest.mark.parametrize("n", [9, 5])
def test_batch_norm_trains_with_one_left_over(make, photographs, n):
    X, y = (np.concatenate([part[:5], part[-4:]])[:n] for part in photographs)
    y = np.arange(n) % 2
    clf = make(freeze="none", batch_size=4, max_epochs=1).fit(X, y)
    sizes = [batch["train_batch_size"] for batch in clf.net_.history[-1, "batches"]]
    assert sizes == ([4, 5] if n == 9 else [5])
