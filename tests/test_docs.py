"""The documentation's code runs, and its lists are complete."""

import ast
import importlib
import re
import sys
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.base import is_classifier

import sktl
import sktl.plotting

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module", autouse=True)
def modules_of_docs():
    """What builds the site can be imported."""
    paths = [str(DOCS), str(DOCS / "plots")]
    sys.path[:0] = paths
    yield
    for path in paths:
        sys.path.remove(path)


def python_in(text):
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch, save_photographs):
    """Where a page's code runs, with the pictures that it speaks of."""
    save_photographs(tmp_path / "path" / "to" / "pictures")
    pictures = save_photographs(tmp_path / "pictures")
    (pictures / "kind0").rename(pictures / "cat")
    (pictures / "kind1").rename(pictures / "dog")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page, capsys):
    """Run a page's code, and give the lines that it prints."""
    names = {}
    for block in python_in((DOCS / page).read_text()):
        exec(compile(block, page, "exec"), names)
    return capsys.readouterr().out.splitlines()


def test_start_here_runs(folder, capsys):
    printed = run("start.md", capsys)
    assert float(printed[0]) > 0.7
    assert "freeze" in printed[1]
    assert "astronaut" in printed[2]
    assert printed[-1] == "['kind0' 'kind0' 'kind0']"


def test_pipeline_runs(capsys):
    (score,) = run("scikit-learn.md", capsys)
    assert float(score) > 0.8


def test_numbers_are_learned(capsys):
    (printed,) = run("numbers.md", capsys)
    score, penalty = map(float, printed.split())
    assert score > 0.7
    assert penalty > 0


def halves(title):
    """The code of the cards of docs/coming-from.md with this title, or with any other."""
    cards = re.findall(
        r"^::::\{grid-item-card\} (.*?)\n(.*?)^::::$",
        (DOCS / "coming-from.md").read_text(),
        flags=re.MULTILINE | re.DOTALL,
    )
    assert len(cards) == 8
    return [block for name, card in cards if (name == "sktl") is title for block in python_in(card)]


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """Random weights where torchvision keeps what it has downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    files = tmp_path / "torch" / "hub" / "checkpoints"
    files.mkdir(parents=True)
    for name in ("resnet18", "mobilenet_v2"):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        file = Path(urllib.parse.urlsplit(weights.url).path).name
        torch.manual_seed(0)
        torch.save(torchvision.models.get_model(name).state_dict(), files / file)


@pytest.mark.slow
def test_sktl_halves_run(folder, downloaded, one_thread):
    images = [np.asarray(Image.open(file)) for file in sorted(folder.glob("pictures/*/*.jpg"))]
    labels = ["cat"] * 6 + ["dog"] * 6
    for i, block in enumerate(halves(True)):
        names = {"images": images, "new_images": images[:2], "labels": labels}
        names["pil_images"] = [Image.fromarray(image) for image in images]
        # The file that is to be predicted is one of those that are here.
        block = block.replace("cat/1.jpg", "cat/0.jpg")
        exec(compile(block, f"coming-from.md, {i}", "exec"), names)
        assert is_classifier(names["clf"])
        assert set(names["clf"].predict(images)) <= {"cat", "dog"}
    assert names["clf"].freeze_ == len(names["clf"].stages_) - 1


def test_other_halves_are_python():
    others = halves(False)
    assert len(others) == 4
    for block in others:
        ast.parse(block)


def test_names_of_the_package_are_the_public_ones():
    assert dir(sktl) == sorted([*sktl.__all__, "__version__", "plotting"])
    assert all(hasattr(sktl, name) for name in dir(sktl))
    with pytest.raises(AttributeError, match="'sktl' has no attribute 'ploting'"):
        _ = sktl.ploting


def test_public_names_are_in_the_reference():
    text = (DOCS / "api" / "index.md").read_text()
    named = re.findall(r"^   (\w+)$", text, flags=re.MULTILINE)
    assert sorted(named) == sorted([*sktl.__all__, *sktl.plotting.__all__])


def public_things():
    """Public names, and the public methods of the estimators among them."""
    for name in sktl.__all__:
        thing = getattr(sktl, name)
        yield name, thing
        if hasattr(thing, "fit"):
            methods = [m for m in dir(thing) if not m.startswith("_")]
            yield from ((f"{name}.{method}", getattr(thing, method)) for method in methods)


def test_public_things_are_documented():
    things = dict(public_things())
    assert "PretrainedImageClassifier.adapt" in things
    assert [name for name, thing in things.items() if not thing.__doc__] == []


def imports_of(path, name):
    """Names of sktl's modules that a module imports."""
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            parts = [[node.module]] if node.module else [[alias.name] for alias in node.names]
            yield from (".".join(base + part) for part in parts)


