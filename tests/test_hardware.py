"""Which device and precision are chosen, and what replaces those of a stored model."""

import os
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from sktl import PretrainedImageClassifier, PretrainedImageFeatures
from sktl.hardware import (
    choose_device,
    choose_precision,
    is_available,
    is_out_of_memory,
    physical_memory,
    restore_device,
    restore_precision,
    warn_if_emulated,
)

pytestmark = pytest.mark.core

CPU = torch.device("cpu")
# Never has bfloat16 units by sktl's reckoning, whatever the machine.
APPLE = torch.device("mps")

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def cpu_flags():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.split(":")[1].split())
    return set()


@pytest.mark.parametrize("device", ["cpu", CPU])
def test_a_device_that_is_here_is_taken(device):
    assert choose_device(device) == CPU


def test_auto_takes_a_device_that_computes():
    device = choose_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2


@without_cuda
@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an Apple GPU")
def test_auto_without_a_gpu_is_the_cpu():
    assert choose_device("auto") == CPU


@pytest.mark.gpu
def test_auto_with_a_gpu_is_the_gpu():
    assert choose_device("auto").type == "cuda"


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpuu"])
def test_an_unknown_device_is_named_with_the_choices(device):
    with pytest.raises(ValueError, match=f"Unknown device '{device}'.*auto.*cpu.*cuda.*mps"):
        choose_device(device)


@pytest.mark.parametrize("device", ["meta", "cuda:99", torch.device("cuda", 99)])
def test_a_device_that_is_not_here_is_named_with_those_that_are(device):
    with pytest.raises(ValueError, match=r"99|meta") as caught:
        choose_device(device)
    assert "not available here" in str(caught.value)
    assert "There is 'cpu'" in str(caught.value)


@without_cuda
def test_cuda_without_cuda_is_an_error():
    assert not is_available(torch.device("cuda"))
    with pytest.raises(ValueError, match="device='cuda' is not available here"):
        choose_device("cuda")


@pytest.mark.gpu
def test_a_gpu_beyond_the_last_is_not_available():
    n = torch.cuda.device_count()
    assert is_available(torch.device("cuda", n - 1))
    assert not is_available(torch.device("cuda", n))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", [CPU, APPLE], ids=str)
def test_a_named_precision_is_kept(precision, device):
    assert choose_precision(precision, device) == precision


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux about the processor")
def test_auto_is_bfloat16_on_processors_with_units_for_it():
    has_units = bool(cpu_flags() & {"amx_bf16", "avx512_bf16"})
    assert choose_precision("auto", CPU) == ("bfloat16" if has_units else "float32")


@pytest.mark.gpu
def test_auto_is_bfloat16_on_gpus_since_ampere():
    since_ampere = torch.cuda.get_device_capability()[0] >= 8
    device = torch.device("cuda")
    assert choose_precision("auto", device) == ("bfloat16" if since_ampere else "float32")


def test_auto_is_float32_where_there_are_no_units():
    assert choose_precision("auto", APPLE) == "float32"


def test_a_stored_device_that_is_here_is_restored_silently():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert restore_device("cpu") == CPU


def test_a_stored_device_that_is_not_here_is_replaced_with_a_warning():
    with pytest.warns(UserWarning, match="'cuda:99', which is not available here"):
        device = restore_device("cuda:99")
    assert device == choose_device("auto")


@pytest.mark.parametrize(
    ("asked", "used"), [("bfloat16", "bfloat16"), ("float32", "float32"), ("auto", "float32")]
)
def test_a_stored_precision_that_was_asked_for_or_always_works_is_kept(asked, used):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert restore_precision(asked, used, APPLE) == used


def test_bfloat16_chosen_for_other_hardware_becomes_float32_with_a_warning():
    with pytest.warns(UserWarning, match="bfloat16 features.*float32"):
        assert restore_precision("auto", "bfloat16", APPLE) == "float32"


@pytest.mark.gpu
def test_bfloat16_chosen_for_this_hardware_is_kept():
    device = choose_device("cuda")
    used = choose_precision("auto", device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert restore_precision("auto", used, device) == used


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="asks the system otherwise")
def test_memory_is_no_more_than_the_machine_has():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**20 < physical_memory() <= total


without_units = pytest.mark.skipif(
    choose_precision("auto", CPU) == "bfloat16", reason="this processor has bfloat16 units"
)


@without_units
def test_bfloat16_by_name_warns_of_its_cost_in_fit_training_and_predict():
    X, y = np.arange(4 * 64).reshape(4, 64) % 17, [0, 1, 0, 1]
    cost = r"no units for bfloat16.* (\d+) times as slowly.*precision=\"auto\""
    settings = {"precision": "bfloat16", "image_size": 32, "max_epochs": 1, "cache": None}
    for freeze in ("all", -1):
        clf = PretrainedImageClassifier(freeze=freeze, **settings)
        with pytest.warns(RuntimeWarning, match=cost) as caught:
            clf.fit(X, y)
        assert sum("bfloat16" in str(warning.message) for warning in caught) == 1
    for use in (clf.predict, clf.transform, pickled(clf).predict):
        with pytest.warns(RuntimeWarning, match=cost):
            use(X)
    features = PretrainedImageFeatures(precision="bfloat16", image_size=32)
    with pytest.warns(RuntimeWarning, match=cost):
        features.fit(X)
    with pytest.warns(RuntimeWarning, match=cost):
        features.transform(X)


def pickled(estimator):
    return pickle.loads(pickle.dumps(estimator))


def test_what_is_quick_does_not_warn(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_emulated("float32", CPU)
        warn_if_emulated("bfloat16", APPLE)
        monkeypatch.setattr("sktl.hardware._factor_of_bfloat16", lambda: 0.6)
        warn_if_emulated("bfloat16", CPU)  # units that torch doesn't name


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory as Linux does")
def test_memory_that_runs_out_in_onnx_runtime_is_told(told_by):
    found = told_by(ask_onnx_runtime_for_memory)
    assert found == [(True, True), (True, False), (False, True), (False, False)]


def ask_onnx_runtime_for_memory(report):
    """For too much, then for a shape that makes no sense; with and without its arena."""
    import resource

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy")
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [1])
    node = helper.make_node("Expand", ["x", "shape"], ["y"])
    graph = helper.make_graph([node], "expands", [x, shape], [y])
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
    found = []
    for arena in (True, False):
        options = onnxruntime.SessionOptions()
        options.enable_cpu_mem_arena = arena
        session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        for n in ([2**33], [2, 3, -5]):
            try:
                session.run(None, {"x": np.ones(1, np.float32), "shape": np.array(n)})
            except Exception as error:
                found.append((arena, is_out_of_memory(error)))
    report.send(found)
