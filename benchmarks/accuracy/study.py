"""Accuracy of freezing strategies on small sets of pictures, beside what people use today.

python study.py stamps=/path/to/stamps food=/path/to/food --fastai /path/to/python
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, StratifiedShuffleSplit
from torch import nn
from torchvision.transforms import v2

from sktl import PretrainedImageClassifier, PretrainedImageFeatures, load_image_folder
from sktl.backbones import load_backbone

Paths = npt.NDArray[Any]
Fold = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
Method = Callable[[Paths, Any, Paths, argparse.Namespace], npt.NDArray[Any]]

MEAN, STD = [127 / 255] * 3, [128 / 255] * 3


class TowardsStart(torch.optim.AdamW):
    """AdamW that draws pretrained weights to where they began: L2-SP, decoupled.

    X. Li et al., Explicit Inductive Bias for Transfer Learning with Convolutional Networks (2018).
    """

    pull = 10.0  # share of the way, in learning rates

    def step(self, closure: Any = None) -> Any:
        """Step as AdamW does, and then a part of the way back."""
        groups = [group for group in self.param_groups if group["distance"]]
        if not hasattr(self, "starts"):  # the head has been fitted by now
            self.starts = [[p.detach().clone() for p in group["params"]] for group in groups]
        loss = super().step(closure)
        with torch.no_grad():
            for group, starts in zip(groups, self.starts, strict=True):
                torch._foreach_lerp_(group["params"], starts, group["lr"] * self.pull)
        return loss


RECIPES: dict[str, dict[str, Any]] = {
    "sktl, default": {},
    "sktl, frozen": {"pooling": "network"},
    "sktl, frozen, penalty by choice": {"pooling": "network", "weight_decay": "auto"},
    "sktl, frozen, linear head": {"pooling": "network", "head": "linear"},
    "sktl, last stage": {"freeze": -1},
    "sktl, last two stages": {"freeze": -2},
    "sktl, head first (LP-FT)": {"freeze": "none"},
    "sktl, head first, L2-SP": {"freeze": "none", "optimizer": TowardsStart},
    "sktl, all at once": {"freeze": "none", "unfreeze": "at_once"},
    "sktl, gradual": {"freeze": "none", "unfreeze": "gradual"},
}


def with_sktl(**recipe: Any) -> Method:
    """Make a method of a recipe, with sktl's defaults otherwise."""

    def predict(X: Paths, y: Any, X_test: Paths, args: argparse.Namespace) -> npt.NDArray[Any]:
        epochs = {"max_epochs": args.epochs} if "freeze" in recipe else {}
        clf = PretrainedImageClassifier(
            image_size=args.size,
            resize_mode=args.resize_mode,
            random_state=0,
            **epochs,
            **recipe,
        )
        return clf.fit(X, y).predict(X_test)

    return predict


def logistic_regression(
    X: Paths, y: Any, X_test: Paths, args: argparse.Namespace
) -> npt.NDArray[Any]:
    """scikit-learn's, on the same features, with C found by cross-validation."""
    features = PretrainedImageFeatures(image_size=args.size, resize_mode=args.resize_mode).fit(X)
    n_folds = min(3, int(np.bincount(np.unique(y, return_inverse=True)[1]).min()))
    grid = {"C": np.logspace(-4, 2, 7)}
    search = GridSearchCV(LogisticRegression(max_iter=2000), grid, cv=n_folds)
    predicted: npt.NDArray[Any] = search.fit(features.transform(X), y).predict(
        features.transform(X_test)
    )
    return predicted


