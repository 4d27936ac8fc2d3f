"""Real pictures for the examples: a folder of your own, or pieces of photographs, without download.

``pip install 'sktl[examples]'`` brings the photographs, in scikit-image.
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 96  # of a piece in a folder, in pixels
_folders = []  # deleted when Python ends


def load_photographs():
    """Read thirteen photographs of scikit-image, by the names of what they show."""
    from skimage import data

    return {
        "astronaut": data.astronaut(),
        "brick": data.brick(),
        "cat": data.chelsea(),
        "coffee": data.coffee(),
        "coins": data.coins(),
        "galaxies": data.hubble_deep_field(),
        "grass": data.grass(),
        "gravel": data.gravel(),
        "moon": data.moon(),
        "motorcycle": data.stereo_motorcycle()[0],
        "retina": data.retina(),
        "rocket": data.rocket(),
        "tissue": data.immunohistochemistry(),
    }


def folder_of_pictures(arguments):
    """Name the folder of the first argument, or make one where there is none."""
    return Path(arguments[0]) if arguments else make_folder()


def make_folder(n_pieces=12):
    """Cut pieces out of thirteen photographs, which are the classes.

    No two pieces overlap, so a classifier is tested on parts that it hasn't seen.
    """
    _folders.append(tempfile.TemporaryDirectory(prefix="sktl-pictures-"))
    root, rng = Path(_folders[-1].name), np.random.default_rng(0)
    for kind, photograph in load_photographs().items():
        (root / kind).mkdir()
        rows, columns = (length // SIDE for length in photograph.shape[:2])
        places = rng.permutation(rows * columns)[:n_pieces]
        for number, place in enumerate(places):
            top, left = SIDE * (place // columns), SIDE * (place % columns)
            piece = Image.fromarray(photograph[top : top + SIDE, left : left + SIDE])
            piece.save(root / kind / f"{kind}{number:02}.png")
    return root


def pieces_of_photographs(n_train, n_test, *, side=64, seed=0):
    """Cut pieces out of thirteen photographs of scikit-image, which are the classes.

    Pieces to train on come from the left half of a photograph, and those to test on from its right
    half. They are ordered so that each row of thirteen has one of each class.

    Returns
    -------
    X_train, y_train, X_test, y_test : arrays
        uint8 images of shape (13 * n, side, side, 3), and names.
    """
    from skimage.color import gray2rgb

    photographs, rng = load_photographs(), np.random.default_rng(seed)

    def cut(photograph, columns):
        top = rng.integers(photograph.shape[0] - side + 1)
        left = rng.integers(columns.start, columns.stop - side + 1)
        piece = photograph[top : top + side, left : left + side]
        return gray2rgb(piece) if piece.ndim == 2 else piece

    def half(is_right, n):
        pieces = []
        for _ in range(n):
            for photograph in photographs.values():
                width = photograph.shape[1]
                columns = range(width // 2, width) if is_right else range(width // 2)
                pieces.append(cut(photograph, columns))
        return np.stack(pieces), np.array(list(photographs) * n)

    return *half(False, n_train), *half(True, n_test)
