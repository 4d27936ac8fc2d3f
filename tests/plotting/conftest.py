"""Matplotlib as it comes."""

import matplotlib as mpl
import pytest


@pytest.fixture
def plain_matplotlib():
    """Settings of no user, and no window; figures are closed."""
    backend = mpl.get_backend()
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"font.family": "DejaVu Sans", "savefig.dpi": 60})
        yield
        plt.close("all")
    mpl.use(backend)
