"""Files without code: what comes back, what is refused, and what damage does."""

import copy
import hashlib
import json
import math
import os
import pickle
import stat
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from sklearn.base import clone
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
    PretrainedImageFeatures,
)

DATA = Path(__file__).parents[1] / "data"
DIGITS = slice(44, 108)  # of the checksum, in every file
pytestmark = pytest.mark.usefixtures("few_iterations_are_enough")


def classifier(**settings):
    """Of tiny images; with no cache, which would hide that weights are lost."""
    settings = {"image_size": 32, "cache": None, "random_state": 0, "max_epochs": 2} | settings
    return PretrainedImageClassifier(**settings)


def features(**settings):
    return PretrainedImageFeatures(**{"image_size": 32, "cache": None} | settings)


@pytest.fixture(scope="module")
def X(digits):
    return digits[0][:40]


@pytest.fixture(scope="module")
def y(digits):
    return digits[1][:40] % 2


@pytest.fixture(scope="module")
def fitted(X, y):
    return classifier(max_epochs=None).fit(X, y)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.sktl"


@pytest.fixture
def saved(fitted, path):
    """The path of a file of some ten kilobytes."""
    fitted.save(path, include_backbone=False)
    return path


def reload(estimator, path, **how):
    estimator.save(path, **how)
    return sktl.load(path)


# Files from the inside ---------------------------------------------------------------


def seal(content):
    """Give content the checksum that belongs to it, as docs/saving.md has it."""
    content = bytearray(content)
    content[DIGITS] = b"0" * 64
    content[DIGITS] = hashlib.sha256(content).hexdigest().encode()
    return bytes(content)


def open_up(content):
    """Header, document and tensors' bytes."""
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n])
    return header, json.loads(header["__metadata__"]["sktl"]), content[8 + n :]


def close(header, document, data):
    header = copy.deepcopy(header)
    text = document if isinstance(document, str) else json.dumps(document)
    header["__metadata__"]["sktl"] = text
    encoded = json.dumps(header, separators=(",", ":")).encode()
    return seal(len(encoded).to_bytes(8, "little") + encoded + data)


def rewrite(path, change):
    """Change a document and seal it again, as somebody with bad intentions would."""
    header, document, data = open_up(path.read_bytes())
    changed = change(document)
    path.write_bytes(close(header, document if changed is None else changed, data))


