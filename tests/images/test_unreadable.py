"""A folder with bad files in it: all are named, or left out."""

import io
import multiprocessing
import os
import pickle
import sqlite3
import stat
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import sktl
from sktl import (
    PretrainedImageClassifier,
    PretrainedImageFeatures,
    UnreadableImagesError,
    UnreadableImageWarning,
)
from sktl.images.decoding import decode_file
from sktl.images.format import learn_format
from sktl.images.reading import open_images

try:
    import resource
except ImportError:  # not on Windows
    resource = None

SIZE = 32

pytestmark = pytest.mark.usefixtures("one_thread", "few_iterations_are_enough")


def png_chunk(kind, data):
    checksum = zlib.crc32(kind + data)
    return len(data).to_bytes(4, "big") + kind + data + checksum.to_bytes(4, "big")


def write_bomb(path, side=30_000):
    """Write a black PNG of side * side pixels of one bit, some 100 kB on the disk."""
    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))


BAD = {
    "truncated.jpg": "truncated",
    "empty.jpg": "not an image that Pillow can read",
    "text.jpg": "not an image that Pillow can read",
    "bomb.png": "decompression bomb",
    "loop.jpg": "Too many levels of symbolic links",
    "two\nlines.jpg": "not an image that Pillow can read",
    "gone.jpg": "No such file or directory",
    "nan.tiff": "some of its values are NaN or infinite",
}


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory):
    """12 good files of two kinds, files of odd kinds that are good, and one of each bad kind."""
    folder = tmp_path_factory.mktemp("mixed")
    small = [photograph[:64, :64] for photograph in photographs[0]]
    for i, image in enumerate(small):
        Image.fromarray(image).save(folder / f"good{i:02}.png")
    first = Image.fromarray(small[0])
    first.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    grey = np.asarray(first.convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "sixteen.png")
    palette = first.quantize(64)
    palette.save(folder / "palette.png", transparency=0)
    palette.save(folder / "animation.gif", save_all=True, append_images=[first.rotate(180)])

    first.save(folder / "truncated.jpg")
    whole = (folder / "truncated.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    for name in ("text.jpg", "two\nlines.jpg"):
        (folder / name).write_text("not a picture")
    write_bomb(folder / "bomb.png")
    os.symlink("loop.jpg", folder / "loop.jpg")
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(folder / "nan.tiff")
    return folder


@pytest.fixture(scope="module")
def mixed(folder, photographs):
    """Paths with the bad ones spread among the good ones, labels, and the rows that are good."""
    good = [str(folder / f"good{i:02}.png") for i in range(12)]
    X = np.array([*good, *(str(folder / name) for name in BAD)], dtype=object)
    y = np.array(["temple", "flower"])[np.r_[photographs[1], np.arange(len(BAD)) % 2]]
    order = np.random.default_rng(0).permutation(len(X))
    return X[order], y[order], np.flatnonzero(order < 12)


@pytest.fixture(scope="module")
def skipping(mixed):
    X, y, _ = mixed
    with pytest.warns(UnreadableImageWarning):
        return PretrainedImageClassifier(image_size=SIZE, on_error="skip").fit(X, y)


def assert_names_all(text, folder):
    for name, reason in BAD.items():
        path = str(folder / name)
        line = next(line for line in text.splitlines() if (repr(path)[1:-1]) in line)
        assert reason in line


# Raising ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"cache": None},
        {"freeze": "none"},
        {"freeze": -1, "augment": "light"},
        {"augment": "light", "n_views": None},
    ],
)
def test_fit_names_all_bad_files_before_training(params, mixed, folder):
    X, y, good = mixed
    clf = PretrainedImageClassifier(image_size=SIZE, **params)
    before = dict(vars(clf))
    with pytest.raises(UnreadableImagesError, match="^8 images in X can't be read") as caught:
        clf.fit(X, y)
    assert_names_all(str(caught.value), folder)
    assert caught.value.rows == np.setdiff1d(np.arange(len(X)), good).tolist()
    assert vars(clf) == before


