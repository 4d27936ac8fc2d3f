"""Searches and prefix passes on several worker processes that share one cache directory."""

import sqlite3
from collections import Counter
from contextlib import closing, contextmanager

import joblib
import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV

from sktl import PretrainedImageClassifier, PretrainedImageFeatures, load_image_folder
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
        joblib.parallel_config("dask"),
    ):
        yield


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
        with joblib.parallel_config("ray", n_jobs=2):
            yield
    finally:
        ray.shutdown()


@contextmanager
def on_loky():
    with joblib.parallel_config("loky", n_jobs=2):
        yield


@pytest.fixture(params=[on_loky, on_dask, on_ray], ids=lambda engine: engine.__name__[3:])
def engine(request):
    return request.param


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
    engine, alone, digits, directory, save_photographs, tmp_path
):
    X, y = digits
    with engine():
        search = GridSearchCV(make(directory), GRID, cv=2, refit=False).fit(X, y)
        counts = written(directory)
        # The recipe of docs/clusters.md: each worker computes blocks of a folder.
        paths = load_image_folder(save_photographs(tmp_path / "pictures")).data
        features = PretrainedImageFeatures(image_size=SIZE, cache=directory)

        def compute(block):
            features.fit(block)  # what it returns would bring the network back

        blocks = np.array_split(paths, 4)
        joblib.Parallel(n_jobs=2)(joblib.delayed(compute)(block) for block in blocks)
    n_prefixes = 2  # all stages, and all but the last
    assert len(counts) == n_prefixes * len(X)
    assert set(counts.values()) == {1}
    for name in ("mean_test_score", "split0_test_score", "split1_test_score"):
        np.testing.assert_array_equal(search.cv_results_[name], alone.cv_results_[name])
    assert written(directory).total() == counts.total() + len(paths)
    fitted = PretrainedImageFeatures(image_size=SIZE, cache=directory).fit(paths)
    assert fitted._prefix.n_images == 0
