"""Estimators on the bytes of image files: as on the files, down to the cache."""

import io
from collections.abc import Sequence

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline

import sktl
from sktl import PretrainedImageClassifier, PretrainedImageFeatures, UnreadableImageWarning
from sktl.images.errors import UnreadableImagesError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoded(photographs):
    """12 photographs as PNG files in memory, and labels."""
    contents = []
    for photograph in photographs[0]:
        file = io.BytesIO()
        Image.fromarray(photograph[:64, :72]).save(file, "PNG")
        contents.append(file.getvalue())
    return contents, np.array(["temple", "flower"])[photographs[1]]


@pytest.fixture
def files(encoded, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for path, content in zip(paths, encoded[0], strict=True):
        path.write_bytes(content)
    return paths


class Column(Sequence):
    """A column that reads its rows when they are asked for."""

    def __init__(self, rows):
        self._rows = rows

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, i):
        return self._rows[i]


def records(contents):
    return [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(contents)]


CONTAINERS = {
    "array": lambda contents: np.array(contents, dtype=object),
    "series": lambda contents: pd.Series(contents, index=range(100, 112)),
    "frame": lambda contents: pd.DataFrame({"image": contents}),
    "series of records": lambda contents: pd.Series(records(contents)),
    "column": lambda contents: Column(records(contents)),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_search_over_a_pipeline(encoded, container):
    contents, y = encoded
    X = CONTAINERS[container](contents)
    pipeline = make_pipeline(PretrainedImageFeatures(image_size=32), LogisticRegression())
    grid = {"pretrainedimagefeatures__pooling": ["auto", "flatten"], "logisticregression__C": [1]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, y)
    assert (search.predict(X) == y).all()


def test_cross_validation_of_the_classifier(encoded, files):
    contents, y = encoded
    clf = PretrainedImageClassifier(image_size=32)
    predicted, of_files = (
        cross_val_predict(clf, X, y, cv=2, method="predict_proba")
        for X in (records(contents), files)
    )
    np.testing.assert_array_equal(predicted, of_files)


def test_a_file_and_its_bytes_share_their_place_in_the_cache(encoded, files, tmp_path):
    contents, y = encoded
    # A size of its own, so that no other test has run this network.
    features = PretrainedImageFeatures(image_size=48, cache=tmp_path / "cache")
    of_files = features.fit_transform(files)
    n_run = features._prefix.n_images
    assert n_run == 12
    for X in (contents, records(contents)):
        np.testing.assert_array_equal(features.transform(X), of_files)
    assert features._prefix.n_images == n_run
    assert len(y) == len(of_files)


def test_bad_bytes_are_skipped_or_named(encoded):
    contents, y = encoded
    X = [*contents, contents[0][:500], b"text"]
    labels = [*y, "flower", "temple"]
    with pytest.raises(UnreadableImagesError, match=r"X\[12\]: .*\n  X\[13\]: not an image"):
        PretrainedImageClassifier(image_size=32).fit(X, labels)
    clf = PretrainedImageClassifier(image_size=32, on_error="skip")
    with pytest.warns(UnreadableImageWarning, match=r"2 of 14 .*\n  X\[12\]: .*\n  X\[13\]: "):
        clf.fit(X, labels)
    assert clf.skipped_.tolist() == [12, 13]
    with pytest.warns(UnreadableImageWarning, match=r"X\[0\]"):
        assert clf.predict([X[13], X[0]]).tolist() == [None, y[0]]


def test_files_and_exports_of_a_fit_on_bytes(encoded, files, tmp_path):
    contents, y = encoded
    clf = PretrainedImageClassifier(image_size=32).fit(contents, y)
    expected = clf.predict_proba(contents)
    np.testing.assert_array_equal(clf.predict_proba(files), expected)
    clf.save(tmp_path / "clf.sktl")
    joblib.dump(clf, tmp_path / "clf.joblib")
    for loaded in (sktl.load(tmp_path / "clf.sktl"), joblib.load(tmp_path / "clf.joblib")):
        np.testing.assert_allclose(loaded.predict_proba(contents), expected, rtol=1e-5)
        with pytest.raises(ValueError, match=r"64 grey pictures .*\[image\]"):
            loaded.predict(np.asarray(Image.open(files[0])))
    pictures = np.stack([np.asarray(Image.open(file)) for file in files])
    exported = clf.to_torch()(torch.from_numpy(pictures.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(exported.numpy(), expected, atol=2e-2)