def test_modules_are_laid_out_in_order():
    modules = importlib.import_module("site_pages").MODULES
    order = " ".join(modules.values()).split()
    files = {}
    for path in (ROOT / "sktl").rglob("*.py"):
        parts = path.relative_to(ROOT / "sktl").with_suffix("").parts
        files[".".join(parts).removesuffix(".__init__")] = path
    del files["__init__"]
    assert sorted(order) == sorted(files)
    for i, name in enumerate(order):
        assert set(imports_of(files[name], name)) & set(order) <= set(order[:i]), name


@pytest.mark.parametrize(("one", "other"), [("frozen", "training"), ("training", "frozen")])
def test_what_is_frozen_and_what_trains_know_nothing_of_each_other(one, other):
    for path in (ROOT / "sktl" / one).glob("*.py"):
        imported = set(imports_of(path, f"{one}.{path.stem}"))
        assert [name for name in imported if name.split(".")[0] == other] == [], path


def test_papers_are_listed():
    listed = set(re.findall(r"\d{4}\.\d{5}", (DOCS / "development" / "papers.md").read_text()))
    sources = [*(ROOT / "sktl").rglob("*.py"), *DOCS.glob("*.md"), ROOT / "README.md"]
    cited = set()
    for path in sources:
        cited |= set(re.findall(r"arXiv[: ](\d{4}\.\d{5})", path.read_text()))
    assert len(cited) > 10
    assert cited <= listed


def test_picture_of_the_readme_shows_the_table():
    speed = importlib.import_module("speed")
    ratios = speed.ratios()
    assert list(ratios) == list(speed.ROWS)
    assert speed.draw(ratios) == (DOCS / "_static" / "speed.svg").read_text()


def test_picture_of_photographs_shows_what_was_measured():
    photographs = importlib.import_module("photographs")
    rows = photographs.read()
    assert photographs.draw(rows) == (DOCS / "_static" / "photographs.svg").read_text()
    accuracy = {(labels, name): value for labels, name, value in rows}
    assert {labels for labels, _ in accuracy} == {"3", "5", "10"}
    for (labels, name), value in accuracy.items():
        if name != "sktl's default":
            assert value < accuracy[labels, "sktl's default"] - 0.2


def test_table_of_backbones_is_complete():
    site_pages = importlib.import_module("site_pages")
    machine, rows = site_pages.read_backbones()
    assert "torch" in machine
    # Larger networks of the default's family have a table of their own.
    others = {"efficientnet_lite1", "efficientnet_lite2"}
    names = [name for name in sktl.list_backbones() if name not in others]
    assert [row["backbone"] for row in rows] == names
    for row in rows[1:]:
        weights = torchvision.models.get_model_weights(row["backbone"]).DEFAULT
        assert float(row["top1"]) == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert int(row["parameters"]) == weights.meta["num_params"]
    best = max(rows, key=lambda row: float(row["top1"]))["backbone"]
    fastest = max(rows, key=lambda row: float(row["relative"]))["backbone"]
    assert {best, fastest} <= site_pages.front(rows)


def test_links_to_the_repository_become_links_to_pages():
    relink = importlib.import_module("site_pages").relink
    text = "[a](../examples/quickstart.py) [b](../benchmarks/README.md#x) [c](../LICENSE) [d](e)"
    expected = "[a](gallery/quickstart.rst) [b](generated/benchmarks.md#x) `LICENSE` [d](e)"
    assert relink(text, "docs/page.md", "page.md") == expected


