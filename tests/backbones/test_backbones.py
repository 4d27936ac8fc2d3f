"""Every network by name: its stages, where it can be cut, and the round trip."""

import copy
import gc
import threading
import time
import weakref
from collections import OrderedDict

import joblib
import numpy as np
import pytest
import torch
from families import FAMILIES, SMALL, image_size_of
from torch import nn
from torchvision import models

from sktl import PretrainedImageClassifier, list_backbones
from sktl.backbones import load_backbone
from sktl.backbones.registry import EMBEDDED, Architecture
from sktl.backbones.split import OpaqueNetwork, TracedNetwork, make_splitter

STAGES = {
    "alexnet": ["features.2", "features.5", "features.12"],
    "efficientnet_lite0": ["stem", *(f"features.{i}" for i in range(1, 8))],
    "resnet18": ["stem", "layer1", "layer2", "layer3", "layer4"],
    "vgg11_bn": ["features.3", "features.7", "features.14", "features.21", "features.28"],
    "vit_b_32": ["stem", *(f"encoder.layers.encoder_layer_{i}" for i in range(12))],
    "densenet121": ["stem", *(f"features.denseblock{i}" for i in range(1, 5))],
    "maxvit_t": ["stem", *(f"blocks.{i}" for i in range(4))],
    "shufflenet_v2_x0_5": ["stem", "stage2", "stage3", "stage4"],
}


def untrained(name):
    """A network as it is built, with random weights and batch-norm statistics to tell apart."""
    size = image_size_of(name)
    torch.manual_seed(0)
    return Architecture(name, size).build(initialise=True).eval(), size


def check_rejoins(name, photographs):
    network, size = untrained(name)
    splitter = make_splitter(network, size)
    assert isinstance(splitter, TracedNetwork)
    images = torch.from_numpy(photographs[:2, :size, :size]).permute(0, 3, 1, 2).float() / 255
    if size > images.shape[-1]:
        images = nn.functional.interpolate(images, size)
    with torch.inference_mode():
        whole = network(images)
        for stage in splitter.anatomy.stages:
            features = splitter.cut(None, stage.end).eval()(images)
            assert torch.equal(splitter.cut(stage.end, None).eval()(features), whole), stage


def check_round_trip(name, photographs, labels, folder):
    clf = PretrainedImageClassifier(
        name, weights=None, image_size=image_size_of(name), cache=None, random_state=0
    )
    clf.fit(photographs, labels)
    assert set(clf.predict(photographs)) <= {0, 1}
    expected, stages = clf.predict_proba(photographs), clf.stages_
    joblib.dump(clf, folder / "clf.joblib")
    del clf  # two of the largest network would not fit into memory
    loaded = joblib.load(folder / "clf.joblib")
    (folder / "clf.joblib").unlink()
    assert loaded.stages_ == stages
    np.testing.assert_array_equal(loaded.predict_proba(photographs), expected)


def test_all_of_torchvisions_classifiers_and_efficientnet_lite_have_names():
    names = list_backbones()
    assert names[0] == EMBEDDED
    assert len(names) == len(set(names)) == 83
    assert set(FAMILIES) <= set(names)


