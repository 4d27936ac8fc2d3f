"""A fit in a new process that finds its features in a directory, beside the fit that made them."""

from __future__ import annotations

import subprocess
import sys
import tempfile

from common import arguments, report, take_turns

FIT = """
import sys, time
sys.path.insert(0, {folder!r})
from common import pictures, weights_file
from sktl import PretrainedImageClassifier
X, y = pictures({images})
weights = weights_file("resnet18")
clf = PretrainedImageClassifier("resnet18", weights=weights, cache={cache!r})
clf.set_params(optimizer="adamw", max_epochs=10)
start = time.perf_counter()
clf.fit(X, y)
print(time.perf_counter() - start)
"""


def main() -> None:
    """Run all sides and print how they compare."""
    args = arguments(__doc__, images=1000, repeats=3)

    def fit(cache: str) -> float:
        code = FIT.format(folder=sys.path[0], images=args.images, cache=cache)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        return float(done.stdout)

    seconds = []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as cache:
            seconds.append((fit(cache), fit(cache)))
    first, second = (iter(side) for side in zip(*seconds, strict=True))
    medians = take_turns(
        {
            "the first fit": lambda: next(first),
            "the second, in a new process": lambda: next(second),
        },
        args.repeats,
    )
    report(medians, "the first fit")


if __name__ == "__main__":
    main()
