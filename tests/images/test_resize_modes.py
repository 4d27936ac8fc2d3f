"""How pictures of other shapes become the network's, and images that aren't square."""

from __future__ import annotations

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn
from torchvision.transforms.v2 import functional as F

import sktl
from sktl import PretrainedImageClassifier, PretrainedImageFeatures
from sktl.images.preprocessing import RESIZE_MODES, Recipe
from sktl.model.exported_resize import Resize

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIZES = [(33, 90), (120, 40), (20, 20), (7, 200)]


def pictures(n=12, height=30, width=70):
    """Two classes that differ at the left end alone, which a crop doesn't show."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 120, (n, height, width, 3), dtype=np.uint8)
    y = np.arange(n) % 2
    X[y == 1, :, :12] += 120
    return X, y


def small_network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10)
    )


def recipe(mode, size, interpolation="bilinear"):
    return Recipe(36, 32, interpolation, *IMAGENET, resize_mode=mode).at(size)


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("size", [32, (24, 40), (40, 24)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_recorded_operations_agree(mode, size, interpolation):
    way = recipe(mode, size, interpolation)
    for height, width in SIZES:
        images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
        prepared = way.apply(images)
        assert prepared.shape[2:] == way.size
        assert torch.equal(Resize(way)._recorded(images), prepared)


def test_squash_resizes_all_of_it():
    image = torch.randint(0, 256, (1, 3, 30, 70), dtype=torch.uint8)
    assert torch.equal(recipe("squash", (24, 40)).apply(image), F.resize(image, [24, 40]))


def test_pad_keeps_the_shape_on_the_mean_colour():
    image = torch.randint(0, 256, (1, 3, 30, 60), dtype=torch.uint8)
    padded = recipe("pad", 32).apply(image)
    assert torch.equal(padded[..., 8:24, :], F.resize(image, [16, 32]))
    for rows in (slice(0, 8), slice(24, 32)):
        assert padded[..., rows, :].unique().tolist() == [104, 116, 124]


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_values_lie_where_the_network_saw_them(mode):
    picture = torch.zeros(1, 3, 40, 80, dtype=torch.uint8)
    picture[..., 10:20, 30:40] = 255
    way = recipe(mode, 32)
    seen = way.apply(picture)[0, 0].float() * (way.apply(255 - picture)[0, 0] < 250)
    back = way.back(seen, 40, 80)
    assert back.shape == (40, 80)
    inside = back[10:20, 30:40].sum() / back.sum()
    assert inside > 0.7
    assert back.argmax() // 80 in range(9, 21)
    assert back.argmax() % 80 in range(29, 41)


def test_estimators_see_the_ends_unless_they_crop():
    X, y = pictures()
    found = {
        mode: PretrainedImageFeatures(image_size=32, resize_mode=mode).fit_transform(X)
        for mode in RESIZE_MODES
    }
    distances = {
        mode: np.linalg.norm(f[y == 0].mean(0) - f[y == 1].mean(0)) for mode, f in found.items()
    }
    assert distances["squash"] > 2 * distances["crop"]
    assert distances["pad"] > 2 * distances["crop"]


def test_a_search_shares_no_features_between_modes():
    X, y = pictures()
    clf = PretrainedImageClassifier(image_size=32, random_state=0)
    for mode in RESIZE_MODES:
        cached = clone(clf).set_params(resize_mode=mode).fit(X, y)
        alone = clone(clf).set_params(resize_mode=mode, cache=None).fit(X, y)
        assert np.array_equal(cached.predict_proba(X), alone.predict_proba(X))


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_files_keep_the_mode_and_the_size(tmp_path, mode):
    X, y = pictures()
    clf = PretrainedImageClassifier(image_size=(32, 64), resize_mode=mode).fit(X, y)
    clf.save(tmp_path / "model.sktl")
    joblib.dump(clf, tmp_path / "model.joblib")
    clf.save(tmp_path / "small.sktl", include_backbone=False)
    expected = clf.predict_proba(X)
    for loaded in (
        sktl.load(tmp_path / "model.sktl"),
        sktl.load(tmp_path / "small.sktl"),
        joblib.load(tmp_path / "model.joblib"),
    ):
        assert (loaded.resize_mode, loaded.image_size) == (mode, (32, 64))
        assert np.array_equal(loaded.predict_proba(X), expected)
    images = torch.from_numpy(X).permute(0, 3, 1, 2)
    with torch.no_grad():
        found = clf.to_torch()(images).numpy()
    assert np.allclose(found, expected, atol=1e-3)


def test_what_an_older_version_wrote_crops(tmp_path):
    X, y = pictures()
    clf = PretrainedImageClassifier(image_size=32, resize_mode="crop").fit(X, y)
    state = clf.__getstate__()
    del state["resize_mode"], state["_model"]["recipe"]["resize_mode"]
    loaded = PretrainedImageClassifier.__new__(PretrainedImageClassifier)
    loaded.__setstate__(state)
    assert loaded.resize_mode == "crop"
    assert np.array_equal(loaded.predict_proba(X), clf.predict_proba(X))


def test_an_onnx_file_squashes(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    X, y = pictures()
    clf = PretrainedImageClassifier(small_network, image_size=(32, 64)).fit(X, y)
    clf.to_onnx(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (found,) = session.run(None, {"images": X.transpose(0, 3, 1, 2)})
    assert np.allclose(found, clf.predict_proba(X), atol=1e-3)


def test_explanations_have_the_network_s_size():
    pytest.importorskip("captum")
    X, y = pictures()
    clf = PretrainedImageClassifier(image_size=(64, 96)).fit(X, y)
    assert clf.explain(X[:2]).shape == (2, 64, 96)


def test_vision_transformers_take_squares_only():
    X, y = pictures(4)
    clf = PretrainedImageClassifier("vit_b_32", weights=None, image_size=(32, 64))
    with pytest.raises(ValueError, match=r"image_size=\(32, 64\): vit_b_32 takes square images"):
        clf.fit(X, y)


@pytest.mark.parametrize("size", [(32,), (32, 0), (32, 3.5), "32", (1, 2, 3), 1])
def test_a_bad_size_is_named(size):
    X, y = pictures(4)
    with pytest.raises(ValueError, match="image_size"):
        PretrainedImageClassifier(image_size=size).fit(X, y)


def test_a_bad_mode_is_named():
    X, y = pictures(4)
    with pytest.raises(ValueError, match="resize_mode.*stretch"):
        PretrainedImageClassifier(resize_mode="stretch").fit(X, y)
