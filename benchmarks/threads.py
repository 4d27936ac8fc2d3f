"""Take training steps with one thread and with all, on a machine at rest and on a busy one."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import efficientnet_b0


def main() -> None:
    """Print milliseconds a step, by image size and freeze depth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 96, 128, 224])
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    n_threads = os.cpu_count() or 1
    print("blocks  size  products a step   rest: 1      all  ratio    busy: 1      all  ratio")
    for n_blocks in args.blocks:
        for size in args.sizes:
            step, n_products = training_step(n_blocks, size, args.batch)
            rest = [timed(step, n, args.steps) for n in (1, n_threads)]
            with busy(n_threads):
                strain = [timed(step, n, args.steps) for n in (1, n_threads)]
            cells = [f"{one:8.1f} {both:8.1f}   {both / one:.2f}" for one, both in (rest, strain)]
            print(f"{n_blocks:6} {size:5} {n_products:16.2e}   {'   '.join(cells)}", flush=True)


def training_step(n_blocks: int, size: int, batch: int) -> tuple[Callable[[], None], int]:
    """Make what takes a step on the last blocks of a network, and count its multiplications."""
    network = efficientnet_b0(weights=None, num_classes=10)
    frozen, trained = network.features[:-n_blocks], network.features[-n_blocks:]
    module = nn.Sequential(trained, network.avgpool, nn.Flatten(), network.classifier[-1])
    module = module.to(memory_format=torch.channels_last)
    with torch.no_grad():
        features = frozen.eval()(torch.rand(batch, 3, size, size))
    features = features.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 10
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(features), labels).backward()
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        step()
    return step, counter.get_total_flops() // 2


def timed(step: Callable[[], None], n_threads: int, n_steps: int) -> float:
    """Median milliseconds of a step."""
    torch.set_num_threads(n_threads)
    step()
    times = []
    for _ in range(n_steps):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


@contextmanager
def busy(n: int) -> Iterator[None]:
    """Have other processes compute for a while."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        time.sleep(0.2)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


if __name__ == "__main__":
    main()
