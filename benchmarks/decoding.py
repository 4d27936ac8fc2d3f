"""Reading one JPEG file for a network of 224 px: decoders, and decoding at a fraction."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from common import arguments, report, take_turns
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.io import ImageReadMode, decode_image

from sktl.images.decoding import decode_file
from sktl.images.preprocessing import Recipe

RECIPE = Recipe(256, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SIDES = {"0.2 million pixels": 512, "2 million": 1600, "12 million": 4000}


def pillow(path: str) -> None:
    """Decode all pixels with Pillow."""
    RECIPE.apply([torch.from_numpy(decode_file(path)).permute(2, 0, 1)])


def torchvision(path: str) -> None:
    """Decode all pixels with torchvision."""
    RECIPE.apply([decode_image(path, ImageReadMode.RGB, apply_exif_orientation=True)])


def fraction(path: str) -> None:
    """Read it as sktl does."""
    RECIPE.apply([torch.from_numpy(decode_file(path, RECIPE.resize)).permute(2, 0, 1)])


def main() -> None:
    """Run all sides on files of three sizes and print how they compare."""
    args = arguments(__doc__, repeats=9)
    torch.set_num_threads(1)
    photograph = Image.fromarray(load_sample_images().images[0])
    with tempfile.TemporaryDirectory() as folder:
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
