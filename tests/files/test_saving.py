"""Files without code: what comes back, and what is not saved."""

import copy
import hashlib
import itertools
import json
import math
import os
import pickle
import random
import signal
import stat
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors
import torch
from safetensors.torch import load_file
from saved import (
    DATA,
    classifier,
    features,
    open_up,
    reload,
    rewrite,
    seal,
)
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from skorch.callbacks import EpochScoring
from torch import nn
from torchvision import models
from torchvision.models import ResNet18_Weights

import sktl
from sktl import (
    FileFormatError,
    MissingWeightsError,
    NotSavableError,
    PretrainedImageClassifier,
)

pytestmark = pytest.mark.usefixtures("few_iterations_are_enough")


# The same predictions ----------------------------------------------------------------

ROUND_TRIPS = {
    "frozen": {},
    "last stage trains": {"freeze": -1},
    "all trains": {"freeze": "none", "max_epochs": 1},
    "hidden layers": {"head": (8, 4), "dropout": 0.2},
    "flatten": {"pooling": "flatten"},
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16", "max_epochs": 1},
    "random weights": {"backbone": "shufflenet_v2_x0_5", "weights": None, "freeze": -1},
    "early stopping": {"lr": 1e-3, "early_stopping": True, "ema_decay": 0.9},
    "class weights": {"class_weight": {0: 1.0, np.int64(1): np.float32(2)}},
    "pixel range as a list": {"pixel_range": [0, 16], "image_shape": (8, 8)},
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_a_loaded_classifier_predicts_bitwise_the_same(name, X, y, path):
    fitted = classifier(**ROUND_TRIPS[name]).fit(X, y)
    loaded = reload(fitted, path)
    np.testing.assert_array_equal(loaded.predict_proba(X), fitted.predict_proba(X))
    np.testing.assert_array_equal(loaded.transform(X), fitted.transform(X))
    assert set(vars(loaded)) == set(vars(fitted))
    assert repr(loaded.get_params()).replace("(0, 16)", "[0, 16]") == repr(
        {k: v.item() if isinstance(v, np.generic) else v for k, v in fitted.get_params().items()}
    ).replace("np.int64(1): np.float32(2.0)", "1: 2.0")
    for attribute in ("history_", "n_iter_", "stages_", "freeze_", "pixel_range_", "precision_"):
        assert getattr(loaded, attribute) == getattr(fitted, attribute), attribute


@pytest.mark.parametrize("freeze", ["all", -1, "none"])
def test_a_loaded_classifier_without_its_backbone_predicts_the_same(freeze, X, y, path):
    fitted = classifier(freeze=freeze, max_epochs=1).fit(X, y)
    loaded = reload(fitted, path, include_backbone=False)
    np.testing.assert_array_equal(loaded.predict_proba(X), fitted.predict_proba(X))


@pytest.mark.parametrize("include_backbone", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stage": 1},
        {"stage": "stem"},
        {"stage": -1, "pooling": "flatten"},
        {"stage": ("stem", 2, None), "dtype": "float16"},
    ],
    ids=repr,
)
def test_loaded_features_are_bitwise_the_same(settings, include_backbone, X, path):
    fitted = features(**settings).fit(X)
    loaded = reload(fitted, path, include_backbone=include_backbone)
    np.testing.assert_array_equal(loaded.transform(X), fitted.transform(X))
    assert loaded.get_feature_names_out().tolist() == fitted.get_feature_names_out().tolist()
    assert set(vars(loaded)) == set(vars(fitted))
    assert loaded.transform(X).dtype == fitted.transform(X).dtype
    assert loaded.get_params() | {"dtype": 0} == fitted.get_params() | {"dtype": 0}


