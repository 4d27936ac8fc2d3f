import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xxhash
from PIL import Image
from scipy import sparse
from sklearn.datasets import load_digits, load_sample_images

from sktl.images.errors import UnreadableImagesError
from sktl.images.format import ImageFormat, learn_format
from sktl.images.kinds import kind_of
from sktl.images.reading import open_images

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("no_warnings")]


@pytest.fixture(scope="module")
def photos():
    """Two real photographs, (2, 60, 80, 3) uint8."""
    return np.stack(load_sample_images().images)[:, 100:340:4, 100:420:4].copy()


@pytest.fixture
def files(photos, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(len(photos))]
    for photo, path in zip(photos, paths, strict=True):
        Image.fromarray(photo).save(path)
    return paths


def as_nchw(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def read(X, **params):
    """All images of X, with the format learned from X itself."""
    images = open_images(X, learn_format(X, **params))
    return images.batch(range(len(images)))


def digests(X, fmt=None, **params):
    images = open_images(X, fmt or learn_format(X, **params))
    return [images.digest(i) for i in range(len(images))]


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


# Pixel ranges ------------------------------------------------------------------------


@pytest.mark.parametrize("high", [1, 16, 255, 1023, 4095, 16383, 65535])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint16])
def test_the_nearest_common_range_is_taken(photos, high, dtype):
    exact = photos / 255 * high
    X = exact.astype(dtype) if np.issubdtype(dtype, np.floating) else np.rint(exact).astype(dtype)
    fmt = learn_format(X)

    assert fmt == ImageFormat("arrays", None, (0.0, float(high)), "values", in_colour=True)
    result = open_images(X, fmt).batch([0, 1])
    expected = np.rint(X.astype(float) / high * 255).astype(np.uint8)
    assert torch.equal(result, as_nchw(expected))


@pytest.mark.parametrize(
    "top, high", [(0.25, 1), (15, 16), (64, 255), (256, 1023), (1024, 4095), (4096, 16383)]
)
def test_a_range_covers_the_values(top, high):
    X = np.zeros((2, 4, 4))
    X[1, 2, 2] = top
    assert learn_format(X).pixel_range == (0, high)
    assert learn_format(list(X)).pixel_range == (0, high)


@pytest.mark.parametrize("top, high", [(0.2, 1), (1.01, 16), (17, 255)])
def test_values_far_below_the_range_are_warned_of(top, high):
    X = np.zeros((2, 4, 4))
    X[1, 2, 2] = top
    for images in (X, list(X)):
        with pytest.warns(UserWarning, match=rf"is {top:g}, .*pixel_range=\(0, {top:g}\)"):
            assert learn_format(images).pixel_range == (0, high)


@pytest.mark.parametrize("values", [(-1.0, 1.0), (0.0, 70000.0)])
def test_other_values_are_stretched_with_a_warning(values):
    X = np.full((1, 2, 2), values[0])
    X[0, 1, 1] = values[1]
    with pytest.warns(UserWarning, match=rf"{values[0]:g}, .*{values[1]:g}, .*pixel_range"):
        fmt = learn_format(X)
    assert fmt.pixel_range == values
    assert open_images(X, fmt).batch([0])[0, 0].tolist() == [[0, 0], [0, 255]]


@pytest.mark.parametrize("value, pixel", [(-5.0, 0), (0.0, 0), (1e6, 0)])
def test_constant_images(value, pixel):
    X = np.full((2, 4, 4), value)
    if 0 <= value <= 65535:
        fmt = learn_format(X)
    else:
        with pytest.warns(UserWarning, match="pixel_range"):
            fmt = learn_format(X)
    assert (open_images(X, fmt).batch([0, 1]) == pixel).all()


def test_a_range_too_wide_for_a_float():
    X = np.full((2, 4, 4), 1.7e308)
    X[0] *= -1
    with pytest.raises(ValueError, match="span more"):
        learn_format(X)


def test_more_values_than_are_scaled_at_once():
    X = np.random.default_rng(0).random((3, 200, 300, 3), dtype=np.float32)
    expected = np.rint(X * 255).astype(np.uint8)
    assert torch.equal(read(X), as_nchw(expected))


def test_dark_uint8_images_are_not_stretched():
    X = np.full((2, 4, 4), 17, dtype=np.uint8)
    assert learn_format(X) == ImageFormat("arrays", None, (0.0, 255.0), "8-bit")
    assert (read(X) == 17).all()
    for images in (X - 1, list(X - 1)):  # digits in another dtype
        with pytest.warns(UserWarning, match=r"is 16, .*pixel_range=\(0, 16\)"):
            assert (read(images)[0] == 16).all()


def test_bool_means_black_and_white():
    X = np.zeros((1, 2, 2), dtype=bool)
    X[0, 0, 0] = True
    assert read(X)[0, 0].tolist() == [[255, 0], [0, 0]]
    fmt = learn_format(X.astype(np.float32) * 255)
    assert open_images(X, fmt).batch([0])[0, 0].tolist() == [[255, 0], [0, 0]]


def test_values_outside_the_range_are_clipped_in_predict():
    fmt = learn_format(np.ones((1, 2, 2)))
    X = np.array([[[-3.0, 0.0], [0.5, 40.0]]])
    assert open_images(X, fmt).batch([0])[0, 0].tolist() == [[0, 0], [128, 255]]


def test_a_given_range_counts_for_all_arrays():
    for dtype in (np.uint8, np.float32, np.int32):
        X = np.array([[[10, 20], [30, 40]]], dtype=dtype)
        for container in (X, list(X), torch.from_numpy(X)):
            fmt = learn_format(container, pixel_range=(10, 30))
            assert fmt == ImageFormat(kind_of(container), None, (10.0, 30.0), "given")
            result = open_images(container, fmt).batch([0])
            assert result[0, 0].tolist() == [[0, 128], [255, 255]]


