"""
Pictures beside other columns
=============================

Predict a number from a picture and from what else is known of it, by gradient boosting on both.

``python examples/pictures_and_numbers.py [path/to/pictures]``; without a folder of your own, the
pictures are pieces of thirteen photographs. What the prints of them cost is made up, so that it is
known what there is to find: each kind of picture has its price, larger prints cost more, and so
does a better frame.
"""

# %%
# A table with a column of paths, one of numbers and one of text.

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from pictures import folder_of_pictures
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from sktl import PretrainedImageFeatures, load_image_folder

pictures = load_image_folder(folder_of_pictures(sys.argv[1:]))
rng = np.random.default_rng(0)
n = len(pictures.data)
table = pd.DataFrame(
    {
        "picture": pictures.data,
        "width": rng.integers(20, 100, n),
        "frame": rng.choice(["none", "oak", "gold"], n),
    }
)
of_kind = rng.uniform(1, 5, len(pictures.target_names))
frames = table["frame"].map({"none": 0, "oak": 40, "gold": 90})
price = of_kind[pictures.target] * table["width"] + frames + rng.normal(0, 10, n)
names = [Path(path).name for path in table["picture"]]
print(table.assign(picture=names, price=price.round(2)).sample(5, random_state=0).to_string())

# %%
# The features of the pictures stand beside the other columns. Trees ask for one column at a time,
# so the features are turned along their principal axes first, of which a few are enough.

features = PretrainedImageFeatures(n_jobs=2)
shown = make_pipeline(features, PCA(20, random_state=0))
columns = {
    "picture alone": [(shown, "picture")],
    "columns alone": [("passthrough", ["width"]), (OrdinalEncoder(), ["frame"])],
}
columns["both"] = [*columns["picture alone"], *columns["columns alone"]]

# %%
# Each picture runs through the network once, whatever is made of it then.

for name, parts in columns.items():
    trees = HistGradientBoostingRegressor(min_samples_leaf=5, random_state=0)
    model = make_pipeline(make_column_transformer(*parts), trees)
    folds = KFold(5, shuffle=True, random_state=0)
    scores = cross_val_score(model, table, price, cv=folds)
    print(f"{name}: R2 {scores.mean():.2f}")
