"""What a refusal has to leave as it was, and what it has to say."""

import re

N = 24
SIZE = 32


def learned(estimator):
    """All attributes but the parameters."""
    params = estimator.get_params(deep=False)
    return {name: value for name, value in vars(estimator).items() if name not in params}


def assert_says(error, words):
    for word in words:
        assert re.search(word, str(error)), f"{word!r} is not in: {error}"