families = pytest.mark.parametrize(
    "name",
    [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)


@families
def test_suffix_of_prefix_is_the_network(name, photographs):
    check_rejoins(name, photographs[0])


@families
def test_fit_predict_and_round_trip(name, photographs, tmp_path):
    check_round_trip(name, photographs[0][::3], photographs[1][::3], tmp_path)


@pytest.mark.slow
@pytest.mark.all_models
@pytest.mark.parametrize("name", [n for n in list_backbones() if n not in FAMILIES])
def test_every_other_model(name, photographs, tmp_path):
    check_rejoins(name, photographs[0])
    check_round_trip(name, photographs[0][::3], photographs[1][::3], tmp_path)


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_the_networks_own_blocks(name):
    network, size = untrained(name)
    assert list(make_splitter(network, size).stages) == STAGES[name]


def test_a_name_is_traced_once_and_each_network_has_weights_of_its_own(monkeypatch):
    monkeypatch.setattr("sktl.backbones.loading._structures", OrderedDict())
    settings = {"weights": None, "image_size": 32}
    first, images = load_backbone("resnet18", seed=0, **settings), torch.rand(2, 3, 32, 32)
    stages, whole = first.stages, first.splitter.prefix(5, "auto")(images)
    network = weakref.ref(first.splitter.network)
    with monkeypatch.context() as patch:
        patch.setattr("sktl.backbones.split.trace", None)
        second = load_backbone("resnet18", seed=1, **settings)
        assert second.stages == stages
        with pytest.raises(TypeError):
            load_backbone("resnet18", weights=None, image_size=64)
    own = copy.deepcopy(second.splitter.network)
    own.fc = nn.Identity()
    found = second.splitter.prefix(5, "auto")(images)
    assert torch.equal(found, own(images))
    assert not torch.equal(found, whole)
    halves = second.splitter.stage_features(2), second.splitter.suffix(3, "auto").eval()
    assert torch.allclose(halves[1](halves[0](images)), found, atol=1e-6)
    del first
    gc.collect()
    assert network() is None


@pytest.mark.parametrize("name", ["resnet18", "inception_v3", "maxvit_t"])
def test_boundaries_are_all_points_where_one_tensor_flows(name):
    network, size = untrained(name)
    counts = {"resnet18": 23, "inception_v3": 32, "maxvit_t": 241}
    graph = make_splitter(network, size).graph
    assert len(graph.boundaries) == counts[name]
    assert {graph.shapes[boundary][0] for boundary in graph.boundaries} == {2}  # images


@pytest.mark.parametrize(
    ("name", "classifier", "width"),
    [
        ("resnet18", "fc", 512),
        ("vgg11_bn", "classifier.6", 4096),
        ("squeezenet1_1", "classifier.1", 512),
        ("vit_b_32", "heads.head", 768),
        ("maxvit_t", "classifier.5", 512),
        ("convnext_tiny", "classifier.2", 768),
    ],
)
def test_features_are_what_the_last_linear_layer_reads(name, classifier, width):
    network, size = untrained(name)
    splitter = make_splitter(network, size)
    assert splitter.classifiers == (classifier,)
    with torch.inference_mode():
        features = splitter.prefix(len(splitter.stages), "auto")(torch.zeros(2, 3, size, size))
    assert features.shape == (2, width)


@pytest.mark.parametrize(
    ("name", "pooling", "width"),
    [
        ("vgg11_bn", "flatten", 512 * 2 * 2),
        ("vgg11_bn", "avg", 512),
        ("swin_t", "avg", 768),
        ("vit_b_32", "avg", 768),
        ("vit_b_32", "flatten", 5 * 768),
        ("resnet18", "flatten", 512 * 2 * 2),
    ],
)
def test_pooling_reads_the_last_stage(name, pooling, width):
    network, size = untrained(name)
    splitter = make_splitter(network, size)
    depth = len(splitter.stages)
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = splitter.prefix(depth, pooling)(images)
        assert features.shape == (2, width)
        for k in range(depth):
            before = splitter.prefix(k, pooling)(images) if k else images
            after = splitter.suffix(k, pooling).eval()(before)
            torch.testing.assert_close(after, features, rtol=0, atol=0)


def test_swin_features_are_pooled_over_positions_not_channels():
    """At inner stages Swin's channels are the last axis."""
    network, size = untrained("swin_t")
    splitter = make_splitter(network, size)
    from sktl.backbones import Pool

    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = splitter.stage_features(1)(images)
        assert maps.shape == (2, 16, 16, 96)
        torch.testing.assert_close(Pool("avg")(maps), maps.mean((1, 2)))


def test_training_and_evaluation_differ_where_the_network_says_so():
    """DenseNet's dropout is a functional call, whose mode a trace bakes in."""
    torch.manual_seed(0)
    network = models.densenet121(weights=None, drop_rate=0.5)
    splitter = make_splitter(network, 64)
    suffix = splitter.suffix(len(splitter.stages) - 1, "auto")
    with torch.no_grad():
        features = splitter.prefix(len(splitter.stages) - 1, "auto")(torch.rand(4, 3, 64, 64))
        for part in suffix.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 0.0
        train, evaluation = suffix.train(), None
        first, second = train(features), train(features)
        assert not torch.equal(first, second)
        evaluation = suffix.eval()
        assert torch.equal(evaluation(features), evaluation(features))


def test_stochastic_depth_acts_in_training_only():
    torch.manual_seed(0)
    network = models.efficientnet_b0(weights=None, stochastic_depth_prob=0.9)
    suffix = make_splitter(network, 64).suffix(0, "auto")
    images = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        suffix.train()
        assert not torch.equal(suffix(images), suffix(images))
        suffix.eval()
        assert torch.equal(suffix(images), suffix(images))


def test_a_suffix_does_not_overwrite_the_features_it_is_given():
    """A cache keeps them, and the next layer may be an in-place activation."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 8, 3)
    )
    splitter = make_splitter(network, 16)
    boundary = splitter.graph.boundaries[1]
    features = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    before = features.clone()
    with torch.inference_mode():
        splitter.cut(boundary, None)(features)
    assert torch.equal(features, before)


class DataDependent(nn.Module):
    """Beyond torch.fx: the way taken depends on the values."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU())
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        if x.sum() > 0:
            x = x * 2
        return self.fc(x)


def test_a_network_that_cannot_be_traced_is_frozen_whole_or_not_at_all(photographs):
    images, labels = photographs
    network = DataDependent()
    assert isinstance(make_splitter(network, 32), OpaqueNetwork)
    for freeze, depth in (("all", 1), ("none", 0)):
        clf = PretrainedImageClassifier(network, freeze=freeze, image_size=32, max_epochs=2)
        clf.fit(images, labels)
        assert clf.freeze_ == depth
        assert clf.transform(images).shape == (12, 8)
    with pytest.raises(ValueError, match='torch.fx can\'t trace .* "all" or "none"'):
        PretrainedImageClassifier(network, freeze=-3, image_size=32).fit(images, labels)


def headless():
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 7, 3, stride=2))


