"""A frozen fit from many files: speed beside its two halves, memory, and going on after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import arguments
from PIL import Image
from sklearn.datasets import load_sample_images

from sktl.backbones import load_backbone
from sktl.frozen.module import FrozenModule, ahead
from sktl.hardware import choose_precision
from sktl.images.format import learn_format
from sktl.images.reading import open_images

SIDE = 320  # pixels of the files
PER_RUN = 32

FIT = """
import sys, time
from pathlib import Path
from sktl import PretrainedImageClassifier
from sktl.frozen.prefix import FrozenPrefix
made = []
compute = FrozenPrefix.compute
def counting(self, *args, **kwargs):
    before = self.n_images
    try:
        return compute(self, *args, **kwargs)
    finally:
        made.append(self.n_images - before)
FrozenPrefix.compute = counting
paths = sorted(map(str, Path({files!r}).glob("*.jpg")))[:{n}]
y = [int(Path(path).stem) % 10 for path in paths]
start = time.perf_counter()
clf = PretrainedImageClassifier(cache={cache!r}, optimizer="adamw", max_epochs=1).fit(paths, y)
seconds = time.perf_counter() - start
status = Path("/proc/self/status").read_text()
print(seconds, int(status.partition("VmHWM:")[2].split()[0]) // 1024, sum(made))
"""


def write(folder: str, n: int) -> None:
    """Crops of two photographs, of which no two are the same."""
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    for i in range(n):
        left, top = rng.integers(0, 640 - SIDE), rng.integers(0, 427 - SIDE)
        crop = photographs[i % 2].crop((left, top, left + SIDE, top + SIDE))
        crop.putpixel((0, 0), (i % 256, i // 256 % 256, i // 65536))
        crop.save(Path(folder, f"{i:06}.jpg"), quality=90)


def fit(files: str, n: int, cache: str) -> tuple[float, int, int]:
    """Seconds, peak megabytes and images computed of a fit in a process of its own."""
    code = FIT.format(files=files, n=n, cache=cache)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    seconds, peak, made = done.stdout.split()
    return float(seconds), int(peak), int(made)


def killed_fit(files: str, n: int, cache: str, after: float) -> None:
    """Begin a fit, and end it without warning."""
    code = FIT.format(files=files, n=n, cache=cache)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()


def rate(work: Callable[[], object], n: int) -> float:
    """Images a second."""
    start = time.perf_counter()
    work()
    return n / (time.perf_counter() - start)


def halves(files: str, n: int) -> tuple[float, float]:
    """Images a second of reading alone, and of the prefix alone."""
    backbone = load_backbone("efficientnet_lite0")
    device = torch.device("cpu")
    precision = choose_precision("auto", device)
    module = FrozenModule(backbone.stage_features(None, "auto"), precision, device)
    paths = sorted(map(str, Path(files).glob("*.jpg")))[:n]
    images = open_images(paths, learn_format(paths))
    batches = [range(i, min(i + PER_RUN, n)) for i in range(0, n, PER_RUN)]

    def read() -> None:
        for _ in ahead(
            lambda b: backbone.recipe.batch(images, b), batches, torch.get_num_threads()
        ):
            pass

    prepared = backbone.recipe.batch(images, range(min(n, PER_RUN)))

    def run() -> None:
        for _ in module.map(lambda b: prepared[: len(b)], range(n)):
            pass

    return rate(read, n), rate(run, n)


def main() -> None:
    """Print rates, memory, and what a fit after a kill computed."""
    args = arguments(__doc__, images=50_000, few=5_000)
    with tempfile.TemporaryDirectory() as folder:
        files, cache, other = (str(Path(folder, name)) for name in ("files", "cache", "other"))
        Path(files).mkdir()
        write(files, args.images)
        reading, running = halves(files, args.few)
        _, few_peak, _ = fit(files, args.few, other)
        seconds, peak, made = fit(files, args.images, cache)
        both, slower = args.images / seconds, min(reading, running)
        shared = 1 / (1 / reading + 1 / running)
        print(f"  reading alone {reading:.0f}, prefix alone {running:.0f} images a second")
        print(f"  fit {both:.0f}: {both / slower:.2f} of the slower")
        print(
            f"  one after the other on these cores would be {shared:.0f}: {both / shared:.2f} of it"
        )
        print(f"  {made} of {args.images} images computed")
        print(f"  peak {peak} MB, with {args.few} images {few_peak} MB")
        seconds_again, _, made = fit(files, args.images, cache)
        print(f"  the second fit took {seconds_again / seconds:.3f} of the time, computed {made}")
        cache = str(Path(folder, "killed"))
        killed_fit(files, args.images, cache, seconds / 2)
        _, _, made = fit(files, args.images, cache)
        print(f"  after a kill in the middle, {made} of {args.images} images were computed")


if __name__ == "__main__":
    main()
