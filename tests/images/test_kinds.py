"""What people have, and isn't a list of pictures: one clear error, or read as meant."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from sktl.images.errors import UnreadableImagesError
from sktl.images.format import learn_format
from sktl.images.kinds import kind_of
from sktl.images.reading import open_images

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("no_warnings")]


@pytest.fixture(scope="module")
def pictures(photographs):
    """Four photographs of 60 x 80 pixels."""
    return [np.ascontiguousarray(p[:120:2, :160:2]) for p in photographs[0][::3]]


def encode(picture, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def encoded(pictures):
    return [encode(picture) for picture in pictures]


@pytest.fixture
def files(encoded, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(len(encoded))]
    for path, content in zip(paths, encoded, strict=True):
        with open(path, "wb") as file:
            file.write(content)
    return paths


def opened(X, **params):
    return open_images(X, learn_format(X, **params))


def message_of(X, error=ValueError):
    with pytest.raises(error) as caught:
        kind_of(X)
    return str(caught.value)


# Tables ------------------------------------------------------------------------------


def test_a_frame_of_paths_and_labels_names_the_column():
    frame = pd.DataFrame({"label": [1, 2], "file": ["a.png", "b.png"]})
    message = message_of(frame)
    assert "'file'" in message
    assert "row 0" in message
    assert "X['file']" in message
    assert "[:, 1]" in message_of(frame.to_numpy())
    for column in ("file", ["file"]):
        assert kind_of(frame[column]) == "paths"


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
@pytest.mark.parametrize("wrap", [list, pd.Series, lambda X: np.array(X, dtype=object)])
def test_a_missing_path_names_the_row(wrap, missing):
    message = message_of(wrap(["a.png", "b.png", missing, "c.png", missing]))
    assert "2 of 5 rows: 2, 4 (counted from 0)" in message
    assert "Leave those rows out" in message


def test_a_missing_path_names_the_column():
    frame = pd.DataFrame({"file": ["a.png", None]})
    assert "column 'file'" in message_of(frame)
    assert "column 'file'" in message_of(frame["file"])
    assert "rows: 1" in message_of(frame["file"].astype("string"))
    assert "rows: 0, 1" in message_of(pd.Series([None, None]))


def test_rows_with_missing_numbers_are_left_to_scikit_learn():
    for X in ([1.0, None], [float("nan"), 2.0], [[1, None], [2, 3]]):
        assert kind_of(X) == "rows"


@pytest.mark.parametrize("thing", [{"image": Image.new("L", (8, 8))}, object(), iter([])])
def test_things_that_are_no_images(thing):
    assert "which is no image. Pass arrays" in message_of([thing, thing], TypeError)


# Data sets of torch ------------------------------------------------------------------


class Pairs(Dataset):
    def __init__(self, pictures):
        self._pictures = pictures

    def __len__(self):
        return len(self._pictures)

    def __getitem__(self, i):
        return Image.fromarray(self._pictures[i]), i % 2


def test_a_dataset_says_what_to_pass(pictures):
    pairs = Pairs(pictures)
    assert "[image for image, _ in ds]" in message_of(pairs, TypeError)
    assert "loader.dataset" in message_of(DataLoader(pairs), TypeError)
    message = message_of(list(pairs), TypeError)
    assert "X[0] is a pair" in message
    assert "[image for image, _ in X]" in message
    assert opened([image for image, _ in pairs]).batch([0]).shape == (1, 3, 60, 80)


def test_an_image_folder_says_what_to_pass(save_photographs, tmp_path):
    ds = ImageFolder(save_photographs(tmp_path))
    message = message_of(ds, TypeError)
    assert "ds.samples" in message
    assert "ds.targets" in message
    assert len(opened([path for path, _ in ds.samples])) == 12


# One picture -------------------------------------------------------------------------


@pytest.mark.parametrize("n_channels", [3, 4])
def test_one_picture_is_refused_after_pictures_in_colour(pictures, files, encoded, n_channels):
    one = np.zeros((60, 80, n_channels), dtype=np.uint8)
    seen = [
        files,
        encoded,
        pictures,
        np.stack(pictures),
        np.stack(pictures).transpose(0, 3, 1, 2),
        [Image.fromarray(picture) for picture in pictures],
    ]
    for X in seen:
        fmt = learn_format(X)
        assert fmt.in_colour
        for picture in (one, torch.from_numpy(one)):
            with pytest.raises(ValueError, match=r"60 grey pictures of 80 x .*\[image\]"):
                open_images(picture, fmt)
        assert len(open_images([one], fmt)) == 1
        assert len(open_images(one[..., np.newaxis], fmt)) == 60


def test_a_tensor_of_torch_s_order_is_doubted(pictures):
    one = np.ascontiguousarray(pictures[0].transpose(2, 0, 1))
    with pytest.warns(UserWarning, match=r"3 grey pictures of 60 x 80 pixels.*\[image\]"):
        assert len(open_images(one, learn_format(pictures))) == 3


def test_grey_pictures_say_nothing_of_colours(digits):
    grey = digits[0].reshape(-1, 8, 8)
    narrow = grey[:, :, :3]
    for X in (digits[0], grey, list(grey), [Image.new("L", (8, 8))]):
        fmt = learn_format(X)
        assert not fmt.in_colour
    assert len(open_images(narrow, learn_format(grey))) == len(grey)


# Encoded files -----------------------------------------------------------------------


def records(encoded, names):
    """As Hugging Face's datasets and their parquet files hold pictures."""
    return [{"bytes": b, "path": name} for b, name in zip(encoded, names, strict=True)]


def test_bytes_are_read_like_files(files, encoded, pictures):
    as_files = opened(files)
    frame = pd.DataFrame({"image": encoded})
    for X in (
        encoded,
        tuple(bytearray(content) for content in encoded),
        np.array(encoded, dtype=object),
        frame,
        frame["image"],
        records(encoded, ["a.png"] * 4),
        pd.Series(records(encoded, [None] * 4)),
        [{"bytes": None, "path": path} for path in files],
        [encoded[0], files[1], *encoded[2:]],
    ):
        assert kind_of(X) == "paths"
        images = opened(X)
        assert torch.equal(images.batch(range(4)), as_files.batch(range(4)))
        assert [images.digest(i) for i in range(4)] == [as_files.digest(i) for i in range(4)]
    np.testing.assert_array_equal(as_files.batch([0])[0].permute(1, 2, 0), pictures[0])


def test_large_jpegs_in_bytes_are_decoded_at_a_fraction(photographs):
    large = np.asarray(Image.fromarray(photographs[0][0]).resize((1200, 1200)))
    assert opened([encode(large, "JPEG")]).batch([0], 64).shape == (1, 3, 150, 150)


def test_bad_bytes_are_named_by_their_rows(encoded):
    X = [encoded[0], b"no picture", encoded[1], encoded[2][:2000], b""]
    images = opened(X)
    with pytest.raises(UnreadableImagesError) as caught:
        images.batch(range(5))
    assert caught.value.rows == [1, 3, 4]
    assert [name for name, _ in caught.value.files] == ["X[1]", "X[3]", "X[4]"]
    assert "X[1]: not an image that Pillow can read" in str(caught.value)


def test_a_single_sample_of_bytes(encoded):
    message = message_of(encoded[0])
    assert "single sample" in message
    assert len(message) < 200


def test_numpy_s_bytes_lose_their_end(encoded):
    assert "dtype=object" in message_of(np.array(encoded), TypeError)
