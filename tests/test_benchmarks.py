"""The benchmarks run, here on a few images; what they measure is for a quiet machine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(
    "command",
    [
        "frozen_fit.py --images 16 --repeats 1",
        "search.py --images 50 --repeats 1 --skorch-images 8",
        "freeze_search.py --images 30 --epochs 1 --skorch-images 8",
        "predict.py --images 16 --repeats 1",
        "directory_cache.py --images 16 --repeats 1",
        "memory.py --few 16 --many 32",
        "import_time.py --repeats 1",
    ],
)
def test_benchmarks_run(command):
    script, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+\.\d{3} of |\d+ MB more", done.stdout)
