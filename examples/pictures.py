"""Draw how a network was trained and what it sees, of a folder with one sub-folder a class.

``python examples/pictures.py path/to/pictures`` needs matplotlib and captum:
``pip install 'sktl[plot,explain]'``
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.model_selection import GridSearchCV, train_test_split

from sktl import PretrainedImageClassifier, load_image_folder
from sktl.plotting import (
    ExplanationDisplay,
    FeatureMapDisplay,
    FreezeSearchDisplay,
    ImagePredictionsDisplay,
    TrainingCurveDisplay,
)

if len(sys.argv) != 2:
    raise SystemExit(__doc__)
pictures = load_image_folder(sys.argv[1])
names = np.array(pictures.target_names)[pictures.target]
X_train, X_test, y_train, y_test = train_test_split(
    pictures.data, names, test_size=0.4, stratify=names, random_state=0
)
out = Path(tempfile.mkdtemp(prefix="sktl-pictures-"))


def save(display, name):
    file = out / f"{name}.png"
    display.figure_.savefig(file)
    print(f"{name}: {file}")


# How a fit went: stages begin to train one after the other.
fine_tuned = PretrainedImageClassifier(
    image_size=64,
    freeze=-2,
    unfreeze="gradual",
    early_stopping=True,
    validation_fraction=0.3,
    max_epochs=4,
    random_state=0,
).fit(X_train, y_train)
save(TrainingCurveDisplay.from_estimator(fine_tuned), "training")

# Which freeze depth is best, and what it costs.
search = GridSearchCV(
    PretrainedImageClassifier(image_size=64, max_epochs=2, random_state=0),
    {"freeze": ["all", -1, -2], "lr": [3e-4, 1e-3]},
    cv=2,
)
search.fit(X_train, y_train)
save(FreezeSearchDisplay.from_estimator(search), "search")

# What it takes for what, the worst mistakes first; and where it looks.
clf = PretrainedImageClassifier(random_state=0).fit(X_train, y_train)
worst = ImagePredictionsDisplay.from_estimator(clf, X_test, y_test)
save(worst, "predictions")
doubtful = [X_test[i] for i in worst.indices_[:6]]
save(ExplanationDisplay.from_estimator(clf, doubtful), "explanations")

# Which pictures look alike to the network.
save(FeatureMapDisplay.from_estimator(clf, pictures.data, names, method="tsne"), "map")
