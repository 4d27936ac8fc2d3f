"""Frozen networks in ONNX Runtime: what runs there, what doesn't, and what is said of it."""

import sys
import threading
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import fx, nn

from sktl import PretrainedImageClassifier
from sktl.backbones import load_backbone
from sktl.frozen import engine
from sktl.frozen.engine import EngineNetwork, engine_name, is_worth_it
from sktl.frozen.fusion import fold_norms, fuse, kernels
from sktl.frozen.module import FrozenModule, computed_by
from sktl.hardware import choose_precision

pytestmark = pytest.mark.core

CPU = torch.device("cpu")
in_torch = partial(fuse, dtype=torch.float32, device=CPU)
without_units = pytest.mark.skipif(
    choose_precision("auto", CPU) != "float32", reason="this processor has bfloat16 units"
)


@pytest.fixture
def network():
    return fold_norms(
        load_backbone("efficientnet_lite0", image_size=32).stage_features(None, "auto")
    )


@pytest.fixture
def images():
    made = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    return made.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test_the_engine_computes_the_same(network, images):
    runner = EngineNetwork(network, in_torch)
    found, wanted = runner(images), in_torch(network)(images)
    assert not runner.runs_in_torch
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(runner(images[:2]), found[:2], rtol=1e-5, atol=1e-5)
    assert runner(images[:0]).shape == (0, found.shape[1])


@torch.inference_mode()
def test_images_of_several_sizes_are_run(network):
    runner = EngineNetwork(network, in_torch)
    plain = in_torch(network)
    for size in (32, 33, 40, 48, 32):
        batch = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
        torch.testing.assert_close(runner(batch), plain(batch), rtol=1e-4, atol=1e-4)
    assert not runner.runs_in_torch
    assert len(runner._sessions) == engine._SESSIONS


@torch.inference_mode()
def test_threads_share_a_network(network, images):
    runner = EngineNetwork(network, in_torch)
    results = []

    def run():
        with torch.inference_mode():
            results.extend(runner(images) for _ in range(3))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 12
    assert all(torch.equal(result, results[0]) for result in results)


@torch.inference_mode()
def test_what_has_no_translation_runs_in_torch_without_a_word():
    runner = EngineNetwork(nn.Sequential(nn.Softmax(1)), in_torch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = runner(torch.rand(2, 4))
    assert runner.runs_in_torch
    torch.testing.assert_close(found.sum(1), torch.ones(2))


@torch.inference_mode()
def test_an_overwritten_input_is_noticed():
    """Torch's in-place layers change what others read; a translation doesn't."""

    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            doubled = x + x
            return self.relu(doubled) + doubled

    network = fx.symbolic_trace(Overwrites())
    runner = EngineNetwork(network, in_torch)
    batch = torch.randn(3, 4, 5, 5)
    wanted = 4 * batch.clamp(min=0)
    torch.testing.assert_close(runner(batch.clone()), wanted)
    assert runner.runs_in_torch


@torch.inference_mode()
def test_a_failing_engine_is_said_once(network, images, monkeypatch):
    def fail(model, n_threads):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(engine, "_open", fail)
    runner = EngineNetwork(network, in_torch)
    with pytest.warns(RuntimeWarning, match="in torch.*no such kernel"):
        found = runner(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(runner(images), found)
    torch.testing.assert_close(found, in_torch(network)(images))


def test_memory_that_runs_out_is_no_failing_engine(network, images, monkeypatch):
    def fail(model, n_threads):
        raise MemoryError

    monkeypatch.setattr(engine, "_open", fail)
    runner = EngineNetwork(network, in_torch)
    with pytest.raises(MemoryError):
        runner(images)
    monkeypatch.undo()
    with torch.inference_mode():
        runner(images)
    assert not runner.runs_in_torch


def test_the_engine_is_for_float32_on_a_cpu_without_units(monkeypatch):
    assert not is_worth_it(CPU, torch.bfloat16)
    assert not is_worth_it(torch.device("cuda"), torch.float32)
    for units, worth in (("float32", True), ("bfloat16", False)):
        monkeypatch.setattr(engine, "choose_precision", lambda *args, units=units: units)
        assert is_worth_it(CPU, torch.float32) is worth
        assert (engine_name() in computed_by(CPU, torch.float32)) is worth
    monkeypatch.setattr(engine, "engine_name", lambda: None)
    assert not is_worth_it(CPU, torch.float32)
    assert computed_by(CPU, torch.float32) == kernels(CPU, torch.float32)


@without_units
def test_frozen_networks_run_in_the_engine(network, images):
    frozen = FrozenModule(network, "float32", CPU)
    frozen(images)
    assert isinstance(frozen.module, EngineNetwork)
    assert not frozen.module.runs_in_torch


@pytest.fixture
def forget_prepared():
    """Function that forgets which way the embedded network runs; other tests don't meet it."""

    def forget():
        PretrainedImageClassifier(image_size=32)._load_backbone().derived.clear()

    yield forget
    forget()


@without_units
@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_fit_without_the_engine_gives_the_same(package, digits, monkeypatch, forget_prepared):
    X, y = digits[0][:40], digits[1][:40]
    make = partial(PretrainedImageClassifier, image_size=32, cache=None)
    wanted = make().fit(X, y).predict_proba(X)
    forget_prepared()  # it runs in the engine already
    monkeypatch.setitem(sys.modules, package, None)  # an installation that is broken
    with pytest.warns(RuntimeWarning, match="runs in torch"):
        found = make(random_state=0).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