@pytest.mark.parametrize("freeze", ["all", -1, "none"])
@pytest.mark.parametrize("method", ["predict", "predict_proba", "transform"])
def test_predicting_names_all_bad_files(method, freeze, mixed, folder, monkeypatch):
    monkeypatch.setattr("sktl.model.joined._IN_FLIGHT", 4)  # bad ones in several blocks
    X, y, good = mixed
    clf = PretrainedImageClassifier(image_size=SIZE, freeze=freeze, max_epochs=1)
    clf.fit(X[good], y[good])
    with pytest.raises(UnreadableImagesError, match="^8 images") as caught:
        getattr(clf, method)(X)
    assert_names_all(str(caught.value), folder)


def test_what_could_be_read_stays_in_the_cache_and_nothing_else(mixed, tmp_path):
    X, y, good = mixed
    clf = PretrainedImageClassifier(image_size=SIZE, cache=tmp_path)
    with pytest.raises(UnreadableImagesError):
        clf.fit(X, y)
    with sqlite3.connect(next(tmp_path.iterdir())) as connection:
        shapes = [row[0] for row in connection.execute("SELECT shape FROM rows")]
    assert sum(shape == "1664" for shape in shapes) == len(good)
    clf.fit(X[good], y[good])
    n_run = clf._model.prefix.n_images
    with pytest.raises(UnreadableImagesError):
        clf.predict(X)
    after = clf._model.prefix.n_images - n_run
    assert after < len(BAD)  # only those that are there, but can't be decoded


def test_bad_twins_are_named(mixed, folder, tmp_path):
    """Of two files with the same bytes, one is read."""
    X, y, good = mixed
    twin = tmp_path / "twin.jpg"
    twin.write_text("not a picture")
    paths = [*X[good], str(folder / "text.jpg"), str(twin), str(twin)]
    clf = PretrainedImageClassifier(image_size=SIZE)
    with pytest.raises(UnreadableImagesError) as caught:
        clf.fit(paths, [*y[good], *y[:3]])
    assert caught.value.rows == [12, 13, 14]
    assert [path for path, _ in caught.value.files] == [paths[12], str(twin)]


# Skipping -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "params"),
    [
        ("list", {}),
        ("series", {}),
        ("frame", {}),
        ("array", {"cache": None, "class_weight": "balanced"}),
        ("array", {"freeze": -1, "unfreeze": "at_once"}),
        ("array", {"freeze": "none"}),
        ("array", {"augment": "light", "n_views": 2}),
        ("array", {"augment": "light", "n_views": None}),
        ("array", {"early_stopping": True, "validation_fraction": 0.3}),
    ],
)
def test_fit_leaves_bad_files_out(container, params, mixed, folder):
    X, y, good = mixed
    wrap = {
        "array": np.asarray,
        "list": list,
        "series": lambda X: pd.Series(X, index=range(100, 100 + len(X))),
        "frame": lambda X: pd.DataFrame({"path": X}),
    }[container]
    weights = np.linspace(1, 2, len(X))
    clf = PretrainedImageClassifier(image_size=SIZE, max_epochs=2, random_state=0, **params)
    expected = clone(clf).fit(wrap(X[good]), y[good], sample_weight=weights[good])

    clf.set_params(on_error="skip")
    with pytest.warns(UnreadableImageWarning, match="^8 of 20 images.*left out") as caught:
        clf.fit(wrap(X), y, sample_weight=weights)

    (warning,) = [w for w in caught if w.category is UnreadableImageWarning]
    assert_names_all(str(warning.message), folder)
    assert warning.filename == __file__
    assert clf.skipped_.tolist() == np.setdiff1d(np.arange(len(X)), good).tolist()
    assert expected.skipped_.tolist() == []
    np.testing.assert_allclose(
        clf.predict_proba(X[good]), expected.predict_proba(X[good]), rtol=1e-5, atol=1e-7
    )
    if "early_stopping" in params:
        assert clf.validation_indices_.tolist() == good[expected.validation_indices_].tolist()


