"""Bad images, labels, weights and files are one clear error, and change nothing."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from refusals import SIZE, N

from sktl import PretrainedImageClassifier
from sktl.images.errors import UnreadableImagesError

# X and y ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("X", "y"),
    [
        (np.empty((0, 64)), []),
        (np.empty((0, 8, 8)), np.empty(0)),
        (np.empty((0, 8, 8, 3), dtype=np.uint8), np.empty(0, dtype=int)),
        ([], []),
        (np.empty(0, dtype=object), []),
        (pd.DataFrame({"path": []}), pd.Series([], dtype=str)),
    ],
)
def test_empty_X(refuses, X, y):
    refuses(ValueError, ["0 sample", "minimum of 2"], X=X, y=y)


@pytest.mark.parametrize("container", [np.asarray, list, pd.DataFrame])
def test_lengths_that_differ(refuses, rows, container):
    X = rows[0].reshape(-1, 8, 8) if container is list else rows[0]
    refuses(
        ValueError, ["inconsistent numbers of samples", r"\[24, 5\]"], X=container(X), y=[0] * 5
    )


def broken(X, value):
    X = X.copy()
    X[3, 4] = value
    return X


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity")])
@pytest.mark.parametrize("kind", ["rows", "arrays", "list", "tensor"])
def test_nan_and_infinity(refuses, rows, value, word, kind):
    X = broken(rows[0], value)
    shaped = X.reshape(-1, 8, 8)
    X = {"rows": X, "arrays": shaped, "list": list(shaped), "tensor": torch.tensor(shaped)}[kind]
    refuses(ValueError, ["Input X contains", f"{word}|infinity"], X=X)


ZERO_PIXELS = [
    np.zeros((N, 0, 8)),
    np.zeros((N, 8, 0, 3), dtype=np.uint8),
    [np.zeros((0, 8))] * N,
    [Image.new("L", (0, 8))] * N,
]


@pytest.mark.parametrize("X", ZERO_PIXELS)
def test_images_without_pixels(refuses, X):
    refuses(ValueError, [r"X\[0\] has no pixels"], X=X)


@pytest.mark.parametrize(
    ("X", "error", "words"),
    [
        (["a.png", *[np.zeros((8, 8))] * 23], TypeError, ["a.png", r"\(8, 8\)", "Pass paths only"]),
        ([Image.new("L", (8, 8)), *["b.png"] * 23], TypeError, ["Image", "b.png", "Pass paths"]),
        ("flower.png", ValueError, ["single sample, 'flower.png'", "Put it in a list"]),
        (Image.new("L", (8, 8)), ValueError, ["single sample", "Put it in a list"]),
        (np.zeros((N, 5, 8, 8)), ValueError, [r"\(24, 5, 8, 8\)", "1, 3 or 4 channels"]),
        (np.zeros((N, 50)), ValueError, ["50", "image_shape"]),
        (np.zeros((75, 19, 3)), ValueError, ["75 grey pictures", r"\[image\]", "24 rows"]),
        (np.zeros((75, 19, 4)), ValueError, ["75 grey pictures", r"\[image\]", "24 rows"]),
        (np.zeros(N), ValueError, ["Expected 2D array", "Reshape your data"]),
        (np.zeros((N, 1, 1, 1, 1)), ValueError, ["dim 5"]),
        (np.zeros((N, 8, 8), dtype=complex), ValueError, ["Complex data not supported"]),
        (np.full((N, 4), "a"), ValueError, ["[Cc]onvert your data to numeric"]),
        (5, TypeError, ["Expected sequence or array-like"]),
    ],
)
def test_X_that_holds_no_images(refuses, X, error, words):
    refuses(error, words, X=X)


@pytest.mark.parametrize(
    ("y", "error", "words"),
    [
        (None, ValueError, ["requires y", "None"]),
        ([7] * N, ValueError, [r"one class only, \[7\]", "at least 2 classes"]),
        (2 * np.eye(N, 3), ValueError, [r"\(24, 3\)", "0 or 1", "MultiOutputClassifier"]),
        (np.linspace(0, 1, N), ValueError, ["continuous"]),
        (np.array([0.0, np.nan] * 12), ValueError, ["y contains NaN"]),
        (np.array([0.0, np.inf] * 12), ValueError, ["y contains infinity"]),
        ([0, None] * 12, ValueError, ["y contains None", "Leave out"]),
        (["cat", None] * 12, ValueError, ["y contains None", "Leave out"]),
        (np.array(["cat", np.nan] * 12, dtype=object), ValueError, ["contains nan", "Leave out"]),
        (pd.Series(["cat", None] * 12, dtype="string"), ValueError, ["contains <NA>", "Leave out"]),
        (pd.Series([1, None] * 12, dtype="Int64"), ValueError, ["y contains NaN"]),
        (["cat", 1] * 12, TypeError, [r"mixes text with 1 \(int\)", "one kind"]),
        (np.array([1, "cat"] * 12, dtype=object), TypeError, [r"text with 1 \(int\)", "one kind"]),
        (np.zeros((N, 1, 1)), ValueError, ["dim"]),
        (3, TypeError, ["array-like"]),
    ],
)
def test_bad_y(refuses, y, error, words):
    refuses(error, words, y=y)


@pytest.mark.parametrize(
    ("sample_weight", "words"),
    [
        (-np.ones(N), ["[Nn]egative", "sample_weight"]),
        (np.full(N, np.nan), ["sample_weight contains NaN"]),
        (np.full(N, np.inf), ["sample_weight contains infinity"]),
        (np.ones(5), [r"\(5,\)", r"\(24,\)"]),
        (np.ones((N, 2)), ["1D array"]),
        (np.zeros(N), ["[Ss]ample.weight", "at least one"]),
    ],
)
def test_bad_sample_weight(refuses, sample_weight, words):
    refuses(ValueError, words, sample_weight=sample_weight)


# Files --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(photographs, tmp_path_factory):
    """12 good files, and labels."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{i}.png" for i in range(12)]
    for image, path in zip(photographs[0], paths, strict=True):
        Image.fromarray(image[:64, :64]).save(path)
    return paths, photographs[1]


