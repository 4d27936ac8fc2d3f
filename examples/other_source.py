"""
Pictures from another source
============================

Adapt a classifier to pictures from another camera, without their labels.

``python examples/other_source.py [path/to/pictures]``; without a folder of your own, the pictures
are pieces of thirteen photographs. The other source is made here: the same kinds of picture, small
and badly compressed.
"""

# %%
# One half of the pictures is learned from, the other half comes from a bad camera.

import io
import sys

from contact_sheet import save_sheet
from pictures import folder_of_pictures
from PIL import Image
from sklearn.model_selection import train_test_split

from sktl import PretrainedImageClassifier, load_image_folder


def from_a_bad_camera(path):
    """Read a picture as a third of its size and with the loss of strong compression."""
    picture = Image.open(path).convert("RGB")
    picture = picture.resize((max(1, picture.width // 3), max(1, picture.height // 3)))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=8)
    return Image.open(file).convert("RGB")


pictures = load_image_folder(folder_of_pictures(sys.argv[1:]))
good, others, y_good, y_others = train_test_split(
    pictures.data, pictures.target, test_size=0.5, stratify=pictures.target, random_state=0
)
bad = [from_a_bad_camera(path) for path in others]
some = range(0, len(others), max(1, len(others) // 8))[:8]
names = pictures.target_names[y_others]
sheet = save_sheet(
    "sources",
    [
        ("as good as those of the fit", [(others[i], names[i]) for i in some]),
        ("from the bad camera", [(bad[i], names[i]) for i in some]),
    ],
)

# %%
# The classifier knows nothing of that camera.

clf = PretrainedImageClassifier(n_jobs=2).fit(good, y_good)
print(f"{len(others)} new pictures, as good as those of the fit: {clf.score(others, y_others):.3f}")
print(f"from the bad camera: {clf.score(bad, y_others):.3f}")

# %%
# :meth:`~sktl.PretrainedImageClassifier.adapt` looks at the bad pictures, and at no labels. It says
# what accuracy to expect, and warns where that is little.

adapted = clf.adapt(bad)
print(f"after clf.adapt(bad): {adapted.score(bad, y_others):.3f}")
print(f"what it expected without a label: {adapted.adaptation_.expected_accuracy:.3f}")
