"""What the head reads: one stage of the network, or several side by side."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torchvision.models import resnet18, swin_t, vgg11, vit_b_32

from sktl import PretrainedImageClassifier, PretrainedImageFeatures, PretrainedImageRegressor
from sktl.backbones import load_backbone
from sktl.backbones.split import make_splitter

SIZE = 32

pytestmark = pytest.mark.usefixtures("one_thread")


def make(**params):
    settings = {"image_size": SIZE, "random_state": 0, "precision": "float32"}
    return PretrainedImageClassifier(**(settings | params))


@pytest.fixture(scope="module")
def default(photographs):
    return make().fit(*photographs)


def test_a_frozen_classifier_reads_several_stages(default, photographs):
    """What PretrainedImageFeatures gives for them; those before the last count for a quarter."""
    X, _ = photographs
    stages = PretrainedImageFeatures(
        stage=[-4, -3, -2, None], image_size=SIZE, precision="float32"
    ).fit_transform(X)
    expected = np.concatenate([stages[:, :-1280] / 4, stages[:, -1280:]], axis=1)
    assert default.transform(X) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert default.net_.module_.head[-1].in_features == 80 + 112 + 192 + 1280


def test_they_are_worth_it():
    """Digits are far from what the network has learned from."""
    X, y = load_digits(return_X_y=True)
    scores = {
        pooling: make(pooling=pooling).fit(X[:150], y[:150]).score(X[300:800], y[300:800])
        for pooling in ("network", "auto")
    }
    assert scores["auto"] > scores["network"] + 0.03


def test_they_are_worth_it_for_numbers():
    X, y = load_digits(return_X_y=True)
    scores = {
        pooling: PretrainedImageRegressor(image_size=SIZE, pooling=pooling)
        .fit(X[:300], y[:300])
        .score(X[300:800], y[300:800])
        for pooling in ("network", "auto")
    }
    assert scores["auto"] > scores["network"] + 0.03


@pytest.mark.parametrize("freeze", [-1, "none"])
def test_stages_that_train_are_read_as_the_network_s_classifier_does(photographs, freeze):
    clf = make(freeze=freeze, max_epochs=1).fit(*photographs)
    assert clf.net_.module_.head[-1].in_features == 1280


@pytest.mark.parametrize("freeze", ["none", 3, 5])
def test_several_stages_can_train(photographs, freeze):
    """Where the frozen ones end before those that the head reads, or with the first of them."""
    X, y = photographs
    clf = make(freeze=freeze, pooling="stages", max_epochs=2).fit(X, y)
    assert clf.net_.module_.head[-1].in_features == 1664
    assert clf.score(X, y) == 1
    before = make().fit(X, y).transform(X)
    untouched = make(freeze=freeze, pooling="stages", max_epochs=1, lr=1e-12).fit(X, y)
    assert untouched.transform(X) == pytest.approx(before, rel=1e-4, abs=1e-4)


def test_network_is_what_its_classifier_reads(photographs):
    X, y = photographs
    clf = make(pooling="network").fit(X, y)
    expected = PretrainedImageFeatures(image_size=SIZE, precision="float32").fit_transform(X)
    assert np.array_equal(clf.transform(X), expected)


def test_a_mix_of_frozen_and_trained_stages_is_refused(photographs):
    with pytest.raises(ValueError, match=r"7 frozen stages\. Freeze all or at most 5") as error:
        make(freeze=-1, pooling="stages").fit(*photographs)
    assert "'features.4', 'features.5', 'features.6'" in str(error.value)


@pytest.mark.parametrize(
    ("build", "size", "sides"),
    [
        (resnet18, 32, (1, 2, 3)),
        (vgg11, 64, (1, 2, 3)),
        (swin_t, 32, (1, 2, 3)),
        (vit_b_32, 32, ()),
    ],
)
def test_which_stages(build, size, sides):
    """Those that make maps; tokens keep to what the classifier reads."""
    options = {"image_size": size} if build is vit_b_32 else {}
    assert make_splitter(build(weights=None, **options).eval(), size).sides == sides


@pytest.mark.parametrize("build", [resnet18, swin_t])
def test_the_parts_before_and_after_a_cut_make_the_whole(build):
    torch.manual_seed(0)
    splitter = make_splitter(build(weights=None).eval(), SIZE)
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        whole = splitter.prefix(len(splitter.stages), "stages")(images)
        for depth in range(splitter.sides[0] + 2):
            before = splitter.prefix(depth, "stages")(images) if depth else images
            for after in (splitter.suffix(depth, "stages").eval(), splitter.rest(depth, "stages")):
                assert torch.equal(after(before), whole)


def test_going_on_reads_what_was_read_before(photographs):
    X, y = photographs
    clf = make().fit(X, y)
    clf.set_params(warm_start=True).fit(X, y)
    assert clf.transform(X).shape == (12, 1664)
    with pytest.raises(ValueError, match='with pooling="network" can a fit go on to any depth'):
        clf.set_params(freeze=-2).fit(X, y)


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.body(x) if x.sum() > -1e9 else self.body(-x))


def test_a_network_without_such_stages(photographs):
    X, y = photographs
    auto = make(backbone=Opaque(), preprocessing=load_backbone("resnet18", None).recipe).fit(X, y)
    assert auto.net_.module_.head[-1].in_features == 4
    with pytest.raises(ValueError, match="this network has none before its last"):
        auto.set_params(pooling="stages").fit(X, y)


def test_features_of_earlier_stages_are_gone_on_from(photographs, tmp_path):
    """The maps that a fit with trained stages has left in the cache."""
    X, y = photographs
    make(freeze=4, max_epochs=1, cache=tmp_path / "cache").fit(X, y)
    after = make(cache=tmp_path / "cache").fit(X, y)
    expected = make(cache=None).fit(X, y).transform(X)
    assert after.transform(X) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_grad_cam_sees_the_sides():
    """A head that reads nothing but the stage of the map has a gradient there."""
    X, y = load_digits(n_class=2, return_X_y=True)
    clf = make(image_size=64, backbone="resnet18", weights=None).fit(X[:20], y[:20])
    weight = clf.net_.module_.head[-1].weight

    def seen():
        both = [clf.explain(X[:2], [label] * 2, method="grad_cam") for label in clf.classes_]
        return np.abs(both).max() > 0

    with torch.no_grad():
        weight[:, 64 + 128 + 256 :] = 0
    assert seen()
    with torch.no_grad():
        weight[:, 64 + 128 :] = 0  # the last stage whose map has more than 2 x 2 places
    assert not seen()
