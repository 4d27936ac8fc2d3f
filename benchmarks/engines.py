"""The frozen pass beside engines that anybody can install: ONNX Runtime and OpenVINO.

Each side runs alone in a process of its own, since the threads of one wait where another computes.
sktl is PretrainedImageFeatures.transform, from uint8 pictures and without a cache; the others are
the bare network on normalised pictures, with as many threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, normalised, pictures, take_turns, weights_file

from sktl import PretrainedImageFeatures
from sktl.backbones import load_backbone

CASES = (
    ("efficientnet_lite0", 224, 64),
    ("efficientnet_lite0", 96, 128),
    ("efficientnet_lite0", 64, 128),
    ("resnet18", 224, 16),
    ("resnet50", 224, 16),
    ("mobilenet_v3_large", 224, 16),
    ("efficientnet_b0", 224, 16),
    ("vit_b_16", 224, 16),
)
SIDES = ("sktl", "eager", "onnxruntime", "openvino")
CALLS = 3


def weights_of(name: str) -> Any:
    """Give the embedded network its own weights, and others random ones."""
    return "DEFAULT" if name == "efficientnet_lite0" else weights_file(name)


def bare_network(name: str, size: int) -> torch.nn.Module:
    """From normalised pictures to what the classifier reads."""
    network = load_backbone(name, weights_of(name), size).stage_features(None, "auto")
    assert isinstance(network, torch.nn.Sequential)
    return network[1:].eval()  # the first layer normalises


def exported(network: torch.nn.Module, images: torch.Tensor, folder: str) -> str:
    """Write the network as torch's own exporter does."""
    file = str(Path(folder, "network.onnx"))
    torch.onnx.export(network, (images,), file, dynamo=True, verbose=False, opset_version=18)
    return file


def side(name: str, how: str, size: int, batch: int, folder: str) -> Callable[[], object]:
    """Make what is timed: one batch."""
    X, _ = pictures(batch, size)
    if how == "sktl":
        features = PretrainedImageFeatures(
            name, weights=weights_of(name), image_size=size, cache=None
        ).fit(X)
        return lambda: features.transform(X)
    network, images = bare_network(name, size), normalised(X)
    if how == "eager":
        return lambda: torch.inference_mode()(network)(images)
    file, array = exported(network, images, folder), np.asarray(images)
    threads = torch.get_num_threads()
    if how == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {session.get_inputs()[0].name: array})
    import openvino

    model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_NUM_THREADS": threads})
    return lambda: model(array)


def time_one(name: str, how: str, size: int, batch: int) -> float:
    """Milliseconds an image, the best of some calls."""
    with tempfile.TemporaryDirectory() as folder:
        run = side(name, how, size, batch, folder)
        run()
        seconds = []
        for _ in range(CALLS):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds) / batch


def in_a_process(name: str, how: str, size: int, batch: int) -> float:
    """Time it alone in a new process."""
    command = [sys.executable, __file__, "--one", name, how, str(size), str(batch)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return float(printed.stdout.split()[-1])


def main() -> None:
    """Print milliseconds an image of all sides, and sktl's ratio to the better engine."""
    if sys.argv[1:2] == ["--one"]:
        name, how, size, batch = sys.argv[2:]
        print(time_one(name, how, int(size), int(batch)))
        return
    args = arguments(__doc__ or "", cases=len(CASES), repeats=3)
    print(f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, ", end="")
    print(f"torch {torch.__version__}; milliseconds an image")
    for name, size, batch in CASES[: args.cases]:
        sides = {
            how: lambda how=how: in_a_process(name, how, size, batch)  # noqa: B023  # called here
            for how in SIDES
        }
        found = take_turns(sides, args.repeats)
        best = min(found["onnxruntime"], found["openvino"])
        columns = ", ".join(f"{how} {ms:.2f}" for how, ms in found.items())
        print(
            f"  {name} {size} px: {columns}; sktl {found['sktl'] / best:.2f} of the better engine"
        )


if __name__ == "__main__":
    main()
