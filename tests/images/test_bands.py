"""Pictures with other channels than red, green and blue."""

import io
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import sktl
from sktl import PretrainedImageClassifier, PretrainedImageFeatures
from sktl.images.errors import UnreadableImagesError
from sktl.images.format import learn_format
from sktl.images.reading import open_images

pytestmark = pytest.mark.usefixtures("no_warnings")

BANDS = (3, 2, 1)


@pytest.fixture(scope="module")
def rgb(photographs):
    """12 small photographs, (12, 40, 48, 3)."""
    return np.ascontiguousarray(photographs[0][:, :200:5, ::5])


@pytest.fixture(scope="module")
def thirteen(rgb):
    """The same with blue, green and red as bands 1 to 3 of 13, between bands of noise."""
    X = np.random.RandomState(0).randint(256, size=(*rgb.shape[:3], 13)).astype(np.uint8)
    X[..., 1:4] = rgb[..., ::-1]
    return X


def opened(X, **params):
    return open_images(X, learn_format(X, **{"bands": BANDS, **params}))


def all_of(images):
    return images.batch(range(len(images)))


# Arrays ------------------------------------------------------------------------------


def test_bands_are_chosen_from_arrays(rgb, thirteen):
    expected = open_images(rgb, learn_format(rgb))
    digests = [expected.digest(i) for i in range(12)]
    for X, params in (
        (thirteen, {}),
        (thirteen.transpose(0, 3, 1, 2), {}),
        (torch.from_numpy(thirteen), {}),
        (list(thirteen), {}),
        (list(thirteen.transpose(0, 3, 1, 2)), {}),
        (thirteen.reshape(12, -1), {"image_shape": (40, 48, 13)}),
        (thirteen[..., :4], {}),
        (np.ascontiguousarray(rgb[..., ::-1]), {"bands": (2, 1, 0)}),
    ):
        images = opened(X, **params)
        assert torch.equal(all_of(images), all_of(expected))
        assert [images.digest(i) for i in range(12)] == digests


def test_what_the_other_bands_hold_makes_no_difference(thirteen):
    other = thirteen.copy()
    other[..., 4:] = 0
    assert opened(thirteen).digest(0) == opened(other).digest(0)
    other[0, 5, 5, 2] ^= 1
    assert opened(thirteen).digest(0) != opened(other).digest(0)


@pytest.mark.parametrize("wrap", [np.asarray, list])
def test_the_range_is_learned_from_the_chosen_bands(thirteen, wrap):
    X = thirteen / np.float64(255)
    X[..., 4:] *= 30000
    fmt = learn_format(wrap(X), bands=BANDS)
    assert fmt.pixel_range == (0, 1)
    assert torch.equal(all_of(open_images(wrap(X), fmt)), all_of(opened(thirteen)))


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((13, 64, 64), 0), ((64, 64, 13), -1), ((13, 8, 8), 0), ((8, 8, 13), -1), ((5, 40, 60), 0)],
)
def test_where_the_bands_are(shape, axis):
    X = np.zeros((1, *shape), dtype=np.uint8)
    np.moveaxis(X, axis if axis < 0 else 1, -1)[..., 3] = 255
    (image,) = all_of(opened(X))
    assert (image[0] == 255).all()
    assert (image[1:] == 0).all()


def test_two_channels(rgb):
    two = rgb[..., :2]
    images = all_of(opened(two, bands=(0, 1, 1)))
    assert torch.equal(images[:, 1], images[:, 2])


@pytest.mark.parametrize("n", [2, 5, 10, 13])
def test_without_bands_the_error_names_both_ways(n):
    for X in (np.zeros((2, 20, 24, n)), [np.zeros((20, 24, n))] * 2, np.zeros((2, n, 20, 24))):
        with pytest.raises(
            ValueError, match=r"1, 3 or 4 channels.*bands=\(red, green, blue\).*bands='all'"
        ):
            learn_format(X)


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (np.zeros((2, 20, 24, 3)), r"\(2, 20, 24, 3\) has 3 bands.*asks for number 3"),
        ([np.zeros((20, 24, 5)), np.zeros((20, 24, 1))], r"X\[1\] .* has 1 band,"),
        (np.zeros((2, 20, 24)), r"\(2, 20, 24\) has no bands"),
        (np.zeros((2, 64)), r"image_shape=\(8, 8\) has no bands"),
        ([Image.new("RGB", (8, 8))], r"X\[0\]: it has 3 bands.*asks for number 3"),
    ],
)
def test_too_few_bands(X, words):
    with pytest.raises(ValueError, match=words):
        opened(X).batch([0])


@pytest.mark.parametrize(
    "bands", [(0, 1), (0, 1, 2, 3), (0, 1, -1), (0, 1, 2.0), (True, 1, 2), "rgb", ("r", "g", "b")]
)
def test_bands_that_are_none(bands):
    with pytest.raises(ValueError, match=r"bands must be three numbers.*such as \(3, 2, 1\); got"):
        learn_format(np.zeros((2, 8, 8, 5)), bands=bands)


