"""Files that can't be read, or change while they are."""

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch
from opened import as_nchw, digests
from PIL import Image

from sktl.images.errors import UnreadableImagesError
from sktl.images.format import learn_format
from sktl.images.reading import open_images

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("no_warnings")]


# Bad files ---------------------------------------------------------------------------


@pytest.fixture
def bad_files(files, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("this is no image")
    empty = tmp_path / "empty.png"
    empty.touch()
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(Path(files[0]).read_bytes()[:3000])
    half = tmp_path / "half.jpg"
    Image.open(files[0]).save(half)
    half.write_bytes(half.read_bytes()[:600])
    return [str(path) for path in (text, empty, truncated, half)]


def test_all_bad_files_are_named_at_the_end(files, bad_files):
    X = [files[0], *bad_files, files[1], bad_files[0]]
    images = open_images(X, learn_format(X))

    with pytest.raises(UnreadableImagesError, match="4 images in X can't be read") as caught:
        images.batch(range(7))

    assert [path for path, _ in caught.value.files] == bad_files
    assert caught.value.rows == [1, 2, 3, 4, 6]
    reasons = [reason for _, reason in caught.value.files]
    assert reasons[:2] == ["not an image that Pillow can read"] * 2
    assert all("truncated" in reason.lower() for reason in reasons[2:])
    for path, reason in caught.value.files:
        assert f"{path}: {reason}" in str(caught.value)
    assert isinstance(caught.value, ValueError)
    good = images.batch([0, 5])
    batch, unreadable = images.read(range(7))
    assert list(unreadable) == caught.value.rows
    assert torch.equal(torch.stack([batch[0], batch[5]]), good)
    assert all(batch[i].shape == (3, 1, 1) for i in caught.value.rows)


def test_a_bad_file_is_told_of_each_time_it_is_read(files, bad_files):
    X = [*files, bad_files[0]]
    images = open_images(X, learn_format(X))
    with pytest.raises(UnreadableImagesError, match="1 image in X can't be read") as caught:
        images.batch([0, 2])
    assert caught.value.rows == [2]
    for _ in range(2):
        assert list(images.read([0, 2])[1]) == [2]
    with pytest.raises(UnreadableImagesError):
        images.batch([2])


def test_of_good_images_there_is_nothing_to_tell(photos, files):
    for X in (photos, list(photos), files):
        images = open_images(X, learn_format(X))
        assert not images.missing([0, 1])
        read, unreadable = images.read([0, 1])
        assert not unreadable
        assert torch.equal(read, images.batch([0, 1]))


def test_missing_files_are_known_before_anything_is_read(files, bad_files, tmp_path):
    missing = [str(tmp_path / "gone.png"), str(tmp_path / "lost.png")]
    X = [*missing, files[0], str(tmp_path), bad_files[0]]
    images = open_images(X, learn_format(X))

    assert images.missing(range(5)) == {
        0: "No such file or directory",
        1: "No such file or directory",
        3: "is a directory",
    }
    assert list(images.missing([1, 2])) == [1]


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.EIO, "disk"), OSError(errno.EMFILE, "many")]
)
@pytest.mark.parametrize("ask", ["digest", "batch"])
def test_what_is_no_fault_of_the_file_is_raised_at_once(files, monkeypatch, error, ask):
    def fail(*args, **kwargs):
        raise error

    images = open_images(files, learn_format(files))
    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(type(error)) as caught:
        images.digest(0) if ask == "digest" else images.read([0])
    monkeypatch.undo()
    assert caught.value is error


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    images = open_images([pipe], learn_format([pipe]))
    assert "is not a regular file" in images.missing([0])[0]
    with pytest.raises(UnreadableImagesError, match="is not a regular file"):
        images.batch([0])


def test_ten_are_named_and_the_rest_counted(tmp_path):
    X = [str(tmp_path / f"{i:02}.png") for i in range(13)]
    images = open_images(X, learn_format(X))
    with pytest.raises(UnreadableImagesError, match="13 images") as caught:
        images.batch(range(13))
    message = str(caught.value)
    assert X[9] in message
    assert X[10] not in message
    assert "and 3 more" in message
    assert len(caught.value.files) == 13


def test_a_file_that_vanishes_is_bad(files, bad_files):
    images = open_images([*files, bad_files[0]], learn_format(files))
    os.remove(files[1])
    for ask in (images.digest, lambda i: images.batch([i])):
        with pytest.raises(UnreadableImagesError) as caught:
            ask(1)
        assert caught.value.files == [(files[1], "No such file or directory")]


def test_decompression_bombs_are_bad_files(files, monkeypatch):
    images = open_images(files, learn_format(files))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImagesError, match="decompression bomb"):
        images.batch([0])


def test_a_pil_image_of_a_bad_file(files, bad_files):
    with Image.open(bad_files[2]) as truncated:
        X = [Image.open(files[0]), truncated]
        images = open_images(X, learn_format(X))
        for ask in (images.digest, lambda i: images.batch([i])):
            with pytest.raises(UnreadableImagesError, match=r"X\[1\]: .*truncated"):
                ask(1)
        X[0].close()


def test_a_name_takes_one_line():
    error = UnreadableImagesError([("two\nlines.png", "empty"), ("\udcff.png", "empty")])
    assert "\n  'two\\nlines.png': empty\n" in str(error)
    assert str(error).encode()  # a terminal can show it


def test_the_error_survives_pickling():
    error = UnreadableImagesError([("a.png", "is a directory")], [3])
    copy = pickle.loads(pickle.dumps(error))
    assert copy.rows == [3]
    assert copy.files == error.files
    assert str(copy) == str(error)
    assert "1 image in X" in str(error)


def test_images_survive_pickling(photos, files):
    for X in (photos, list(photos), files):
        images = pickle.loads(pickle.dumps(open_images(X, learn_format(X))))
        assert torch.equal(images.batch([0, 1]), as_nchw(photos))
        assert images.digest(1) == digests(X)[1]