def retensor(path, change):
    """Change the tensors of a file."""
    metadata = open_up(path.read_bytes())[1]
    tensors = load_file(path)
    change(tensors)
    held = {n: t.contiguous() for n, t in tensors.items()}
    zeros = {"checksum": "sha256:" + "0" * 64, "sktl": json.dumps(metadata)}
    header, end = {"__metadata__": zeros}, 0
    for name, tensor in held.items():
        code = {torch.float64: "F64", torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": code,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    data = b"".join(t.numpy().tobytes() for t in held.values())
    path.write_bytes(close(header, metadata, data))


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


# A child saves two estimators to one file by turns, and is killed at a random moment.
KILLED = """
import itertools, os, random, signal, sys, time
import torch
torch.set_num_threads(1)
import sktl
from pathlib import Path
from sklearn.datasets import load_digits

path, rounds = Path(sys.argv[1]), int(sys.argv[2])
X, y = load_digits(n_class=2, return_X_y=True)
estimators, files = [], []
for weight_decay in (1.0, 10.0):
    clf = sktl.PretrainedImageClassifier(image_size=32, weight_decay=weight_decay)
    estimators.append(clf.fit(X[:40], y[:40]))
    start = time.perf_counter()
    clf.save(path)
    duration = time.perf_counter() - start
    files.append(path.read_bytes())
    assert (sktl.load(path).predict_proba(X[:9]) == clf.predict_proba(X[:9])).all()
assert files[0] != files[1]

random.seed(0)
seen, cut_off = [1], 0
for _ in range(rounds):
    child = os.fork()
    if not child:
        try:
            for i in itertools.count(1 + seen[-1]):
                estimators[i % 2].save(path)
        finally:
            os._exit(1)
    time.sleep(random.uniform(0.0, 2 * duration))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    cut_off += any(path.parent.glob(".*.tmp"))
    seen.append(files.index(path.read_bytes()))
estimators[0].save(path)
left = [file for file in path.parent.glob(".*.tmp") if file.stat().st_size]
assert not left, left
print("kills", rounds, "one and other", seen[1:].count(0), seen[1:].count(1), "cut off", cut_off)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("rounds", [12, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_save_leaves_the_old_or_the_new_file(path, rounds):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(rounds)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert done.stdout.startswith(f"kills {rounds} ")


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


# Files that are bad ------------------------------------------------------------------


class Payload:
    def __reduce__(self):
        return print, ("code of the file was run",)


def no_file_of_ours(tmp_path):
    """Files of all kinds, by what they are."""
    joblib.dump(Payload(), tmp_path / "joblib")
    joblib.dump(Payload(), tmp_path / "compressed", compress=3)
    torch.save({"a": torch.zeros(2)}, tmp_path / "torch")
    save_file({"a": torch.zeros(2)}, tmp_path / "safetensors")
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("zeros", bytes(2**26))
    start = b'{"__metadata__":{"checksum":"sha256:'
    return {
        "empty": b"",
        "one byte": b"\x00",
        "noise": np.random.default_rng(0).bytes(1000),
        "text": b"PretrainedImageClassifier()\n",
        "pickle": pickle.dumps(Payload()),
        **{n: (tmp_path / n).read_bytes() for n in ("joblib", "compressed", "torch", "bomb")},
        "safetensors": (tmp_path / "safetensors").read_bytes(),
        "two gigabytes": (2**31).to_bytes(8, "little") + start + b"0" * 100,
        "all there is": b"\xff" * 8 + start + b"0" * 100,
        "beginning alone": (100).to_bytes(8, "little") + start,
    }


def test_other_files_are_refused(tmp_path, capsys):
    for kind, content in no_file_of_ours(tmp_path).items():
        bad = tmp_path / "bad.sktl"
        bad.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"bad\.sktl"):
            sktl.load(bad)
            pytest.fail(kind)
    assert "code" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (pickle.dumps(Payload()), "a pickle or joblib file, which runs code"),
        (b"PK\x03\x04", "a zip archive"),
        (b"hello", "not a file of sktl's save"),
    ],
)
def test_errors_say_what_a_file_is(content, message, path):
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        sktl.load(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        sktl.load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        sktl.load(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FileFormatError, match="not a regular file"):
            sktl.load(tmp_path / "pipe")
    if os.path.exists("/dev/zero"):
        with pytest.raises(FileFormatError, match="not a regular file"):
            sktl.load("/dev/zero")


def test_a_file_that_is_cut_off_or_goes_on_is_refused(saved):
    content = saved.read_bytes()
    cuts = [*range(0, 120, 7), len(content) // 2, len(content) - 1]
    for changed in [content[:n] for n in cuts] + [content + b"\0", content + content]:
        saved.write_bytes(changed)
        with pytest.raises(FileFormatError):
            sktl.load(saved)


def test_each_bit_counts(saved):
    content = saved.read_bytes()
    rng = np.random.default_rng(0)
    places = [*range(120), *rng.integers(0, len(content), 300)]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        saved.write_bytes(changed)
        with pytest.raises(FileFormatError):
            sktl.load(saved)


def set_at(*path_to):
    *parents, last, value = path_to

    def change(document):
        for name in parents:
            document = document[name]
        document[last] = value

    return change


def lose(*path_to):
    *parents, last = path_to

    def change(document):
        for name in parents:
            document = document[name]
        del document[last]

    return change


CHANGES = {
    "later format": (set_at("format", 2), "later version of sktl.*Upgrade"),
    "format as text": (set_at("format", "1"), "format must be an integer"),
    "no format": (lose("format"), "format must be"),
    "format zero": (set_at("format", 0), "format must be"),
    "no document": (lambda _: [], "format must be"),
    "other class": (set_at("estimator", "LogisticRegression"), "estimator must be one of"),
    "class as number": (set_at("estimator", 7), "estimator must be text"),
    "unknown name": (set_at("extra", 1), "unknown names"),
    "unknown parameter": (set_at("parameters", "eval", "1"), "unknown names"),
    "no model": (lose("model"), "lacks"),
    "number for text": (set_at("parameters", "backbone", 3), "parameters.backbone must be"),
    "unknown backbone": (set_at("model", "backbone", "name", "os.system"), "backbone.name must"),
    "list for text": (set_at("model", "backbone", "name", ["resnet18"]), "backbone.name must"),
    "parameter out of range": (set_at("parameters", "dropout", 2), "dropout"),
    "parameter of a wrong type": (set_at("parameters", "max_epochs", "many"), "max_epochs"),
    "parameter as an object": (set_at("parameters", "lr", {"a": 1}), "lr must be a plain value"),
    "many threads": (set_at("parameters", "n_jobs", 10**9), "n_jobs must be"),
    "another folder": (set_at("parameters", "cache", "/tmp/x"), "cache must be"),
    "unknown device": (set_at("model", "device", "abacus"), "device must be"),
    "huge integer": (set_at("parameters", "max_epochs", 10**30), "max_epochs must be"),
    "bool for an integer": (set_at("model", "depth", True), "depth must be an integer"),
    "huge image": (set_at("model", "backbone", "image_size", 10**6), "image_size must be"),
    "other image": (set_at("model", "recipe", "crop", 31), "images of different sizes"),
    "infinite recipe": (set_at("model", "recipe", "std", [0, 1, 1]), r"std\[0\] must be"),
    "deep": (set_at("model", "depth", 999), "depth=999 does not go"),
    "huge head": (set_at("model", "head", "head", [10**9]), "head should have weights"),
    "narrow head": (set_at("model", "head", "in_features", 12), "head should have weights"),
    "more classes": (set_at("attributes", "classes_", "values", [0, 1, 2]), "for 2 classes, not 3"),
    "one class": (set_at("attributes", "classes_", "values", [0]), "list of at least 2"),
    "classes out of order": (set_at("attributes", "classes_", "values", [1, 0]), "sorted"),
    "classes of two kinds": (set_at("attributes", "classes_", "values", [0, "1"]), "an integer"),
    "pickled classes": (set_at("attributes", "classes_", "dtype", "|V8"), "dtype of labels"),
    "wide classes": (
        set_at("attributes", "classes_", {"dtype": "<U999999", "values": list("ab") * 50}),
        "dtype that suits",
    ),
    "wrong shape of image": (set_at("images", "image_shape", [8, 9]), "does not go with"),
    "range upside down": (set_at("images", "pixel_range", [16, 0]), "pixel_range must be"),
    "other hash": (set_at("model", "frozen_sha256", "0" * 64), "not the ones"),
    "weights not there": (set_at("model", "frozen_sha256", None), "do not fit|differ"),
    "no such weights": (set_at("parameters", "weights", "V9"), "not to be had"),
    "zero rate": (set_at("model", "plan", "lr", 0), "plan.lr must be"),
    "no plan": (lose("model", "plan", "seed"), "lacks"),
    "other stages": (set_at("attributes", "stages_", 0, "other"), "other stages"),
    "same as nothing": (set_at("model", "same", "trained", {"a": "b"}), "same.trained"),
    "one too many": (set_at("model", "same", "trained", {"a": "head.1.bias"}), "do not fit"),
    "names for nothing": (set_at("attributes", "feature_names_in_", ["a"]), "1 feature_names_in_"),
    "half of early stopping": (set_at("attributes", "best_epoch_", 1), "belong together"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_document_is_checked_before_it_is_believed(kind, saved):
    change, message = CHANGES[kind]
    rewrite(saved, change)
    with pytest.raises(FileFormatError, match=message) as caught:
        sktl.load(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '{"format": NaN}',
        '{"format": 1, "format": 1}',
        '{"format": ' + "1" * 100_000 + "}",
        '{"format": 1e999}',
        "",
        "\ud800",
        "\x00",
    ],
    ids=["open", "nested", "objects", "NaN", "twice", "long", "inf", "none", "surrogate", "zero"],
)
def test_json_that_is_hard_to_read(text, saved):
    rewrite(saved, lambda _: text)
    with pytest.raises(FileFormatError):
        sktl.load(saved)


def test_nan_where_a_number_belongs(saved):
    rewrite(saved, set_at("parameters", "lr", math.nan))
    with pytest.raises(FileFormatError, match="NaN is not JSON"):
        sktl.load(saved)


def test_a_deep_header_and_other_metadata(saved):
    header, document, data = open_up(saved.read_bytes())
    header["a"] = "DEEP"
    content = close(header, document, data)
    n = int.from_bytes(content[:8], "little")
    deep = content[8 : 8 + n].replace(b'"DEEP"', b"[" * 100_000 + b"]" * 100_000)
    saved.write_bytes(seal(len(deep).to_bytes(8, "little") + deep + data))
    with pytest.raises(FileFormatError):
        sktl.load(saved)
    del header["a"]
    header["__metadata__"]["more"] = "1"
    saved.write_bytes(close(header, document, data))
    with pytest.raises(FileFormatError, match="metadata"):
        sktl.load(saved)


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


TENSORS = {
    "missing": (drop("trained/head.1.bias"), "head.1.bias"),
    "no head": (drop("trained/head.1.weight"), "head should have weights"),
    "misshapen": (put("trained/head.1.bias", torch.zeros(3).double()), "head.1.bias"),
    "turned": (put("trained/head.1.weight", torch.zeros(1280, 2).double()), "head should have"),
    "other dtype": (put("trained/head.1.weight", torch.zeros(2, 1280)), "head.1.weight"),
    "not a number": (
        put("trained/head.1.bias", torch.tensor([0, torch.nan]).double()),
        "not finite",
    ),
    "one too many": (put("trained/other", torch.zeros(3)), "other"),
    "of no part": (put("evil", torch.zeros(3)), "no place for the tensor"),
    "half a sample": (put("sample/labels", torch.zeros(3)), "sample lacks"),
    "indices alone": (put("validation_indices_", torch.zeros(3).long()), "belong together"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_are_checked(kind, saved):
    change, message = TENSORS[kind]
    retensor(saved, change)
    with pytest.raises(FileFormatError, match=message):
        sktl.load(saved)


def test_a_missing_weight_of_the_network_is_named(fitted, path):
    fitted.save(path)
    retensor(path, drop("frozen/1.0.features.3.0.block.0.0.weight"))
    with pytest.raises(FileFormatError, match=r"1\.0\.features\.3\.0\.block\.0\.0\.weight"):
        sktl.load(path)


def test_a_sample_that_does_not_fit_is_refused(fitted, path):
    fitted.save(path)
    retensor(path, lambda tensors: tensors["sample/labels"].add_(5))
    with pytest.raises(FileFormatError, match="sample"):
        sktl.load(path)


def test_features_of_another_width_are_refused(X, path):
    features().fit(X).save(path, include_backbone=False)
    rewrite(path, set_at("model", "n_features_out", 7))
    with pytest.raises(FileFormatError, match="1280 features, and 7 are expected"):
        sktl.load(path)


@pytest.mark.parametrize("stage", [99, [0, 0], [], [99], -1, "stem", [[0]]], ids=repr)
def test_stages_that_are_not_there_are_refused(stage, X, path):
    features(stage=0).fit(X).save(path)
    rewrite(path, set_at("model", "stage", stage))
    with pytest.raises(FileFormatError, match="stage"):
        sktl.load(path)


def test_a_head_for_another_network_is_refused(saved):
    def narrow(tensors):
        tensors["trained/head.1.weight"] = tensors["trained/head.1.weight"][:, :12]

    retensor(saved, narrow)
    rewrite(saved, set_at("model", "head", "in_features", 12))
    with pytest.raises(FileFormatError, match="1280 features, and 12 are expected"):
        sktl.load(saved)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_bad_files_take_little_memory(saved, tmp_path):
    """Each is refused by a process that may take half a gigabyte more than it has."""
    files = []
    for kind, content in no_file_of_ours(tmp_path).items():
        files.append(tmp_path / f"{kind}.sktl")
        files[-1].write_bytes(content)
    for kind in ("huge head", "huge image", "wide classes"):
        files.append(tmp_path / f"{kind}.sktl")
        files[-1].write_bytes(saved.read_bytes())
        rewrite(files[-1], CHANGES[kind][0])
    script = """
import resource, sys, sktl, torch
torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29,) * 2)
for path in sys.argv[1:]:
    try:
        sktl.load(path)
    except sktl.FileFormatError:
        continue
    raise AssertionError(path)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, files)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


