"""
Groups without labels
=====================

Sort a folder of pictures into groups of what looks alike. No labels are used.

``python examples/group_pictures.py [path/to/pictures]``; without a folder of your own, the pictures
are pieces of thirteen photographs.
"""

# %%
# Density means little in 1,280 dimensions, and more in the few that tell the pictures apart.
# HDBSCAN finds the number of groups, and leaves out what is like nothing else.

import sys
from pathlib import Path

from contact_sheet import find_pictures, save_sheet
from pictures import folder_of_pictures
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from sktl import PretrainedImageFeatures

pictures = find_pictures(folder_of_pictures(sys.argv[1:]))
grouping = make_pipeline(
    PretrainedImageFeatures(n_jobs=2),
    Normalizer(),
    PCA(min(32, len(pictures)), random_state=0),
    HDBSCAN(min_cluster_size=3, copy=True),
)
found = grouping.fit_predict(pictures)

# %%
# The first eight of each group are drawn.

rows = []
for group in range(found.max() + 1):
    members = [path for path, label in zip(pictures, found, strict=True) if label == group]
    print(f"group {group}: {', '.join(Path(path).stem for path in members)}")
    rows.append((f"group {group}", [(path, Path(path).stem) for path in members[:8]]))
print(f"{len(pictures)} pictures in {len(rows)} groups, {(found < 0).sum()} in none")
if rows:
    sheet = save_sheet("groups", rows)
