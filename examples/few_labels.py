"""
Few labels, many pictures
=========================

Learn from two labelled pictures a class, and from all the others without their labels.

``python examples/few_labels.py [path/to/pictures]``; without a folder of your own, the pictures are
pieces of thirteen photographs.
"""

# %%
# A quarter of the pictures is set aside for the test. Of the others, two a class keep their label.

import sys

import numpy as np
from contact_sheet import save_sheet
from pictures import folder_of_pictures
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier

from sktl import PretrainedImageClassifier, PretrainedImageFeatures, load_image_folder

LABELS = 2
UNKNOWN = -1  # scikit-learn's label of samples that have none

pictures = load_image_folder(folder_of_pictures(sys.argv[1:]))
train, test, y_train, y_test = train_test_split(
    pictures.data, pictures.target, stratify=pictures.target, random_state=0
)
known = np.concatenate([np.flatnonzero(y_train == label)[:LABELS] for label in np.unique(y_train)])
partly = np.full_like(y_train, UNKNOWN)
partly[known] = y_train[known]
print(f"{len(train)} pictures to learn from, {len(known)} of them with a label")
one_each = [known[np.flatnonzero(y_train[known] == label)[0]] for label in np.unique(y_train)]
tiles = [(train[i], pictures.target_names[y_train[i]]) for i in one_each]
sheet = save_sheet("labelled", [("one of the labelled pictures of each class", tiles)])

# %%
# First the labelled pictures alone. :meth:`~sktl.PretrainedImageClassifier.adapt` could make use of
# the others, but it is for pictures of another source. Where those look like the fit's, and nothing
# tells that they would be answered better, it says so in a warning and leaves the classifier as it
# is.

clf = PretrainedImageClassifier(n_jobs=2).fit(train[known], y_train[known])
print(f"labelled pictures alone:  {clf.score(test, y_test):.3f}")
adapted = clf.adapt(train)
print(f"adapt to the others:      {adapted.score(test, y_test):.3f}")

# %%
# scikit-learn's own estimators for this take rows, so the frozen network turns the pictures into
# features first. Of unit length, neighbours are those in the same direction.

features = make_pipeline(PretrainedImageFeatures(n_jobs=2), Normalizer()).fit(train)
train_rows, test_rows = features.transform(train), features.transform(test)
for name, estimator in {
    "SelfTrainingClassifier:": SelfTrainingClassifier(LogisticRegression(C=100, max_iter=1000)),
    "LabelSpreading:": LabelSpreading(kernel="rbf", gamma=20),
}.items():
    accuracy = estimator.fit(train_rows, partly).score(test_rows, y_test)
    print(f"{name:<25} {accuracy:.3f}")
