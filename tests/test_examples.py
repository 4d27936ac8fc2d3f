"""The examples that a folder of pictures is given to; the quickstart is run by CI."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(example, *arguments):
    command = [sys.executable, str(EXAMPLES / example), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_image_folder(save_photographs, tmp_path):
    printed = run("image_folder.py", save_photographs(tmp_path / "pictures"))
    assert "12 pictures of 2 kinds" in printed
    assert "the same predictions: True" in printed


def test_from_keras(save_photographs, tmp_path):
    pictures = save_photographs(tmp_path / "pictures")
    printed = run("from_keras.py", pictures, "DEFAULT", "efficientnet_lite0")
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", printed)]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert float(printed.split()[-1]) == 1.0
