"""Pictures and settings that several test modules share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_sample_images

STAMPS = Path(__file__).parents[2] / "shared" / "data" / "stamps"


def pytest_collection_modifyitems(items):
    without_gpu = pytest.mark.skip(reason="no CUDA device here")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(without_gpu)


@pytest.fixture(scope="session")
def photographs():
    """12 crops of two photographs, a temple and a flower, as uint8 (n, h, w, 3); and labels."""
    crops, labels = [], []
    for label, photograph in enumerate(load_sample_images().images):
        for top in (0, 150):
            for left in (0, 200, 400):
                crops.append(photograph[top : top + 240, left : left + 240])
                labels.append(label)
    return np.stack(crops), np.array(labels)


@pytest.fixture(scope="session")
def digits():
    """120 handwritten digits as rows of 64 values from 0 to 16, and labels."""
    X, y = load_digits(return_X_y=True)
    return X[:120], y[:120]


@pytest.fixture(scope="session")
def stamps():
    """Folder of pictures of ten kinds of thing; not part of the project."""
    if not STAMPS.is_dir():
        pytest.skip("the folder of stamps is not here")
    return STAMPS
