"""
Scores of a folder
==================

Classify all pictures of a folder, however many, and write a Parquet file.

``pip install "sktl[score]"``, then ``python examples/score_folder.py MODEL FOLDER OUTPUT``; without
these, it fits a classifier to pieces of thirteen photographs and scores the same pieces.

The table has a row a picture: its path, the label, the probability of each class, and of a picture
that can't be read the error in place of these.
"""

import argparse
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from contact_sheet import find_pictures, save_sheet
from pictures import make_folder

import sktl


def main():
    parser = argparse.ArgumentParser(description="Classify all pictures of a folder.")
    parser.add_argument("model", nargs="?", help="a file that clf.save has written")
    parser.add_argument("folder", nargs="?", help="it and the folders below it are searched")
    parser.add_argument("output", nargs="?", help="the Parquet file, replaced when all is done")
    parser.add_argument("--block", type=int, default=1024, help="pictures held at a time")
    parser.add_argument("--n-jobs", type=int, default=1, help="threads that read files")
    arguments = parser.parse_args()
    if arguments.block < 1:
        parser.error("--block must be at least 1")
    if arguments.model is None:
        arguments.model, arguments.folder, arguments.output = made_up_arguments()
    elif arguments.output is None:
        parser.error("MODEL, FOLDER and OUTPUT belong together")

    # Each picture is seen once, so there is nothing to remember.
    clf = sktl.load(arguments.model).set_params(cache=None, n_jobs=arguments.n_jobs)
    if not hasattr(clf, "predict_proba"):
        raise SystemExit(f"{arguments.model} holds no classifier")
    paths = find_pictures(arguments.folder)
    schema = table_schema(clf.classes_)
    n_errors = 0
    with replacing(arguments.output) as file, pq.ParquetWriter(file, schema) as writer:
        for start in range(0, len(paths), arguments.block):
            columns = score(clf, paths[start : start + arguments.block])
            writer.write_table(pa.table(columns, schema=schema))  # a row group
            n_errors += sum(error is not None for error in columns[-1])
            print(f"{min(start + arguments.block, len(paths))} of {len(paths)}", flush=True)
    print(f"{arguments.output} has {len(paths)} rows, {n_errors} of them with an error")
    table = pq.read_table(arguments.output)
    print(table.slice(0, 1).to_pylist())
    return save_sheet("scores", [("every sixth picture, and its label", tiles_of(table)[::6][:16])])


def tiles_of(table):
    """The pictures that could be read, with their labels."""
    rows = table.select(["path", "label"]).to_pylist()
    return [(row["path"], str(row["label"])) for row in rows if row["label"] is not None]


def made_up_arguments():
    folder = make_folder(n_pieces=6)
    pictures = sktl.load_image_folder(folder)
    labels = pictures.target_names[pictures.target]
    clf = sktl.PretrainedImageClassifier(image_size=64).fit(pictures.data, labels)
    clf.save(folder / "model.sktl")
    return folder / "model.sktl", folder, folder / "scores.parquet"


def table_schema(classes):
    label = pa.array(classes.tolist()).type
    probabilities = [(f"probability_{name}", pa.float32()) for name in classes]
    return pa.schema(
        [("path", pa.string()), ("label", label), *probabilities, ("error", pa.string())]
    )


def score(clf, paths):
    """Columns of the table, for some pictures."""
    errors = {}
    try:
        rows = clf.predict_proba(paths)
    except sktl.UnreadableImagesError as error:
        errors = dict(error.files)
        good = [path for path in paths if path not in errors]
        rows = clf.predict_proba(good) if good else np.empty((0, len(clf.classes_)))
    found = np.array([path not in errors for path in paths])
    best = np.zeros(len(paths), dtype=int)
    best[found] = rows.argmax(axis=1)
    probabilities = np.zeros((len(paths), len(clf.classes_)), dtype=np.float32)
    probabilities[found] = rows
    labels = pa.array(clf.classes_[best].tolist(), mask=~found)
    columns = [pa.array(column, mask=~found) for column in probabilities.T]
    return [pa.array(paths), labels, *columns, [errors.get(path) for path in paths]]


@contextmanager
def replacing(path):
    """A file beside another, in whose place it goes when all has been written."""
    target = Path(path).absolute()
    descriptor, temporary = tempfile.mkstemp(".tmp", f".{target.name}.", target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


if __name__ == "__main__":
    sheet = main()
