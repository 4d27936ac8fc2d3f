"""Ten epochs of a frozen ResNet-18 from JPEG files: sktl and fastai's vision_learner.

``python fastai_frozen.py /path/to/python`` with a Python that has fastai.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from common import (
    bare_pass,
    forget,
    normalised,
    pictures,
    plain_network,
    report,
    take_turns,
    weights_file,
)
from PIL import Image

from sktl import PretrainedImageClassifier

EPOCHS, IMAGES, REPEATS = 10, 500, 2

FASTAI = """
import sys, time
from pathlib import Path
import torch
from fastai.vision.all import ImageDataLoaders, resnet18, vision_learner
paths = sorted(Path(sys.argv[1]).glob("*.jpg"))
labels = [str(i % 10) for i in range(len(paths))]
data = ImageDataLoaders.from_lists(sys.argv[1], paths, labels, valid_pct=0.2, seed=0, bs=32,
                                   num_workers=0, device=torch.device("cpu"))
learner = vision_learner(data, resnet18, pretrained=False)
learner.freeze()
learner.no_bar()
learner.no_logging()
start = time.perf_counter()
learner.fit_one_cycle(1)
print(time.perf_counter() - start)
"""


def main() -> None:
    """Run all sides and print how they compare."""
    X, y = pictures(IMAGES)
    images, network = normalised(X), plain_network("resnet18").eval()
    with tempfile.TemporaryDirectory() as folder:
        for i, picture in enumerate(X):
            Image.fromarray(picture).save(Path(folder, f"{i:06}.jpg"), quality=95)
        paths = sorted(map(str, Path(folder).glob("*.jpg")))

        def sktl_fit() -> None:
            forget()
            weights = weights_file("resnet18")
            clf = PretrainedImageClassifier(
                "resnet18", weights=weights, optimizer="adamw", max_epochs=EPOCHS
            )
            clf.fit(paths, y)

        def fastai_fit() -> float:
            command = [sys.argv[1], "-c", FASTAI, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return float(done.stdout.split()[-1]) * EPOCHS

        sides = {
            "one bare pass": lambda: bare_pass(network, images),
            "sktl": sktl_fit,
            f"fastai (1 of {EPOCHS} epochs timed)": fastai_fit,
        }
        report(take_turns(sides, REPEATS), "one bare pass")


if __name__ == "__main__":
    main()