# Files -------------------------------------------------------------------------------


def encoded(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def tiff(image, **how):
    return encoded(lambda file: tifffile.imwrite(file, image, photometric="minisblack", **how))


def pages(image):
    """One page a band, as microscopes write them."""

    def write(file):
        with tifffile.TiffWriter(file) as tiff:
            for band in np.moveaxis(image, -1, 0):
                tiff.write(np.ascontiguousarray(band), photometric="minisblack")

    return encoded(write)


def planes(image):
    return np.ascontiguousarray(np.moveaxis(image, -1, 0))


KINDS = {
    "pixels": lambda image: tiff(image, planarconfig="contig"),
    "planes": lambda image: tiff(planes(image), planarconfig="separate"),
    "pages": pages,
    "one series": lambda image: tiff(planes(image)),
    "big": lambda image: tiff(image, planarconfig="contig", bigtiff=True, byteorder=">"),
    "compressed": lambda image: tiff(
        image, planarconfig="contig", compression="zlib", tile=(16, 16)
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_tiff_files(thirteen, rgb, tmp_path, kind):
    content = KINDS[kind](thirteen[0])
    path = tmp_path / "x.tif"
    path.write_bytes(content)
    expected = torch.from_numpy(rgb[:1].transpose(0, 3, 1, 2))
    for X in ([path], [content]):
        assert torch.equal(opened(X).batch([0]), expected)


def test_sixteen_bits_and_floats_in_tiff_files(thirteen):
    eight = opened([KINDS["pixels"](thirteen[0])]).batch([0])
    for values in (thirteen[0] * np.uint16(39), thirteen[0] * np.float32(39) / 10000):
        white = 255 * 39 / (10000 if values.dtype == np.float32 else 1)
        X = [KINDS["pixels"](values)]
        assert torch.equal(opened(X, pixel_range=(0, white)).batch([0]), eight)
    X = [KINDS["pixels"](thirteen[0].astype(np.float32))]
    assert torch.equal(opened(X).batch([0]), eight)
    X = [KINDS["pixels"](np.full((8, 8, 5), np.nan, np.float32))]
    with pytest.raises(UnreadableImagesError, match="NaN or infinite"):
        opened(X, pixel_range=(0, 1)).batch([0])


def test_other_files(rgb, tmp_path):
    path = tmp_path / "x.png"
    four = np.concatenate([rgb[0], rgb[0][..., :1]], axis=-1)
    Image.fromarray(four).save(path)
    expected = torch.from_numpy(np.ascontiguousarray(four[..., [3, 0, 1]]).transpose(2, 0, 1))
    for X in ([path], [path.read_bytes()], [Image.open(path)]):
        assert torch.equal(opened(X, bands=(3, 0, 1)).batch([0])[0], expected)


def test_a_digest_of_a_file_tells_bands_and_range_apart(thirteen):
    X = [KINDS["pixels"](thirteen[0])]
    different = [
        opened(X),
        opened(X, bands=(1, 2, 3)),
        opened(X, pixel_range=(0, 100)),
        opened([KINDS["pixels"](thirteen[1])]),
    ]
    assert len({images.digest(0) for images in different}) == 4


def test_without_bands_a_tiff_file_says_what_to_set(thirteen):
    X = [KINDS["pixels"](thirteen[0])]
    with pytest.raises(UnreadableImagesError, match=r"TIFF.*bands=\(red, green, blue\)"):
        open_images(X, learn_format(X)).batch([0])


def test_too_few_bands_in_a_file(rgb):
    X = [KINDS["pixels"](rgb[0])]
    with pytest.raises(UnreadableImagesError, match=r"X\[0\]: it has 3 bands.*asks for number 3"):
        opened(X).batch([0])


def test_without_tifffile_the_error_is_of_the_installation(thirteen, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    images = opened([KINDS["pixels"](thirteen[0])])
    with pytest.raises(ImportError, match=r"pip install sktl\[tiff\]"):
        images.batch([0])


def test_the_range_of_files_is_learned_from_the_chosen_bands(thirteen, tmp_path):
    deep = thirteen * np.uint16(16)  # of 12 bits
    deep[..., 1:4] += thirteen[..., 1:4] >> 4  # 0 to 4095
    deep[..., 5] = 60000
    eight = opened([KINDS["pixels"](image) for image in thirteen])
    files = [tmp_path / f"{i}.tif" for i in range(12)]
    for file, image in zip(files, deep, strict=True):
        file.write_bytes(KINDS["planes"](image))
    for X in (files, [file.read_bytes() for file in files]):
        fmt = learn_format(X, bands=BANDS)
        assert fmt.pixel_range == (0, 4095)
        found = all_of(open_images(X, fmt)).int()
        assert (found - all_of(eight).int()).abs().max() <= 1
    with pytest.raises(UnreadableImagesError, match="pictures of 8 bits only"):
        open_images(files, learn_format(thirteen, bands=BANDS)).batch([0])


# All bands ---------------------------------------------------------------------------


def test_all_bands_are_what_repeated_weights_make_of_them():
    X = 4 * np.random.RandomState(0).randint(64, size=(2, 12, 20, 24)).astype(np.uint8)
    torch.manual_seed(0)
    three, twelve = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(12, 8, 3)
    twelve.weight.data = three.weight.data.repeat(1, 4, 1, 1) * 3 / 12
    twelve.bias = three.bias
    mean, std = torch.rand(2, 3, 1, 1)
    expected = twelve((torch.from_numpy(X) / 255 - mean.repeat(4, 1, 1)) / std.repeat(4, 1, 1))
    found = three((all_of(opened(X, bands="all")) / 255 - mean) / std)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 13])
def test_all_bands_of_any_kind_of_picture(thirteen, tmp_path, n):
    arrays = np.ascontiguousarray(thirteen[:2, ..., :n])
    groups = [arrays[..., c::3] if c < n else arrays for c in range(3)]
    expected = np.stack([np.floor(g.mean(axis=-1) + 0.5) for g in groups], axis=1)
    contents = [KINDS["one series"](image) for image in arrays]
    for X, how in (
        (arrays, {}),
        (list(arrays), {}),
        (contents, {}),
        (arrays.reshape(2, -1), {"image_shape": (40, 48, n)}),
    ):
        images = opened(X, bands="all", **how)
        np.testing.assert_array_equal(all_of(images).numpy(), expected)
    for other in (thirteen[:2, ..., :7], [KINDS["planes"](thirteen[0, ..., :7])]):
        with pytest.raises(ValueError, match="has 7 bands, but with bands='all'"):
            open_images(other, learn_format(arrays, bands="all")).batch([0])
    if n == 3:
        pictures = [Image.fromarray(image) for image in arrays]
        assert torch.equal(all_of(opened(pictures, bands="all")), all_of(images))


def test_digests_tell_means_apart(thirteen):
    ways = [((0, 1), 2, 3), (0, (1, 2), 3), (0, 1, (2, 3))]
    for X in (thirteen, list(thirteen), [KINDS["pixels"](thirteen[0])]):
        assert len({opened(X, bands=bands).digest(0) for bands in ways}) == 3


@pytest.mark.parametrize("bands", ["all", ((0, 3), [1, 4], 2)])
def test_a_classifier_of_means(thirteen, photographs, tmp_path, bands):
    clf = PretrainedImageClassifier(image_size=32, bands=bands).fit(thirteen, photographs[1])
    expected = clf.predict_proba(thirteen)
    clf.save(tmp_path / "clf.sktl")
    joblib.dump(clf, tmp_path / "clf.joblib")
    for loaded in (sktl.load(tmp_path / "clf.sktl"), joblib.load(tmp_path / "clf.joblib")):
        np.testing.assert_allclose(loaded.predict_proba(thirteen), expected, rtol=1e-5)
        with pytest.raises(ValueError, match="has 3 bands"):
            loaded.predict(thirteen[..., :3])


# Estimators --------------------------------------------------------------------------


def test_a_classifier_of_bands(rgb, thirteen, photographs, tmp_path):
    y = photographs[1]
    plain = PretrainedImageClassifier(image_size=32).fit(rgb, y)
    clf = PretrainedImageClassifier(image_size=32, bands=list(BANDS)).fit(thirteen, y)
    expected = plain.predict_proba(rgb)
    np.testing.assert_array_equal(clf.predict_proba(thirteen), expected)
    files = [tmp_path / f"{i}.tif" for i in range(3)]
    for file, image in zip(files, thirteen, strict=False):
        file.write_bytes(KINDS["planes"](image))
    np.testing.assert_allclose(clf.predict_proba(files), expected[:3], rtol=1e-5)

    clf.save(tmp_path / "clf.sktl")
    joblib.dump(clf, tmp_path / "clf.joblib")
    for loaded in (sktl.load(tmp_path / "clf.sktl"), joblib.load(Path(tmp_path / "clf.joblib"))):
        assert tuple(loaded.bands) == BANDS
        np.testing.assert_allclose(loaded.predict_proba(thirteen), expected, rtol=1e-5)
        with pytest.raises(ValueError, match="has 3 bands"):
            loaded.predict(rgb)

    # What is exported takes the three bands, in their order.
    chosen = torch.from_numpy(
        np.ascontiguousarray(thirteen[..., list(BANDS)].transpose(0, 3, 1, 2))
    )
    np.testing.assert_allclose(clf.to_torch()(chosen).numpy(), expected, atol=2e-2)


def test_features_of_bands(rgb, thirteen):
    plain = PretrainedImageFeatures(image_size=32).fit_transform(rgb[:3])
    features = PretrainedImageFeatures(image_size=32, bands=BANDS)
    np.testing.assert_array_equal(features.fit_transform(thirteen[:3]), plain)
