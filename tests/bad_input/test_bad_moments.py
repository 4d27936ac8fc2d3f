"""What goes wrong in training and predicting is one clear error, and changes nothing."""

import re

import numpy as np
import pandas as pd
import pytest
from refusals import SIZE, N, assert_says
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from skorch.callbacks import Callback, EarlyStopping
from torch import nn

from sktl import PretrainedImageClassifier

# Predicting ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["predict", "predict_proba", "predict_log_proba", "decision_function", "transform"]
)
def test_not_fitted(rows, method):
    clf = PretrainedImageClassifier(image_size=SIZE)
    with pytest.raises(NotFittedError, match="PretrainedImageClassifier.*not fitted.*'fit'"):
        getattr(clf, method)(rows[0])
    with pytest.raises(NotFittedError):
        clf.score(*rows)
    with pytest.raises(NotFittedError):
        clf.get_feature_names_out()


@pytest.fixture(scope="module")
def fitted_to(rows):
    """Classifiers fitted to the same pictures in other containers."""
    X, y = rows
    grey = np.rint(X.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    kinds = {"rows": X, "uint8": grey, "sixteen": X.reshape(-1, 8, 8)}
    return {
        kind: PretrainedImageClassifier(image_size=SIZE).fit(data, y)
        for kind, data in kinds.items()
    }


@pytest.mark.parametrize(
    ("kind", "X", "words"),
    [
        ("rows", np.zeros((2, 49)), ["49 features", "64 features"]),
        ("rows", np.empty((0, 64)), ["0 sample"]),
        ("rows", np.full((2, 64), np.nan), ["NaN"]),
        ("uint8", np.zeros((2, 64)), ["fit saw arrays", "Set image_shape"]),
        ("uint8", np.zeros((2, 8, 8)), ["float64", "8-bit", "set pixel_range"]),
        ("uint8", [np.zeros((8, 8))], ["float64", "8-bit", "set pixel_range"]),
        ("uint8", [], ["0 sample"]),
        ("sixteen", np.zeros((2, 8, 8), np.uint8), ["uint8", "from 0 to 16", "set pixel_range"]),
        ("sixteen", [np.zeros((8, 8), np.uint8)], ["uint8", "from 0 to 16", "dtype that fit saw"]),
        ("sixteen", np.zeros((2, 0, 8)), ["no pixels"]),
        ("sixteen", "flower.png", ["single sample"]),
    ],
)
def test_predicting_another_kind(fitted_to, kind, X, words):
    with pytest.raises(ValueError) as caught:
        fitted_to[kind].predict(X)
    assert_says(caught.value, words)


def test_predicting_with_other_columns(rows):
    names = [f"pixel{i}" for i in range(64)]
    X = pd.DataFrame(rows[0], columns=names)
    clf = PretrainedImageClassifier(image_size=SIZE).fit(X, rows[1])
    assert list(clf.feature_names_in_) == names
    with pytest.raises(ValueError, match="feature names should match"):
        clf.predict(X[names[::-1]])


# Training -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {"optimizer": "sgd", "lr": 1e30, "max_epochs": 3},
        {"optimizer": "sgd", "lr": 1e5, "head": (8, 8), "max_epochs": 20, "batch_size": 4},
        # The only loss is that before the only step.
        {"optimizer": "sgd", "lr": 3e38, "weight_decay": 1e3, "max_epochs": 1, "batch_size": N},
    ],
)
def test_training_that_diverges(refuses, params):
    """ValueError, as SGDClassifier and MLPClassifier of scikit-learn."""
    words = ["Training diverged", re.escape(f"lr={params['lr']:g}"), "smaller lr"]
    refuses(ValueError, words, random_state=0, **params)


class Interrupt(Callback):
    """What pressing Ctrl-C, or any trouble, looks like from inside."""

    def __init__(self, error, when):
        self.error = error
        self.when = when

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.when:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("params", [{"optimizer": "adamw", "max_epochs": 4}, {}])
def test_an_interrupted_fit(refuses, error, params):
    when = 2 if params else 1
    refuses(error, [], callbacks=[Interrupt(error, when)], **params)


def test_an_interrupt_while_early_stopping_waits(refuses):
    patient = EarlyStopping("train_loss", patience=100, sink=str)
    callbacks = [patient, Interrupt(KeyboardInterrupt, 2)]
    refuses(KeyboardInterrupt, [], callbacks=callbacks, optimizer="adamw")


def test_early_stopping_is_no_interrupt(rows):
    """It raises a KeyboardInterrupt, too; skorch means it as the regular end."""
    stopper = EarlyStopping("train_loss", patience=2, threshold=10, threshold_mode="abs", sink=str)
    clf = PretrainedImageClassifier(
        image_size=SIZE, optimizer="adamw", max_epochs=9, callbacks=[stopper], random_state=0
    )
    try:
        clf.fit(*rows)
    except KeyboardInterrupt:  # would end pytest
        pytest.fail("early stopping was taken for the user's interrupt")
    assert 2 <= clf.n_iter_ < 9
    assert len(clf.predict(rows[0])) == N
    assert clone(clf).fit(*rows).n_iter_ == clf.n_iter_


# A last batch of one image ------------------------------------------------------------


def normed(in_features, n_classes):
    return nn.Sequential(nn.BatchNorm1d(in_features), nn.Linear(in_features, n_classes))


def test_a_last_batch_of_one(rows):
    X, y = rows
    clf = PretrainedImageClassifier(
        image_size=SIZE, head=normed, batch_size=8, max_epochs=2, random_state=0
    ).fit(X[:17], y[:17])
    sizes = [batch["train_batch_size"] for batch in clf.net_.history[-1, "batches"]]
    assert sizes == [8, 9]
