"""Faults in the middle of work: nothing is damaged, and the next run goes on where it was."""

import contextlib
import ctypes
import errno
import itertools
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

import sktl
from sktl import PretrainedImageClassifier
from sktl.cache import DirectoryCache
from sktl.cache.leases import Claims
from sktl.frozen.module import FrozenModule

pytestmark = pytest.mark.usefixtures("one_thread", "few_iterations_are_enough")

SIZE = 32
N = 120


@pytest.fixture(autouse=True)
def short_lease(monkeypatch):
    """What a dead process had claimed is free soon."""
    monkeypatch.setattr("sktl.cache.leases._LEASE", 1.0)


def rows():
    X, y = load_digits(return_X_y=True)
    return X[:N], y[:N] % 3


def make(**params):
    settings = {"image_size": SIZE, "precision": "float32", "random_state": 0, "max_epochs": 3}
    return PretrainedImageClassifier(**(settings | params))


def fine_tuned(**params):
    return make(freeze=-1, lr=1e-3, **params)


def n_rows(directory, after=0):
    """Rows of features in a cache, after one; others hold names of stages and solved heads."""
    files = list(directory.glob("*.sqlite"))
    if files:
        with contextlib.suppress(sqlite3.OperationalError), sqlite3.connect(files[0]) as connection:
            (n,) = connection.execute(
                "SELECT count(*) FROM rows WHERE dtype != 'torch.uint8' AND id > ?", (after,)
            ).fetchone()
            return n
    return 0


def newest(directory):
    """Number of the row that was written last."""
    with sqlite3.connect(DirectoryCache(directory).path) as connection:
        return connection.execute("SELECT max(id) FROM rows").fetchone()[0]


def n_claims(directory):
    with sqlite3.connect(DirectoryCache(directory).path) as connection:
        return connection.execute("SELECT count(*) FROM claims").fetchone()[0]


def on_call(of, number, do):
    """Do something before a method's call of that number, from 0."""
    method, count = of[0].__dict__[of[1]], itertools.count()

    def wrapped(*args):
        if next(count) == number:
            do()
        return method(*args)

    setattr(*of, wrapped)


def wait_for(file):
    while not file.exists():
        time.sleep(0.05)


# A process that ends in the middle ------------------------------------------------------


