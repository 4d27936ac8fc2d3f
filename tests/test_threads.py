"""Several threads at once: the same results, and a process that is left as it was."""

import random
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from sktl import PretrainedImageClassifier, PretrainedImageFeatures
from sktl.backbones.split import make_splitter
from sktl.frozen.module import FrozenModule
from sktl.randomness import seeded
from sktl.threads import one_thread, suited_threads
from sktl.training.heads import HeadShape

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("few_iterations_are_enough", "two_threads")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def in_a_new_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


# Torch's threads ---------------------------------------------------------------------


def test_one_thread_is_of_this_thread_alone():
    with one_thread():
        assert torch.get_num_threads() == 1
        assert in_a_new_thread(torch.get_num_threads) == 2
    assert torch.get_num_threads() == 2


def test_one_thread_in_a_thread_that_has_not_computed_yet():
    def work():
        with one_thread():
            torch.ones(100, 100) @ torch.ones(100, 100)
            within = torch.get_num_threads()
        return within, torch.get_num_threads()

    assert in_a_new_thread(work) == (1, 2)


PRODUCTS = """
import torch
from sktl.threads import one_thread, stay_alone
from concurrent.futures import ThreadPoolExecutor
torch.set_num_threads(2)
X = torch.ones(300, 300)
def multiply(name):
    print(name, flush=True)
    X @ X
multiply("before")
with one_thread():
    multiply("within")
multiply("after")
ThreadPoolExecutor(1, initializer=stay_alone).submit(multiply, "worker").result()
ThreadPoolExecutor(1).submit(multiply, "new").result()
"""


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch without MKL")
@pytest.mark.skipif(sys.platform == "win32", reason="MKL's function isn't found there")
def test_mkl_uses_as_many_threads(run_python):
    # torch sets MKL's number in the thread that asks it to; in a new one, MKL asks OpenMP.
    # Dask leaves a number for its workers in the environment of who starts them.
    environment = {"MKL_VERBOSE": "1", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    told = run_python(PRODUCTS, **environment).splitlines()
    found, name = {}, None
    for line in told:
        if line.startswith("MKL_VERBOSE SGEMM"):
            found[name] = int(line.rpartition("NThr:")[2])
        elif not line.startswith("MKL_VERBOSE"):
            name = line
    assert found == {"before": 2, "within": 1, "after": 2, "worker": 1, "new": 2}


def test_small_work_is_done_in_one_thread():
    for n_products, expected in ((2**20, 1), (2**30, 2)):
        with suited_threads(n_products):
            assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 2


def test_every_thread_computes_alone_and_the_rest_keep_their_threads():
    frozen = FrozenModule(nn.Flatten(), "float32", CPU)
    inside, new = set(), set()

    def load(batch):
        inside.add(torch.get_num_threads())
        return torch.zeros(len(batch), 1)

    beside = set()
    for _ in frozen.map(load, range(64)):
        beside.add(torch.get_num_threads())
        new.add(in_a_new_thread(torch.get_num_threads))
    assert (inside, beside, new) == ({1}, {1}, {2})
    assert torch.get_num_threads() == 2
    for _ in frozen.map(load, range(64)):
        break
    assert torch.get_num_threads() == 2
    assert in_a_new_thread(torch.get_num_threads) == 2


# Random numbers ------------------------------------------------------------------------


def test_seeds_give_their_numbers_in_any_thread():
    def draw(seed):
        with seeded(seed):
            first = torch.rand(3)
            with seeded(100 + seed):  # a fit within a fit
                within = torch.rand(3)
            return torch.cat([first, torch.rand(3), within])

    state = torch.get_rng_state()
    alone = [draw(seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(draw, range(40)))
    assert all(map(torch.equal, alone, together))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(alone[0][:6], torch.rand(6, generator=torch.Generator().manual_seed(0)))


def test_workers_of_the_thread_whose_turn_it_is_take_turns():
    """Here images are varied while a callback fits another model."""

    def load(batch):
        made = []
        for i in batch:
            with seeded(i):
                made.append(torch.rand(1, 5))
        return torch.cat(made)

    frozen = FrozenModule(nn.Identity(), "float32", CPU)
    alone = frozen.all_of(load(range(64)))
    with seeded(0):
        together = torch.cat([rows for _, rows in frozen.map(load, range(64), n_jobs=4)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("head", ["linear", "root", (5, 4)])
def test_heads_begin_with_the_weights_of_torch_and_draw_nothing_global(head):
    widths = {"linear": (7, 3), "root": (7, 3)}.get(head, (7, 5, 4, 3))
    with seeded(9):
        expected = [nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
    state = torch.get_rng_state()
    made = HeadShape(head, 3, 0.0, 7).make(seed=9)
    assert torch.equal(torch.get_rng_state(), state)
    layers = [layer for layer in made if isinstance(layer, nn.Linear)]
    for layer, like in zip(layers, expected, strict=True):
        assert torch.equal(layer.weight, like.weight)
        assert torch.equal(layer.bias, like.bias)


# Tracing -------------------------------------------------------------------------------


class SmallNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.layer = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.layer(self.stem(x)).mean((2, 3)))


def small_net():
    return SmallNet()


class SlowNet(SmallNet):
    """While it is traced, other threads have time to compute."""

    begun, go_on = threading.Event(), threading.Event()

    def forward(self, x):
        x = self.stem(x)
        self.begun.set()
        self.go_on.wait(60)
        return self.fc(self.layer(x).mean((2, 3)))


def test_networks_compute_and_are_traced_while_another_thread_traces():
    network = SmallNet().eval()
    images = torch.rand(2, 3, 32, 32)
    expected = network(images)
    untouched = nn.Module.__call__
    with ThreadPoolExecutor(3) as pool:
        slow = pool.submit(make_splitter, SlowNet(), 32)
        assert SlowNet.begun.wait(60)
        other = pool.submit(make_splitter, SmallNet(), 32)
        try:
            assert nn.Module.__call__ is not untouched  # torch.fx stands in between
            found = pool.submit(network, images).result()
        finally:
            SlowNet.go_on.set()
        assert slow.result().stages == other.result().stages == make_splitter(network, 32).stages
    assert torch.equal(found, expected)
    assert nn.Module.__call__ is untouched


# Everything ------------------------------------------------------------------------------


FITS = {
    "to the optimum": {},
    "AdamW": {"lr": 1e-2, "optimizer": "adamw"},
    "hidden layer, dropout": {"head": (8,), "dropout": 0.5},
    "varied images": {"augment": "trivialaugment", "n_views": 3},
    "varied anew": {"augment": "light", "n_views": None, "mixup": 0.4},
    "last stage": {"backbone": small_net, "weights": None, "freeze": -1},
    "all stages": {"backbone": small_net, "weights": None, "freeze": "none"},
}


def state_of_the_process():
    return (
        torch.get_num_threads(),
        in_a_new_thread(torch.get_num_threads),
        torch.get_rng_state().tolist(),
        repr(np.random.get_state()),
        random.getstate(),
        list(warnings.filters),
        warnings.showwarning,
        nn.Module.__call__,
        nn.Module.__getattr__,
    )


class UsersOwnWork:
    """A network that another thread runs again and again, and what it notices meanwhile."""

    def __init__(self):
        self.n_threads, self.in_new_threads, self.outputs = set(), set(), []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self):
        with seeded(0):
            network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7200, 9))
        images = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
        while not self._over.wait(0.01):
            self.n_threads.add(torch.get_num_threads())
            self.in_new_threads.add(in_a_new_thread(torch.get_num_threads))
            self.outputs.append(network(images).detach())

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *args):
        self._over.set()
        self._thread.join()


