"""
Pictures in the wrong folder
============================

Find pictures that may be mislabelled, in a folder with one sub-folder a class.

``python examples/find_mislabelled.py [path/to/pictures]``; without a folder of your own, the
pictures are pieces of thirteen photographs, of which thirteen are moved to a wrong folder first.
"""

# %%
# A picture of each kind goes into the folder of the next, where it is to be found again.

import sys

import numpy as np
from contact_sheet import save_sheet
from pictures import folder_of_pictures
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from sktl import PretrainedImageClassifier, load_image_folder

folder = folder_of_pictures(sys.argv[1:])
if not sys.argv[1:]:
    kinds = sorted(folder.iterdir())
    for kind, wrong in zip(kinds, kinds[1:] + kinds[:1], strict=True):
        picture = kind / f"{kind.name}00.png"
        picture.rename(wrong / picture.name)
pictures = load_image_folder(folder)
names, labels = pictures.target_names, pictures.target

# %%
# Each picture is judged by a classifier that hasn't seen it. Its features are computed once, for
# all folds. A strong penalty keeps the classifier from being sure of what it can't know.

folds = StratifiedKFold(min(5, np.bincount(labels).min()), shuffle=True, random_state=0)
clf = PretrainedImageClassifier(weight_decay=5e-2, random_state=0, n_jobs=2)
probabilities = cross_val_predict(clf, pictures.data, labels, cv=folds, method="predict_proba")
own = probabilities[np.arange(len(labels)), labels]
doubtful = [i for i in np.argsort(own) if own[i] < 0.1]

# %%
# Where its own label has little probability, a picture is worth a look.

print(f"{len(doubtful)} of {len(labels)} pictures look as if they were of another class:")
tiles = []
for i in doubtful:
    guess = names[probabilities[i].argmax()]
    print(f"  {own[i]:.3f}  {pictures.data[i]}  rather {guess}")
    tiles.append((pictures.data[i], f"{names[labels[i]]}: {guess}?"))
if tiles:
    sheet = save_sheet("doubtful", [("folder, and what it looks like", tiles)])