def work(make_clf, directory, stop, report):
    """Fit, and stop in the prefix pass or, when that is over, in the second epoch."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which background jobs ignore
    torch.set_num_threads(1)
    if stop == "prefix":
        on_call((FrozenModule, "_run"), 5, lambda: wait_for(directory / "go on"))
    callbacks = [Stop(directory)] if stop == "training" else None
    clf = make_clf(cache=directory, callbacks=callbacks)
    try:
        clf.fit(*rows())
    except KeyboardInterrupt:
        report.send((hasattr(clf, "_model"), n_claims(directory)))


class Stop(Callback):
    def __init__(self, directory):
        self.directory = directory

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 2:
            (self.directory / "training").touch()
            wait_for(self.directory / "go on")


@pytest.mark.parametrize(
    ("stop", "number"),
    [
        ("prefix", signal.SIGKILL),
        ("training", signal.SIGINT),
        pytest.param("prefix", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("training", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_fit_that_was_stopped_goes_on(processes, tmp_path, stop, number):
    directory = tmp_path
    make_clf = make if stop == "prefix" else fine_tuned
    receive, send = processes.Pipe(duplex=False)
    process = processes.Process(target=work, args=(make_clf, directory, stop, send))
    process.start()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        (directory / "training").exists() if stop == "training" else n_rows(directory) >= 16
    ):
        time.sleep(0.05)
    time.sleep(0.3)  # for what else is in flight
    os.kill(process.pid, number)
    (directory / "go on").touch()  # threads end before the process does
    process.join(60)
    assert process.exitcode == (-number if number == signal.SIGKILL else 0)
    if number == signal.SIGINT:
        assert receive.poll(60)
        assert receive.recv() == (False, 0)
    kept = n_rows(directory)
    assert kept >= 16 if stop == "prefix" else kept == 2 * N  # after the last stage but one; all
    before = newest(directory)
    clf = make_clf(cache=directory).fit(*rows())
    assert n_rows(directory, after=before) == (N - kept if stop == "prefix" else 0)
    assert n_claims(directory) == 0
    whole = make_clf(cache=None).fit(*rows())
    np.testing.assert_allclose(
        clf.predict_proba(rows()[0]), whole.predict_proba(rows()[0]), atol=1e-4
    )


def limit_memory(more):
    """Let this process have no more than some bytes beyond what it has."""
    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = n_pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


class TakeMemory(Callback):
    """Leave training no memory from its second epoch on, not even what it had before."""

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 2:
            limit_memory(0)
            self.taken = []
            with contextlib.suppress(MemoryError):
                while True:
                    self.taken.append(np.ones(2**20, np.uint8))


def pictures_and_a_huge_one():
    pictures = list(np.random.default_rng(0).integers(0, 256, (N, 40, 40, 3), dtype=np.uint8))
    return [*pictures, np.zeros((6000, 6000, 3), np.uint8)], np.arange(N + 1) % 3


def run_out_of_memory(directory, stop, report):
    torch.set_num_threads(1)
    if stop == "prefix":
        X, y = pictures_and_a_huge_one()
        clf = make(cache=directory)
        on_call((FrozenModule, "_run"), 2, lambda: limit_memory(2**25))
    else:
        X, y = rows()
        make(freeze="none", max_epochs=1).fit(X, y)  # loads libraries while there is memory for it
        clf = make(freeze="none", image_size=64, lr=1e-3, callbacks=[TakeMemory()])
    try:
        clf.fit(X, y)
    except Exception as error:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        notes = getattr(error, "__notes__", [])
        report.send((type(error).__mro__, str(error), notes, hasattr(clf, "_model")))


@pytest.mark.parametrize("stop", ["prefix", "training"])
def test_a_fit_that_ran_out_of_memory_says_so_and_goes_on(told_by, tmp_path, stop):
    kinds, text, notes, fitted = told_by(run_out_of_memory, tmp_path, stop, timeout=120)
    assert MemoryError in kinds or "can't allocate memory" in text
    assert "image_size" in notes[0]
    assert not fitted
    if stop == "prefix":
        kept = n_rows(tmp_path)
        assert 16 <= kept <= N
        before = newest(tmp_path)
        make(cache=tmp_path).fit(*pictures_and_a_huge_one())
        assert n_rows(tmp_path, after=before) == N + 1 - kept
        assert n_claims(tmp_path) == 0


class KillOnce(Callback):
    """Kill the process in training, the first time."""

    def __init__(self, file):
        self.file = file

    def on_epoch_end(self, net, **kwargs):
        with contextlib.suppress(FileExistsError), open(self.file, "x"):
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_search_whose_worker_was_killed_says_so_and_goes_on(tmp_path):
    X, y = rows()
    directory = tmp_path / "cache"
    clf = make(cache=directory, callbacks=[KillOnce(tmp_path / "killed")])
    search = GridSearchCV(clf, {"lr": [1e-2, 1e-3]}, cv=2, n_jobs=2, refit=False)
    with pytest.raises(TerminatedWorkerError, match="SIGKILL"):
        search.fit(X, y)
    kept = n_rows(directory)
    assert kept >= N // 2
    before = newest(directory)
    search.set_params(n_jobs=None).fit(X, y)
    assert n_rows(directory) == N
    assert n_rows(directory, after=before) == N - kept
    alone = GridSearchCV(make(), {"lr": [1e-2, 1e-3]}, cv=2, refit=False).fit(X, y)
    for name in ("mean_test_score", "split0_test_score"):
        np.testing.assert_array_equal(search.cv_results_[name], alone.cv_results_[name])


# Claims --------------------------------------------------------------------------------


def test_what_is_claimed_is_not_taken_twice_and_what_the_dead_claimed_is(tmp_path, monkeypatch):
    connect = DirectoryCache(tmp_path)._connect
    ours, theirs = Claims(connect), Claims(connect)
    with theirs:
        assert theirs.take([b"a", b"b"]) == [True, True]
        assert ours.take([b"b", b"c"]) == [False, True]
        DirectoryCache(tmp_path).put([b"b"], torch.zeros(1, 4))
        assert ours.take([b"a", b"b"]) == [False, True]
        assert ours.any_there([b"a", b"b"])
        assert not ours.any_there([b"a"])
    with ours:
        assert ours.take([b"a"]) == [True]
        # A claim that nobody renews is as one of a dead process.
        monkeypatch.setattr("sktl.cache.leases._LEASE", -1.0)
        assert theirs.take([b"a"]) == [True]
    with theirs:
        pass
    assert n_claims(tmp_path) == 0


def test_claims_are_renewed_while_the_work_lasts(tmp_path, monkeypatch):
    monkeypatch.setattr("sktl.cache.leases._RENEWAL", 0.01)
    connect = DirectoryCache(tmp_path)._connect

    def renewed():
        with sqlite3.connect(DirectoryCache(tmp_path).path) as connection:
            return connection.execute("SELECT renewed FROM claims").fetchone()[0]

    with Claims(connect) as claims:
        claims.take([b"a"])
        first, deadline = renewed(), time.monotonic() + 60
        while renewed() == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert renewed() > first


# Disks ---------------------------------------------------------------------------------


def spoil(directory, how, report):
    """Fit, and remove the cache or forbid to write to it in the middle."""
    torch.set_num_threads(1)
    sktl.cache.leases._LEASE = 1.0
    X, y = rows()
    make(cache=None).fit(X, y)  # imports what another user may not read
    if os.getuid() == 0:
        shutil.chown(directory, 65534)
        os.setuid(65534)  # whom no permission is granted but by the owner's bits
    cache = directory / "cache"

    def remove():
        shutil.rmtree(cache)

    def forbid():
        for file in cache.iterdir():
            file.chmod(0o444)
        cache.chmod(0o555)

    on_call((FrozenModule, "_run"), 8, {"removed": remove, "read-only": forbid}[how])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clf = make(cache=cache).fit(X, y)
    proba = clf.predict_proba(X)
    if how == "read-only":
        cache.chmod(0o755)
        for file in cache.iterdir():
            file.chmod(0o644)
    again = make(cache=cache).fit(X, y)  # in a cache that is there again, or new
    report.send(([str(w.message) for w in caught], proba, again._model.prefix.n_images))


@pytest.mark.parametrize("how", ["removed", "read-only"])
def test_a_fit_survives_its_cache(told_by, how):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to other users
        Path(folder).chmod(0o755)
        messages, proba, _ = told_by(spoil, Path(folder), how, timeout=120)
        kept = n_rows(Path(folder) / "cache")
    assert any("going on without it" in message for message in messages), messages
    expected = make(cache=None).fit(*rows()).predict_proba(rows()[0])
    np.testing.assert_allclose(proba, expected, atol=1e-4)
    assert kept == N


def mount_small_disk(folder):
    """Mount a disk of 400 kB that this process alone sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, recursive_private = 0x20000, 0x4000 | 0x40000
    done = (
        libc.unshare(new_namespace) == 0
        and libc.mount(b"none", b"/", None, recursive_private, None) == 0
        and libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=400k") == 0
    )
    if not done:
        raise OSError(ctypes.get_errno(), "no disk can be mounted")


