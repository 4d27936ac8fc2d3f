"""What the benchmarks share: pictures, a network's weights, and a stopwatch that takes turns."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from sklearn.datasets import load_sample_images

import sktl.cache

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
N_CLASSES = 10


def pictures(n: int, size: int = 224) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Crops of two photographs, each class under a light of its own.

    Parameters
    ----------
    n, size : int
        Number of pictures, and their height and width in pixels.

    Returns
    -------
    X : uint8 array of shape (n, size, size, 3)
    y : array of shape (n,)
        From 0 to 9.
    """
    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    lights = rng.uniform(0.5, 1.0, (N_CLASSES, 3))
    X, y = np.empty((n, size, size, 3), np.uint8), np.arange(n) % N_CLASSES
    for i in range(n):
        photograph = photographs[rng.integers(len(photographs))]
        top, left = (rng.integers(0, side - size + 1) for side in photograph.shape[:2])
        X[i] = photograph[top : top + size, left : left + size] * lights[y[i]]
    return X, y


def weights_file(name: str) -> Path:
    """Random weights of one of torchvision's networks: they cost what trained ones cost.

    Batch norm has seen some pictures, since norms without learned statistics train in another way.
    """
    file = Path(tempfile.gettempdir()) / f"sktl-benchmark-{name}-1.pth"
    if not file.is_file():
        torch.manual_seed(0)
        network = torchvision.models.get_model(name, weights=None)
        with torch.no_grad():
            network(normalised(pictures(16)[0]))
        torch.save(network.state_dict(), file)
    return file


def plain_network(name: str) -> torch.nn.Module:
    """Make the network with those weights, as torchvision does."""
    network: torch.nn.Module = torchvision.models.get_model(name, weights=None)
    network.load_state_dict(torch.load(weights_file(name), weights_only=True))
    return network


def normalised(X: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Pictures as float32 tensor of shape (n, 3, h, w), ready for a network."""
    images = torch.from_numpy(X).permute(0, 3, 1, 2).contiguous()
    return (images.float() / 255 - MEAN) / STD


def bare_pass(network: torch.nn.Module, images: torch.Tensor, batch_size: int = 32) -> None:
    """One eager float32 forward pass."""
    with torch.inference_mode():
        for batch in images.split(batch_size):
            network(batch)


def forget() -> None:
    """Empty sktl's cache, so that a fit starts cold."""
    sktl.cache.memory_cache.clear()


def take_turns(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Run all sides in turns, and give the median of each one's seconds.

    A side may return a float, seconds of its own, such as those of a part that it has scaled.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            own = side()
            took = time.perf_counter() - start
            seconds[name].append(own if isinstance(own, float) else took)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(medians: dict[str, float], unit: str) -> None:
    """Print seconds, and how they compare with the side called `unit`."""
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, value in medians.items():
        print(f"  {name:<44}{value:9.3f} s   {value / medians[unit]:9.3f} of {unit}")


def arguments(description: str, **defaults: int) -> argparse.Namespace:
    """Parse integers such as ``--repeats 3``."""
    parser = argparse.ArgumentParser(description=description)
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    return parser.parse_args()