# Fuzz --------------------------------------------------------------------------------

JUNK = [
    None, True, False, 0, -1, 1, 2, 7, 10**6, 2**31, 2**63, -(2**63), 10**40, 0.0, -0.5, 0.5, 1e-9,
    1e308, "", "a", "all", "linear", "auto", "cuda:7", "efficientnet_lite0", "../../x.pth", "\x00",
    "float32", "pandas", "é" * 5000, [], [0], [1, 2], [1, 2, 3], [[]], [None], {}, {"a": 1},
    {"float": "nan"}, [0.1] * 5000,
]  # fmt: skip


def damaged(rng, content):
    """Content with bytes changed, lost or put in; the checksum doesn't know."""
    changed = bytearray(content)
    place = int(rng.integers(len(content)) if rng.random() < 0.5 else rng.integers(3000))
    kind = rng.integers(4)
    if kind == 0:
        for _ in range(rng.integers(1, 4)):
            changed[min(place, len(changed) - 1)] ^= int(rng.integers(1, 256))
            place = int(rng.integers(len(content)))
    elif kind == 1:
        del changed[place:]
    elif kind == 2:
        changed[place:place] = rng.bytes(int(rng.integers(1, 20)))
    else:
        del changed[place : place + int(rng.integers(1, 20))]
    return bytes(changed)


