"""Sort a folder of pictures into groups of what looks alike, without labels.

``python examples/group_pictures.py path/to/pictures``
"""

import sys
import tempfile
from pathlib import Path

from contact_sheet import find_pictures, save_sheet
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from sktl import PretrainedImageFeatures

if len(sys.argv) != 2:
    raise SystemExit(__doc__)
pictures = find_pictures(sys.argv[1])

# Density means little in 1,280 dimensions, and more in the few that tell the pictures apart.
# HDBSCAN finds the number of groups, and leaves out what is like nothing else.
grouping = make_pipeline(
    PretrainedImageFeatures(n_jobs=2),
    Normalizer(),
    PCA(min(32, len(pictures)), random_state=0),
    HDBSCAN(min_cluster_size=3, copy=True),
)
found = grouping.fit_predict(pictures)

rows = []
for group in range(found.max() + 1):
    members = [path for path, label in zip(pictures, found, strict=True) if label == group]
    print(f"group {group}: {', '.join(Path(path).stem for path in members)}")
    rows.append((f"group {group}", [(path, Path(path).stem) for path in members]))
print(f"{len(pictures)} pictures in {len(rows)} groups, {(found < 0).sum()} in none")
if rows:
    save_sheet(Path(tempfile.mkdtemp(prefix="sktl-groups-")) / "groups.png", rows)
