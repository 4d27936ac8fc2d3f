"""Which values are black and white, and what comes later on another scale."""

import numpy as np
import pytest
import torch
from opened import as_nchw, digests, read
from PIL import Image

from sktl.images.format import ImageFormat, learn_format
from sktl.images.kinds import kind_of
from sktl.images.reading import open_images

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("no_warnings")]


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
