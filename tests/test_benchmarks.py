"""The benchmarks run, here on a few images; what they measure is for a quiet machine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PRINTED = r"\d+\.\d{3} of |\d+ MB more|\d\.\d{3,4} \+- |\de\+\d\d |\d,0\.\d{3}"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "frozen_fit.py --images 16 --repeats 1",
        "search.py --images 50 --repeats 1 --skorch-images 8",
        "search_by_y.py --images 20 --size 32",
        "freeze_search.py --images 30 --epochs 1 --skorch-images 8",
        "predict.py --images 16 --repeats 1",
        "directory_cache.py --images 16 --repeats 1",
        "memory.py --few 16 --many 32",
        "import_time.py --repeats 1",
        "decoding.py --repeats 1",
        "files.py --images 16 --image-size 64 --repeats 1",
        "large_folder.py --images 32 --few 16",
        "deploy.py --images 16 --repeats 1 --compile 0",
        "training_step.py --images 64 --repeats 1",
        "many_classes.py --rows 100 --classes 5 --test-rows 30 --max-iter 20",
        "several_labels.py --rows 60 --size 32",
        "regression.py --rows 60 --size 32 --folds 2",
        "regression.py --stages --rows 80 --size 32 --folds 2 --epochs 1",
        "several_labels.py --stages --rows 80 --size 32 --epochs 1",
        "threads.py --sizes 32 --blocks 1 --steps 1 --batch 4",
        "photographs.py --drawings 1 --test 2",
        "compiling.py --images 32 --networks 1 --repeats 1",
        "accuracy/penalty.py --digits 5 --size 32 --folds 2",
        "accuracy/study.py --digits 2 --size 32 --epochs 1 --folds 2 --output {output}",
    ],
)
def test_benchmarks_run(command, tmp_path):
    script, *arguments = command.format(output=tmp_path / "results.json").split()
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(PRINTED, done.stdout)