def hand_written(X: Paths, y: Any, X_test: Paths, args: argparse.Namespace) -> npt.NDArray[Any]:
    """Train as the usual tutorial does: all weights, flips and crops, AdamW, a cosine."""
    torch.manual_seed(0)
    classes, labels = np.unique(y, return_inverse=True)
    splitter = load_backbone("efficientnet_lite0").splitter
    network = copy.deepcopy(splitter.network)
    path = splitter.classifiers[0]
    parent, _, name = path.rpartition(".")
    head = nn.Linear(int(network.get_submodule(path).in_features), len(classes))  # type: ignore[arg-type]
    setattr(network.get_submodule(parent), name, head)
    network.requires_grad_(True)
    to_floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    training = v2.Compose(
        [v2.RandomResizedCrop(args.size, (0.6, 1.0)), v2.RandomHorizontalFlip(), *to_floats]
    )
    testing = v2.Compose([v2.Resize(round(args.size * 1.14)), v2.CenterCrop(args.size), *to_floats])
    pictures = [v2.functional.pil_to_tensor(Image.open(path).convert("RGB")) for path in X]
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.hand_lr)
    n_steps = args.epochs * -(-len(X) // 32)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in range(args.epochs):
        network.train()
        order = torch.randperm(len(X))
        for batch in order.split(32):
            if len(batch) == 1:
                continue
            images = torch.stack([training(pictures[i]) for i in batch])
            loss = nn.functional.cross_entropy(network(images), torch.as_tensor(labels)[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    found = []
    with torch.inference_mode():
        for path in X_test:
            image = v2.functional.pil_to_tensor(Image.open(path).convert("RGB"))
            found.append(int(network(testing(image)[None]).argmax()))
    return np.asarray(classes[found])


FASTAI = """
import json, sys
import torch
from fastai.vision.all import *
from sktl.backbones import load_backbone
job = json.load(open(sys.argv[1]))
set_seed(0)
def body(pretrained=True):
    network = load_backbone("efficientnet_lite0").splitter.network
    return network.requires_grad_(True)
def cut(network):
    return nn.Sequential(*list(network.children())[:-1])
frame = list(zip(job["paths"], job["labels"]))
loaders = ImageDataLoaders.from_lists(
    ".", [p for p, _ in frame], [l for _, l in frame], valid_pct=0.0001, bs=32, num_workers=0,
    item_tfms=Resize(round(job["size"] * 1.14)),
    batch_tfms=[*aug_transforms(size=job["size"], min_scale=0.75),
                Normalize.from_stats([127 / 255] * 3, [128 / 255] * 3)])
learner = vision_learner(loaders, body, cut=cut, normalize=False, metrics=[])
with learner.no_bar(), learner.no_logging():
    learner.fine_tune(job["epochs"])
    proba, _ = learner.get_preds(dl=loaders.test_dl(job["test"]))
print("RESULT" + json.dumps([loaders.vocab[i] for i in proba.argmax(1).tolist()]))
"""


def with_fastai(X: Paths, y: Any, X_test: Paths, args: argparse.Namespace) -> npt.NDArray[Any]:
    """Fastai's `fine_tune`, in the Python given by --fastai."""
    job = {
        "paths": list(map(str, X)),
        "labels": list(map(str, y)),
        "test": list(map(str, X_test)),
        "size": args.size,
        "epochs": args.epochs,
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        done = subprocess.run(
            [args.fastai, "-c", FASTAI, file.name], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return np.asarray(json.loads(done.stdout.rpartition("RESULT")[2]))


def digit_files(folder: Path) -> tuple[Paths, npt.NDArray[Any]]:
    """scikit-learn's digits as files, since all methods read files."""
    digits = load_digits()
    paths = []
    for i, image in enumerate(digits.images):
        path = folder / f"{i}.png"
        Image.fromarray((255 * image / 16).round().astype(np.uint8)).resize((32, 32)).save(path)
        paths.append(str(path))
    return np.asarray(paths), digits.target.astype(str)


def folds_of(y: Any, n_folds: int, per_class: int | None) -> list[Fold]:
    """Stratified folds, or splits with so many training images a class."""
    if per_class is None:
        return list(StratifiedKFold(n_folds, shuffle=True, random_state=0).split(y, y))
    n = per_class * len(np.unique(y))
    splitter = StratifiedShuffleSplit(n_folds, train_size=n, test_size=500, random_state=0)
    return list(splitter.split(y, y))


def run(
    name: str, X: Paths, y: Any, folds: list[Fold], methods: dict[str, Method], args: Any
) -> dict[str, Any]:
    """Accuracies of all methods on the same folds."""
    results = {}
    for method, predict in methods.items():
        start = time.perf_counter()
        scores = [float(np.mean(predict(X[a], y[a], X[b], args) == y[b])) for a, b in folds]
        error = np.std(scores, ddof=1) / len(scores) ** 0.5
        results[method] = {"mean": float(np.mean(scores)), "error": float(error), "scores": scores}
        seconds = time.perf_counter() - start
        print(f"{name:<12}{method:<28}{np.mean(scores):.3f} +- {error:.3f}   {seconds:.0f} s")
        sys.stdout.flush()
    return results


def table(results: dict[str, Any]) -> str:
    """Write means and standard errors as a Markdown table, with the mean over the sets."""
    methods = list(dict.fromkeys(m for scores in results.values() for m in scores))
    lines = [["", *results, "mean"], ["---"] * (len(results) + 2)]
    for method in methods:
        found = [results[name][method] for name in results]
        cells = [f"{one['mean']:.3f} ± {one['error']:.3f}" for one in found]
        lines.append([method, *cells, f"{np.mean([one['mean'] for one in found]):.3f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Print a table, and write the scores of all folds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", help="NAME=FOLDER, one folder of pictures a class")
    parser.add_argument("--digits", nargs="*", type=int, default=[5, 10, 50])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--resize-mode", default="squash", help="crop gives the table of the docs")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--hand-lr", type=float, default=3e-4)
    parser.add_argument("--fastai", help="a Python that has fastai and sktl")
    parser.add_argument("--methods", nargs="*", help="parts of the names of methods; all without")
    parser.add_argument("--output", default="results.json")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    methods: dict[str, Method] = {"logistic regression": logistic_regression}
    methods |= {name: with_sktl(**recipe) for name, recipe in RECIPES.items()}
    methods["hand-written loop"] = hand_written
    if args.fastai:
        methods["fastai fine_tune"] = with_fastai
    if args.methods:
        methods = {n: m for n, m in methods.items() if any(part in n for part in args.methods)}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        sets: list[tuple[str, Paths, Any, int | None]] = []
        for given in args.sets:
            name, _, path = given.partition("=")
            pictures = load_image_folder(path)
            sets.append((name, np.asarray(pictures.data), pictures.target.astype(str), None))
        if args.digits:
            X, y = digit_files(Path(folder))
            sets += [(f"digits, {n}", X, y, n) for n in args.digits]
        for name, X, y, per_class in sets:
            results[name] = run(name, X, y, folds_of(y, args.folds, per_class), methods, args)
            Path(args.output).write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
