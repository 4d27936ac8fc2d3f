"""Private kernels: each can go, and fit and predict still work."""

import types

import numpy as np
import pytest
import torch
from finetuned import SmallNetwork

from sktl import PretrainedImageClassifier, compat
from sktl.frozen import onednn
from sktl.frozen.fusion import fuse, kernels
from sktl.frozen.onednn import usable

CPU = torch.device("cpu")
ALL = {"convolution", "layout", "sum"}
pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(
        "sum" not in usable(CPU, torch.float32), reason="oneDNN has no kernels for this processor"
    ),
]
REAL = {
    name: getattr(torch.ops.mkldnn, name)
    for name in ("_convolution_pointwise", "_reorder_convolution_weight", "_linear_pointwise")
}


@pytest.fixture(autouse=True)
def tried_anew():
    """What is found out in a process holds for it; not so here."""
    for once in (onednn._usable_on_cpu, compat._steps_are_right):
        once.cache_clear()
    yield
    for once in (onednn._usable_on_cpu, compat._steps_are_right):
        once.cache_clear()


@pytest.fixture(autouse=True)
def in_torch():
    """Where onnxruntime is quicker, it would run the networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sktl.frozen.module.is_worth_it", lambda device, dtype: False)
        yield


def missing(*args, **kwargs):
    raise AttributeError("no such operator")


def failing(*args, **kwargs):
    raise RuntimeError("could not create a memory")


def no_sum(name, sum_of):
    """The operator, with another overload for sums."""
    double = types.SimpleNamespace(binary=sum_of)
    return type("Packet", (), {"__call__": lambda self, *a: REAL[name](*a), **vars(double)})()


def slightly_wrong(*args):
    return REAL["_convolution_pointwise"](*args) * 1.01


def not_a_number(*args):
    return REAL["_convolution_pointwise"](*args) * float("nan")


def wrong_sum(*args):
    return REAL["_convolution_pointwise"].binary(*args) + 1


# What replaces an operator, and the kernels that are left.
DAMAGE = {
    "no convolution": ("_convolution_pointwise", missing, set()),
    "a convolution that fails": ("_convolution_pointwise", failing, set()),
    "a convolution that is wrong": ("_convolution_pointwise", slightly_wrong, set()),
    "a convolution that gives NaN": ("_convolution_pointwise", not_a_number, set()),
    "no layout": ("_reorder_convolution_weight", missing, ALL - {"layout"}),
    "a layout that fails": ("_reorder_convolution_weight", failing, ALL - {"layout"}),
    "no sum": (
        "_convolution_pointwise",
        no_sum("_convolution_pointwise", staticmethod(missing)),
        ALL - {"sum"},
    ),
    "a sum that is wrong": (
        "_convolution_pointwise",
        no_sum("_convolution_pointwise", staticmethod(wrong_sum)),
        ALL - {"sum"},
    ),
}


@pytest.fixture(params=DAMAGE.values(), ids=DAMAGE.keys())
def left(request, monkeypatch):
    name, replacement, kept = request.param
    monkeypatch.setattr(torch.ops.mkldnn, name, replacement)
    onednn._usable_on_cpu.cache_clear()
    return kept


def fitted(photographs):
    """Probabilities of a network that no other fit has prepared."""
    X, y = photographs
    torch.manual_seed(0)
    settings = {"image_size": 32, "precision": "float32", "cache": None}
    clf = PretrainedImageClassifier(SmallNetwork().eval(), **settings)
    return clf.fit(X, y).predict_proba(X)


def test_without_a_kernel_fit_and_predict_work(left, photographs, monkeypatch):
    found = fitted(photographs)
    monkeypatch.undo()
    onednn._usable_on_cpu.cache_clear()
    np.testing.assert_allclose(found, fitted(photographs), atol=1e-3)


def test_what_is_left_is_used_and_in_the_key(left):
    assert usable(CPU, torch.float32) - {"linear"} == left
    named = set(kernels(CPU, torch.float32).split()) - {"packed-2", "linear", "plain"}
    assert named == left


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_sums_of_small_maps(n, size):
    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(24, 24, 1)

        def forward(self, x):
            return torch.relu(self.layer(x) + x)

    torch.manual_seed(0)
    network = torch.fx.symbolic_trace(Residual().eval())
    maps = torch.randn(n, 24, size, size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted, found = network(maps), fuse(network, torch.float32, CPU)(maps)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_bfloat16_without_units_is_plain(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert kernels(CPU, torch.bfloat16) == "plain"


def test_other_processors_take_the_plain_way(photographs, monkeypatch):
    expected = fitted(photographs)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert kernels(CPU, torch.float32) == kernels(CPU, torch.bfloat16) == "plain"
    np.testing.assert_allclose(fitted(photographs), expected, atol=1e-3)


# Adam ----------------------------------------------------------------------------------


def no_step(*args, **kwargs):
    pass


@pytest.mark.parametrize("kind", ["adam", "adamw"])
@pytest.mark.parametrize("damaged", [missing, failing, no_step])
def test_without_adams_kernel_heads_learn_the_same(kind, damaged, photographs, monkeypatch):
    X, y = photographs
    settings = {"image_size": 32, "optimizer": kind, "max_epochs": 3, "random_state": 0}
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    assert compat.adam_step(optimizer) is not None
    expected = PretrainedImageClassifier(**settings).fit(X, y).predict_proba(X)
    # torch's own optimizers keep their kernel.
    monkeypatch.setattr(compat, "_ADAM", {optimizer: "_of_another_version_"})
    if damaged is not missing:
        monkeypatch.setattr(torch, "_of_another_version_", damaged, raising=False)
    compat._steps_are_right.cache_clear()
    assert compat.adam_step(optimizer) is None
    found = PretrainedImageClassifier(**settings).fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(found, expected)


def test_other_optimizers_have_steps_of_their_own():
    assert compat.adam_step(torch.optim.SGD) is None
