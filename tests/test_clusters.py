"""Searches and prefix passes on several worker processes that share one cache directory."""

import os
import sqlite3
from collections import Counter
from contextlib import closing, contextmanager
from functools import partial

import joblib
import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from torch import distributed, nn
from torchvision.models.resnet import BasicBlock

import sktl
from sktl import (
    PretrainedImageClassifier,
    PretrainedImageFeatures,
    PretrainedImageRegressor,
    load_image_folder,
)
from sktl.cache import DirectoryCache

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 32
GRID = {"freeze": ["all", -1], "lr": [1e-2, 1e-4]}


@contextmanager
def on_dask():
    from dask.distributed import Client, LocalCluster

    workers = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
    with (
        LocalCluster(**workers, host="127.0.0.1", dashboard_address=None) as cluster,
        Client(cluster),
    ):
        yield partial(joblib.parallel_config, "dask")


@contextmanager
def on_ray():
    import ray
    from ray.util.joblib import register_ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        _node_ip_address="127.0.0.1",
    )
    try:
        register_ray()
        yield partial(joblib.parallel_config, "ray", n_jobs=2)
    finally:
        ray.shutdown()


@pytest.fixture(
    scope="module",
    params=[on_dask, pytest.param(on_ray, marks=pytest.mark.slow)],
    ids=lambda engine: engine.__name__[3:],
)
def on_workers(request):
    """Function that hands joblib's work to workers, which are started once for all tests."""
    with request.param() as configure:
        yield configure


@pytest.fixture
def directory(tmp_path):
    """A cache that notes each row of features that is ever written to it."""
    cache = DirectoryCache(tmp_path / "cache")
    with closing(sqlite3.connect(cache.path)) as connection, connection:
        connection.execute("CREATE TABLE written (key BLOB)")
        connection.execute(
            "CREATE TRIGGER note AFTER INSERT ON rows WHEN new.dtype != 'torch.uint8'"
            " BEGIN INSERT INTO written VALUES (new.key); END"
        )
    return cache.path.parent


def written(directory):
    """How often each row of features was written."""
    with closing(sqlite3.connect(DirectoryCache(directory).path)) as connection:
        return Counter(key for (key,) in connection.execute("SELECT key FROM written"))


def make(cache):
    return PretrainedImageClassifier(
        image_size=SIZE, precision="float32", cache=cache, max_epochs=2, random_state=0
    )


@pytest.fixture(scope="module")
def alone(digits):
    """The search in one process."""
    X, y = digits
    return GridSearchCV(make("memory"), GRID, cv=2, refit=False).fit(X, y)


def test_workers_share_the_prefix_pass_and_find_what_one_process_finds(
    on_workers, alone, digits, directory, save_photographs, tmp_path
):
    X, y = digits
    with on_workers():
        search = GridSearchCV(make(directory), GRID, cv=2, refit=False).fit(X, y)
        counts = written(directory)
        # The recipe of docs/clusters.md: each worker computes blocks of a folder.
        paths = load_image_folder(save_photographs(tmp_path / "pictures")).data
        features = PretrainedImageFeatures(image_size=SIZE, cache=directory)

        def compute(block):
            features.fit(block)  # what it returns would bring the network back

        blocks = np.array_split(paths, 4)
        joblib.Parallel(n_jobs=2)(joblib.delayed(compute)(block) for block in blocks)
    # What a head alone reads, what one before stages that train reads, and all but the last stage.
    n_prefixes = 3
    assert len(counts) == n_prefixes * len(X)
    assert set(counts.values()) == {1}
    for name in ("mean_test_score", "split0_test_score", "split1_test_score"):
        np.testing.assert_array_equal(search.cv_results_[name], alone.cv_results_[name])
    assert written(directory).total() == counts.total() + len(paths)
    PretrainedImageFeatures(image_size=SIZE, cache=directory).fit(paths)
    assert written(directory).total() == counts.total() + len(paths)  # all was there


@pytest.mark.parametrize(
    ("kind", "convert"),
    [
        (PretrainedImageRegressor, lambda y: y),
        pytest.param(PretrainedImageRegressor, lambda y: np.c_[y, y % 3], marks=pytest.mark.slow),
        (PretrainedImageClassifier, lambda y: np.c_[y % 2 == 0, y > 4, y % 3 == 0]),
    ],
    ids=["a number", "two numbers", "several labels"],
)
def test_workers_that_learn_more_than_classes_find_what_one_process_finds(
    on_workers, digits, directory, kind, convert
):
    X, y = digits
    settings = {"image_size": SIZE, "precision": "float32", "max_epochs": 1, "random_state": 0}

    def search(cache):
        estimator = kind(cache=cache, **settings)
        return GridSearchCV(estimator, GRID, cv=2, refit=False).fit(X[:60], convert(y[:60]))

    alone = search("memory")
    with on_workers():
        together = search(directory)
    np.testing.assert_array_equal(
        together.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"]
    )
    assert set(written(directory).values()) == {1}


# One model in several processes -----------------------------------------------------------


class Pretrained(nn.Module):
    """Two stages with nothing random, whose batch norm has learned statistics."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 10)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.constant_(layer.running_mean, 0.1)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.layer1(self.stem(x))), 1))


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Pretrained()


def fine_tuned(network, params):
    settings = {"freeze": -1, "lr": 1e-3, "batch_size": 37, "max_epochs": 2}
    return PretrainedImageClassifier(
        network, image_size=SIZE, precision="float32", cache=None, **(settings | params)
    )


def train_together(rank, folder, clf, X, y, report):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    np.random.seed(rank)  # what random_state=None draws from
    with sktl.data_parallel():
        clf.set_params(cache=folder / "cache").fit(X, y)
    state = {name: value.numpy() for name, value in clf.net_.module_.state_dict().items()}
    report.send((clf._model.plan.seed, clf.history_, state))
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"head": (8,), "optimizer": "sgd", "accumulation_steps": 2, "max_grad_norm": 1.0},
        {"early_stopping": True, "freeze": "none", "max_epochs": 1},
    ],
    ids=["last stage", "accumulated", "all stages"],
)
def test_processes_that_train_together_give_what_one_gives(
    processes, digits, directory, network, tmp_path, params
):
    X, y = digits
    clf = fine_tuned(network, params)
    pipes = [processes.Pipe(duplex=False) for _ in range(2)]
    workers = [
        processes.Process(target=train_together, args=(i, tmp_path, clf, X, y, send), daemon=True)
        for i, (_, send) in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    seeds, histories, states = zip(
        *(receive.recv() if receive.poll(40) else () for receive, _ in pipes), strict=True
    )
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert seeds[0] == seeds[1]
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], err_msg=name)
    assert set(written(directory).values()) <= {1}
    np.random.seed(0)
    alone = fine_tuned(network, params).fit(X, y)
    assert alone._model.plan.seed == seeds[0]
    for row, *others in zip(alone.history_, *histories, strict=True):
        for other in others:
            assert other["train_loss"] == pytest.approx(row["train_loss"], rel=1e-3)
    for name, value in alone.net_.module_.state_dict().items():
        np.testing.assert_allclose(states[0][name], value, rtol=1e-2, atol=2e-4, err_msg=name)


def test_training_together_needs_a_process_group():
    with pytest.raises(RuntimeError, match="torchrun"), sktl.data_parallel():
        pass
