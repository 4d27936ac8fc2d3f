"""Few labels: the frozen network, and classifiers on the pixels, on pieces of photographs.

Prints a table in CSV, of which docs/plots/photographs.py draws a picture.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC

from sktl import PretrainedImageClassifier

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from pictures import pieces_of_photographs  # noqa: E402

N_LABELS = (3, 5, 10)


def main() -> None:
    """Print mean and standard deviation of the accuracies, over several drawings of the pieces."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drawings", type=int, default=3)
    parser.add_argument("--test", type=int, default=10, help="pieces of each to test on")
    args = parser.parse_args()
    scores: dict[tuple[int, str], list[float]] = {}
    for seed in range(args.drawings):
        X, y, X_test, y_test = pieces_of_photographs(max(N_LABELS), args.test, seed=seed)
        for n_labels in N_LABELS:
            few = slice(n_labels * len(np.unique(y)))
            for name, model in models().items():
                score = model.fit(X[few], y[few]).score(X_test, y_test)
                scores.setdefault((n_labels, name), []).append(score)
    print(f"# {processor()}, torch {torch.__version__}, {args.drawings} drawings")
    print("labels,classifier,accuracy,std")
    for (n_labels, name), found in scores.items():
        print(f"{n_labels},{name},{np.mean(found):.3f},{np.std(found):.3f}")


def models() -> dict[str, object]:
    """Make the classifiers; PCA turns the axes, so that the optimum is found much sooner."""
    pixels = FunctionTransformer(lambda images: images.reshape(len(images), -1) / 255.0)
    return {
        "sktl's default": PretrainedImageClassifier(random_state=0),
        "SVC on pixels": make_pipeline(pixels, SVC()),
        "LogisticRegression on pixels": make_pipeline(
            pixels, PCA(), LogisticRegression(max_iter=2000)
        ),
    }


def processor() -> str:
    """Name the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "?")


if __name__ == "__main__":
    main()
