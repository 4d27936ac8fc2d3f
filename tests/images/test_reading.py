"""Images of all kinds are read as the same uint8 pixels."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xxhash
from opened import as_nchw, digests, read
from PIL import Image
from scipy import sparse
from sklearn.datasets import load_digits

from sktl.images.format import ImageFormat, learn_format
from sktl.images.kinds import kind_of
from sktl.images.reading import open_images

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("no_warnings")]


# kind_of -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "X",
    [
        ["a.png", "b.png"],
        (Path("a.png"), "b.png"),
        np.array(["a.png", "b.png"]),
        np.array(["a.png", "b.png"], dtype=object),
        np.array([["a.png"], ["b.png"]]),
        pd.Series(["a.png", "b.png"], index=[7, 3]),
        pd.Series(["a.png", "b.png"], dtype="category"),
        pd.Series([Path("a.png"), Path("b.png")]),
        pd.DataFrame({"path": ["a.png", "b.png"]}),
    ],
)
def test_kind_paths(X):
    assert kind_of(X) == "paths"


def object_array(items):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


SMALL = [np.zeros((4, 5)), np.zeros((6, 5, 3)), np.zeros((3, 6, 5))]


@pytest.mark.parametrize(
    "X",
    [
        SMALL,
        tuple(SMALL),
        [np.zeros((4, 4)), np.zeros((4, 4))],
        [torch.zeros(4, 5), np.zeros((3, 6, 5)), Image.new("L", (3, 4))],
        object_array(SMALL),
        object_array(SMALL).reshape(-1, 1),
        pd.Series(SMALL),
        pd.DataFrame({"image": SMALL}),
    ],
)
def test_kind_images(X):
    assert kind_of(X) == "images"
    assert [len(image) for image in read(X)] == [3] * len(X)


@pytest.mark.parametrize("shape", [(2, 8, 9), (2, 8, 9, 1), (2, 8, 9, 4), (2, 3, 8, 9), (0, 8, 9)])
def test_kind_arrays(shape):
    assert kind_of(np.zeros(shape)) == "arrays"
    assert kind_of(torch.zeros(shape)) == "arrays"


def test_kind_of_an_array_like():
    class ArrayLike:
        def __array__(self, dtype=None, copy=None):
            return np.zeros((2, 8, 9), dtype=dtype)

    assert kind_of(ArrayLike()) == "arrays"
    assert read(ArrayLike()).shape == (2, 3, 8, 9)


@pytest.mark.parametrize(
    "X",
    [
        np.zeros((3, 16)),
        np.zeros((3, 1)),
        np.zeros((3, 1), dtype=object),
        np.zeros((3, 4), dtype=object),
        torch.zeros(3, 16),
        torch.zeros(3),
        pd.DataFrame(np.zeros((3, 16))),
        pd.DataFrame({"a": [1, 2]}),
        pd.Series([1.0, 2.0]),
        [[0.0, 1.0], [2.0, 3.0]],
        [np.zeros(4), np.zeros(4)],
        [1, 2.0],
        np.zeros(4),
        np.float64(3),
        3,
        np.array([["a", "b"]]),
        np.zeros((2, 2, 2, 2, 2)),
        sparse.csr_matrix(np.eye(3)),
        sparse.csr_array(np.ones((3, 1))),
    ],
)
def test_kind_rows(X):
    assert kind_of(X) == "rows"


@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (2, 2, 8, 9), (2, 8, 9, 2)])
def test_arrays_without_channels_say_what_is_accepted(shape):
    with pytest.raises(ValueError, match=r"\(n, h, w\), \(n, h, w, c\) or \(n, c, h, w\)"):
        learn_format(np.zeros(shape))


@pytest.mark.parametrize(
    "X, first, second",
    [
        (["a.png", "b.png", np.zeros((4, 4))], r"X\[0\] is a str \('a.png'\)", r"X\[2\].*ndarray"),
        (["a.png", 3], r"X\[0\] is a str", r"X\[1\] is a int \(3\)"),
        ([np.zeros((4, 4)), np.zeros(4)], r"X\[0\].*\(4, 4\)", r"X\[1\].*\(4,\)"),
    ],
)
def test_mixed_kinds_name_the_first_two_that_differ(X, first, second):
    with pytest.raises(TypeError, match=f"{first}.* and {second}"):
        kind_of(X)


@pytest.mark.parametrize("X", ["a.png", Path("a.png"), Image.new("L", (3, 4))])
def test_a_single_sample_is_refused(X):
    with pytest.raises(ValueError, match="single sample"):
        kind_of(X)


# Layouts -----------------------------------------------------------------------------


def test_layouts_of_arrays(photos):
    expected = as_nchw(photos)
    grey = photos[..., 0]
    grey_rgb = torch.from_numpy(grey).unsqueeze(1).expand(-1, 3, -1, -1)
    rgba = np.concatenate([photos, np.full_like(photos[..., :1], 255)], axis=-1)

    for X, rgb in [
        (photos, expected),
        (expected, expected),
        (expected.numpy(), expected),
        (torch.from_numpy(photos), expected),
        (rgba, expected),
        (rgba.transpose(0, 3, 1, 2), expected),
        (grey, grey_rgb),
        (grey[..., np.newaxis], grey_rgb),
        (grey[:, np.newaxis], grey_rgb),
    ]:
        result = read(X)
        assert result.dtype == torch.uint8
        assert torch.equal(result, rgb), X.shape
        for image, wanted in zip(read(list(X)), rgb, strict=True):
            assert torch.equal(image, wanted), X.shape


def test_a_trailing_channel_axis_wins():
    X = np.arange(2 * 3 * 7 * 4, dtype=np.uint8).reshape(2, 3, 7, 4)
    X[..., 3] = 255
    assert torch.equal(read(X), as_nchw(X[..., :3]))


def test_an_image_without_channels_in_a_list_is_named():
    with pytest.raises(ValueError, match=r"X\[1\] of shape \(5, 6, 7\)"):
        learn_format([np.zeros((4, 5)), np.zeros((5, 6, 7))])


def test_sizes_that_differ_come_as_a_list(photos):
    X = [photos[0], photos[1, :30], photos[1]]
    images = open_images(X, learn_format(X))

    different = images.batch([0, 1])
    assert isinstance(different, list)
    assert [tuple(image.shape) for image in different] == [(3, 60, 80), (3, 30, 80)]
    assert torch.equal(images.batch([0, 2]), as_nchw(photos))


def test_batch_takes_any_indices(photos, files):
    for X in (photos, list(photos), files):
        images = open_images(X, learn_format(X))
        assert len(images) == 2
        for indices in ([1, 0, 1], (1, 0, 1), np.array([1, 0, 1])):
            batch = images.batch(indices)
            assert torch.equal(batch, as_nchw(photos[[1, 0, 1]]))
            assert batch.is_contiguous(memory_format=torch.channels_last)  # no pixel moved


def test_object_arrays_of_images_of_one_size(photos):
    unpacked = np.array(list(photos[:, :4, :4]), dtype=object)
    assert unpacked.shape == (2, 4, 4, 3)
    assert torch.equal(read(unpacked, pixel_range=(0, 255)), as_nchw(photos[:, :4, :4]))


@pytest.mark.parametrize("order", ["read-only", "reversed", "fortran"])
def test_memory_of_every_order_is_read_and_never_written(photos, order):
    X = {
        "read-only": photos.copy(),
        "reversed": photos[::-1, ::-1, ::-1],
        "fortran": np.asfortranarray(photos),
    }[order]
    X.flags.writeable = False
    before = X.copy()
    for container in (X, list(X), X.astype(np.float32), torch.from_numpy(X.copy())):
        result = read(container)
        assert torch.equal(result, as_nchw(before))
        result.zero_()
        np.testing.assert_array_equal(np.asarray(container), before)


def test_memory_maps_are_read(photos, tmp_path):
    np.save(tmp_path / "photos.npy", photos)
    assert torch.equal(read(np.load(tmp_path / "photos.npy", mmap_mode="r")), as_nchw(photos))


def test_tensors_with_a_gradient_and_of_bfloat16(photos):
    X = as_nchw(photos).float()
    assert torch.equal(read(X.requires_grad_()), as_nchw(photos))
    assert torch.equal(read(X.detach().bfloat16()), X.detach().bfloat16().to(torch.uint8))


# Fit on one kind, predict on another -------------------------------------------------


def test_fit_and_predict_may_differ_in_kind(photos, files):
    expected = as_nchw(photos)
    floats = photos.astype(np.float32) / 255
    pictures = [Image.fromarray(photo) for photo in photos]
    for seen in (photos, files, pictures, list(photos), floats):
        for X in (photos, files, pictures, list(photos)):
            assert torch.equal(open_images(X, learn_format(seen)).batch([0, 1]), expected)
    rows = photos.reshape(2, -1)
    fmt = learn_format(rows, image_shape=photos.shape[1:])
    for X in (photos, files, rows):
        assert torch.equal(open_images(X, fmt).batch([0, 1]), expected)


def test_float_images_after_8_bit_ones_are_refused(photos, files):
    floats = photos.astype(np.float32) / 255
    for seen in (photos, files, list(photos), [Image.fromarray(photos[0])]):
        fmt = learn_format(seen)
        for X in (floats, list(floats), photos.astype(np.int64)):
            with pytest.raises(ValueError, match="fit saw only 8-bit ones.*pixel_range"):
                open_images(X, fmt)
        fmt = learn_format(seen, pixel_range=(0, 1))
        assert torch.equal(open_images(floats, fmt).batch([0, 1]), as_nchw(photos))


def test_rows_where_fit_saw_none(photos):
    rows = photos.reshape(2, -1)
    with pytest.raises(ValueError, match="fit saw arrays.*image_shape"):
        open_images(rows, learn_format(photos))
    fmt = learn_format(photos, image_shape=(60, 80, 3))
    assert torch.equal(open_images(rows, fmt).batch([0, 1]), as_nchw(photos))


# Rows --------------------------------------------------------------------------------


def test_digits_are_grey_squares():
    digits = load_digits()
    fmt = learn_format(digits.data)
    assert fmt == ImageFormat("rows", (8, 8), (0.0, 16.0), "values")
    expected = np.rint(digits.images[:5] / 16 * 255).astype(np.uint8)
    result = open_images(digits.data, fmt).batch(range(5))
    assert torch.equal(result, torch.from_numpy(expected).unsqueeze(1).repeat(1, 3, 1, 1))


@pytest.mark.parametrize(
    "width, shape",
    [
        (1, (1, 1)),
        (4, (2, 2)),
        (9, (3, 3)),
        (16, (4, 4)),
        (25, (5, 5)),
        (2, (1, 2)),
        (3, (1, 3)),
        (12, (1, 12)),
        (27, (1, 27)),
        (31, (1, 31)),
        (64, (8, 8)),
        (784, (28, 28)),
        (48, (4, 4, 3)),
        (3072, (32, 32, 3)),
    ],
)
def test_shapes_guessed_from_the_width(width, shape):
    assert learn_format(np.zeros((2, width))).image_shape == shape


@pytest.mark.parametrize("width", [32, 50, 2914])
def test_a_width_that_is_no_picture(width):
    with pytest.raises(ValueError, match=rf"{width}.*image_shape.*\(62, 47\)"):
        learn_format(np.zeros((2, width)))


def test_a_given_shape_counts(photos):
    expected = as_nchw(photos)
    rows = photos.reshape(2, -1)
    assert torch.equal(read(rows, image_shape=[60, 80, 3]), expected)
    planes = expected.numpy().reshape(2, -1)
    assert torch.equal(read(planes, image_shape=(3, 60, 80)), expected)
    assert learn_format(np.zeros((2, 64)), image_shape=(4, 4, 4)).image_shape == (4, 4, 4)


def test_a_given_shape_that_does_not_fit():
    with pytest.raises(ValueError, match=r"\(62, 47\) has 2914 values.*have 2915"):
        learn_format(np.zeros((2, 2915)), image_shape=(62, 47))
    fmt = learn_format(np.zeros((2, 64)))
    with pytest.raises(ValueError, match=r"\(8, 8\) has 64 values.*have 65"):
        open_images(np.zeros((2, 65)), fmt)


@pytest.mark.parametrize("shape", [(64,), (2, 2, 2, 8), (8, 0), (-8, -8), (8.0, 8.0), 64, "ab"])
def test_a_bad_shape_is_named(shape):
    with pytest.raises(ValueError, match="image_shape must be") as caught:
        learn_format(np.zeros((2, 64)), image_shape=shape)
    assert repr(shape) in str(caught.value)


def test_a_shape_without_channels():
    with pytest.raises(ValueError, match=r"image_shape=\(2, 4, 8\) has no axis"):
        learn_format(np.zeros((2, 64)), image_shape=(2, 4, 8))


def test_rows_of_colour_planes_warn(photos):
    squares = photos[:, :32, :32]
    assert learn_format(squares.reshape(2, -1)).image_shape == (32, 32, 3)  # no warning
    planes = squares.transpose(0, 3, 1, 2).reshape(2, -1)
    with pytest.warns(UserWarning, match=r"image_shape=\(3, 32, 32\)"):
        assert learn_format(planes).image_shape == (32, 32, 3)
    learn_format(planes, image_shape=(3, 32, 32))  # no warning


def test_rows_in_any_order_of_memory(photos):
    rows = np.asfortranarray(photos.reshape(2, -1))
    assert torch.equal(read(rows, image_shape=(60, 80, 3)), as_nchw(photos))


def test_rows_that_scikit_learn_refuses():
    with pytest.raises(ValueError, match="Found array with dim 5"):
        learn_format(np.zeros((2, 2, 2, 2, 2)))
    with pytest.raises(ValueError, match="Expected 2D array"):
        learn_format(np.zeros(4))


# Nothing to read ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "X", [np.zeros((0, 8, 8)), np.zeros((0, 64)), torch.zeros(0, 3, 8, 8), [], np.array([], str)]
)
def test_no_samples(X):
    message = r"Found array with 0 sample\(s\) \(shape=\(0,.*while a minimum of 1 is required"
    with pytest.raises(ValueError, match=message):
        learn_format(X)
    with pytest.raises(ValueError, match=message):
        open_images(X, learn_format(np.zeros((2, 64))))


@pytest.mark.parametrize(
    "X, name",
    [
        (np.zeros((2, 0, 5, 3)), r"X\[0\] .*\(0, 5, 3\)"),
        (np.zeros((2, 5, 0)), r"X\[0\] .*\(5, 0\)"),
        ([np.zeros((2, 5)), np.zeros((0, 5, 3))], r"X\[1\] .*\(0, 5, 3\)"),
        ([Image.new("L", (2, 2)), Image.new("L", (0, 3))], r"X\[1\] .*\(0, 3\)"),
    ],
)
def test_no_pixels(X, name):
    with pytest.raises(ValueError, match=name):
        learn_format(X)
    with pytest.raises(ValueError, match=name):
        open_images(X, learn_format(np.zeros((2, 64))))


# Pillow's modes ----------------------------------------------------------------------


def picture_of_mode(photo, mode):
    picture = Image.fromarray(photo)
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.int32) * 257)
    if mode == "P+transparency":
        picture = picture.quantize(16)
        picture.info["transparency"] = bytes(range(16))
        return picture
    if mode == "LA":
        picture = picture.convert("L").convert("LA")
        picture.putalpha(7)
    elif mode == "RGBA":
        picture.putalpha(Image.fromarray(photo[..., 0]))
    else:
        picture = picture.convert(mode)
    return picture


MODES = ["1", "L", "LA", "P", "P+transparency", "RGB", "RGBA", "I;16", "CMYK", "YCbCr"]


def rgb_of_mode(photo, mode):
    """What the picture should look like, computed another way."""
    if mode in ("I", "I;16", "LA"):
        mode = "L"
    if mode in ("P+transparency", "RGBA"):
        picture = picture_of_mode(photo, mode).convert("RGBA")
        page = Image.new("RGBA", picture.size, "white")
        page.alpha_composite(picture)
        return np.asarray(page.convert("RGB"))
    return np.asarray(Image.fromarray(photo).convert(mode).convert("RGB"))


@pytest.mark.parametrize("mode", [*MODES, "I"])
def test_pil_images_of_every_mode(photos, mode):
    result = read([picture_of_mode(photos[0], mode)])
    assert torch.equal(result, as_nchw(rgb_of_mode(photos[0], mode)[np.newaxis]))


@pytest.mark.parametrize("mode", MODES)
def test_files_of_every_mode(photos, tmp_path, mode):
    path = tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr") else "x.png")
    picture_of_mode(photos[0], mode).save(path)
    try:
        with Image.open(path) as picture:
            picture.load()
    except OSError:
        pytest.skip("this version of Pillow can't read what it has written")
    result = read([path])
    assert torch.equal(result, as_nchw(rgb_of_mode(photos[0], mode)[np.newaxis]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_files_come_out_upright(photos, tmp_path, orientation):
    back = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x.png"
    Image.fromarray(np.ascontiguousarray(back(photos[0]))).save(path, exif=exif)

    assert torch.equal(read([path]), as_nchw(photos[:1]))
    with Image.open(path) as picture:
        assert torch.equal(read([picture]), as_nchw(photos[:1]))


def test_broken_metadata_does_not_spoil_a_file(photos, tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(photos[0]).save(path, exif=b"Exif\0\0nonsense")
    assert torch.equal(read([path]), as_nchw(photos[:1]))


# Digests -----------------------------------------------------------------------------


def test_a_digest_is_of_the_content_alone(photos):
    expected = digests(photos)
    assert len(set(expected)) == 2
    assert all(len(digest) == 16 for digest in expected)

    padded = np.zeros((2, 60, 160, 3), dtype=np.uint8)
    padded[:, :, ::2] = photos
    for X in (
        photos.copy(),
        np.asfortranarray(photos),
        padded[:, :, ::2],
        photos[:, ::-1].copy()[:, ::-1],
        torch.from_numpy(photos.copy()),
        list(photos),
        [torch.from_numpy(photo.copy()) for photo in photos],
        [Image.fromarray(photo) for photo in photos],
    ):
        assert digests(X) == expected
    assert digests(photos[::-1]) == expected[::-1]
    assert digests(photos[1:]) == expected[1:]
    assert digests(photos.reshape(2, -1), image_shape=(60, 80, 3)) == expected


def test_a_digest_tells_apart_what_reads_otherwise():
    X = np.zeros((1, 4, 6, 3), dtype=np.uint8)
    changed = X.copy()
    changed[0, 3, 5, 2] = 100
    different = [
        digests(X),
        digests(changed),
        digests(X.reshape(1, 3, 4, 6)),
        digests(X.reshape(1, 6, 4, 3)),
        digests(X.reshape(1, 6, 12)),
        digests(X.view(np.int8)),
        digests(X, pixel_range=(0, 1)),
        digests(X, pixel_range=(0, 2)),
        digests(X.astype(np.float32)),
        digests(X.astype(np.float64)),
        digests(X.view(bool)),
    ]
    assert len({digest for (digest,) in different}) == len(different)


def test_a_digest_of_a_learned_range():
    X = np.full((2, 4, 4), 0.5)
    other = X.copy()
    other[1] = 12
    assert digests(X)[0] != digests(other)[0]
    assert digests(X, learn_format(other))[0] == digests(other)[0]


def test_a_digest_of_a_file_is_of_its_bytes(photos, files, tmp_path):
    expected = [xxhash.xxh3_128_digest(Path(path).read_bytes()) for path in files]
    assert digests(files) == expected
    moved = tmp_path / "moved.dat"
    os.rename(files[1], moved)
    os.utime(moved, (0, 0))
    assert digests([moved, files[0]]) == expected[::-1]
    Image.fromarray(photos[1]).save(files[0])
    assert digests(files[:1]) != expected[:1]


# Cost --------------------------------------------------------------------------------


def test_opening_an_array_neither_copies_nor_reads_it():
    # One image a million times over, in the memory of one: a copy would take 77 GB.
    X = np.broadcast_to(np.zeros((160, 160, 3), np.uint8), (1_000_000, 160, 160, 3))
    images = open_images(X, learn_format(X))
    assert len(images) == 1_000_000
    assert images.batch([0, 999_999]).shape == (2, 3, 160, 160)
    assert images.digest(0) == images.digest(999_999)


def test_opening_rows_copies_nothing():
    X = np.asfortranarray(np.zeros((40, 3072), dtype=np.uint8))
    images = open_images(X, learn_format(X))
    X[7] = 200
    assert (images.batch([7]) == 200).all()