def test_a_given_range_does_not_count_for_files_and_pil_images(photos, files):
    assert torch.equal(read(files, pixel_range=(10, 30)), as_nchw(photos))
    pictures = [Image.fromarray(photo) for photo in photos]
    assert torch.equal(read(pictures, pixel_range=(10, 30)), as_nchw(photos))
    assert digests(files, pixel_range=(10, 30)) == digests(files)
    assert digests(pictures, pixel_range=(10, 30)) == digests(pictures)


@pytest.mark.parametrize(
    "pixel_range",
    [
        (1, 1),
        (2, 1),
        (0, np.inf),
        (np.nan, 1),
        (0,),
        (0, 1, 2),
        "ab",
        5,
        (None, 1),
        (-1e308, 1e308),
    ],
)
def test_a_bad_range_is_named(pixel_range):
    with pytest.raises(ValueError, match="pixel_range must be two finite numbers.*got") as caught:
        learn_format(np.zeros((2, 4, 4)), pixel_range=pixel_range)
    assert repr(pixel_range) in str(caught.value)


def test_samples_that_do_not_count_are_not_looked_at():
    X = np.ones((3, 4, 4))
    X[2] = -7
    counts = [True, True, False]
    assert learn_format(X, rows=counts).pixel_range == (0, 1)
    assert learn_format(list(X), rows=counts).pixel_range == (0, 1)
    assert learn_format(X.reshape(3, 16), rows=np.array(counts)).pixel_range == (0, 1)
    with pytest.warns(UserWarning, match="pixel_range"):
        assert learn_format(X, rows=[False] * 3).pixel_range == (-7, 1)


def test_mixed_dtypes_in_a_list_keep_their_own_meaning():
    X = [
        np.full((2, 2), 51, dtype=np.uint8),
        np.full((2, 2), 0.4),
        Image.new("L", (2, 2), 51),
        np.full((2, 2), True),
    ]
    fmt = learn_format(X)
    assert fmt.pixel_range == (0, 1)
    assert open_images(X, fmt).batch(range(4))[:, 0, 0, 0].tolist() == [51, 102, 51, 255]


@pytest.mark.parametrize("bad, words", [(np.nan, "contains NaN"), (np.inf, "contains infinity")])
@pytest.mark.parametrize("pixel_range", [None, (0, 1)])
def test_values_that_are_not_finite(bad, words, pixel_range):
    good = np.ones((3, 4, 4), dtype=np.float32)
    fmt = learn_format(good, pixel_range=pixel_range)
    X = good.copy()
    X[2, 3, 3] = bad
    for container in (X, list(X), torch.from_numpy(X), X.reshape(3, 16)):
        with pytest.raises(ValueError, match=f"^Input X {words}"):
            learn_format(container, pixel_range=pixel_range)
        with pytest.raises(ValueError, match=f"^Input X {words}"):
            open_images(container, fmt)


def test_complex_and_other_dtypes():
    for X in (np.zeros((2, 4, 4), dtype=complex), torch.zeros(2, 4, 4, dtype=torch.complex64)):
        with pytest.raises(ValueError, match="Complex data not supported"):
            learn_format(X)
    with pytest.raises(ValueError, match="dtype"):
        learn_format(np.full((2, 4, 4), "a"))


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


# uint8 after other values -------------------------------------------------------------


@pytest.mark.parametrize("wrap", [np.asarray, list, lambda X: X.reshape(len(X), -1)])
def test_uint8_after_values_of_another_range(digits, wrap):
    """Digits as uint8 would be nearly black, whatever else the range that fit learned."""
    X = digits[0][:4].reshape(-1, 8, 8)
    fmt = learn_format(wrap(X))
    assert fmt.pixel_range == (0, 16)
    with pytest.raises(ValueError, match="uint8 .*0 to 255.* from 0 to 16.*set pixel_range"):
        open_images(wrap(X.astype(np.uint8)), fmt)
    with pytest.warns(UserWarning, match="fit no common range"):
        fmt = learn_format(wrap(X - 8.5))
    with pytest.raises(ValueError, match="from -8.5 to 7.5"):
        open_images(wrap(X.astype(np.uint8)), fmt)


@pytest.mark.parametrize("scale", [1 / 255, 1, 257])
def test_uint8_after_a_range_of_pictures(photos, scale):
    """The same pictures as floats or 16 bits before; uint8 keeps its meaning."""
    fmt = learn_format(photos * np.float64(scale))
    assert fmt.learned_from == "values"
    as_uint8 = open_images(photos, fmt).batch([0, 1])
    assert torch.equal(as_uint8, as_nchw(photos))
    assert torch.equal(open_images(photos * np.float64(scale), fmt).batch([0, 1]), as_uint8)


def test_uint8_in_the_range_that_the_user_gave(digits):
    X = digits[0][:4].reshape(-1, 8, 8)
    fmt = learn_format(X, pixel_range=(0, 16))
    as_uint8 = open_images(X.astype(np.uint8), fmt).batch(range(4))
    assert torch.equal(as_uint8, open_images(X, fmt).batch(range(4)))
    assert as_uint8.max() == 255


def test_files_after_digits(digits, files, photos):
    """Files and PIL images carry their own range."""
    fmt = learn_format(digits[0][:4].reshape(-1, 8, 8))
    assert torch.equal(open_images(files, fmt).batch([0, 1]), as_nchw(photos))
    pictures = [Image.fromarray(photo) for photo in photos]
    assert torch.equal(open_images(pictures, fmt).batch([0, 1]), as_nchw(photos))


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
