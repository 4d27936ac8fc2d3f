"""Which pixels speak for a class: against what is known of the network, and on real pictures."""

import sys

import numpy as np
import pytest
import skimage.data
import torch
from finetuned import SmallNetwork
from PIL import Image
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from sktl import PretrainedImageClassifier
from sktl.model import explain

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ("grad_cam", "integrated_gradients")


@pytest.fixture(scope="module")
def scenes():
    """A cat or a cup in one quadrant of a photograph of grass, bricks or gravel."""
    things = [skimage.data.chelsea()[60:220, 130:290], skimage.data.coffee()[60:360, 150:450]]
    small = [np.asarray(Image.fromarray(thing).resize((48, 48))) for thing in things]
    grounds = [skimage.data.grass(), skimage.data.brick(), skimage.data.gravel()]
    rng = np.random.default_rng(0)
    X, labels, quadrants = [], np.arange(32) % 2, np.arange(32) // 2 % 4
    for label, quadrant in zip(labels, quadrants, strict=True):
        top, left = rng.integers(0, 400, 2)
        ground = grounds[rng.integers(3)][top : top + 96, left : left + 96, None]
        scene = (ground * rng.uniform(0.5, 1, 3)).astype(np.uint8)
        row, column = 48 * (quadrant // 2), 48 * (quadrant % 2)
        scene[row : row + 48, column : column + 48] = small[label]
        X.append(scene)
    return np.stack(X), np.array(["cat", "cup"])[labels], quadrants


@pytest.fixture(scope="module")
def clf(scenes):
    X, y, _ = scenes
    return PretrainedImageClassifier(image_size=96, precision="float32").fit(X[:24], y[:24])


def shares(attributions, quadrants):
    """Share of the attributions' mass that lies in each image's quadrant."""
    n, side, _ = attributions.shape
    parts = np.abs(attributions).reshape(n, 2, side // 2, 2, side // 2).sum((2, 4)).reshape(n, 4)
    return parts[np.arange(n), quadrants] / parts.sum(1)


# Real pictures --------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", ["all", -2])
def test_grad_cam_finds_the_thing(clf, scenes, freeze):
    X, y, quadrants = scenes
    if freeze != "all":
        clf = PretrainedImageClassifier(
            image_size=96, freeze=freeze, max_epochs=2, random_state=0
        ).fit(X[:24], y[:24])
    assert clf.score(X[24:], y[24:]) == 1
    assert shares(clf.explain(X[24:]), quadrants[24:]).mean() > 0.5


def test_integrated_gradients_find_the_thing(clf, scenes):
    X, _, quadrants = scenes
    found = clf.explain(X[24:28], method="integrated_gradients")
    assert shares(found, quadrants[24:28]).mean() > 0.4


def test_each_class_has_its_own_places(clf, scenes):
    X, y, _ = scenes
    both = X[24:25].copy()
    both[0, :48, :48], both[0, 48:, 48:] = X[0][:48, :48], X[7][48:, 48:]
    assert list(y[[0, 7]]) == ["cat", "cup"]
    found = clf.explain(np.repeat(both, 2, axis=0), ["cat", "cup"])
    assert (shares(found, [0, 3]) > shares(found, [3, 0])).all()


# Against what is known --------------------------------------------------------------------


def test_grad_cam_of_a_linear_head_on_means(clf, scenes):
    """There the gradient of a logit is the head's weights, at each place."""
    X, _, _ = scenes
    big = PretrainedImageClassifier(
        head="linear", pooling="network", image_size=128, precision="float32"
    )
    model = big.fit(X[:8], clf.predict(X[:8]))._model
    prepared = model.backbone.recipe.apply(torch.from_numpy(X[:3]).permute(0, 3, 1, 2))
    with torch.no_grad():
        maps = model.backbone.stage_features(len(big.stages_) - 1, None)(prepared)
        weights = big.net_.module_.head[-1].weight[1].float()
        places = torch.einsum("nchw,c->nhw", maps, weights).clamp(min=0) / 16
    expected = nn.functional.interpolate(places[:, None], (128, 128), mode="bilinear")[:, 0]
    np.testing.assert_allclose(big.explain(X[:3], "cup"), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"freeze": -1, "max_epochs": 1, "head": (8,)}])
