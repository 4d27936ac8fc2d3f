"""Adapt a classifier to pictures from another source, without their labels.

``python examples/other_source.py path/to/pictures``

The other source is made here: the same kinds of picture, small and badly compressed.
"""

import io
import sys

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


if len(sys.argv) != 2:
    raise SystemExit(__doc__)
pictures = load_image_folder(sys.argv[1])
good, others, y_good, y_others = train_test_split(
    pictures.data, pictures.target, test_size=0.5, stratify=pictures.target, random_state=0
)
bad = [from_a_bad_camera(path) for path in others]

clf = PretrainedImageClassifier(n_jobs=2).fit(good, y_good)
print(f"{len(others)} new pictures, as good as those of the fit: {clf.score(others, y_others):.3f}")
print(f"from the bad camera: {clf.score(bad, y_others):.3f}")

adapted = clf.adapt(bad)
print(f"after clf.adapt(bad): {adapted.score(bad, y_others):.3f}")
print(f"what it expected without a label: {adapted.adaptation_.expected_accuracy:.3f}")
