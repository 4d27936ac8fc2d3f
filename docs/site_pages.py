"""Pages made of files outside this folder, and links that hold on the site as in the repository."""

from __future__ import annotations

import csv
import inspect
import re
from os.path import normpath, relpath
from pathlib import Path, PurePosixPath

from sktl import PretrainedImageClassifier, PretrainedImageFeatures, PretrainedImageRegressor

ROOT = Path(__file__).parents[1]
BACKBONES = ROOT / "benchmarks" / "backbones.csv"

# Files of the repository that are pages of the site, too.
PUBLISHED = {
    "benchmarks/README.md": "generated/benchmarks.md",
    "benchmarks/accuracy/README.md": "generated/accuracy.md",
    "benchmarks/transfer/README.md": "generated/transfer.md",
    "CHANGELOG.md": "generated/changelog.md",
}
# The guide's pages in the order in which they are read; others follow by name.
GUIDE = [
    "start",
    "images",
    "backbones",
    "networks",
    "fine-tuning",
    "training",
    "several-labels",
    "transfer",
    "numbers",
    "parameters",
    "speed",
    "plots",
    "saving",
    "exporting",
    "clusters",
    "reliability",
    "scikit-learn",
    "coming-from",
]
NOT_IN_GUIDE = {"index", "guide"}
EXAMPLES = [
    "quickstart",
    "image_folder",
    "plots",
    "nearest_pictures",
    "group_pictures",
    "find_mislabelled",
    "few_labels",
    "other_source",
    "pictures_and_numbers",
    "from_keras",
    "score_folder",
]
NOT_EXAMPLES = {"contact_sheet.py", "pictures.py"}  # others draw with these
# sktl's modules in the order in which data flows, in groups.
MODULES = {
    "What all use: The machine, messages, and other packages' private names.": (
        "version compat messages tensors atomic randomness threads hardware parallel constraints"
    ),
    "Images: From what X is to uint8 pixels, and on to what a network was trained on.": (
        "images.errors images.bands images.depth images.orientation images.jpeg "
        "images.decoding images.kinds images.format images.reading images.sizes "
        "images.preprocessing images.descriptions images.augmentation images"
    ),
    "Backbones: Networks, their weights, and where they can be cut.": (
        "backbones.efficientnet_lite backbones.given backbones.hubs backbones.registry "
        "backbones.weights backbones.shaped_trace backbones.state backbones.nodes backbones.values "
        "backbones.tracing backbones.graph backbones.from_transformers backbones.classifier "
        "backbones.stages backbones.split backbones.backbone backbones.feature_names "
        "backbones.loading backbones"
    ),
    "Cache: Features by image content.": (
        "cache.leases cache.protocol cache.memory cache.directory cache.opening cache"
    ),
    "Frozen prefix: Each image once.": (
        "frozen.onednn frozen.fusion frozen.onnx_writer frozen.onnx_layers frozen.translation "
        "frozen.engine frozen.module frozen.fingerprint frozen.stage_names frozen.source "
        "frozen.gathering frozen.passes frozen.prefix frozen"
    ),
    "Suffix and head: From features to logits.": (
        "training.heads training.rows training.lbfgs training.preconditioning training.newton "
        "training.selection training.ridge training.binary training.targets "
        "training.solutions training.optimization training.parameters training.batches "
        "training.depthwise training.averaging training.suffix training.steps training.net "
        "training.progress training.epochs training"
    ),
    "Model: Backbone, suffix and head together, and what can be done with them.": (
        "model.joined model.source_domain model.alignment model.fit model.adapt model.explain "
        "model.exported_resize model.export model"
    ),
    "Files: What a fitted estimator is on the disk.": (
        "files.container files.readers files.weights files.pickling files.state files.values "
        "files.layout files.trained files.classifier_file files.regressor_file "
        "files.features_file files.document files.saving files.loading files"
    ),
    "Estimators: Scikit-learn's face.": (
        "datasets.folders datasets.tables datasets summary base features labels predictor "
        "classifier regressor"
    ),
    "Plots: Scikit-learn's displays, of what fitted estimators know.": (
        "plotting.drawing plotting.pictures plotting.training_curve plotting.freeze_search "
        "plotting.predictions plotting.numbers plotting.confusion plotting.explanations "
        "plotting.feature_map plotting"
    ),
}

