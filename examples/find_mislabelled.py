"""Find pictures that may lie in the wrong folder, of a folder with one sub-folder a class.

``python examples/find_mislabelled.py path/to/pictures``
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from contact_sheet import save_sheet
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from sktl import PretrainedImageClassifier, load_image_folder

if len(sys.argv) != 2:
    raise SystemExit(__doc__)
pictures = load_image_folder(sys.argv[1])
names, labels = pictures.target_names, pictures.target

# Each picture is judged by a classifier that hasn't seen it. Its features are computed once.
folds = StratifiedKFold(min(5, np.bincount(labels).min()), shuffle=True, random_state=0)
# A strong penalty keeps it from being sure of what it can't know.
clf = PretrainedImageClassifier(weight_decay=2e-2, random_state=0, n_jobs=2)
probabilities = cross_val_predict(clf, pictures.data, labels, cv=folds, method="predict_proba")
own = probabilities[np.arange(len(labels)), labels]
doubtful = [i for i in np.argsort(own) if own[i] < 0.1]

print(f"{len(doubtful)} of {len(labels)} pictures look as if they were of another class:")
for i in doubtful:
    guess = names[probabilities[i].argmax()]
    print(f"  {own[i]:.3f}  {pictures.data[i]}  rather {guess}")
if doubtful:
    rows = []
    for label in np.unique(labels[doubtful]):
        guesses = [(i, names[probabilities[i].argmax()]) for i in doubtful if labels[i] == label]
        rows.append((f"in {names[label]}", [(pictures.data[i], f"{g}?") for i, g in guesses]))
    save_sheet(Path(tempfile.mkdtemp(prefix="sktl-doubtful-")) / "doubtful.png", rows)