LABELS = {
    "text": np.array(["a", "ä \x00 '\"\\ \ud800"]),
    "wide text": np.array(["no", "yes"], dtype="<U40"),
    "objects": np.array(["no", "yes"], dtype=object),
    "bool": np.array([False, True]),
    "int8": np.array([-3, 3], dtype=np.int8),
    "uint64": np.array([0, 2**64 - 1], dtype=np.uint64),
    "big-endian": np.array([1, 500], dtype=">i4"),
    "float": np.array([0.0, 1.0]),
    "float32": np.array([-1.0, 1.0], dtype=np.float32),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_keep_their_dtype(kind, fitted, X, path):
    other = copy.copy(fitted)
    other.classes_ = LABELS[kind]
    loaded = reload(other, path, include_backbone=False)
    assert loaded.classes_.dtype == other.classes_.dtype
    np.testing.assert_array_equal(loaded.classes_, other.classes_)
    np.testing.assert_array_equal(loaded.predict(X), other.predict(X))


def test_columns_and_output_come_back(X, y, path):
    frame = pd.DataFrame(X, columns=[f"pixel {i} ü" for i in range(64)])
    loaded = reload(classifier().fit(frame, y).set_output(transform="pandas"), path)
    assert loaded.feature_names_in_.tolist() == list(frame.columns)
    assert loaded.n_features_in_ == 64
    assert isinstance(loaded.transform(frame), pd.DataFrame)
    with pytest.raises(ValueError, match="feature names"):
        loaded.predict(frame.rename(columns={"pixel 0 ü": "other"}))


def test_paths_and_images_as_x(save_photographs, tmp_path, path):
    pictures = sktl.load_image_folder(save_photographs(tmp_path / "pictures"))
    fitted = classifier().fit(pictures.data, pictures.target)
    loaded = reload(fitted, path)
    np.testing.assert_array_equal(
        loaded.predict_proba(pictures.data), fitted.predict_proba(pictures.data)
    )


def test_early_stopping_leaves_its_marks(X, y, path):
    fitted = classifier(early_stopping=True, max_epochs=3).fit(X, y)
    loaded = reload(fitted, path)
    assert loaded.best_epoch_ == fitted.best_epoch_
    np.testing.assert_array_equal(loaded.validation_indices_, fitted.validation_indices_)


def test_histories_may_hold_what_is_not_a_number(fitted, path):
    other = copy.deepcopy(fitted)
    other.history_[0].update(gain=math.nan, loss=-math.inf, note="text", best=None)
    row = reload(other, path).history_[0]
    assert math.isnan(row["gain"]) and row["loss"] == -math.inf
    assert (row["note"], row["best"]) == ("text", None)


@pytest.mark.parametrize("method", ["coral", "tent"])
def test_an_adapted_classifier(method, fitted, X, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = fitted.adapt(16 - X, method=method)
    loaded = reload(adapted, path)
    np.testing.assert_array_equal(loaded.predict_proba(X), adapted.predict_proba(X))
    assert loaded.adaptation_.method == method
    np.testing.assert_array_equal(loaded.adaptation_.proportions, adapted.adaptation_.proportions)


def test_a_loaded_classifier_is_adapted_as_the_one_that_was_saved(fitted, X, path):
    loaded = reload(fitted, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here, there = (e.adapt(16 - X, method="coral").predict_proba(X) for e in (fitted, loaded))
    np.testing.assert_array_equal(here, there)


def test_without_the_backbone_there_is_no_sample(saved, X, y):
    loaded = sktl.load(saved)
    with pytest.raises(ValueError, match="Pass X_source and y_source"):
        loaded.adapt(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded.adapt(16 - X, X, y, method="coral")


def test_a_large_sample_is_left_out(fitted, path, monkeypatch):
    monkeypatch.setattr(sktl.files.classifier_file, "_SAMPLE_BYTES", 1000)
    assert reload(fitted, path)._sample is None


@pytest.mark.parametrize("freeze", ["all", -1])
def test_what_is_loaded_is_an_estimator_like_any_other(freeze, X, y, path):
    fitted = classifier(freeze=freeze).fit(X, y)
    loaded = reload(fitted, path)
    expected = fitted.predict_proba(X)
    for other in (pickle.loads(pickle.dumps(loaded)), copy.deepcopy(loaded)):
        np.testing.assert_array_equal(other.predict_proba(X), expected)
    with pytest.raises(NotFittedError):
        clone(loaded).predict(X)
    again = clone(loaded).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), expected)
    loaded.set_params(warm_start=True, max_epochs=1).fit(X, y)
    assert loaded.n_iter_ >= 1


@pytest.mark.parametrize("include_backbone", [True, False])
def test_saving_again_gives_the_same_bytes(include_backbone, fitted, path):
    loaded = reload(fitted, path, include_backbone=include_backbone)
    before = path.read_bytes()
    loaded.save(path, include_backbone=include_backbone)
    assert path.read_bytes() == before


def test_without_its_backbone_a_loaded_file_can_be_saved_with_it(fitted, saved, X):
    loaded = sktl.load(saved)
    loaded.save(saved)
    np.testing.assert_array_equal(sktl.load(saved).predict_proba(X), fitted.predict_proba(X))


def test_names_of_things_stand_for_them(fitted, path, tmp_path):
    settings = {
        "weights": ResNet18_Weights.IMAGENET1K_V1,
        "device": torch.device("cpu"),
        "cache": tmp_path / "cache",
        "callbacks": [],
        "lr": np.float64(0.5),
    }
    loaded = reload(copy.copy(fitted).set_params(**settings), path)
    assert loaded.weights == "ResNet18_Weights.IMAGENET1K_V1"
    assert loaded.device == "cpu"
    assert loaded.cache == "memory"  # a file doesn't choose where its reader writes
    assert loaded.callbacks is None
    assert loaded.lr == 0.5 and type(loaded.lr) is float


def test_a_relative_path_stays_a_path(fitted, path):
    loaded = reload(copy.copy(fitted).set_params(weights=Path("DEFAULT")), path)
    assert loaded.weights == os.path.join(".", "DEFAULT")


def test_a_loaded_file_does_not_say_what_a_cache_gives_out(fitted, path):
    assert fitted._model.backbone.identity is not None
    assert reload(fitted, path)._model.backbone.identity is None


def test_the_file_is_a_safetensors_file(fitted, path):
    fitted.save(path)
    with safetensors.safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["sktl"])
        assert "trained/head.1.weight" in file.keys()  # noqa: SIM118
    assert document["estimator"] == "PretrainedImageClassifier"
    assert seal(path.read_bytes()) == path.read_bytes()


# Weights that are left out -----------------------------------------------------------


def test_the_embedded_backbone_takes_no_room(digits, path):
    X, y = digits
    classifier().fit(X, y).save(path, include_backbone=False)
    assert len(np.unique(y)) == 10
    assert path.stat().st_size < 200_000


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The path of weights of a ResNet-18."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(models.resnet18(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def resnet(state, digits):
    return classifier(backbone="resnet18", weights=str(state)).fit(*digits)


def test_a_resnet_takes_no_room_and_predicts_the_same(resnet, X, path):
    resnet.save(path, include_backbone=False)
    assert path.stat().st_size < 200_000
    np.testing.assert_array_equal(sktl.load(path).predict_proba(X), resnet.predict_proba(X))


def test_the_hash_is_that_of_the_description(fitted, path):
    fitted.save(path)
    hasher = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        if name.startswith("frozen/"):
            kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
            hasher.update(f"{name} {kind} {','.join(map(str, tensor.shape))}\n".encode())
            hasher.update(tensor.numpy().tobytes())
    fitted.save(path, include_backbone=False)
    assert open_up(path.read_bytes())[1]["model"]["frozen_sha256"] == hasher.hexdigest()


def test_other_weights_in_the_place_of_those_left_out_are_found_out(resnet, state, path):
    resnet.save(path, include_backbone=False)
    before = state.read_bytes()
    try:
        changed = torch.load(state)
        changed["layer3.1.conv1.weight"][0, 0, 0, 0] += 1e-3
        torch.save(changed, state)
        with pytest.raises(MissingWeightsError, match="not the ones that the estimator was fitted"):
            sktl.load(path)
        with pytest.raises(NotSavableError, match="not the ones that the estimator was fitted"):
            resnet.save(path, include_backbone=False)
        state.unlink()
        with pytest.raises(MissingWeightsError, match="no such file"):
            sktl.load(path)
        with pytest.raises(NotSavableError, match="no such file"):
            resnet.save(path, include_backbone=False)
    finally:
        state.write_bytes(before)
    sktl.load(path)


def test_without_a_network_the_error_says_how_to_bring_weights(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "url", "http://127.0.0.1:9/a.pth", False)

    def of_resnet(document):
        document["model"]["backbone"]["name"] = "resnet18"

    rewrite(saved, of_resnet)
    with pytest.raises(MissingWeightsError, match="resnet18, which are not to be had"):
        sktl.load(saved)


def test_a_missing_weights_error_is_of_both_kinds():
    assert issubclass(MissingWeightsError, FileFormatError)
    assert issubclass(MissingWeightsError, OSError)


def test_random_weights_can_not_be_left_out(X, y, path):
    fitted = classifier(backbone="shufflenet_v2_x0_5", weights=None).fit(X, y)
    with pytest.raises(NotSavableError, match="include_backbone=True"):
        fitted.save(path, include_backbone=False)
    assert not path.exists()


def test_a_parameter_that_changed_since_the_fit_is_found_out(fitted, path, state):
    other = copy.copy(fitted).set_params(weights=str(state))
    with pytest.raises(NotSavableError, match="do not fit"):
        other.save(path, include_backbone=False)


# What can't be saved -----------------------------------------------------------------


class SmallNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


def squared_error(logits, labels):
    return (logits - nn.functional.one_hot(labels, logits.shape[1])).square().sum(1)


REFUSED = {
    "backbone": SmallNet(),
    "weights": Path,
    "head": nn.Linear,
    "criterion": squared_error,
    "schedule": torch.optim.lr_scheduler.StepLR,
    "augment": nn.Identity(),
    "optimizer": torch.optim.RMSprop,
    "callbacks": [EpochScoring("accuracy")],
    "random_state": np.random.RandomState(0),
    "class_weight": {0: np.ones(2)},
    "max_grad_norm": math.inf,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_code_is_refused_by_its_name(name, fitted, saved):
    before = saved.read_bytes()
    other = copy.copy(fitted).set_params(**{name: REFUSED[name]})
    with pytest.raises(NotSavableError, match=rf"^{name}=.*joblib\.dump"):
        other.save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.parametrize("name", ["backbone", "head", "criterion", "optimizer"])
def test_what_the_model_was_fitted_with_counts_as_well(name, X, y, path):
    fitted = classifier(**{name: REFUSED[name]}).fit(X, y)
    fitted.set_params(**{name: clone(classifier()).get_params()[name]})
    with pytest.raises(NotSavableError, match=f"^{name}="):
        fitted.save(path)


def test_attributes_of_the_users_are_refused_and_not_lost(fitted, path):
    other = copy.copy(fitted)
    other.note = "mine"
    with pytest.raises(NotSavableError, match=r"attributes \['note'\]"):
        other.save(path)


def test_classes_of_the_users_are_refused(X, y, path):
    class Mine(PretrainedImageClassifier):
        pass

    fitted = Mine(image_size=32).fit(X, y)
    with pytest.raises(NotSavableError, match="Mine is none of them"):
        fitted.save(path)


def test_labels_of_odd_kinds_are_refused(fitted, path):
    for labels in (np.array([1, "a"], dtype=object), np.array([1, 2], dtype="m8[s]")):
        other = copy.copy(fitted)
        other.classes_ = labels
        with pytest.raises(NotSavableError, match="classes_"):
            other.save(path)


def test_weights_that_are_not_numbers_are_refused(fitted, path):
    other = copy.deepcopy(fitted)
    with torch.no_grad():
        other.net_.module_.head[-1].weight[0, 0] = torch.nan
    with pytest.raises(NotSavableError, match="not finite"):
        other.save(path)


@pytest.mark.parametrize("make", [classifier, features])
def test_an_unfitted_estimator_is_not_saved(make, path):
    with pytest.raises(NotFittedError):
        make().save(path)
    assert not path.exists()


# Whole or not at all -----------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    step, error, fitted, saved, monkeypatch
):
    def fail(*args):
        raise error

    before = saved.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(f"sktl.atomic.os.{step}", fail)
        with pytest.raises(type(error)):
            fitted.save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_folder_that_is_not_there(fitted, tmp_path):
    with pytest.raises(FileNotFoundError):
        fitted.save(tmp_path / "missing" / "model.sktl")


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions and links")
def test_permissions_and_links_stay(fitted, saved, tmp_path):
    link = tmp_path / "link.sktl"
    link.symlink_to(saved)
    saved.chmod(0o640)
    fitted.save(link, include_backbone=False)
    assert link.is_symlink()
    assert stat.S_IMODE(saved.stat().st_mode) == 0o640
    new = tmp_path / "new.sktl"
    fitted.save(new, include_backbone=False)
    (tmp_path / "plain").touch()
    assert new.stat().st_mode == (tmp_path / "plain").stat().st_mode


def save_and_be_killed(path, rounds, report):
    """A child saves two estimators to one file by turns, and is killed at a random moment."""
    torch.set_num_threads(1)
    X, y = load_digits(n_class=2, return_X_y=True)
    estimators, files = [], []
    for weight_decay in (1.0, 10.0):
        clf = PretrainedImageClassifier(image_size=32, weight_decay=weight_decay)
        estimators.append(clf.fit(X[:40], y[:40]))
        start = time.perf_counter()
        clf.save(path)
        duration = time.perf_counter() - start
        files.append(path.read_bytes())
        assert (sktl.load(path).predict_proba(X[:9]) == clf.predict_proba(X[:9])).all()
    assert files[0] != files[1]

    moments = random.Random(0)
    seen = [1]
    for _ in range(rounds):
        child = os.fork()
        if not child:
            try:
                for i in itertools.count(1 + seen[-1]):
                    estimators[i % 2].save(path)
            finally:
                os._exit(1)
        time.sleep(moments.uniform(0.0, 2 * duration))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        seen.append(files.index(path.read_bytes()))
    estimators[0].save(path)
    report.send([file for file in path.parent.glob(".*.tmp") if file.stat().st_size])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("rounds", [12, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_save_leaves_the_old_or_the_new_file(told_by, path, rounds):
    assert told_by(save_and_be_killed, path, rounds, timeout=300) == []


def test_what_a_killed_save_left_is_removed_and_nothing_else(fitted, saved):
    fcntl = pytest.importorskip("fcntl")
    beginning = f".{saved.name}."
    names = {
        "abandoned": f"{beginning}{'a' * 16}.tmp",
        "being written": f"{beginning}{'b' * 16}.tmp",
        "of another file": f".other.sktl.{'a' * 16}.tmp",
        "of the user": f"{beginning}old.tmp",
    }
    for name in names.values():
        (saved.parent / name).write_bytes(b"part")
    with open(saved.parent / names["being written"], "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fitted.save(saved, include_backbone=False)
    del names["abandoned"]
    assert sorted(os.listdir(saved.parent)) == sorted([saved.name, *names.values()])


# The file that is loaded forever -----------------------------------------------------


def test_a_file_of_the_first_format_loads(digits):
    """Of PretrainedImageClassifier(image_size=32, precision="float32"), fitted to 30 digits."""
    loaded = sktl.load(DATA / "classifier-v1.sktl")
    expected = json.loads((DATA / "classifier-v1.json").read_text())
    X = digits[0][:10]
    assert loaded.predict(X).tolist() == expected["labels"]
    np.testing.assert_allclose(loaded.predict_proba(X), expected["probabilities"], atol=1e-4)
    assert loaded.classes_.tolist() == ["one", "zero"]
