"""What is installed for the core of tests, and what a user does first, on every version."""

import sys
import tomllib
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

import sktl
from sktl import PretrainedImageClassifier

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("one_thread")]


def read_pins(name):
    lines = (ROOT / ".ci" / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    return {pin.name: pin.specifier for pin in found}


def lower_bound(requirement):
    found = [s.version for s in requirement.specifier if s.operator in (">=", "==")]
    assert len(found) == 1, f"{requirement} has no lower bound"
    return Version(found[0])


@pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="no repository here")
def test_the_lowest_versions_are_the_bounds_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [Requirement(r) for r in project["dependencies"]]
    optional = [Requirement(r) for rs in project["optional-dependencies"].values() for r in rs]
    pins = read_pins("lowest.txt")
    exact = {r.name for r in required if "==" in str(r.specifier)}
    assert {r.name for r in required} - exact <= set(pins)
    bounds = {r.name: lower_bound(r) for r in optional + required if r.name != "sktl"}
    for name, specifier in pins.items():
        (pin,) = specifier
        assert pin.operator == "=="
        assert Version(pin.version) == bounds[name], name


@pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="no repository here")
def test_the_middle_versions_are_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {r.name: r for r in map(Requirement, project["dependencies"])}
    for name in ("torch", "torchvision"):
        (pin,) = read_pins("middle.txt")[name]
        assert pin.version in required[name].specifier
        assert Version(pin.version) > lower_bound(required[name])


@pytest.fixture(scope="module")
def rows():
    X, y = load_digits(n_class=4, return_X_y=True)
    return X[:80], np.array(["zero", "one", "two", "three"])[y[:80]]


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("freeze", ["all", -1])
def test_fit_predict_and_files(rows, tmp_path, size, freeze):
    X, y = rows
    clf = PretrainedImageClassifier(
        image_size=size, freeze=freeze, precision="float32", max_epochs=3, random_state=0
    )
    clf.fit(X[:60], y[:60])
    assert clf.score(X[60:], y[60:]) >= 0.75
    proba = clf.predict_proba(X[60:])
    np.testing.assert_array_equal(clf.classes_[proba.argmax(axis=1)], clf.predict(X[60:]))
    clf.save(tmp_path / "classifier.sktl")
    joblib.dump(clf, tmp_path / "classifier.joblib")
    for loaded in (
        sktl.load(tmp_path / "classifier.sktl"),
        joblib.load(tmp_path / "classifier.joblib"),
    ):
        np.testing.assert_array_equal(loaded.predict_proba(X[60:]), proba)


def test_numbers_and_features_and_their_files(rows, tmp_path):
    X, y = rows[0], rows[0][:, 20:30].mean(axis=1)
    settings = {"image_size": 32, "precision": "float32"}
    reg = sktl.PretrainedImageRegressor(**settings).fit(X[:60], y[:60])
    assert reg.score(X[:60], y[:60]) > 0.5
    features = sktl.PretrainedImageFeatures(stage=("stem", None), **settings).fit(X)
    for estimator, use in ((reg, "predict"), (features, "transform")):
        expected = getattr(estimator, use)(X)
        estimator.save(tmp_path / "model.sktl")
        joblib.dump(estimator, tmp_path / "model.joblib")
        for loaded in (sktl.load(tmp_path / "model.sktl"), joblib.load(tmp_path / "model.joblib")):
            np.testing.assert_array_equal(getattr(loaded, use)(X), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux about the processor")
@pytest.mark.parametrize("processor", ["SSE41", pytest.param("AVX2", marks=pytest.mark.slow)])
def test_lesser_processors_compute_the_same(rows, run_python, tmp_path, processor):
    """oneDNN, which both precisions' kernels are from, does without what it is told to."""
    X, y = rows[0], np.unique(rows[1], return_inverse=True)[1]
    np.savez(tmp_path / "rows.npz", X=X, y=y)
    printed = run_python(
        f"""if True:
            import warnings
            import numpy as np
            import torch
            from sktl import PretrainedImageClassifier

            torch.set_num_threads(1)
            warnings.simplefilter("ignore")  # bfloat16 is slow without units for it
            rows = np.load({str(tmp_path / "rows.npz")!r})
            X, y = rows["X"][:40], rows["y"][:40]
            for precision, freeze in (("float32", "all"), ("float32", -1), ("bfloat16", "all")):
                settings = {{"image_size": 32, "max_epochs": 1, "unfreeze": "at_once", "lr": 1e-4}}
                settings |= {{"precision": precision, "freeze": freeze, "random_state": 0}}
                clf = PretrainedImageClassifier(**settings)
                print(*clf.fit(X, y).predict_proba(X[:3]).ravel())
        """,
        ONEDNN_MAX_CPU_ISA=processor,
    )
    found = np.array([line.split() for line in printed.splitlines()], dtype=float)
    for row, precision, freeze in zip(
        found, ("float32", "float32", "bfloat16"), ("all", -1, "all"), strict=True
    ):
        clf = PretrainedImageClassifier(
            image_size=32,
            max_epochs=1,
            unfreeze="at_once",
            precision="float32",
            freeze=freeze,
            lr=1e-4,
            random_state=0,
        ).fit(X[:40], y[:40])
        bound = 1e-3 if precision == "float32" else 0.1
        assert row == pytest.approx(clf.predict_proba(X[:3]).ravel(), abs=bound)


def test_a_search_over_depth_and_rate(rows):
    X, y = rows
    search = GridSearchCV(
        PretrainedImageClassifier(image_size=32, max_epochs=3, random_state=0),
        {"freeze": ["all", -1], "lr": [1e-3, 1e-2]},
        cv=2,
        error_score="raise",
    )
    search.fit(X, y)
    assert len(search.cv_results_["params"]) == 4
    assert search.best_score_ > 0.6


def test_features_do_not_change_with_the_cache(rows, tmp_path):
    X, _ = rows
    settings = {"image_size": 32, "precision": "float32"}
    expected = sktl.PretrainedImageFeatures(cache=None, **settings).fit_transform(X)
    for cache in ("memory", tmp_path, tmp_path):
        found = sktl.PretrainedImageFeatures(cache=cache, **settings).fit_transform(X)
        np.testing.assert_array_equal(found, expected)
    assert torch.isfinite(torch.from_numpy(expected)).all()


def test_parts_of_the_data(rows):
    X, y = rows
    clf = PretrainedImageClassifier(image_size=32, lr=1e-2, random_state=0)
    for _ in range(5):
        for part in (slice(0, 30), slice(30, 60)):
            clf.partial_fit(X[part], y[part], classes=np.unique(y))
    assert clf.score(X[60:], y[60:]) >= 0.75
