"""Accuracy on images of another source, by method of adaptation.

python study.py shifted stamps=/path/to/stamps makers emoji=/path/to/google:/path/to/twitter
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps
from scipy.ndimage import rotate
from skimage.morphology import thin
from sklearn.datasets import load_digits

from sktl import PretrainedImageClassifier, load_image_folder
from sktl.model.adapt import METHODS

Picture = Image.Image
Labels = npt.NDArray[Any]


@dataclass(frozen=True)
class Shift:
    """Images of two sources, with names by which one thing is known in both."""

    name: str
    source: list[Picture]
    source_labels: Labels
    source_names: list[str]
    target: list[Picture]
    target_labels: Labels
    target_names: list[str]


@dataclass(frozen=True)
class Split:
    """What is trained on, what is adapted to and tested on, and what the ceiling trains on."""

    source: tuple[list[Picture], Labels]
    target: tuple[list[Picture], Labels]
    ceiling: tuple[list[Picture], Labels]


# Sets --------------------------------------------------------------------------------


def jpeg(image: Picture) -> Picture:
    """Make it small, and compress what is left."""
    file = io.BytesIO()
    image.resize((max(1, image.width // 3), max(1, image.height // 3))).save(
        file, "JPEG", quality=8
    )
    return Image.open(file).convert("RGB")


def other_colours(image: Picture) -> Picture:
    """Turn the hue by an eighth more than a quarter of the circle."""
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point([(i + 90) % 256 for i in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def edges(image: Picture) -> Picture:
    """Draw black lines on white."""
    return ImageOps.invert(image.convert("L").filter(ImageFilter.FIND_EDGES)).convert("RGB")


PICTURE_SHIFTS: dict[str, Callable[[Picture], Picture]] = {
    "grey": lambda image: image.convert("L").convert("RGB"),
    "inverted": ImageOps.invert,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(max(image.size) / 60)),
    "JPEG": jpeg,
    "edges": edges,
    "colours": other_colours,
}


def shifted(name: str, folder: str) -> Iterator[Shift]:
    """Set a folder of pictures against the same folder made to look different."""
    found = load_image_folder(folder)
    pictures = [on_white(path) for path in found.data]
    labels = found.target.astype(str)
    names = [str(path) for path in found.data]
    for kind, change in PICTURE_SHIFTS.items():
        changed = [change(picture) for picture in pictures]
        yield Shift(f"{name}, {kind}", pictures, labels, names, changed, labels, names)


def makers(name: str, folders: str) -> Iterator[Shift]:
    """Set two makers against each other; a thing has one file name with both."""
    parts: list[Any] = []
    for folder in folders.split(":"):
        found = load_image_folder(folder)
        names = [Path(path).stem for path in found.data]
        parts += [[on_white(path) for path in found.data], found.target.astype(str), names]
    yield Shift(name, *parts)


def on_white(path: str) -> Picture:
    """Read an upright picture without transparency."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    return page.convert("RGB")


def digits() -> Iterator[Shift]:
    """scikit-learn's digits, against turned, inverted and thinned ones."""
    found = load_digits()
    pixels = [
        np.asarray(Image.fromarray(image.astype(np.uint8)).resize((32, 32), Image.BICUBIC))
        for image in found.images[:800] * 255 / 16
    ]
    changes: dict[str, Callable[[Any], Any]] = {
        "turned": lambda image: rotate(image, 30, reshape=False, order=1),
        "inverted": lambda image: 255 - image,
        "thinned": lambda image: 255 * thin(image > 110),
    }
    plain = [Image.fromarray(image).convert("RGB") for image in pixels]
    labels, names = found.target[:800].astype(str), [str(i) for i in range(800)]
    for kind, change in changes.items():
        changed = [
            Image.fromarray(change(image).astype(np.uint8)).convert("RGB") for image in pixels
        ]
        yield Shift(f"digits, {kind}", plain, labels, names, changed, labels, names)


# Runs --------------------------------------------------------------------------------


