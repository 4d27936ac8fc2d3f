"""What tests of reading images share."""

import warnings

import pytest


@pytest.fixture
def no_warnings():
    """A warning that no test expects is a failure, torch's of read-only memory included."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
