"""Real pictures for the examples: a folder of your own, or one of crops that needs no download."""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32  # of a crop, in pixels
_folders = []  # deleted when Python ends


def folder_of_pictures(arguments):
    """Name the folder of the first argument, or make one where there is none."""
    return Path(arguments[0]) if arguments else make_folder()


def make_folder(n_crops=24):
    """Cut crops out of ten photographs of scikit-image, which are the classes.

    No two crops overlap, so a classifier is tested on parts that it hasn't seen.
    """
    from skimage import data

    photographs = {
        "brick": data.brick(),
        "cat": data.chelsea(),
        "coffee": data.coffee(),
        "coins": data.coins(),
        "galaxies": data.hubble_deep_field(),
        "grass": data.grass(),
        "gravel": data.gravel(),
        "moon": data.moon(),
        "retina": data.retina()[256:1152, 256:1152],
        "tissue": data.immunohistochemistry(),
    }
    _folders.append(tempfile.TemporaryDirectory(prefix="sktl-pictures-"))
    root, rng = Path(_folders[-1].name), np.random.default_rng(0)
    for kind, photograph in photographs.items():
        (root / kind).mkdir()
        rows, columns = (length // SIDE for length in photograph.shape[:2])
        places = rng.permutation(rows * columns)[:n_crops]
        for number, place in enumerate(places):
            top, left = SIDE * (place // columns), SIDE * (place % columns)
            crop = Image.fromarray(photograph[top : top + SIDE, left : left + SIDE])
            crop.save(root / kind / f"{kind}{number:02}.png")
    return root