# What the estimators' parameters serve; a test tells which are missing here.
PARAMETERS = {
    "Data: What the images are, and how they are varied and weighted.": (
        "image_size resize_mode preprocessing image_shape pixel_range bands on_error augment "
        "n_views mixup cutmix class_weight"
    ),
    "Network: Where the features come from.": "backbone weights freeze stage pooling dtype",
    "Head: What is put on the network, and what it minimizes.": (
        "head dropout weight_decay criterion label_smoothing"
    ),
    "Training by steps: A frozen linear head that is solved to its optimum doesn't use them.": (
        "optimizer lr backbone_lr layer_decay schedule warmup unfreeze batch_size "
        "accumulation_steps max_grad_norm ema_decay"
    ),
    "Stopping: When training ends, and whether it goes on.": (
        "max_epochs early_stopping validation_fraction n_iter_no_change warm_start"
    ),
    "Running: Where and how fast it is computed, and what is told of it.": (
        "cache precision device n_jobs callbacks random_state verbose"
    ),
}

_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)\s#]+)(#[^)\s]*)?\)")


def gallery_order(file: str) -> tuple[int, str]:
    """Sort key of an example: those named above first."""
    name = Path(file).stem
    return (EXAMPLES.index(name) if name in EXAMPLES else len(EXAMPLES), name)


def guide_pages() -> list[str]:
    """Names of the guide's pages in their order."""
    there = {path.stem for path in (ROOT / "docs").glob("*.md")} - NOT_IN_GUIDE
    return [name for name in GUIDE if name in there] + sorted(there.difference(GUIDE))


def rewrite_links(page: str, text: list[str]) -> None:
    """Change a page's text in place, as Sphinx's event asks for."""
    if page == "guide":
        text[0] = text[0].replace("PAGES", "\n".join(guide_pages()))
    if page == "parameters":
        text[0] = text[0].replace("GROUPS", "\n".join(map(parameter_table, PARAMETERS)))
    if page == "development/code":
        text[0] = text[0].replace("MODULES", "\n".join(map(_group, MODULES)))
    if not page.startswith(("generated/", "gallery/")):
        text[0] = relink(text[0], f"docs/{page}.md", f"{page}.md")
    text[0] = text[0].replace(
        " ± ", " ±\N{NO-BREAK SPACE}"
    )  # the error goes to a second line whole


def _group(title: str) -> str:
    """Make a section of the first lines of its modules."""
    modules = "\n\n".join(
        f"**{name}**\n\n```{{eval-rst}}\n.. automodule:: sktl.{name}\n```"
        for name in MODULES[title].split()
    )
    heading, purpose = title.split(": ")
    return f"## {heading}\n\n{purpose}\n\n{modules}\n"


def parameters() -> dict[str, tuple[str, str, str]]:
    """Describe all parameters of the estimators, in the order of their signatures.

    Returns
    -------
    dict of str to (str, str, str)
        For each name, its default, the first sentence on it in the docstring, and which of the
        estimators has it.
    """
    estimators = {
        "classifier": PretrainedImageClassifier,
        "regressor": PretrainedImageRegressor,
        "features": PretrainedImageFeatures,
    }
    found: dict[str, tuple[str, str, str]] = {}
    for which, estimator in estimators.items():
        told = _first_sentences(inspect.getdoc(estimator) or "")
        for name, parameter in inspect.signature(estimator).parameters.items():
            default = getattr(parameter.default, "__name__", None) or repr(parameter.default)
            if name in found:
                default, text, others = found[name]
                found[name] = (default, text, f"{others}, {which}")
            else:
                found[name] = (default.replace("'", '"'), told.get(name, ""), which)
    everywhere = ", ".join(estimators)
    return {name: (*row[:2], row[2].replace(everywhere, "all")) for name, row in found.items()}


