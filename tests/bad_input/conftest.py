"""Rows, a classifier that was fitted to them, and a check of what is refused."""

import numpy as np
import pytest
from refusals import SIZE, N, assert_says, learned
from sklearn.exceptions import NotFittedError

from sktl import PretrainedImageClassifier


@pytest.fixture(scope="module")
def rows(digits):
    X, y = digits
    return X[:N], y[:N] % 3


@pytest.fixture(scope="module")
def fitted(rows):
    return PretrainedImageClassifier(image_size=SIZE).fit(*rows)


@pytest.fixture(scope="module")
def fitted_proba(fitted, rows):
    return fitted.predict_proba(rows[0])


@pytest.fixture
def refuses(rows, fitted, fitted_proba):
    """Check that a fit fails as it should, on a fresh and on a fitted estimator."""

    def check(error, words, X=rows[0], y=rows[1], sample_weight=None, **params):
        fresh = PretrainedImageClassifier(**{"image_size": SIZE, **params})
        with pytest.raises(error) as caught:
            fresh.fit(X, y, sample_weight=sample_weight)
        assert type(caught.value) is not RuntimeError
        assert_says(caught.value, words)
        assert learned(fresh) == {}
        with pytest.raises(NotFittedError):
            fresh.predict(rows[0])

        before, good = learned(fitted), fitted.get_params(deep=False)
        fitted.set_params(**params)
        try:
            with pytest.raises(error):
                fitted.fit(X, y, sample_weight=sample_weight)
        finally:
            fitted.set_params(**good)
        assert learned(fitted).keys() == before.keys()
        assert all(value is before[name] for name, value in learned(fitted).items())
        assert np.array_equal(fitted.predict_proba(rows[0]), fitted_proba)

    return check
