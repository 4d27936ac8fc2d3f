"""
Quickstart
==========

Tell photographs apart from a few small pieces of each; search what to freeze, save and load.

Runs offline in under a minute on two cores:
``pip install ".[examples]" && python examples/quickstart.py``
"""

# %%
# The data: pieces of 64 x 64 pixels of thirteen photographs. A classifier learns from pieces of the
# left half of each, and is tested on pieces of the right half.

import subprocess
import sys
import tempfile
from pathlib import Path

import joblib
import numpy as np
from contact_sheet import save_sheet
from pictures import pieces_of_photographs
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC

from sktl import PretrainedImageClassifier
from sktl.plotting import FreezeSearchDisplay

X_train, y_train, X_test, y_test = pieces_of_photographs(n_train=10, n_test=10)
names = np.unique(y_train)
print(f"{len(names)} photographs: {', '.join(names)}")

# %%
# Fit the frozen network with few labels, and compare with what learns from the pixels alone.
# LogisticRegression reaches the same optimum much sooner on axes that PCA has turned.


def flatten(images):
    return images.reshape(len(images), -1) / 255.0


pixels = FunctionTransformer(flatten)
models = {
    "frozen EfficientNet-Lite0, the default": PretrainedImageClassifier(random_state=0),
    "SVC on the pixels": make_pipeline(pixels, SVC()),
    "LogisticRegression on the pixels": make_pipeline(
        pixels, PCA(), LogisticRegression(max_iter=2000)
    ),
}
print(f"accuracy on {len(X_test)} pieces of the other halves")
for n_labels in (3, 5, 10):
    print(f"  {n_labels} labels a photograph", flush=True)
    few = slice(n_labels * len(names))  # the first pieces of each
    for name, model in models.items():
        score = model.fit(X_train[few], y_train[few]).score(X_test, y_test)
        print(f"    {name:40} {score:.3f}", flush=True)

# %%
# Some pieces that were learned from, and those that the frozen network, with ten labels, is least
# sure of:

clf = models["frozen EfficientNet-Lite0, the default"]
probabilities = clf.predict_proba(X_test)
doubtful = np.argsort(probabilities.max(axis=1))[:8]
guesses = clf.classes_[probabilities.argmax(axis=1)]
sheet = save_sheet(
    "pieces",
    [
        ("learned from", list(zip(X_train[: len(names)], y_train, strict=False))),
        ("least sure of", [(X_test[i], f"{guesses[i]}?") for i in doubtful]),
    ],
)

# %%
# What to freeze, and how fast to learn. The frozen stages run once for each image, whatever the
# number of fits. A frozen head is solved to its optimum; lr belongs to stages that train.

few = slice(5 * len(names))
search = GridSearchCV(
    PretrainedImageClassifier(image_size=64, max_epochs=5, random_state=0),
    {"freeze": ["all", -1, -2], "lr": [3e-4, 1e-3]},
    cv=3,
    verbose=2,
)
search.fit(X_train[few], y_train[few])
print("  freeze      lr   accuracy   seconds a fit")
results = search.cv_results_
for params, mean, seconds in zip(
    results["params"], results["mean_test_score"], results["mean_fit_time"], strict=True
):
    print(f"  {params['freeze']!s:>6}  {params['lr']:6.0e}      {mean:.3f}  {seconds:14.2f}")
winner = search.best_estimator_.fit(X_train, y_train)
print(f"the winner, with all labels: {winner.score(X_test, y_test):.3f}")

# %%
# The same as a picture:

folder = Path(tempfile.mkdtemp(prefix="sktl-quickstart-"))
depths = FreezeSearchDisplay.from_estimator(search)
depths.figure_.savefig(folder / "search.png")
print(f"drawn in {folder / 'search.png'}")

# %%
# Save, and load in another Python process.

joblib.dump(winner, folder / "winner.joblib")
np.save(folder / "images.npy", X_test)
code = """
import sys, joblib, numpy as np
clf = joblib.load(sys.argv[1] + "/winner.joblib")
np.save(sys.argv[1] + "/predictions.npy", clf.predict(np.load(sys.argv[1] + "/images.npy")))
"""
subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
same = np.array_equal(np.load(folder / "predictions.npy"), winner.predict(X_test))
size = (folder / "winner.joblib").stat().st_size / 1e6
print(f"loaded in a new process, the same predictions: {same}")
print(f"the model ({size:.1f} MB) and the images lie in {folder}")
if not same:
    raise SystemExit("the loaded model predicts something else")
