"""Photographs, and classifiers that were fitted to them."""

import numpy as np
import pytest
from pickled import classifier


@pytest.fixture(scope="module")
def X(photographs):
    return np.ascontiguousarray(photographs[0][:, ::4, ::4])


@pytest.fixture(scope="module")
def y(photographs):
    return np.array(["temple", "flower"])[photographs[1]]


@pytest.fixture(scope="module")
def fitted(X, y):
    return classifier(max_epochs=None).fit(X, y)


@pytest.fixture(scope="module")
def trained(X, y):
    """Whose last stage trained."""
    return classifier(freeze=-1).fit(X, y)
