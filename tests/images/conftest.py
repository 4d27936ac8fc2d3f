"""What tests of reading images share: photographs, in memory and in files, and no warnings."""

import warnings

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images


@pytest.fixture(scope="module")
def photos():
    """Two real photographs, (2, 60, 80, 3) uint8."""
    return np.stack(load_sample_images().images)[:, 100:340:4, 100:420:4].copy()


@pytest.fixture
def files(photos, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(len(photos))]
    for photo, path in zip(photos, paths, strict=True):
        Image.fromarray(photo).save(path)
    return paths


@pytest.fixture
def no_warnings():
    """A warning that no test expects is a failure, torch's of read-only memory included."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
