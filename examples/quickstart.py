"""
Quickstart
==========

Classify handwritten digits with a frozen ImageNet network, search, save and load.

Runs offline in under two minutes on two cores: ``python examples/quickstart.py``
"""

# %%
# The data: 1,797 real images of 8 x 8 pixels, one in a row of 64 values from 0 to 16.

import subprocess
import sys
import tempfile
from pathlib import Path

import joblib
import numpy as np
from contact_sheet import save_sheet
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split

from sktl import PretrainedImageClassifier

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)

# %%
# Fit, and compare with the raw pixels. Digits have little detail: 96 pixels do, and cost a fifth of
# the network's own 224.

clf = PretrainedImageClassifier(image_size=96, random_state=0)
clf.fit(X_train, y_train)
pixels = LogisticRegression(max_iter=2000).fit(X_train, y_train)
print(f"accuracy on {len(y_test)} held-out images")
print(f"  frozen EfficientNet-Lite0, the default   {clf.score(X_test, y_test):.3f}")
print(f"  LogisticRegression on the raw pixels     {pixels.score(X_test, y_test):.3f}")

# %%
# The images that it is least sure of:

probabilities = clf.predict_proba(X_test)
doubtful = np.argsort(probabilities.max(axis=1))[:8]
tiles = [
    (
        np.kron(255 - X_test[i].reshape(8, 8) * 15, np.ones((13, 13))).astype(np.uint8),
        f"{y_test[i]}, taken for {probabilities[i].argmax()}",
    )
    for i in doubtful
]
sheet = save_sheet("doubtful", [("least sure of", tiles)])

# %%
# What to freeze, and how fast to learn: a search on part of the images finds a good setting, and it
# is refitted on all of them. The frozen stages run once for each image.

few = np.arange(0, len(X_train), 3)
search = GridSearchCV(
    PretrainedImageClassifier(image_size=96, max_epochs=8, random_state=0),
    {"freeze": ["all", -1], "lr": [1e-3, 3e-3]},
    cv=3,
)
search.fit(X_train[few], y_train[few])
print(f"search over freeze depth and learning rate, {len(few)} images, 3 folds")
print("  freeze      lr   accuracy   seconds a fit")
results = search.cv_results_
for params, mean, std, seconds in zip(
    results["params"],
    results["mean_test_score"],
    results["std_test_score"],
    results["mean_fit_time"],
    strict=True,
):
    print(
        f"  {params['freeze']!s:>6}  {params['lr']:6.0e}   {mean:.3f} +- {std:.3f}   {seconds:8.2f}"
    )
winner = search.best_estimator_.fit(X_train, y_train)
print(f"the winner, fitted on all {len(y_train)} images: {winner.score(X_test, y_test):.3f}")

# %%
# Save, and load in another Python process.

folder = Path(tempfile.mkdtemp(prefix="sktl-quickstart-"))
joblib.dump(winner, folder / "digits.joblib")
np.save(folder / "images.npy", X_test)
code = """
import sys, joblib, numpy as np
clf = joblib.load(sys.argv[1] + "/digits.joblib")
np.save(sys.argv[1] + "/predictions.npy", clf.predict(np.load(sys.argv[1] + "/images.npy")))
"""
subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
same = np.array_equal(np.load(folder / "predictions.npy"), winner.predict(X_test))
size = (folder / "digits.joblib").stat().st_size / 1e6
print(f"loaded in a new process, the same predictions: {same}")
print(f"the model ({size:.1f} MB) and the images lie in {folder}")
if not same:
    raise SystemExit("the loaded model predicts something else")
