"""Heads: which there are, and that quick steps on them are the usual ones."""

import copy

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch.callbacks import Callback
from torch import nn

from sktl import PretrainedImageClassifier
from sktl.training.batches import FeatureRows
from sktl.training.epochs import train
from sktl.training.heads import SquareRoot, make_head
from sktl.training.net import make_net
from sktl.training.optimization import quick_step
from sktl.training.targets import Classes

pytestmark = pytest.mark.usefixtures("one_thread")


def test_layers_of_a_head():
    kinds = [type(layer).__name__ for layer in make_head((8, 4), 16, 3, 0.0)]
    assert kinds == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    kinds = [type(layer).__name__ for layer in make_head((8,), 16, 3, 0.5)]
    assert kinds == ["Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert [type(layer).__name__ for layer in make_head("linear", 16, 3, 0.0)] == ["Linear"]
    kinds = [type(layer).__name__ for layer in make_head("root", 16, 3, 0.5)]
    assert kinds == ["SquareRoot", "Dropout", "Linear"]


def test_what_is_random_before_a_linear_head_is_drawn_in_each_epoch():
    plan = PretrainedImageClassifier(optimizer="adamw", lr=1e-20, max_epochs=2)._plan(
        Classes(2), True, 0, False
    )
    head, device = make_head("linear", 16, 2, 0.0), torch.device("cpu")
    net = make_net(nn.RReLU(0, 1), head, plan, "float32", device, target=Classes(2))
    train(net, FeatureRows(torch.randn(8, 16), torch.arange(8) % 2))
    first, second = (row["train_loss"] for row in net.history)
    assert first != second


def test_square_roots():
    features = torch.tensor([4.0, 0.25, -9.0, 0.0], requires_grad=True)
    roots = SquareRoot()(features)
    assert roots.tolist() == pytest.approx([2, 0.5, -3, 0], rel=1e-2)
    roots.sum().backward()
    slopes = features.grad.tolist()
    assert slopes[:3] == pytest.approx([1 / 4, 1, 1 / 6], rel=1e-2)
    assert 10 < slopes[3] < 100  # where the root's own is infinite


@pytest.mark.parametrize("freeze", ["all", -1, "none"])
@pytest.mark.parametrize(("last", "kind"), [(nn.ReLU, "root"), (nn.Tanh, "linear")])
def test_the_default_head_suits_the_features(photographs, freeze, last, kind):
    """The root is taken where no feature can be negative."""
    torch.manual_seed(0)
    stages = [nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), last()]
    network = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    clf = PretrainedImageClassifier(
        network, freeze=freeze, pooling="network", image_size=32, max_epochs=2, random_state=0
    )
    clf.fit(*photographs)
    assert clf._model.head.head == kind
    assert (clf.transform(photographs[0]) < 0).any() == (kind == "linear")
    named = clone(clf).set_params(head=kind).fit(*photographs)
    assert np.array_equal(named.predict_proba(photographs[0]), clf.predict_proba(photographs[0]))


def test_going_on_keeps_the_kind_of_head():
    """Whatever the first image of another batch looks like."""
    convolution = nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        convolution.weight.fill_(1)
    network = nn.Sequential(
        convolution, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)
    )
    dark_first = np.zeros((4, 32, 32, 3), np.uint8)
    dark_first[1::2] = 255
    clf = PretrainedImageClassifier(network, image_size=32)
    clf.partial_fit(dark_first, [0, 1, 0, 1], classes=[0, 1])
    assert clf._model.head.head == "linear"
    clf.partial_fit(dark_first[::-1].copy(), [1, 0, 1, 0])
    assert clf._model.head.head == "linear"


def test_a_head_that_is_always_the_same_module(make, three_kinds):
    """It is copied, so that fits don't train each other's head, nor the user's."""
    X, y = three_kinds
    own = nn.Linear(24, 3)
    before = copy.deepcopy(own.state_dict())
    first = make(head=lambda i, n: own, lr=1e-2, max_epochs=2).fit(X, y)
    proba = first.predict_proba(X)
    make(head=lambda i, n: own, lr=1e-1, max_epochs=2).fit(X, y)
    assert np.array_equal(first.predict_proba(X), proba)
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_quick_steps_are_the_optimizers_own(kind):
    def trained(steps_of):
        torch.manual_seed(0)
        head = torch.nn.Linear(8, 3)
        groups = [
            {"params": [head.weight], "weight_decay": 0.1},
            {"params": [head.bias], "weight_decay": 0.0},
        ]
        optimizer = kind(groups, lr=1e-2, fused=True)
        for epoch in range(2):
            step = steps_of(optimizer)
            for i in range(4):
                optimizer.param_groups[0]["lr"] = 1e-2 / (1 + epoch + i)
                optimizer.zero_grad()
                head(torch.randn(16, 8)).square().sum().backward()
                step()
        return head, optimizer.state_dict()["state"]

    (head, state), (ours, our_state) = trained(lambda o: o.step), trained(quick_step)
    torch.testing.assert_close(ours.state_dict(), head.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(our_state, state, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_watched_head_learns_the_same(optimizer, embedded, three_kinds):
    class Watcher(Callback):
        def on_batch_end(self, net, **kwargs):
            pass

    X, y = three_kinds
    weights = np.linspace(0.5, 2, len(y))
    settings = {"optimizer": optimizer, "max_epochs": 5, "batch_size": 8, "label_smoothing": 0.1}
    plain = embedded(**settings).fit(X, y, sample_weight=weights)
    watched = embedded(callbacks=[Watcher()], **settings).fit(X, y, sample_weight=weights)
    np.testing.assert_allclose(watched.predict_proba(X), plain.predict_proba(X), atol=1e-5)
    for ours, theirs in zip(plain.history_, watched.history_, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-5)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adamw"])
def test_features_are_trained_on_as_the_prefix_gives_them(optimizer, embedded, three_kinds):
    """A copy of all in double precision would be four times as large."""

    class Look(Callback):
        def on_train_begin(self, net, X=None, y=None, **kwargs):
            seen.append(X.features.dtype)

    seen = []
    settings = {"precision": "bfloat16", "max_epochs": 5, "callbacks": [Look()]}
    embedded(optimizer=optimizer, **settings).fit(*three_kinds)
    assert seen == [torch.bfloat16]


def test_a_saved_fit_goes_on_after_an_upgrade(embedded, three_kinds, tmp_path, monkeypatch):
    X, y = three_kinds
    joblib.dump(embedded(optimizer="adamw", max_epochs=3).fit(X, y), tmp_path / "clf.joblib")
    expected = joblib.load(tmp_path / "clf.joblib").partial_fit(X, y)
    monkeypatch.setattr("sktl.backbones.loading._VERSIONS", ("99", "99"))
    loaded = joblib.load(tmp_path / "clf.joblib").partial_fit(X, y)
    np.testing.assert_array_equal(loaded.predict_proba(X), expected.predict_proba(X))
    with pytest.raises(ValueError, match="same backbone and weights"):
        loaded.set_params(image_size=48).partial_fit(X, y)
