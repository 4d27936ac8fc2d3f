"""Classifiers of which all stages train."""

import numpy as np
import pytest
import torch
from finetuned import SIZE, SmallNetwork

from sktl import PretrainedImageClassifier


@pytest.fixture(scope="module")
def network():
    """With statistics of batch norm that were learned."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallNetwork()
        for _ in range(30):
            network(torch.randn(16, 3, SIZE, SIZE))
    return network.eval()


@pytest.fixture(scope="module")
def make(network):
    def make(**params):
        settings = {
            "backbone": network, "image_size": SIZE, "random_state": 0, "precision": "float32",
            "freeze": "none", "max_epochs": 3, "batch_size": 8,
        }  # fmt: skip
        return PretrainedImageClassifier(**(settings | params))

    return make


@pytest.fixture(scope="module")
def data(digits):
    X, y = digits
    kept = np.flatnonzero(y < 3)[:36]
    return X[kept], y[kept]
