"""What examples find in a folder that they are given; that they run, the gallery shows."""

import contextlib
import io
import re
import runpy
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch):
    """Function that runs an example as a program, and gives what it prints."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def run(example, *arguments):
        monkeypatch.setattr(sys, "argv", [example, *map(str, arguments)])
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            runpy.run_path(str(EXAMPLES / example), run_name="__main__")
        return printed.getvalue()

    return run


@pytest.mark.slow
def test_quickstart(run):
    printed = run("quickstart.py")
    scores = [float(score) for score in re.findall(r"^ {4}\S.* (0\.\d+)$", printed, re.MULTILINE)]
    assert len(scores) == 9
    for ours, *pixels in (scores[:3], scores[3:6], scores[6:]):
        assert ours > max(pixels) + 0.2
    assert "loaded in a new process, the same predictions: True" in printed
    with Image.open(re.search(r"drawn in (.+\.png)", printed).group(1)) as drawing:
        assert np.asarray(drawing.convert("L")).std() > 10
    folder = Path(re.search(r"the images lie in (.+)", printed).group(1))
    shutil.rmtree(folder)
    assert sheet_in(printed).shape == (16 + 2 * 128 + 16 + 128, 8 * 112, 3)


def sheet_in(printed):
    """The contact sheet that an example says it has written."""
    path = Path(re.search(r"shown in (.+\.png)", printed).group(1))
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet)
    shutil.rmtree(path.parent)
    return pixels


def tile_of(path):
    """A square picture as it is drawn."""
    with Image.open(path) as picture:
        return np.asarray(picture.resize((108, 108), Image.Resampling.BICUBIC))


def test_group_pictures(run, save_photographs, tmp_path):
    pictures = save_photographs(tmp_path / "pictures")
    printed = run("group_pictures.py", pictures)
    groups = [set(map(int, g.split(", "))) for g in re.findall(r"group \d+: (.*)", printed)]
    assert groups == [{*range(6)}, {*range(6, 12)}]
    assert "12 pictures in 2 groups, 0 in none" in printed
    sheet = sheet_in(printed)
    assert sheet.shape == (2 * (16 + 112 + 16), 8 * 112, 3)
    np.testing.assert_array_equal(sheet[18:126, 2:110], tile_of(pictures / "kind0" / "0.jpg"))
    second = sheet[144 + 18 : 144 + 126, 2:110]  # as text, 10 comes before 6
    np.testing.assert_array_equal(second, tile_of(pictures / "kind1" / "10.jpg"))


@pytest.mark.slow
def test_groups_of_stamps_are_mostly_of_one_kind(run, stamps):
    kinds = {path.stem: path.parent.name for path in stamps.glob("*/*")}
    groups = re.findall(r"group \d+: (.*)", run("group_pictures.py", stamps))
    found = [Counter(kinds[name] for name in group.split(", ")) for group in groups]
    assert 10 <= len(found) <= 40
    assert sum(max(kinds.values()) for kinds in found) > 0.8 * sum(map(Counter.total, found))


def listed_in(printed):
    """Paths of the pictures that an example prints behind a number."""
    found = re.findall(r"^  0\.\d+  (.*?)(?:  rather .*)?$", printed, re.MULTILINE)
    return [Path(path) for path in found]


def test_nearest_pictures(run, save_photographs, tmp_path):
    pictures = save_photographs(tmp_path / "pictures")
    printed = run("nearest_pictures.py", pictures)
    nearest = listed_in(printed)
    assert len(nearest) == 8
    assert {path.stem for path in nearest[:5]} == set("12345")
    sheet = sheet_in(printed)
    np.testing.assert_array_equal(sheet[18:126, 2:110], tile_of(pictures / "kind0" / "0.jpg"))
    np.testing.assert_array_equal(sheet[162:270, 2:110], tile_of(nearest[0]))


@pytest.mark.slow
@pytest.mark.parametrize("picture", ["mammals/bear.jpg", "birds/duck.jpg"])
def test_nearest_stamps_are_mostly_of_one_kind(run, stamps, picture):
    nearest = listed_in(run("nearest_pictures.py", stamps, stamps / picture))
    assert stamps / picture not in nearest
    assert [path.parent.name for path in nearest].count(picture.split("/")[0]) >= 6


def test_find_mislabelled(run, save_photographs, tmp_path):
    pictures = save_photographs(tmp_path / "pictures")
    (pictures / "kind0" / "3.jpg").rename(pictures / "kind1" / "3.jpg")
    printed = run("find_mislabelled.py", pictures)
    found = listed_in(printed)
    assert found == [pictures / "kind1" / "3.jpg"]
    np.testing.assert_array_equal(sheet_in(printed)[18:126, 2:110], tile_of(found[0]))


@pytest.mark.slow
def test_swapped_stamps_are_found(run, stamps, tmp_path):
    pictures = shutil.copytree(stamps, tmp_path / "pictures")
    swapped = []
    kinds = sorted(pictures.iterdir())
    for i, kind in enumerate(kinds):
        picture = sorted(kind.iterdir())[i]
        swapped.append(picture.rename(kinds[i - 1] / f"swapped_{picture.name}"))
    found = listed_in(run("find_mislabelled.py", pictures))
    assert len(set(swapped) & set(found)) >= 9
    assert len(found) < 30


@pytest.mark.slow
def test_pictures_and_numbers(run):
    printed = run("pictures_and_numbers.py")
    picture, columns, both = map(float, re.findall(r": R2 (-?0\.\d+)$", printed, re.MULTILINE))
    assert both > max(picture, columns) + 0.3


@pytest.mark.slow
def test_few_labels(run, stamps):
    printed = run("few_labels.py", stamps)
    assert "231 pictures to learn from, 20 of them with a label" in printed
    alone, adapted, *others = map(float, re.findall(r": +(0\.\d+)$", printed, re.MULTILINE))
    assert adapted >= alone - 0.02  # one or two of 77
    assert alone > 0.5
    assert len(others) == 2
    assert min(others) > 0.4


@pytest.mark.slow
def test_other_source(run, stamps):
    printed = run("other_source.py", stamps)
    good, bad, adapted, expected = map(float, re.findall(r": (0\.\d+)$", printed, re.MULTILINE))
    assert good > adapted > bad
    assert expected < good
