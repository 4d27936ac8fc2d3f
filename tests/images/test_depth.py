"""Files and PIL images of more than 8 bits, and transparent ones."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sktl import UnreadableImagesError
from sktl.images.format import learn_format
from sktl.images.reading import open_images

pytestmark = pytest.mark.core

ROW = np.linspace(0, 1, 48)
RAMP = np.stack([ROW, ROW**2, ROW[::-1]] * 12).reshape(36, 48)


def grey_levels(values, low, high):
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def first(X, **params):
    """What the first of some images is read as."""
    images = open_images(X, learn_format(X, **params))
    return np.asarray(images.batch([0])[0].permute(1, 2, 0))


def grey(X, **params):
    pixels = first(X, **params)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def digest(X, **params):
    return open_images(X, learn_format(X, **params)).digest(0)


@pytest.mark.parametrize("high", [1023, 4095, 16383, 65535])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_fewer_bits_in_a_16_bit_file(tmp_path, high, ending):
    values = np.rint(RAMP * high).astype(np.uint16)
    path = tmp_path / f"x.{ending}"
    Image.fromarray(values).save(path)
    assert learn_format([path]).pixel_range == (0, high)
    expected = grey_levels(values, 0, high)
    assert np.array_equal(grey([path]), expected)
    assert np.array_equal(grey([Image.open(path)]), expected)
    assert np.array_equal(grey([values]), expected)


@pytest.mark.parametrize("dtype, high", [(np.int32, 255), (np.int32, 4095), (np.float32, 1)])
def test_tiff_files_of_int32_and_floats(tmp_path, dtype, high):
    values = (RAMP * high).astype(dtype)
    Image.fromarray(values).save(tmp_path / "x.tif")
    expected = grey_levels(values.astype(np.float64), 0, high)
    assert np.abs(grey([tmp_path / "x.tif"]).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_hounsfield_units(tmp_path, dtype):
    values = np.rint(RAMP * 3000 - 1024).astype(dtype)
    path = tmp_path / "x.tif"
    Image.fromarray(values).save(path)
    X = [path]
    assert np.array_equal(grey(X, pixel_range=(-1024, 1976)), grey_levels(values, -1024, 1976))
    assert np.array_equal(
        grey(values[np.newaxis], pixel_range=(-1024, 1976)), grey_levels(values, -1024, 1976)
    )
    with pytest.warns(UserWarning, match="-1024, the least seen.*pixel_range"):
        assert learn_format(X).pixel_range == (-1024, 1976)


def test_16_bit_colours_in_a_png_file(tmp_path):
    cv2 = pytest.importorskip("cv2")
    values = np.rint(np.dstack([RAMP, RAMP.T.reshape(RAMP.shape), RAMP**2]) * 4095)
    values = values.astype(np.uint16)
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), values[..., ::-1])
    assert learn_format([path]).pixel_range == (0, 4095)
    assert np.array_equal(first([path]), grey_levels(values, 0, 4095))
    assert np.array_equal(first([path], pixel_range=(0, 65535)), grey_levels(values, 0, 65535))


def test_16_bit_colours_in_a_tiff_file(tmp_path):
    cv2 = pytest.importorskip("cv2")
    values = np.rint(np.dstack([RAMP, RAMP, RAMP**2]) * 65535).astype(np.uint16)
    path = str(tmp_path / "x.tif")
    cv2.imwrite(path, values[..., ::-1])
    assert np.abs(first([path]).astype(int) - grey_levels(values, 0, 65535)).max() <= 1
    cv2.imwrite(path, values[..., ::-1] // 16)
    with pytest.raises(UnreadableImagesError, match="upper 8, too few.*pass arrays"):
        first([path])


def test_a_file_where_zero_is_white(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    values = np.rint(RAMP * 4095).astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="miniswhite")
    assert np.array_equal(grey([tmp_path / "x.tif"]), 255 - grey_levels(values, 0, 4095))


def test_8_bit_files_beside_others_keep_their_meaning(tmp_path):
    Image.fromarray((RAMP * 255).astype(np.uint8)).save(tmp_path / "8.png")
    Image.fromarray((RAMP * 4095).astype(np.uint16)).save(tmp_path / "12.png")
    X = [tmp_path / "8.png", tmp_path / "12.png"]
    assert learn_format(X).pixel_range == (0, 4095)
    expected = (RAMP * 255).astype(np.uint8)
    assert np.array_equal(grey(X), expected)
    assert np.array_equal(grey(X, pixel_range=(0, 100)), expected)
    assert digest(X) == digest(X, pixel_range=(0, 100)) == digest(X[:1])


def test_the_range_is_part_of_a_file_s_key(tmp_path):
    values = (RAMP * 4095).astype(np.uint16)
    path = tmp_path / "x.png"
    Image.fromarray(values).save(path)
    for X in ([path], [Image.open(path)]):
        assert len({digest(X), digest(X, pixel_range=(0, 65535))}) == 2


def test_values_beyond_what_fit_took_for_white_are_refused(tmp_path):
    for name, high in (("low", 1000), ("high", 60000)):
        Image.fromarray((RAMP * high).astype(np.uint16)).save(tmp_path / f"{name}.png")
    fmt = learn_format([tmp_path / "low.png"])
    for X in ([tmp_path / "high.png"], [Image.open(tmp_path / "high.png")]):
        with pytest.raises(UnreadableImagesError, match="0 to 60000.*1023 for white.*pixel_range"):
            open_images(X, fmt).batch([0])


def test_a_deep_file_after_8_bit_ones_is_refused(tmp_path):
    Image.fromarray((RAMP * 4095).astype(np.uint16)).save(tmp_path / "x.png")
    fmt = learn_format(np.full((2, 4, 4), 200, np.uint8))
    with pytest.raises(UnreadableImagesError, match="(uint16|int32).*8 bits only.*pixel_range"):
        open_images([tmp_path / "x.png"], fmt).batch([0])


def test_not_all_files_are_read_to_learn_the_range(tmp_path, monkeypatch):
    import sktl.images.format

    values = (RAMP * 4095).astype(np.uint16)
    X = []
    for i in range(100):
        X.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(values).save(X[-1])
    seen = []
    bounds_of = sktl.images.format.bounds_of
    monkeypatch.setattr(sktl.images.format, "bounds_of", lambda f: seen.append(f) or bounds_of(f))
    assert learn_format(X).pixel_range == (0, 4095)
    assert seen == [X[i * 100 // 32] for i in range(32)]


def test_pages_of_a_tiff_file_are_warned_of(tmp_path):
    pages = [Image.fromarray((RAMP * n).astype(np.uint8)) for n in (255, 100)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match="several pages.*first page"):
        assert np.array_equal(grey([tmp_path / "x.tif"]), (RAMP * 255).astype(np.uint8))


def test_values_that_are_no_numbers_are_named(tmp_path):
    values = RAMP.astype(np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(UnreadableImagesError, match="NaN or infinite"):
        first([tmp_path / "x.tif"], pixel_range=(0, 1))


# Transparency ------------------------------------------------------------------------


def transparent():
    """Red where it is opaque, black where it isn't, and half of blue between."""
    pixels = np.zeros((6, 9, 4), dtype=np.uint8)
    pixels[:, :3] = (255, 0, 0, 255)
    pixels[:, 6:] = (0, 0, 255, 128)
    return pixels