def split(shift: Shift, seed: int, keep: Callable[[Labels, Any], npt.NDArray[np.bool_]]) -> Split:
    """Half of the things to learn from, the other half to be adapted to."""
    rng = np.random.default_rng(seed)
    names = sorted({*shift.source_names, *shift.target_names})
    half = set(rng.permutation(names)[: len(names) // 2].tolist())
    learned = np.array([name in half for name in shift.source_names])
    known = np.array([name in half for name in shift.target_names])
    tested = ~known
    tested[tested] = keep(shift.target_labels[tested], rng)

    def part(pictures: list[Picture], labels: Labels, rows: Any) -> tuple[list[Picture], Labels]:
        return [pictures[i] for i in np.flatnonzero(rows)], labels[rows]

    return Split(
        part(shift.source, shift.source_labels, learned),
        part(shift.target, shift.target_labels, tested),
        part(shift.target, shift.target_labels, known),
    )


def everything(labels: Labels, rng: Any) -> npt.NDArray[np.bool_]:
    """Leave nothing out."""
    return np.ones(len(labels), dtype=bool)


def other_frequencies(labels: Labels, rng: Any) -> npt.NDArray[np.bool_]:
    """Leave out most images of half of the classes."""
    classes = np.unique(labels)
    rare = rng.permutation(classes)[: len(classes) // 2]
    kept: npt.NDArray[np.bool_] = ~np.isin(labels, rare) | (rng.random(len(labels)) < 0.12)
    return kept


def fifty(labels: Labels, rng: Any) -> npt.NDArray[np.bool_]:
    """Keep 50 images."""
    kept = np.zeros(len(labels), dtype=bool)
    kept[rng.permutation(len(labels))[:50]] = True
    return kept


VARIANTS: dict[str, Callable[[Labels, Any], npt.NDArray[np.bool_]]] = {
    "": everything,
    ", other frequencies": other_frequencies,
    ", 50 images": fifty,
}


def classifier(size: int) -> PretrainedImageClassifier:
    """Make the frozen default, for pictures that are cropped."""
    return PretrainedImageClassifier(image_size=size, resize_mode="crop")


def scores(given: Split, methods: list[str], size: int, checks: bool) -> dict[str, float]:
    """Accuracy with nothing done, with each method, and with the target's labels."""
    target, labels = given.target
    clf = classifier(size).fit(*given.source)
    found = {"nothing": clf.score(target, labels)}
    for method in methods:
        adapted = clf.adapt(target, *given.source, method=method, check=checks)
        found[method] = adapted.score(target, labels)
    ceiling = classifier(size).fit(*given.ceiling)
    return found | {"labels": ceiling.score(target, labels)}


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Means and standard errors as Markdown, and how far each method gets."""
    methods = list(next(iter(results.values())))
    lines = [["", *methods], ["---"] * (len(methods) + 1)]
    for name, found in results.items():
        cells = [
            f"{np.mean(found[m]):.3f} ± {np.std(found[m], ddof=1) / len(found[m]) ** 0.5:.3f}"
            for m in methods
        ]
        lines.append([name, *cells])
    means = np.array([[np.mean(found[m]) for m in methods] for found in results.values()])
    gains = means - means[:, :1]
    lines.append(["mean", *(f"{value:.3f}" for value in means.mean(0))])
    lines.append(["worst, against nothing", *(f"{value:+.3f}" for value in gains.min(0))])
    closed = gains.mean(0) / gains.mean(0)[-1]
    lines.append(["share of the distance", *(f"{value:.2f}" for value in closed)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Print a table, and write all scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", help="shifted NAME=FOLDER or makers NAME=FROM:TO")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--variants", nargs="*", default=["plain"], help="or frequencies, fifty")
    parser.add_argument("--check", action="store_true", help="leave alone what needs no change")
    parser.add_argument("--no-digits", action="store_true")
    parser.add_argument("--output", default="results.json")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    kinds = {"shifted": shifted, "makers": makers}
    shifts = [
        shift
        for kind, given in zip(args.sets[::2], args.sets[1::2], strict=True)
        for shift in kinds[kind](*given.split("=", 1))
    ]
    shifts += [] if args.no_digits else list(digits())
    if not shifts:
        parser.error("there is no set to compare on; sets come before the options")
    chosen = {"plain": "", "frequencies": ", other frequencies", "fifty": ", 50 images"}
    results: dict[str, dict[str, list[float]]] = {}
    for shift in shifts:
        for variant in args.variants:
            start, name = time.perf_counter(), shift.name + chosen[variant]
            for seed in range(args.seeds):
                given = split(shift, seed, VARIANTS[chosen[variant]])
                for method, score in scores(given, args.methods, args.size, args.check).items():
                    results.setdefault(name, {}).setdefault(method, []).append(score)
            means = "  ".join(f"{m} {np.mean(s):.3f}" for m, s in results[name].items())
            print(f"{name:<36}{means}   {time.perf_counter() - start:.0f} s")
            sys.stdout.flush()
            Path(args.output).write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