@pytest.fixture(scope="module")
def fitted(photographs):
    X, y = photographs
    settings = {"image_size": 32, "cache": None, "random_state": 0}
    return {
        "frozen": PretrainedImageClassifier(**settings).fit(X, y),
        "trained": PretrainedImageClassifier(**settings, freeze=-1, max_epochs=1).fit(X, y),
        "features": PretrainedImageFeatures(image_size=32, cache=None).fit(X),
    }


def test_eight_threads_give_what_one_gives(fitted, photographs):
    """predict, transform and fit at once, beside a user's own work with torch."""
    X, y = photographs

    def fit(name):
        settings = {"image_size": 32, "max_epochs": 2, "cache": None, "random_state": 0}
        clf = PretrainedImageClassifier(**settings | FITS[name])
        return clf.fit(X, y).predict_proba(X[:5])

    tasks = [lambda name=name: fit(name) for name in FITS] + [
        lambda n=n: fitted["frozen"].predict_proba(X[:n]) for n in (1, 5, 12)
    ]
    tasks += [lambda n=n: fitted["trained"].predict_proba(X[:n]) for n in (1, 5, 12)]
    tasks += [lambda n=n: fitted["frozen"].transform(X[-n:]) for n in (2, 7)]
    tasks += [lambda n=n: fitted["features"].transform(X[-n:]) for n in (2, 7, 12)]
    before = state_of_the_process()
    alone = [task() for task in tasks]
    with UsersOwnWork() as beside, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(task) for task in tasks * 2]
        together = [future.result() for future in futures]
    for task, expected in enumerate(alone):
        for found in together[task :: len(tasks)]:
            np.testing.assert_array_equal(found, expected, err_msg=f"task {task}")
    assert beside.n_threads == beside.in_new_threads == {2}
    assert len(beside.outputs) > 1
    assert all(torch.equal(output, beside.outputs[0]) for output in beside.outputs)
    for left, found in zip(before, state_of_the_process(), strict=True):
        assert left == found
