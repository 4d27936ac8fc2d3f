"""Modules that aren't plain networks of images: right features, or an error that says why."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sktl import PretrainedImageClassifier, PretrainedImageFeatures, Recipe

X = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
SETTINGS = {"preprocessing": Recipe(16, 16), "cache": None, "precision": "float32"}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 8, 3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


@pytest.fixture(scope="module")
def expected():
    return PretrainedImageFeatures(network(), **SETTINGS).fit_transform(X)


WRAPPED = {
    "half": (lambda: network().half(), 1e-3),
    "bfloat16": (lambda: network().bfloat16(), 1e-2),
    "double": (lambda: network().double(), 1e-6),
    "compiled": (lambda: torch.compile(network()), 1e-6),
    "DataParallel": (lambda: nn.DataParallel(network()), 1e-6),
    "compiled DataParallel": (lambda: nn.DataParallel(torch.compile(network())), 1e-6),
    "in train mode": (lambda: network().train(), 1e-6),
}


@pytest.mark.parametrize(("make", "tolerance"), WRAPPED.values(), ids=WRAPPED)
def test_right_features_of_a_module_that_is_left_as_it_is(make, tolerance, expected):
    given = make().train()
    before = copy.deepcopy(given.state_dict())
    features = PretrainedImageFeatures(given, **SETTINGS).fit(X)
    assert len(features.stages_) == 2
    np.testing.assert_allclose(features.transform(X), expected, atol=tolerance)
    assert given.training
    for name, value in given.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no other device")
@pytest.mark.gpu
def test_a_module_on_another_device(expected):
    given = network().cuda()
    found = PretrainedImageFeatures(given, device="cpu", **SETTINGS).fit_transform(X)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert next(given.parameters()).is_cuda


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, images, mask):
        return self.network(images) * mask


class Counting(nn.Module):
    """Changes a buffer each time."""

    def __init__(self, decide):
        super().__init__()
        self.network = network()
        self.decide = decide
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls += 1
        if self.decide and images.mean() > 1e6:  # torch.fx can't follow this
            images = images / 2
        return self.network(images + self.calls)


class CountingInPython(nn.Module):
    """Changes a number of its own each time, which torch.fx would take for a constant."""

    def __init__(self, decide):
        super().__init__()
        self.network = network()
        self.decide = decide
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        if self.decide and images.mean() > 1e6:
            images = images / 2
        return self.network(images + self.calls)


def scripted():
    return torch.jit.script(network())


def quantised():
    return torch.ao.quantization.quantize_dynamic(network().eval(), {nn.Linear}, torch.qint8)


REFUSED = {
    "quantised": (quantised, "is quantised .*as it was before"),
    "scripted": (scripted, "torch.jit .*the module that it was made from"),
    "without weights": (lambda: network().to("meta"), "has no weights.*device meta"),
    "of two inputs": (Masked, r"needs \['mask'\] besides images"),
    "that changes": (lambda: Counting(False), "changes its own 'calls'"),
    "that changes and decides": (lambda: Counting(True), "changes its own 'calls'"),
    "that counts": (lambda: CountingInPython(False), "changes its own 'calls'"),
    "that counts and decides": (lambda: CountingInPython(True), "changes its own 'calls'"),
    "of which a part counts": (lambda: nn.Sequential(CountingInPython(False)), "own '0.calls'"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_modules_that_are_refused(make, message):
    clf = PretrainedImageClassifier(make(), preprocessing=Recipe(16, 16))
    with pytest.raises(ValueError, match=message):
        clf.fit(X, [0, 1] * 3)
    assert not hasattr(clf, "classes_")


def test_what_a_forward_keeps_of_its_input_is_forgotten():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.last = network(), None

        def forward(self, images):
            self.last = images.mean()
            return self.network(images)

    given = Keeping()
    features = PretrainedImageFeatures(given, **SETTINGS).fit(X)
    assert features.__sktl_backbone__().splitter.network.last is None
    assert given.last is None


def test_numbers_that_follow_from_the_image_are_no_counting(expected):
    class Measuring(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.height, self.trained = network(), 0, 0

        def forward(self, images):
            self.height = int(images.shape[2])
            if self.training:
                self.trained += 1
            return self.network(images)

    features = PretrainedImageFeatures(Measuring(), **SETTINGS).fit(X)
    np.testing.assert_allclose(features.transform(X), expected, atol=1e-6)
    assert features.__sktl_backbone__().splitter.network.height == 0