@pytest.mark.parametrize("cache", ["memory", None])
@pytest.mark.parametrize("freeze", ["all", "none"])
def test_predictions_for_bad_files_are_none_or_nan(freeze, cache, mixed, folder):
    X, y, good = mixed
    clf = PretrainedImageClassifier(
        image_size=SIZE, on_error="skip", freeze=freeze, cache=cache, max_epochs=1
    ).fit(X[good], y[good])
    bad = np.setdiff1d(np.arange(len(X)), good)
    for method in ("predict_proba", "predict_log_proba", "decision_function", "transform"):
        with pytest.warns(UnreadableImageWarning, match="^8 of 20 images.*NaN") as caught:
            answers = getattr(clf, method)(X)
        assert_names_all(str(caught[0].message), folder)
        assert len(answers) == len(X)
        assert np.isnan(answers[bad]).all()
        assert np.isfinite(answers[good]).all()
        np.testing.assert_allclose(
            answers[good], getattr(clf, method)(X[good]), rtol=1e-3, atol=1e-4
        )
    with pytest.warns(UnreadableImageWarning, match="None from predict"):
        labels = clf.predict(X)
    assert labels.dtype == object
    assert all(label is None for label in labels[bad])
    assert labels[good].tolist() == clf.predict(X[good]).tolist()
    assert clf.predict(X[good]).dtype == clf.classes_.dtype


def test_predictions_where_nothing_can_be_read(mixed, skipping):
    X, _, good = mixed
    for bad in (np.delete(X, good), ["nowhere.png", "gone.png"]):
        with pytest.warns(UnreadableImageWarning, match=f"^{len(bad)} of {len(bad)}"):
            assert skipping.predict(bad).tolist() == [None] * len(bad)
        with pytest.warns(UnreadableImageWarning):
            assert np.isnan(skipping.predict_proba(bad)).all()
        with (
            pytest.warns(UnreadableImageWarning),
            pytest.raises(ValueError, match="None of the images"),
        ):
            skipping.score(bad, ["temple"] * len(bad))


@pytest.mark.parametrize("kind", ["text", "numbers"])
def test_metrics_refuse_predictions_with_none(kind, mixed):
    X, y, _ = mixed
    y = y if kind == "text" else (y == "temple").astype(int)
    clf = PretrainedImageClassifier(image_size=SIZE, on_error="skip")
    with pytest.warns(UnreadableImageWarning):
        labels = clf.fit(X, y).predict(X)
    with pytest.raises((ValueError, TypeError)):
        accuracy_score(y, labels)


def test_score_leaves_bad_files_out(mixed, skipping):
    X, y, good = mixed
    y = y.copy()
    y[good[:3]] = "temple"  # not all is right
    weights = np.linspace(1, 3, len(X))
    for weight in (None, weights):
        with pytest.warns(UnreadableImageWarning, match="score leaves them out"):
            score = skipping.score(X, list(y), sample_weight=weight)
        some = None if weight is None else weight[good]
        assert score == skipping.score(X[good], y[good], sample_weight=some) < 1
    with pytest.raises(ValueError, match="inconsistent"), pytest.warns(UnreadableImageWarning):
        skipping.score(X, y[:-1])