def test_integrated_gradients_sum_to_the_difference_of_logits(scenes, settings, monkeypatch):
    monkeypatch.setattr(explain, "_STEPS", 800)  # roots are steep near zero
    X, _, _ = scenes
    labels = np.arange(24) % 3
    clf = PretrainedImageClassifier(
        SmallNetwork(), image_size=32, precision="float32", random_state=0, **settings
    ).fit(X[:24], labels)
    mean = np.round(255 * np.array(clf._model.backbone.recipe.mean)).astype(np.uint8)
    start = clf.decision_function(np.broadcast_to(mean, (1, 32, 32, 3)))
    difference = (clf.decision_function(X[:2]) - start)[:, 1]
    sums = clf.explain(X[:2], 1, method="integrated_gradients").sum((1, 2))
    np.testing.assert_allclose(sums, difference, atol=0.06 * np.abs(difference).max())


def coloured_squares(n, rng):
    """Noise with a red or blue square in one quadrant, or with none."""
    X = rng.integers(60, 188, (n, 32, 32, 3)).astype(np.uint8)
    labels, quadrants = np.arange(n) % 3, rng.integers(0, 4, n)
    for image, label, quadrant in zip(X, labels, quadrants, strict=True):
        row, column = 16 * (quadrant // 2) + 2, 16 * (quadrant % 2) + 2
        if label < 2:
            image[row : row + 12, column : column + 12] = [(40, 40, 220), (220, 40, 40)][label]
    return X, labels, quadrants


def vit():
    return VisionTransformer(32, 4, 3, 2, 32, 64)


def swin():
    return SwinTransformer([2, 2], 24, [2, 2], [2, 3], [4, 4])


@pytest.mark.parametrize("network", [vit, swin])
def test_transformers_tell_places_apart(network):
    rng = np.random.default_rng(1)
    X, y, _ = coloured_squares(120, rng)
    clf = PretrainedImageClassifier(
        network, weights=None, image_size=32, weight_decay=1e-4, random_state=1
    ).fit(X, y)
    X, y, quadrants = coloured_squares(24, rng)
    seen = y < 2
    assert clf.score(X, y) > 0.9
    for method in METHODS:
        found = clf.explain(X[seen], y[seen], method=method)
        assert shares(found, quadrants[seen]).mean() > 0.28, method


# Ways of asking ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_nothing_changes(clf, scenes, method):
    X, _, _ = scenes
    before = clf.predict_proba(X[:1])
    tensors = [clf._model.backbone.splitter.network, clf.net_.module_]
    states = [{k: v.clone() for k, v in module.state_dict().items()} for module in tensors]
    flags = [[p.requires_grad for p in module.parameters()] for module in tensors]
    with torch.no_grad():
        first = clf.explain(X[:1], method=method)
    assert first.shape == (1, 96, 96)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(clf.explain(X[:1], clf.predict(X[:1]), method=method), first)
    for module, state, had in zip(tensors, states, flags, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
        assert [p.requires_grad for p in module.parameters()] == had
        assert all(p.grad is None for p in clf._model.backbone.splitter.network.parameters())
        assert not any(m._forward_hooks for m in module.modules())
    np.testing.assert_array_equal(clf.predict_proba(X[:1]), before)


class Branching(nn.Module):
    """Its forward depends on data, so that it can't be cut."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x):
        features = self.body(x if x.mean() > -1e9 else -x)
        return features.flatten(1)


def test_networks_that_cannot_be_cut(scenes):
    X, y, _ = scenes
    clf = PretrainedImageClassifier(Branching(), image_size=16).fit(X[:8], y[:8])
    found = clf.explain(X[:2], method="integrated_gradients")
    assert found.shape == (2, 16, 16)
    assert (found != 0).any()
    with pytest.raises(ValueError, match=r"needs a stage whose output has places.*\['network'\]"):
        clf.explain(X[:2])


def test_bad_calls(clf, scenes):
    X, _, _ = scenes
    with pytest.raises(ValueError, match="method='lime' is not one of"):
        clf.explain(X[:2], method="lime")
    with pytest.raises(ValueError, match=r"target holds \['dog'\], which are not in"):
        clf.explain(X[:2], "dog")
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        clf.explain(X[:2], ["cat", "cup", "cat"])


def test_missing_captum_is_named(clf, scenes, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r"pip install 'sktl\[explain\]'"):
        clf.explain(scenes[0][:2])
