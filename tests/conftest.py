"""Pictures and settings that several test modules share."""

import multiprocessing
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

# They hold no examples, and modules of one name can't be imported side by side.
collect_ignore_glob = ["conftest.py", "*/conftest.py"]

STAMPS = Path(__file__).parents[2] / "shared" / "data" / "stamps"


def pytest_configure():
    """Share the cores among the processes that run tests, and those that they start."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items):
    without_gpu = pytest.mark.skip(reason="no CUDA device here")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(without_gpu)


@pytest.fixture(scope="module")
def one_thread():
    """Small networks are slower with more threads, which wait for one another at each layer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def few_iterations_are_enough():
    """Training that has to stop before it has converged says nothing of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Training stopped")
        yield


@pytest.fixture(scope="session")
def photographs():
    """12 crops of two photographs, a temple and a flower, as uint8 (n, h, w, 3); and labels."""
    crops, labels = [], []
    for label, photograph in enumerate(load_sample_images().images):
        for top in (0, 150):
            for left in (0, 200, 400):
                crops.append(photograph[top : top + 240, left : left + 240])
                labels.append(label)
    return np.stack(crops), np.array(labels)


@pytest.fixture
def save_photographs(photographs):
    """Function that makes a folder of JPEGs, a subfolder a class."""

    def save(folder):
        for i, (photograph, label) in enumerate(zip(*photographs, strict=True)):
            file = folder / f"kind{label}" / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photograph).save(file)
        return folder

    return save


@pytest.fixture(scope="session")
def digits():
    """120 handwritten digits as rows of 64 values from 0 to 16, and labels."""
    X, y = load_digits(return_X_y=True)
    return X[:120], y[:120]


@pytest.fixture(scope="session")
def stamps():
    """Folder of pictures of ten kinds of thing; not part of the project."""
    if not STAMPS.is_dir():
        pytest.skip("the folder of stamps is not here")
    return STAMPS


@pytest.fixture(scope="session")
def processes():
    """Context whose processes have sktl from the start, which is imported once for all of them."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["sktl.classifier", "sktl.features", "sklearn.datasets", "sklearn.model_selection"]
    )
    return context


@pytest.fixture
def told_by(processes):
    """Function that calls another in a process of its own, and gives what that sends at its end."""

    def call(function, *arguments, timeout=None):
        receive, send = processes.Pipe(duplex=False)
        process = processes.Process(target=function, args=(*arguments, send))
        process.start()
        process.join(timeout)
        assert process.exitcode == 0
        assert receive.poll()
        return receive.recv()

    return call


@pytest.fixture
def run_python(tmp_path):
    """Function that runs code in a Python of its own, and gives what it prints."""

    def run(code, **environment):
        file = tmp_path / "program.py"  # another name than any module has
        file.write_text(code)
        done = subprocess.run(
            [sys.executable, file], env=os.environ | environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