def test_grid_search_over_a_folder_with_bad_files(mixed):
    X, y, _ = mixed
    clf = PretrainedImageClassifier(image_size=SIZE, on_error="skip")
    search = GridSearchCV(clf, {"weight_decay": [1e-3, 1e-1]}, cv=2, error_score="raise")
    with pytest.warns(UnreadableImageWarning):
        search.fit(list(X), y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_score_ > 0.5
    assert len(search.best_estimator_.skipped_) == len(BAD)


def test_a_class_that_loses_all_its_images(mixed):
    X, y, good = mixed
    y = np.array(y, dtype=object)
    y[np.setdiff1d(np.arange(len(X)), good)[:3]] = "rose"
    clf = PretrainedImageClassifier(image_size=SIZE, on_error="skip")
    with pytest.raises(ValueError, match=r"leaves no image of the classes \['rose'\]: 8 images"):
        clf.fit(X, y)
    assert not hasattr(clf, "classes_")

    with pytest.warns(UnreadableImageWarning):  # the next part may have roses
        clf.partial_fit(X, y, classes=["flower", "rose", "temple"])
    assert len(clf.skipped_) == 8
    before = clf.predict_proba(X[good])
    with pytest.raises(UnreadableImagesError):
        clf.partial_fit(X[clf.skipped_], y[clf.skipped_])
    assert np.array_equal(clf.predict_proba(X[good]), before)


def test_adapt_leaves_bad_files_out(mixed):
    X, y, good = mixed
    clf = PretrainedImageClassifier(image_size=SIZE).fit(X[good], y[good])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sktl.DomainShiftWarning)
        with pytest.raises(UnreadableImagesError, match="8 images"):
            clf.adapt(X)
        with pytest.raises(UnreadableImagesError, match="8 images"):
            clf.adapt(X[good], X, y)
        expected = clf.adapt(X[good], X[good], y[good], method="coral")
        clf.set_params(on_error="skip")
        with pytest.warns(UnreadableImageWarning, match="8 of 20") as caught:
            adapted = clf.adapt(X, X, y, method="coral")
    assert sum(w.category is UnreadableImageWarning for w in caught) == 2  # target and source
    assert adapted.adaptation_.n_images == len(good)
    np.testing.assert_allclose(
        adapted.predict_proba(X[good]), expected.predict_proba(X[good]), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("cache", ["memory", None])
def test_features_of_bad_files(cache, mixed, folder, monkeypatch):
    monkeypatch.setattr("sktl.features._BLOCK", 4)
    X, y, good = mixed
    features = PretrainedImageFeatures(image_size=SIZE, cache=cache, dtype="float16")
    for method in ("fit", "fit_transform") if cache else ("fit_transform",):
        with pytest.raises(UnreadableImagesError, match="^8 images") as caught:
            getattr(clone(features), method)(X)
        assert_names_all(str(caught.value), folder)

    features.set_params(on_error="skip")
    bad = np.setdiff1d(np.arange(len(X)), good)
    with pytest.warns(UnreadableImageWarning, match="NaN"):
        rows = features.fit_transform(X)
    assert rows.dtype == np.float16
    assert np.isnan(rows[bad]).all()
    with pytest.warns(UnreadableImageWarning):
        assert np.array_equal(features.fit(X).transform(X), rows, equal_nan=True)
    np.testing.assert_allclose(rows[good], features.transform(X[good]), atol=0.02)
    with pytest.raises(ValueError, match="NaN"), pytest.warns(UnreadableImageWarning):
        make_pipeline(features, LogisticRegression()).fit(X, y)


def test_pil_images_that_fail_to_load(photographs, folder):
    images = [Image.fromarray(image[:64, :64]) for image in photographs[0]]
    whole = (folder / "good00.png").read_bytes()
    images.append(Image.open(io.BytesIO(whole[: len(whole) // 2])))
    X, y = images, [*photographs[1], 0]
    clf = PretrainedImageClassifier(image_size=SIZE, on_error="skip")
    with pytest.warns(UnreadableImageWarning, match=r"1 of 13 images.*\n  X\[12\]: .*truncated"):
        clf.fit(X, y)
    assert clf.skipped_.tolist() == [12]


def test_arrays_are_never_skipped(photographs, digits):
    clf = PretrainedImageClassifier(image_size=SIZE, on_error="skip")
    images = [image[:64, :64] for image in photographs[0]]
    for broken in (np.zeros((0, 8, 3)), np.zeros((8, 8, 5)), np.full((8, 8), np.nan)):
        with pytest.raises(ValueError, match="pixels|channels|NaN"):
            clf.fit([*images, broken], [*photographs[1], 0])


def test_a_bad_parameter(mixed):
    X, y, _ = mixed
    for make in (PretrainedImageClassifier, PretrainedImageFeatures):
        with pytest.raises(ValueError, match="on_error.*'raise'.*Got 'ignore'"):
            make(on_error="ignore").fit(X, y)


# Kinds of files -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode", "tolerance"),
    [
        ("cmyk.jpg", "RGB", 12),
        ("sixteen.png", "L", 0),
        ("palette.png", "RGB", 30),
        ("animation.gif", "RGB", 30),  # the first of its pictures
    ],
)
def test_odd_files_are_read_right(name, mode, tolerance, folder):
    with Image.open(folder / "good00.png") as image:
        expected = np.asarray(image.convert(mode).convert("RGB"), dtype=float)
    difference = np.abs(decode_file(str(folder / name)) - expected)
    assert difference.mean() <= tolerance / 3
    assert np.median(difference) <= tolerance


def test_a_file_that_goes_away_while_it_is_read(mixed, folder, tmp_path, monkeypatch):
    X, y, good = mixed
    fleeting = tmp_path / "fleeting.png"
    fleeting.write_bytes((folder / "animation.gif").read_bytes())

    def decode(*args, **kwargs):
        fleeting.unlink(missing_ok=True)
        return decode_file(*args, **kwargs)

    monkeypatch.setattr("sktl.images.reading.decode_file", decode)
    clf = PretrainedImageClassifier(image_size=SIZE, on_error="skip", cache=None)
    with pytest.warns(UnreadableImageWarning, match="1 of 13 .*\n.*fleeting.png: No such file"):
        clf.fit([*X[good], fleeting], [*y[good], y[0]])
    assert clf.skipped_.tolist() == [12]


def read_without_rights(folder, bomb, connection):
    """Give up root's rights, which are to read all, and say what can't be read then."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    names = ["good.png", "locked.png", os.path.join("closed", "good.png")]
    X = [os.path.join(folder, name) for name in names]
    images = open_images(X, learn_format(X))
    bad = {}
    for i in range(3):
        try:
            images.digest(i)
        except UnreadableImagesError as error:
            bad[i] = error.files[0][1]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Image.DecompressionBombError):
        decode_file(bomb)
    connection.send((bad, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


@pytest.mark.skipif(resource is None, reason="no such rights here")
def test_files_that_may_not_be_read_and_the_memory_of_a_bomb(folder):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "closed").mkdir()
        for file in ("good.png", "locked.png", "closed/good.png"):
            (root / file).write_bytes((folder / "good00.png").read_bytes())
        bomb = root / "bomb.png"
        bomb.write_bytes((folder / "bomb.png").read_bytes())
        root.chmod(0o755)
        (root / "locked.png").chmod(0)
        (root / "closed").chmod(0)
        processes = multiprocessing.get_context("fork")
        ours, theirs = processes.Pipe()
        process = processes.Process(target=read_without_rights, args=(name, str(bomb), theirs))
        process.start()
        theirs.close()
        noted, growth = ours.recv()
        process.join()
        (root / "closed").chmod(stat.S_IRWXU)
    assert noted == {1: "Permission denied", 2: "Permission denied"}
    assert growth < 50_000  # kB; its pixels would take 900,000


# Files of estimators ------------------------------------------------------------------


def test_saving_keeps_what_was_skipped(mixed, skipping, tmp_path):
    X, _, good = mixed
    skipping.save(tmp_path / "clf.sktl")
    for again in (sktl.load(tmp_path / "clf.sktl"), pickle.loads(pickle.dumps(skipping))):
        assert again.on_error == "skip"
        assert again.skipped_.dtype == skipping.skipped_.dtype
        assert again.skipped_.tolist() == skipping.skipped_.tolist()
        with pytest.warns(UnreadableImageWarning):
            assert again.predict(X).tolist() == skipping.predict(X).tolist()


def test_older_files_have_the_default(mixed, skipping):
    X, _, good = mixed
    state = skipping.__getstate__()
    del state["on_error"], state["skipped_"]
    older = object.__new__(PretrainedImageClassifier)
    older.__setstate__(state)
    assert older.on_error == "raise"
    assert older.skipped_.tolist() == []
    assert clone(older).get_params()["on_error"] == "raise"
    with pytest.raises(UnreadableImagesError):
        older.predict(X)
    first = sktl.load(Path(__file__).parents[1] / "data" / "classifier-v1.sktl")
    assert first.on_error == "raise"
    assert first.skipped_.tolist() == []
