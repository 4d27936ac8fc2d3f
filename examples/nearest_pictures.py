"""
Pictures that look alike
========================

Find the pictures of a folder that look most like one of them, or like another picture.

``python examples/nearest_pictures.py [path/to/pictures [path/to/one.jpg]]``; without a folder of
your own, the pictures are pieces of thirteen photographs.
"""

# %%
# Half the memory in float16: a million pictures take 2.6 GB.

import sys
from pathlib import Path

from contact_sheet import find_pictures, save_sheet
from pictures import folder_of_pictures
from sklearn.neighbors import NearestNeighbors

from sktl import PretrainedImageFeatures

pictures = find_pictures(folder_of_pictures(sys.argv[1:]))
asked = sys.argv[2] if len(sys.argv) > 2 else pictures[0]
others = [path for path in pictures if not Path(path).samefile(asked)]

features = PretrainedImageFeatures(dtype="float16", n_jobs=2)
index = NearestNeighbors(n_neighbors=min(8, len(others)), metric="cosine")
index.fit(features.fit_transform(others))
distances, places = index.kneighbors(features.transform([asked]))

# %%
# The nearest, with their cosine distance:

nearest = []
print(f"most like {asked}:")
for i, distance in zip(places[0], distances[0], strict=True):
    print(f"  {distance:.3f}  {others[i]}")
    nearest.append((others[i], f"{distance:.3f}"))
rows = [("asked for", [(asked, Path(asked).stem)]), ("nearest, with cosine distance", nearest)]
sheet = save_sheet("nearest", rows)