def test_broken_links_are_found(tmp_path):
    page = '<p id="here"></p><a href="#here"></a><img src="no.png"><a href="sub/#there"></a>'
    (tmp_path / "index.html").write_text(page + '<a href="https://example.org/x"></a>')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "index.html").write_text('<a href="../index.html#here"></a>')
    broken = importlib.import_module("check_site").broken_links(tmp_path)
    assert broken == [
        "index.html: no.png (no such file)",
        "index.html: sub/#there (no such anchor)",
    ]


WIDE = '<div style="width: 900px">much text</div>'
PAGES = {
    "cut.html": f'<div class="box" style="overflow: hidden">{WIDE}</div>',
    "hidden_bar.html": f'<div style="overflow-x: auto; scrollbar-width: none">{WIDE}</div>',
    "outside.html": f'<div style="overflow: clip"><article>{WIDE}</article></div>',
    "page.html": WIDE,
    "scrolls.html": f'<div style="overflow-x: auto">{WIDE}</div>',
    "wraps.html": "<p>" + "much text that wraps " * 20 + "</p>",
    "dots.html": '<p style="overflow: hidden; white-space: nowrap; text-overflow: ellipsis">'
    + "much text " * 20,
}


def test_what_is_cut_off_is_found(tmp_path):
    check_site = importlib.import_module("check_site")
    browser = check_site.find_browser()
    if browser is None:
        pytest.skip("no Chromium is installed")
    for name, body in PAGES.items():
        (tmp_path / name).write_text(f"<!doctype html><body style='margin: 0'>{body}")
    found = check_site.too_wide(tmp_path, browser, (1000, 400))
    assert {line.partition(":")[0] for line in found} == {
        "cut.html", "hidden_bar.html", "outside.html", "page.html"
    }  # fmt: skip
    assert all(": at 400 px: " in line for line in found)
    assert 'cut.html: at 400 px: div.box "much text" cut off: 900 px in 400' in found
    assert any("scrolls without a scroll bar: 900 px in 400" in line for line in found)
    assert any("sticks out of the text by 500 px" in line for line in found)
    assert "page.html: at 400 px: the page: 900 px in 400" in found


def test_a_browser_that_ends_is_told(tmp_path):
    (tmp_path / "page.html").write_text("<p>text")
    with pytest.raises(RuntimeError, match="the browser ended with code 1"):
        importlib.import_module("check_site").too_wide(tmp_path, "false")


def test_every_parameter_is_on_its_page():
    site_pages = importlib.import_module("site_pages")
    listed = " ".join(site_pages.PARAMETERS.values()).split()
    known = site_pages.parameters()
    missing = sorted(set(known).difference(listed))
    gone = sorted(set(listed).difference(known))
    assert not missing, f"say in PARAMETERS of docs/site_pages.py what these serve: {missing}"
    assert not gone, f"take these out of PARAMETERS of docs/site_pages.py: {gone}"
    assert len(listed) == len(set(listed))
    for estimator in (
        sktl.PretrainedImageClassifier,
        sktl.PretrainedImageRegressor,
        sktl.PretrainedImageFeatures,
    ):
        assert set(estimator().get_params()) <= set(known)
    text = ["GROUPS"]
    site_pages.rewrite_links("parameters", text)
    line = r"^\| `(\w+)` \| `(.*?)` \| [^|]+ \| [\w, ]+ \|$"
    rows = dict(re.findall(line, text[0], re.MULTILINE))
    assert sorted(rows) == sorted(known)
    assert rows["backbone"] == '"efficientnet_lite0"'
    assert rows["weight_decay"] == repr(sktl.PretrainedImageClassifier().weight_decay)


def test_guide_has_every_page():
    site_pages = importlib.import_module("site_pages")
    pages = site_pages.guide_pages()
    there = {path.stem for path in DOCS.glob("*.md")}
    assert set(pages) == there - {"index", "guide"}
    text = ["PAGES"]
    site_pages.rewrite_links("guide", text)
    assert text[0].split() == pages