def fill_disk(folder, report):
    torch.set_num_threads(1)
    try:
        mount_small_disk(folder)
    except OSError as error:
        report.send(error)
        return
    X, y = rows()
    clf = make(cache=folder / "cache")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clf.fit(X, y)
    results = {"messages": [str(w.message) for w in caught], "proba": clf.predict_proba(X)}
    results["kept"] = n_rows(folder / "cache")
    shutil.rmtree(folder / "cache")
    clf.set_params(cache=None)
    clf.save(folder / "model.sktl", include_backbone=False)
    before = (folder / "model.sktl").read_bytes()
    with pytest.raises(OSError) as caught_error:
        clf.save(folder / "model.sktl")
    results["error of save"] = caught_error.value.errno
    results["old file"] = (folder / "model.sktl").read_bytes() == before
    results["files"] = sorted(os.listdir(folder))
    with pytest.raises(OSError) as caught_error:
        joblib.dump(clf, folder / "model.joblib")
    results["error of dump"] = caught_error.value.errno
    sktl.load(folder / "model.sktl").predict(X)
    (folder / "model.joblib").unlink()
    clf.fit(X, y)
    results["filled"] = fill(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(cache=folder / "new").fit(X, y)
    results["without any room"] = [str(w.message) for w in caught]
    report.send(results)


def fill(folder):
    with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return (folder / "filler").stat().st_size


def test_a_full_disk_costs_a_fit_nothing_and_a_file_its_own_writing_only(told_by, tmp_path):
    results = told_by(fill_disk, tmp_path, timeout=120)
    if isinstance(results, OSError):
        pytest.skip(str(results))
    assert any("disk is full" in m and "going on without" in m for m in results["messages"])
    assert 0 < results["kept"] < N
    expected = make(cache=None).fit(*rows()).predict_proba(rows()[0])
    np.testing.assert_allclose(results["proba"], expected, atol=1e-4)
    assert results["error of save"] == results["error of dump"] == errno.ENOSPC
    assert results["old file"]
    assert results["files"] == ["model.sktl"]
    assert any("kept in memory" in m for m in results["without any room"]), results


# Many fits -----------------------------------------------------------------------------


@pytest.mark.slow
def test_many_fits_leave_nothing_behind():
    script = Path(__file__).parents[1] / "benchmarks" / "soak.py"
    arguments = ["--fits", "16", "--images", "9", "--every", "8"]
    done = subprocess.run(
        [sys.executable, script.name, *arguments],
        cwd=script.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"failed: (-?\d+) MB more, (-?\d+) files more, (-?\d+) threads", done.stdout)
    memory, files, threads = map(int, found.groups())
    assert (files, threads) == (0, 0)
    assert memory < 60  # 8 fits that each left a network behind would hold 150


# A GPU ---------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_gpu_without_memory_says_what_takes_less(digits):
    X, y = digits
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 0.2 * 2**30 / total))
    clf = make(freeze="none", lr=1e-3, image_size=512, batch_size=120, device="cuda", cache=None)
    try:
        with pytest.raises(torch.OutOfMemoryError) as caught:
            clf.fit(X, y)
        assert "image_size" in caught.value.__notes__[0]
        assert not hasattr(clf, "_model")
        clf.set_params(image_size=32).fit(X, y)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
