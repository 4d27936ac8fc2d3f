"""The README's code runs, its commands are those that CI runs, and its figures those measured."""

import re
from pathlib import Path

import numpy as np
from skimage.color import gray2rgb
from sklearn.svm import SVC

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_code_runs_and_shows_a_case_for_transfer(capsys):
    (block,) = blocks("python")
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    left, right = (
        np.stack([gray2rgb(p) if p.ndim == 2 else p for p in names[half]]).reshape(27, -1) / 255
        for half in ("left", "right")
    )
    pixels = SVC().fit(left, names["labels"]).score(right, names["labels"])
    assert float(capsys.readouterr().out) > pixels + 0.2


def test_it_begins_with_what_to_install_and_a_picture():
    first_screen = README[: README.index("## ")]
    assert 'pip install ".[examples]"' in first_screen
    assert re.search(r"!\[[^]]+\]\(docs/_static/photographs.svg\)", first_screen)
    assert "| --- |" not in first_screen


def test_commands_are_run_by_ci():
    commands = [line for block in blocks("console") for line in block.splitlines()]
    assert len(commands) == 3
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    for command in commands:
        assert command in script


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in lines[2:]]


def test_figures_are_those_of_the_benchmarks():
    measured = set()
    for row in rows_of((ROOT / "benchmarks" / "README.md").read_text()):
        if len(row) in (5, 6) and row[1].startswith("`"):
            measured.add((re.sub(r", [\d.,]+ m?s", "", row[3]), row[4]))
    shown = rows_of(README)
    assert len(shown) == 9
    figures = [(beside, figure) for _, beside, *both in shown for figure in both if figure]
    assert len(figures) == 14
    for beside, figure in figures:
        assert (beside, figure) in measured


def test_linked_files_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).is_file(), link
