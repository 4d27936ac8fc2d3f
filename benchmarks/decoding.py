"""Reading one file for a network of 224 px: decoders, decoding at a fraction, and two threads."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from common import arguments, report, take_turns
from files import pillow_alone
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.io import ImageReadMode, decode_image

from sktl.images.decoding import decode_file
from sktl.images.preprocessing import Recipe

RECIPE = Recipe(256, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SIDES = {"0.2 million pixels": 512, "2 million": 1600, "12 million": 4000}
FORMATS = {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"quality": 80}}
PER_THREAD = 8  # files


def pillow(path: str) -> None:
    """Decode all pixels with Pillow."""
    with pillow_alone():
        RECIPE.apply([torch.from_numpy(decode_file(path)).permute(2, 0, 1)])


def torchvision(path: str) -> None:
    """Decode all pixels with torchvision."""
    RECIPE.apply([decode_image(path, ImageReadMode.RGB, apply_exif_orientation=True)])


def fraction(path: str) -> None:
    """Read it as sktl does."""
    RECIPE.apply([torch.from_numpy(decode_file(path, RECIPE.resize)).permute(2, 0, 1)])


def of_format(path: str, repeats: int) -> None:
    """Print what a file of 640 x 480 pixels costs, and whether a second thread helps."""

    def one_after_the_other() -> None:
        for _ in range(2 * PER_THREAD):
            fraction(path)

    def side_by_side() -> None:
        threads = [threading.Thread(target=half) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def half() -> None:
        for _ in range(PER_THREAD):
            fraction(path)

    sides: dict[str, Callable[[], object]] = {
        "Pillow": lambda: pillow(path),
        "torchvision": lambda: torchvision(path),
        "sktl": lambda: fraction(path),
        f"sktl, {2 * PER_THREAD} files": one_after_the_other,
        f"sktl, {2 * PER_THREAD} files in two threads": side_by_side,
    }
    report(take_turns(sides, repeats), "Pillow")


def main() -> None:
    """Run all sides on files of three sizes and print how they compare."""
    args = arguments(__doc__, repeats=9)
    torch.set_num_threads(1)
    photograph = Image.fromarray(load_sample_images().images[0])
    with tempfile.TemporaryDirectory() as folder:
        for name, how in FORMATS.items():
            print(f"{name}, 640 x 480 pixels")
            path = str(Path(folder, f"picture.{name.lower()}"))
            photograph.resize((640, 480), Image.Resampling.LANCZOS).save(path, **how)
            of_format(path, args.repeats)
        for name, side in SIDES.items():
            print(name)
            path = str(Path(folder, f"{side}.jpg"))
            photograph.resize((side, side * 3 // 4), Image.Resampling.LANCZOS).save(path)
            sides = {
                "Pillow, all pixels": lambda path=path: pillow(path),
                "torchvision, all pixels": lambda path=path: torchvision(path),
                "sktl": lambda path=path: fraction(path),
            }
            report(take_turns(sides, args.repeats), "Pillow, all pixels")


if __name__ == "__main__":
    main()
