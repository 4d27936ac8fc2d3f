"""
What a classifier learned, in pictures
======================================

Draw how a network was trained, which freeze depth is best, what it gets wrong and where it looks.

``python examples/plots.py [path/to/pictures]``; without a folder of your own, the pictures are
pieces of thirteen photographs. It needs matplotlib and captum: ``pip install 'sktl[plot,explain]'``
"""

# %%
# How a fit went: here stages begin to train one after the other. Handwritten digits are far from
# the photographs that the network was trained on, so there is something for its stages to learn.

import sys

import matplotlib.pyplot as plt
import numpy as np
from pictures import folder_of_pictures
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split

from sktl import PretrainedImageClassifier, load_image_folder
from sktl.plotting import (
    ExplanationDisplay,
    FeatureMapDisplay,
    FreezeSearchDisplay,
    ImageConfusionMatrixDisplay,
    ImagePredictionsDisplay,
    TrainingCurveDisplay,
)

digits = load_digits()
fine_tuned = PretrainedImageClassifier(
    image_size=64,
    freeze=-2,
    unfreeze="gradual",
    early_stopping=True,
    validation_fraction=0.3,
    max_epochs=6,
    random_state=0,
).fit(digits.images[:300], digits.target[:300])
curves = TrainingCurveDisplay.from_estimator(fine_tuned)

# %%
# Which freeze depth is best, and what it costs.

search = GridSearchCV(
    PretrainedImageClassifier(image_size=64, max_epochs=5, random_state=0),
    {"freeze": ["all", -1, -2], "lr": [3e-4, 1e-3]},
    cv=2,
)
search.fit(digits.images[:200], digits.target[:200])
depths = FreezeSearchDisplay.from_estimator(search)

# %%
# From here on, real pictures.

pictures = load_image_folder(folder_of_pictures(sys.argv[1:]))
names = np.array(pictures.target_names)[pictures.target]
X_train, X_test, y_train, y_test = train_test_split(
    pictures.data, names, test_size=0.4, stratify=names, random_state=0
)

# %%
# What it takes for what, the most confident mistakes first.

clf = PretrainedImageClassifier(random_state=0).fit(X_train, y_train)
worst = ImagePredictionsDisplay.from_estimator(clf, X_test, y_test)

# %%
# Which classes it mixes up, with the surest picture of each pair.

pairs = ImageConfusionMatrixDisplay.from_estimator(clf, X_test, y_test)

# %%
# Where it looks.

first = worst.indices_[:6]
reasons = ExplanationDisplay.from_estimator(clf, [X_test[i] for i in first], y=y_test[first])

# %%
# Which pictures look alike to the network.

map_ = FeatureMapDisplay.from_estimator(clf, pictures.data, names, method="tsne")
plt.show()