ON_WHITE = np.zeros((6, 9, 3), dtype=np.uint8)
ON_WHITE[:, :3] = (255, 0, 0)
ON_WHITE[:, 3:6] = 255
ON_WHITE[:, 6:] = (127, 127, 255)


def test_transparent_arrays_lie_on_white():
    rgba = transparent()
    for X in ([rgba], rgba[np.newaxis], rgba.transpose(2, 0, 1)[np.newaxis]):
        assert np.array_equal(first(X), ON_WHITE)
    assert np.array_equal(first(rgba[np.newaxis] / 255), ON_WHITE)
    assert np.array_equal(first([torch.from_numpy(rgba).permute(2, 0, 1)]), ON_WHITE)


@pytest.mark.parametrize("ending, exact", [("png", True), ("webp", True), ("tif", True)])
def test_transparent_files_lie_on_white(tmp_path, ending, exact):
    path = tmp_path / f"x.{ending}"
    Image.fromarray(transparent()).save(path, **({"lossless": True} if ending == "webp" else {}))
    assert np.array_equal(first([path]), ON_WHITE)
    assert np.array_equal(first([Image.open(path)]), ON_WHITE)


@pytest.mark.parametrize("ending", ["gif", "png"])
def test_palettes_with_a_transparent_colour_lie_on_white(tmp_path, ending):
    picture = Image.new("P", (9, 6), 0)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.paste(1, (0, 0, 3, 6))
    picture.info["transparency"] = 0
    path = tmp_path / f"x.{ending}"
    picture.save(path, transparency=0)
    expected = np.full((6, 9, 3), 255, dtype=np.uint8)
    expected[:, :3] = (255, 0, 0)
    assert np.array_equal(first([path]), expected)
    assert np.array_equal(first([picture]), expected)


def test_transparent_grey_lies_on_white():
    picture = Image.new("LA", (9, 6), (0, 0))
    picture.paste((100, 255), (0, 0, 3, 6))
    expected = np.full((6, 9), 255, dtype=np.uint8)
    expected[:, :3] = 100
    assert np.array_equal(grey([picture]), expected)


@pytest.mark.parametrize("alpha", [0, 7, 255])
def test_the_same_opacity_all_over_is_left_out_of_account(alpha):
    rgba = transparent()
    rgba[..., 3] = alpha
    assert np.array_equal(first([rgba]), rgba[..., :3])
    content = io.BytesIO()
    Image.fromarray(rgba).save(content, "PNG")
    assert np.array_equal(first([Image.open(content)]), rgba[..., :3])


def test_an_opened_picture_in_which_white_is_zero_is_read_as_its_file(tmp_path):
    path = tmp_path / "x.tif"
    levels = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(levels).save(path, tiffinfo={262: 0})
    with Image.open(path) as opened:
        assert np.array_equal(grey([opened]), grey([path]))
    assert np.array_equal(grey([path]), 255 - grey_levels(levels, 0, 65535))