@pytest.mark.parametrize("pooling", ["network", "avg", "flatten"])
def test_a_network_without_a_classifier(photographs, pooling):
    images, labels = photographs
    clf = PretrainedImageClassifier(headless, pooling=pooling, image_size=16).fit(images, labels)
    width = {"network": 7, "avg": 7, "flatten": 7 * 3 * 3}[pooling]
    assert clf.transform(images).shape == (12, width)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = self.block(self.stem(x))
        return self.pool(self.block(x)).flatten(1)


def test_a_layer_used_twice_is_never_both_frozen_and_trained():
    splitter = make_splitter(Tied(), 16)
    for depth in range(len(splitter.stages) + 1):
        frozen = dict(splitter.prefix(depth, "auto").named_modules()) if depth else {}
        trained = dict(splitter.suffix(depth, "auto").named_modules())
        used_by_both = {n.split("body.")[-1] for n in trained} & {n[2:] for n in frozen}
        assert "block" not in used_by_both


def test_threads_that_load_networks_do_not_wait_for_each_other():
    later = load_backbone(
        EMBEDDED, image_size=40, recall=lambda identity: (STAGES[EMBEDDED], (4, 5, 6))
    )
    assert not later.is_loaded
    begun = threading.Event()

    def load():
        begun.set()
        assert later.splitter.stages

    def recall(identity):
        """Another network is loaded meanwhile, of which nobody else must hold anything."""
        loading.start()
        assert begun.wait(60)
        time.sleep(0.1)  # it comes as far as it can

    def load_another():
        load_backbone(EMBEDDED, image_size=48, recall=recall)

    loading, another = (threading.Thread(target=f, daemon=True) for f in (load, load_another))
    another.start()
    for thread in (another, loading):
        thread.join(120)
        assert not thread.is_alive()
    assert later.is_loaded


def test_image_size_that_a_network_cannot_take_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="alexnet|16 x 16"):
        load_backbone("alexnet", None, 16)
    with pytest.raises(ValueError, match="vit_b_32 can't be built for image_size=50"):
        load_backbone("vit_b_32", None, 50)
