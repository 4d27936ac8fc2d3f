"""One network of each family of timm, transformers and open_clip; the slow ones take minutes."""

import gc

import pytest
from sweep import CLOSE, LEFT_OUT, PAGE, Network, build, distances, fit, networks, read
from sweep import trained_share as share_of

SHOWN = 2e-2  # of pictures: the libraries round pixels otherwise after resizing


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    gc.collect()  # a fitted network is in cycles, and large


@pytest.mark.slow
@pytest.mark.all_models
@pytest.mark.parametrize("network", networks(), ids=lambda n: f"{n.library}-{n.name}")
def test_features_stages_and_a_fit(network: Network):
    pytest.importorskip(network.library)
    module = build(network)
    clf = fit(network, module)
    found = distances(network, module, clf)
    bounds = {"pictures": SHOWN}
    assert not {what: d for what, d in found.items() if not d < bounds.get(what, CLOSE)}
    expected = read()[network.library, network.name][-1]
    assert expected == (str(len(clf.stages_)) if len(clf.stages_) > 1 else "whole")
    # Either some of the network has been trained, or it can only be frozen whole.
    assert share_of(clf) < 1
    assert (share_of(clf) > 0) == (len(clf.stages_) > 1)
    assert clf.freeze_ == max(1, len(clf.stages_) - 1)


def test_the_table_is_of_these_networks():
    tried = {(n.library, n.name): str(n.size) for n in networks()}
    assert {name: row[2] for name, row in read().items()} == tried
    text = PAGE.read_text(encoding="utf-8")
    assert all(family in text for family in LEFT_OUT)
