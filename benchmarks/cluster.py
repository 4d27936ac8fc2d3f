"""A search on two Dask workers beside the same search in one process, on one machine's cores."""

from __future__ import annotations

import tempfile

import joblib
from common import arguments, forget, pictures, report, take_turns
from dask.distributed import Client, LocalCluster
from sklearn.model_selection import GridSearchCV

from sktl import PretrainedImageClassifier


def main() -> None:
    """Run both sides and print how they compare."""
    args = arguments(__doc__, images=100, size=96, repeats=3)
    X, y = pictures(args.images, args.size)
    grid = {"freeze": ["all", -1], "lr": [1e-3, 1e-4]}

    def search() -> None:
        forget()
        with tempfile.TemporaryDirectory() as cache:
            clf = PretrainedImageClassifier(image_size=args.size, max_epochs=2, random_state=0)
            GridSearchCV(clf.set_params(cache=cache), grid, cv=3, refit=False).fit(X, y)

    workers = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(host="127.0.0.1", **workers) as cluster, Client(cluster):

        def search_on_workers() -> None:
            with joblib.parallel_config("dask"):
                search()

        search()
        search_on_workers()  # workers import what they need
        sides = {"one process": search, "two Dask workers": search_on_workers}
        report(take_turns(sides, args.repeats), "one process")


if __name__ == "__main__":
    main()
