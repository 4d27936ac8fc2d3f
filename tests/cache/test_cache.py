"""Features by image content, in memory and in a directory."""

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from sktl import PretrainedImageClassifier
from sktl.cache import DirectoryCache, MemoryCache, empty_rows, open_cache

pytestmark = pytest.mark.core


def keys_of(*names):
    return [name.encode() * 8 for name in names]


def rows_of(n, width=4, start=0):
    return torch.arange(start, start + n * width, dtype=torch.float32).reshape(n, width)


@pytest.fixture(params=["memory", "directory"])
def cache(request, tmp_path):
    return MemoryCache(10**6) if request.param == "memory" else DirectoryCache(tmp_path / "kept")


def test_rows_are_found_by_key(cache):
    cache.put(keys_of("a", "b"), rows_of(2))
    found = cache.get(keys_of("b", "c", "a"))
    assert found[1] is None
    assert torch.equal(torch.stack([found[2], found[0]]), rows_of(2))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (1, 1, 1, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_shape_and_dtype_are_kept(cache, shape, dtype):
    rows = torch.ones((2, *shape), dtype=dtype)
    cache.put(keys_of("a", "b"), rows)
    (row,) = cache.get(keys_of("b"))
    assert row.dtype is dtype
    assert torch.equal(row, rows[1])


def test_rows_of_inference_mode_and_others_share_a_cache(cache):
    with torch.inference_mode():
        cache.put(keys_of("a", "b"), rows_of(2))
        cache.put(keys_of("c"), rows_of(1, start=8))
    for i, name in enumerate("defgh"):
        cache.put(keys_of(name), rows_of(1, start=12 + 4 * i))
    assert torch.equal(torch.stack(cache.get(keys_of(*"abcdefgh"))), rows_of(8))


def test_many_rows_at_once(cache):
    names = [str(i) for i in range(2000)]
    cache.put(keys_of(*names), rows_of(2000))
    assert torch.equal(torch.stack(cache.get(keys_of(*names))), rows_of(2000))


def test_a_row_does_not_change_with_the_batch_it_came_from(cache):
    rows = rows_of(2)
    cache.put(keys_of("a", "b"), rows)
    rows.zero_()
    assert torch.equal(cache.get(keys_of("b"))[0], rows_of(2)[1])


def test_memory_keeps_to_its_bound_and_drops_what_was_not_used():
    row_bytes = 16
    cache = MemoryCache(3 * row_bytes)
    cache.put(keys_of("a", "b", "c"), rows_of(3))
    cache.get(keys_of("a"))
    cache.put(keys_of("d"), rows_of(1))
    assert cache.n_bytes <= cache.max_bytes
    assert [row is not None for row in cache.get(keys_of("a", "b", "c", "d"))] == [1, 0, 1, 1]


def test_memory_frees_the_bytes_it_does_not_count():
    cache = MemoryCache(10**6)
    cache.put(keys_of("a"), rows_of(1000)[:1])
    assert cache.get(keys_of("a"))[0].untyped_storage().nbytes() == cache.n_bytes == 16


def test_a_row_larger_than_the_bound_is_not_kept():
    cache = MemoryCache(10)
    cache.put(keys_of("a"), rows_of(1))
    assert cache.get(keys_of("a")) == [None]
    assert cache.n_bytes == 0


def test_threads_share_memory():
    cache = MemoryCache(16 * 50)

    def work(seed):
        for i in np.random.default_rng(seed).integers(0, 100, 300):
            cache.put(keys_of(f"{i:04}"), rows_of(1, start=int(i)))
            (row,) = cache.get(keys_of(f"{i:04}"))
            assert row is None or row[0] == i

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [r for r in cache.get(keys_of(*(f"{i:04}" for i in range(100)))) if r is not None]
    assert len(held) > 40
    assert 16 * len(held) <= cache.n_bytes <= cache.max_bytes


def test_a_directory_outlives_its_user(tmp_path):
    DirectoryCache(tmp_path).put(keys_of("a"), rows_of(1))
    assert torch.equal(DirectoryCache(tmp_path).get(keys_of("a"))[0], rows_of(1)[0])


def test_a_damaged_row_counts_as_missing(tmp_path):
    cache = DirectoryCache(tmp_path)
    cache.put(keys_of("a", "b"), rows_of(2))
    with sqlite3.connect(cache.path) as connection:
        (data,) = connection.execute("SELECT data FROM rows WHERE key = ?", keys_of("a")).fetchone()
        flipped = bytes([data[0] ^ 1]) + data[1:]
        connection.execute("UPDATE rows SET data = ? WHERE key = ?", (flipped, *keys_of("a")))
    found = cache.get(keys_of("a", "b"))
    assert found[0] is None
    assert found[1] is not None


def fill(directory, first):
    cache = DirectoryCache(directory)
    for i in range(first, first + 40):
        cache.put(keys_of(f"{i:04}"), rows_of(1, start=i))


def test_two_processes_fill_one_directory(processes, tmp_path):
    both = [processes.Process(target=fill, args=(tmp_path, first)) for first in (0, 20)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    found = DirectoryCache(tmp_path).get(keys_of(*(f"{i:04}" for i in range(60))))
    assert [int(row[0]) for row in found] == list(range(60))


def test_a_directory_that_cannot_be_used_is_replaced_by_memory(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.warns(UserWarning, match="can't be used .* kept in memory"):
        cache = open_cache(tmp_path / "file" / "below")
    assert isinstance(cache, MemoryCache)


def test_a_file_that_is_no_cache_is_left_alone(tmp_path):
    cache = DirectoryCache(tmp_path / "a")
    foreign = tmp_path / "b"
    foreign.mkdir()
    (foreign / cache.path.name).write_bytes(b"something else entirely" * 100)
    with pytest.warns(UserWarning, match="can't be used"):
        open_cache(foreign)
    assert (foreign / cache.path.name).read_bytes().startswith(b"something else")


def test_nothing_is_kept_without_a_cache():
    assert open_cache(None) is None


def test_a_fit_is_the_same_with_any_cache(digits, tmp_path):
    X, y = digits
    kinds = ["memory", tmp_path / "kept", str(tmp_path / "kept"), None]
    fits = [PretrainedImageClassifier(image_size=35, cache=kind).fit(X, y) for kind in kinds]
    expected = fits[0].predict_proba(X)
    for clf in fits[1:]:
        np.testing.assert_allclose(clf.predict_proba(X), expected, rtol=1e-5, atol=1e-6)
    assert (tmp_path / "kept").is_dir()


def test_the_second_fit_finds_the_first_ones_features_in_the_directory(digits, tmp_path):
    X, y = digits
    clf = PretrainedImageClassifier(image_size=36, cache=tmp_path).fit(X, y)
    before = clf._model.prefix.n_images
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PretrainedImageClassifier(image_size=36, cache=tmp_path).fit(X[::-1], y[::-1])
    assert clf._model.prefix.n_images == before == len(X)


# Bounds and faults --------------------------------------------------------------------


def test_a_directory_keeps_to_its_bound_and_drops_the_oldest(tmp_path):
    bound = 2**21
    cache = DirectoryCache(tmp_path, max_bytes=bound)
    names = [f"{i:04}" for i in range(60)]
    for name in names:
        cache.put(keys_of(name), torch.full((1, 25_000), float(name)))  # 100 kB
    found = cache.get(keys_of(*names))
    kept = [float(row[0]) for row in found if row is not None]
    assert 12 <= len(kept) < 21
    assert kept == sorted(kept)
    assert kept[-1] == 59
    assert cache.path.stat().st_size < 1.5 * bound


def test_what_makes_room_in_memory_is_found_on_disk(tmp_path):
    spill = DirectoryCache(tmp_path)
    cache = MemoryCache(16 * 10, lambda: spill)
    names = [f"{i:04}" for i in range(50)]
    for i, name in enumerate(names):
        cache.put(keys_of(name), rows_of(1, start=i))
    assert cache.n_bytes <= cache.max_bytes
    assert [int(row[0]) for row in cache.get(keys_of(*names))] == list(range(50))
    assert sum(row is not None for row in spill.get(keys_of(*names))) >= 40


def test_memory_does_without_a_disk_that_is_not_to_be_had():
    def no_disk():
        raise OSError("no disk")

    cache = MemoryCache(16 * 10, no_disk)
    for i in range(50):
        cache.put(keys_of(f"{i:04}"), rows_of(1, start=i))
    assert cache.n_bytes <= cache.max_bytes
    assert cache.get(keys_of("0049"))[0][0] == 49


def test_the_spill_of_the_process_goes_with_it(tmp_path):
    code = """
import torch
from sktl.cache import MemoryCache
from sktl.cache.directory import TemporaryCache
cache = MemoryCache(100, TemporaryCache)
cache.put([bytes([i]) * 16 for i in range(9)], torch.zeros(9, 8))
assert all(row is not None for row in cache.get([bytes([i]) * 16 for i in range(9)]))
print(cache._spill.path)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_rows_too_many_for_memory_are_on_disk(dtype, monkeypatch):
    like = torch.arange(6, dtype=torch.float32).to(dtype).reshape(2, 3)
    monkeypatch.setattr("sktl.cache.opening.physical_memory", lambda: 4 * 100 * like[0].nbytes)
    for n in (100, 101):
        rows = empty_rows(n, like)
        assert rows.shape == (n, 3)
        assert rows.dtype is dtype
        rows[1:3] = like
        assert torch.equal(rows[1:3], like)
    assert rows.untyped_storage().nbytes() == 101 * like[0].nbytes


def write_without_room(directory):
    """Files of this process can't grow beyond 300 kB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    cache = DirectoryCache(directory)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(10):
            cache.put(keys_of(f"{i:04}"), torch.full((1, 25_000), float(i)))
    assert any("could not be written" in str(w.message) for w in caught), caught
    rows = [row for row in cache.get(keys_of(*(f"{i:04}" for i in range(10)))) if row is not None]
    assert 0 < len(rows) < 10


def test_a_full_disk_is_a_warning_and_what_is_kept_is_right(processes, tmp_path):
    run_apart(processes, write_without_room, tmp_path)
    found = DirectoryCache(tmp_path).get(keys_of(*(f"{i:04}" for i in range(10))))
    for i, row in enumerate(found):
        assert row is None or torch.equal(row, torch.full((25_000,), float(i)))


def read_only(directory):
    if os.getuid() == 0:
        os.setuid(65534)  # whom no permission is granted
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = DirectoryCache(directory)
        cache.put(keys_of("b"), rows_of(1))
        found = cache.get(keys_of("a", "b"))
    assert torch.equal(found[0], rows_of(1)[0])
    assert found[1] is None


def test_a_directory_that_cannot_be_written_is_read(processes):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to other users
        Path(folder).chmod(0o755)
        kept = Path(folder) / "kept"
        DirectoryCache(kept).put(keys_of("a"), rows_of(1))
        for file in kept.iterdir():
            file.chmod(0o444)
        kept.chmod(0o555)
        run_apart(processes, read_only, kept)
        kept.chmod(0o755)


def run_apart(processes, function, *arguments):
    process = processes.Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0