def _first_sentences(doc: str) -> dict[str, str]:
    """Find the first sentence on each parameter in a numpydoc docstring; else its type."""
    section = re.split(r"\n\w+\n-{3,}\n", doc.partition("Parameters\n----------\n")[2])[0]
    told = {}
    for names, kind, text in re.findall(r"^(\w.*?) : (.*)\n((?: .*\n?)*)", section, re.MULTILINE):
        plain = re.sub(r" \[\d+\]_|:\w+:(?=`)", "", " ".join(text.split())).replace("`~", "`")
        sentence = re.split(r"(?<=[\w`)\]\"])[.;] ", plain.replace("``", "`"))[0].rstrip(".")
        for name in names.split(", "):
            told[name] = sentence or kind.partition(", default")[0]
    return told


def parameter_table(title: str) -> str:
    """Make a section in Markdown of a group of parameters."""
    known = parameters()
    heading, purpose = title.split(": ")
    lines = ["| Parameter | Default | What it is | Of |", "| --- | --- | --- | --- |"]
    for name in PARAMETERS[title].split():
        default, sentence, which = known[name]
        lines.append(f"| `{name}` | `{default}` | {sentence.replace('|', '&#124;')} | {which} |")
    return "\n".join([f"## {heading}", "", purpose, "", *lines, ""])


def relink(text: str, source: str, page: str) -> str:
    """Point links to files of the repository at the pages that the site makes of them.

    Parameters
    ----------
    text : str
        Markdown.
    source : str
        Path of its file in the repository, to which its links are relative.
    page : str
        Path of the page in the documentation's folder.
    """

    def replace(link: re.Match[str]) -> str:
        label, target, anchor = link[1], link[2], link[3] or ""
        path = normpath(PurePosixPath(source).parent / target)
        if not (ROOT / path).exists():
            return link[0]
        on_site = _place(PurePosixPath(path))
        if on_site is None:
            return label if "`" in label else f"`{path}`"
        return f"[{label}]({relpath(on_site, PurePosixPath(page).parent)}{anchor})"

    return _LINK.sub(replace, text)


def _place(path: PurePosixPath) -> str | None:
    """Where the site shows a file of the repository."""
    if str(path) in PUBLISHED:
        return PUBLISHED[str(path)]
    if path.parent.name == "examples" and path.name not in NOT_EXAMPLES:
        return f"gallery/{path.stem}.rst"
    if path.parts[0] == "docs" and path.suffix == ".md":
        return str(path.relative_to("docs"))
    return None


def write_generated_pages(docs: Path) -> None:
    """Write the pages of files elsewhere, and the table of backbones."""
    for source, page in PUBLISHED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        _write(docs / page, relink(text, source, page))
    _write(docs / "generated" / "backbones-table.md", backbone_table())


def _write(file: Path, text: str) -> None:
    """Leave a file as it is that says the same, so that Sphinx needn't read it again."""
    file.parent.mkdir(exist_ok=True)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")


def read_backbones() -> tuple[str, list[dict[str, str]]]:
    """Read what `benchmarks/backbones.py` has measured: the machine, and a row a network."""
    machine, *lines = BACKBONES.read_text(encoding="utf-8").splitlines()
    return machine.removeprefix("# "), list(csv.DictReader(lines))


def front(rows: list[dict[str, str]]) -> set[str]:
    """Names of the backbones that no other is both faster and more accurate than."""
    best, names = 0.0, set()
    for row in sorted(rows, key=lambda row: (-float(row["relative"]), -float(row["top1"]))):
        if float(row["top1"]) > best:
            best = float(row["top1"])
            names.add(row["backbone"])
    return names


def backbone_table() -> str:
    """Make the table in Markdown, fastest first."""
    machine, rows = read_backbones()
    chosen = front(rows)
    lines = [
        "| Backbone | Speed | Top-1, % | Parameters, M | File, MB | Image size |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for row in sorted(rows, key=lambda row: -float(row["relative"])):
        name = f"`{row['backbone']}`"
        if row["backbone"] in chosen:
            name = f"**{name}**"
        lines.append(
            f"| {name} | {float(row['relative']):.3g} | {float(row['top1']):.1f} "
            f"| {int(row['parameters']) / 1e6:.1f} | {float(row['megabytes']):.0f} "
            f"| {row['image_size']} |"
        )
    return "\n".join([*lines, "", f"Measured with one thread on: {machine}.", ""])
