"""What other systems and processors lack, taken from a Python of its own before sktl is imported.

That is a simulation: no test here ran on such a system. What the systems share is the real part.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sktl.hardware import choose_device, choose_precision, is_out_of_memory, physical_memory

pytestmark = pytest.mark.core

# What a user does in a day, on files in the working directory; prints probabilities.
JOURNEY = """
if __name__ == "__main__":
    import glob
    from pathlib import Path

    import numpy as np
    from sklearn.datasets import load_sample_images

    import sktl

    files, labels = [], []
    for label, photograph in enumerate(load_sample_images().images):
        for i in range(4):
            file = Path("pictures", f"kind{label}", f"{i}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            crop = photograph[40 * i : 40 * i + 64, 40 * i : 40 * i + 64]
            Image.fromarray(crop).save(file)
            files.append(str(file))
            labels.append(label)
    settings = {"image_size": 32, "random_state": 0, "cache": "features", "n_jobs": 2}
    clf = sktl.PretrainedImageClassifier(**settings).fit(files, labels)
    proba = clf.predict_proba(files)
    trained = sktl.PretrainedImageClassifier(freeze=-1, max_epochs=2, **settings)
    trained.fit(files, labels)
    for estimator in (clf, trained):
        expected = estimator.predict_proba(files)
        for _ in range(2):  # the second takes the place of the first
            estimator.save("classifier.sktl")
            loaded = sktl.load("classifier.sktl")
        assert np.array_equal(loaded.predict_proba(files), expected)
        joblib.dump(estimator, "classifier.joblib")
        assert np.array_equal(joblib.load("classifier.joblib").predict_proba(files), expected)
    assert not glob.glob(".*.tmp")
    for file in files:  # nobody has it open any more
        os.replace(file, file + ".old")
    for name in ("classifier.sktl", "classifier.joblib"):
        os.remove(name)
    np.save("proba.npy", proba)
"""

# What is imported before sktl: its dependencies know the system that they were built for.
BEFORE = """
import os
import platform
import sys

import joblib
import skorch
import torch
import torchvision
from PIL import Image

torch.set_num_threads(1)
"""

WINDOWS = """
import errno
import signal
import types

import threadpoolctl

threadpoolctl.sys = types.SimpleNamespace(**vars(sys))  # it asks when it is called
for module in ("fcntl", "resource", "pwd", "grp"):
    sys.modules[module] = None
posix_only = ("fork", "sysconf", "register_at_fork", "geteuid", "getuid", "mkfifo", "fchmod",
              "sched_getaffinity")
for name in posix_only:
    delattr(os, name)
del signal.SIGKILL
sys.platform = "win32"

def is_open(path):
    path = os.path.realpath(path)
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}") == path:
                return True
        except OSError:
            pass
    with open("/proc/self/maps") as maps:
        return any(line.rstrip("\\n").endswith(path) for line in maps)

def not_while_open(function):
    def wrapped(*paths, **options):
        for path in paths:
            if options.get("dir_fd") is None and is_open(path):
                raise PermissionError(errno.EACCES, "is open", str(path))
        return function(*paths, **options)
    return wrapped

for name in ("replace", "rename", "remove", "unlink"):
    setattr(os, name, not_while_open(getattr(os, name)))
plain_open = os.open
def open_no_folder(path, *arguments, **options):
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "is a folder", str(path))
    return plain_open(path, *arguments, **options)
os.open = open_no_folder
with open("held", "w") as held:  # the simulation refuses
    try:
        os.replace("held", "other")
    except PermissionError:
        pass
    else:
        raise AssertionError("replaced while open")
"""

MACOS = """
sys.platform = "darwin"
platform.machine = lambda: "arm64"
del os.sched_getaffinity
torch.backends.mkldnn.is_available = lambda: False
torch.cuda.is_available = lambda: False
"""

AARCH64 = """
platform.machine = lambda: "aarch64"
torch.backends.mkldnn.is_available = lambda: False
"""


# Imports what sktl needs once, and has a process of its own go through each folder's program.
IN_EACH_FOLDER = """
import runpy
import traceback

for folder in sys.argv[1:]:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    failed = 1
    try:
        os.chdir(folder)
        runpy.run_path("journey.py", run_name="__main__")
        failed = 0
    except BaseException:
        with open("error.txt", "w") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(failed)
"""

SYSTEMS = {"here": "", "Windows": WINDOWS, "macOS": MACOS, "aarch64": AARCH64}
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="asks Linux for open files"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What the user's day left on each system."""
    folders = {name: tmp_path_factory.mktemp(name) for name in SYSTEMS}
    for name, folder in folders.items():
        (folder / "journey.py").write_text(BEFORE + SYSTEMS[name] + JOURNEY)
    program = folders["here"] / "in_each_folder.py"
    program.write_text(BEFORE + IN_EACH_FOLDER)
    subprocess.run([sys.executable, program, *folders.values()], check=True)
    return folders


@pytest.fixture(scope="module")
def probabilities(folders):
    """Function that gives what a system has predicted."""

    def read(name):
        error = folders[name] / "error.txt"
        assert not error.exists(), error.read_text()
        return np.load(folders[name] / "proba.npy")

    return read


@needs_proc
def test_windows(probabilities):
    np.testing.assert_array_equal(probabilities("Windows"), probabilities("here"))


@pytest.mark.parametrize("other", ["macOS", "aarch64"])
def test_processors_without_onednn(probabilities, other):
    np.testing.assert_allclose(probabilities(other), probabilities("here"), atol=1e-3)


def test_an_apple_gpu_is_taken_and_computes_in_float32(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert choose_device("auto") == choose_device("mps") == torch.device("mps")
    assert choose_precision("auto", torch.device("mps")) == "float32"


def test_memory_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.delattr("os.sysconf")
    assert 0 < physical_memory() <= 8 * 2**30


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.", True),
        ("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.", True),
        ("MPS backend out of memory (MPS allocated: 8 GB).", True),
        ("could not create a primitive", False),
    ],
)
def test_memory_that_runs_out_is_told_in_each_system_s_words(words, expected):
    assert is_out_of_memory(RuntimeError(words)) is expected
