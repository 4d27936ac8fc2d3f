"""A fitted classifier and its file."""

import pytest
from saved import classifier


@pytest.fixture(scope="module")
def X(digits):
    return digits[0][:40]


@pytest.fixture(scope="module")
def y(digits):
    return digits[1][:40] % 2


@pytest.fixture(scope="module")
def fitted(X, y):
    return classifier(max_epochs=None).fit(X, y)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.sktl"


@pytest.fixture
def saved(fitted, path):
    """The path of a file of some ten kilobytes."""
    fitted.save(path, include_backbone=False)
    return path