@pytest.fixture(scope="module")
def bad_files(pictures, tmp_path_factory):
    """A file that isn't there, one of text, a truncated one and a folder, with the reasons."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.png").write_text("not a picture")
    whole = pictures[0][0].read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    return {
        str(folder / "missing.png"): "No such file",
        str(folder / "text.png"): "not an image",
        str(folder / "truncated.png"): "truncated",
        str(folder / "empty.jpg"): "not an image",
        str(folder): "is a directory",
    }


@pytest.mark.parametrize("freeze", ["all", "none"])
@pytest.mark.parametrize("i", range(5))
def test_one_bad_file(refuses, pictures, bad_files, i, freeze):
    paths, y = pictures
    path, reason = list(bad_files.items())[i]
    X = [*paths[:-1], path]
    words = ["1 image in X can't be read", f"{re.escape(path)}: .*{reason}", "Mend them"]
    refuses(UnreadableImagesError, words, X=X, y=y, freeze=freeze)


@pytest.mark.parametrize("cache", ["memory", None])
def test_all_bad_files_are_named(refuses, pictures, bad_files, cache):
    paths, y = pictures
    without_missing = [path for path in bad_files if "missing" not in path]
    for bad in (list(bad_files), without_missing[:-1]):  # found when opened, when decoded
        X = [bad[0], *paths[: 12 - len(bad)], *bad[1:]]
        words = [f"{len(bad)} images in X can't be read", *map(re.escape, bad)]
        refuses(UnreadableImagesError, words, X=X, y=y, cache=cache)


def test_ten_of_many_bad_files_are_named(pictures, tmp_path):
    paths, y = pictures
    bad = [str(tmp_path / f"gone{i}.png") for i in range(13)]
    clf = PretrainedImageClassifier(image_size=SIZE)
    with pytest.raises(ValueError) as caught:
        clf.fit([*paths, *bad], [*y, *[0] * 13])
    text = str(caught.value)
    assert text.startswith("13 images in X can't be read")
    assert [path in text for path in bad] == [True] * 10 + [False] * 3
    assert "and 3 more" in text
    assert len(caught.value.files) == 13


def test_a_bad_file_in_predict(fitted, pictures, bad_files):
    for path in bad_files:
        with pytest.raises(UnreadableImagesError, match=re.escape(path)):
            fitted.predict([pictures[0][0], path])
