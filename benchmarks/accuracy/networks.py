"""Accuracy of several frozen networks with the default head, each at the size of its weights.

python networks.py stamps=/path/to/stamps food=/path/to/food
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from shapes import scores_of, splits_of, summary
from study import table

from sktl import load_image_folder

NETWORKS = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def main() -> None:
    """Print a table of accuracies and one of differences from the first network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", help="NAME=FOLDER, one folder of pictures a class")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", default="networks.json")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    results: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for given in args.sets:
        name, _, path = given.partition("=")
        pictures = load_image_folder(path)
        X, y = np.asarray(pictures.data), pictures.target.astype(str)
        splits = splits_of(y, args.folds, args.seeds, None)
        found = {network: scores_of(X, y, splits, backbone=network) for network in args.networks}
        first, *others = args.networks
        results[name] = {network: summary(found[network], args.seeds) for network in found}
        differences[name] = {
            network: summary(list(np.subtract(found[network], found[first])), args.seeds)
            for network in others
        }
        print(table({name: results[name]}), flush=True)
        Path(args.output).write_text(json.dumps(results, indent=1))
    print(table(results), table(differences), sep="\n\n")


if __name__ == "__main__":
    main()
