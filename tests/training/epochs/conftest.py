"""Classifiers on a small network that trains, and on the embedded one, which is frozen."""

import numpy as np
import pytest
import torch
from finetuned import SIZE, SmallResNet

from sktl import PretrainedImageClassifier


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallResNet()


@pytest.fixture(scope="module")
def three_kinds(digits):
    """36 digits of three classes that aren't equally many, as rows."""
    X, y = digits
    kept = np.flatnonzero(y < 3)[:36]
    return X[kept], y[kept]


@pytest.fixture(scope="module")
def make(network):
    """Make a classifier on the small network."""

    def make(**params):
        settings = {"backbone": network, "image_size": SIZE, "random_state": 0}
        return PretrainedImageClassifier(**(settings | params))

    return make


@pytest.fixture(scope="module")
def embedded():
    """Make a classifier on the frozen embedded network."""

    def make(**params):
        settings = {"image_size": SIZE, "random_state": 0, "precision": "float32"}
        return PretrainedImageClassifier(**(settings | params))

    return make