def resealed(rng, content):
    """Content whose header or document was changed by somebody who knows the format."""
    header, document, data = open_up(content)
    kind = rng.integers(4)
    if kind == 0:
        changed = damaged(rng, content)
        return seal(changed) if len(changed) > DIGITS.stop else changed
    if kind == 1:
        header = mutated(rng, {k: v for k, v in header.items() if k != "__metadata__"})
        header = {"__metadata__": open_up(content)[0]["__metadata__"], **header}
        return close(header, document, data)
    for _ in range(rng.integers(1, 3)):
        document = mutated(rng, document)
    return close(header, document, data)


def mutated(rng, value):
    """Replace, remove or repeat a random value inside."""
    value = copy.deepcopy(value)
    place = value
    while True:
        names = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not names:
            return value
        name = names[int(rng.integers(len(names)))]
        nested = isinstance(place[name], dict | list) and place[name]
        if nested and rng.random() < 0.85:
            place = place[name]
            continue
        break
    action = rng.random()
    if action < 0.15:
        del place[name]
    elif action < 0.25 and isinstance(place, dict):
        place[str(rng.integers(100))] = place[name]
    elif action < 0.5 and isinstance(place[name], int | float):
        place[name] = place[name] * float(rng.choice([-1, 0, 1.5, 1e300])) + int(rng.integers(3))
    else:
        place[name] = JUNK[int(rng.integers(len(JUNK)))]
    return value


