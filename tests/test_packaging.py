"""What is built of the project, and what it holds."""

import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import sktl

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with the wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (file,) = built.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def source(built):
    (file,) = built.glob("*.tar.gz")
    return file


def files_in(*folders):
    """Files of the project that belong to it, and aren't made by running it."""
    found = {file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()}
    made = {"__pycache__", "_build", "generated", "gallery", "sg_execution_times.rst"}
    paths = {file.relative_to(ROOT) for file in found}
    return {path.as_posix() for path in paths if not made.intersection(path.parts)}


def test_wheel_is_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert names == files_in("sktl")
    assert {Path(name).suffix for name in names - {"sktl/py.typed"}} == {".py"}  # no weights
    assert "sktl/py.typed" in names
    assert wheel.stat().st_size < 2**20


def test_version_is_that_of_the_package(wheel, source):
    with zipfile.ZipFile(wheel) as opened:
        (name,) = [name for name in opened.namelist() if name.endswith(".dist-info/METADATA")]
        about = message_from_bytes(opened.read(name))
    assert about["Version"] == sktl.__version__
    assert source.name == f"sktl-{sktl.__version__}.tar.gz"


def test_source_can_be_tested(source):
    with tarfile.open(source) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    needed = files_in(".ci", "benchmarks", "docs", "examples", "sktl", "tests")
    assert needed | {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"} <= names
