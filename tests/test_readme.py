"""The README's code runs, and its commands are those that CI runs."""

import re
from pathlib import Path

import pytest
from sklearn.base import is_classifier

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch, save_photographs):
    """Where the README's code runs; with the pictures that it speaks of."""
    save_photographs(tmp_path / "path" / "to" / "pictures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_code_blocks_run_in_order(folder, capsys):
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert float(printed[0]) > 0.8
    assert "freeze" in printed[1]
    assert (folder / "digits.joblib").is_file()
    assert names["features"].shape == (12, 1280)
    before, after = map(float, printed[-2].split())
    assert after > before
    assert is_classifier(names["keras_recipe"])


def test_commands_are_run_by_ci():
    commands = [line for block in blocks("console") for line in block.splitlines()]
    assert len(commands) == 2
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    for command in commands:
        assert command in script


def test_linked_files_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).is_file(), link