def fuzz(content, path, X, expected, seed, n):
    """Count what became of n bad files; anything but a FileFormatError is a finding."""
    rng = np.random.default_rng(seed)
    counts = {"refused": 0, "the same": 0, "another model": 0}
    for _ in range(n):
        sealed_again = rng.random() < 0.6
        changed = (resealed if sealed_again else damaged)(rng, content)
        path.write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                loaded = sktl.load(path)
            except FileFormatError:
                counts["refused"] += 1
                continue
            assert sealed_again or changed == content, "damage went unnoticed"
            try:
                proba = loaded.predict_proba(X)
            except ValueError:  # such as X not being what it says
                counts["another model"] += 1
                continue
        # Weights that were changed on purpose may well overflow.
        assert proba.shape == expected.shape
        counts["the same" if np.array_equal(proba, expected) else "another model"] += 1
    return counts


@pytest.mark.parametrize("n", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_fuzz(saved, fitted, X, n):
    content = saved.read_bytes()
    counts = fuzz(content, saved, X[:3], fitted.predict_proba(X[:3]), seed=0, n=n)
    assert counts["refused"] > n // 2


# The file that is loaded forever -----------------------------------------------------


def test_a_file_of_the_first_format_loads(digits):
    """Of PretrainedImageClassifier(image_size=32, precision="float32"), fitted to 30 digits."""
    loaded = sktl.load(DATA / "classifier-v1.sktl")
    expected = json.loads((DATA / "classifier-v1.json").read_text())
    X = digits[0][:10]
    assert loaded.predict(X).tolist() == expected["labels"]
    np.testing.assert_allclose(loaded.predict_proba(X), expected["probabilities"], atol=1e-4)
    assert loaded.classes_.tolist() == ["one", "zero"]
