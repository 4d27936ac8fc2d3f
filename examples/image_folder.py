"""
A folder of pictures
====================

Classify pictures that lie in one sub-folder a class: search, look at the errors, save and load.

``python examples/image_folder.py [path/to/pictures]``; without a folder of your own, the pictures
are pieces of thirteen photographs.
"""

# %%
# :func:`~sktl.load_image_folder` lists the files. They are opened when they are needed.

import subprocess
import sys
import tempfile
from pathlib import Path

import joblib
import numpy as np
from contact_sheet import save_sheet
from pictures import folder_of_pictures
from sklearn.model_selection import GridSearchCV, train_test_split

from sktl import PretrainedImageClassifier, load_image_folder

pictures = load_image_folder(folder_of_pictures(sys.argv[1:]))
print(f"{len(pictures.data)} pictures of {len(pictures.target_names)} kinds")
train, test, y_train, y_test = train_test_split(
    pictures.data,
    pictures.target_names[pictures.target],
    stratify=pictures.target,
    random_state=0,
)

# %%
# Seven candidates in three folds are 22 fits with the last one, and the frozen network sees each
# picture once.

search = GridSearchCV(
    PretrainedImageClassifier(random_state=0, n_jobs=2),
    [
        {"weight_decay": [1e-2, 1e-3, 1e-4]},
        {"lr": [1e-3], "head": ["linear", (256,)], "dropout": [0.0, 0.3]},
    ],
    cv=3,
)
search.fit(train, y_train)
for rank in np.argsort(search.cv_results_["rank_test_score"]):
    mean = search.cv_results_["mean_test_score"][rank]
    std = search.cv_results_["std_test_score"][rank]
    print(f"  {mean:.3f} +- {std:.3f}  {search.cv_results_['params'][rank]}")
clf = search.best_estimator_
print(f"accuracy of the best on {len(test)} held-out pictures: {clf.score(test, y_test):.3f}")

# %%
# What it is least sure of, among the pictures that it hasn't seen:

probabilities = clf.predict_proba(test)
doubtful = np.argsort(probabilities.max(axis=1))[:8]
guesses = clf.classes_[probabilities.argmax(axis=1)]
tiles = [(test[i], f"{guesses[i]}?") for i in doubtful]
sheet = save_sheet("doubtful", [("least sure of", tiles)])

# %%
# Save it, and load it in another Python process.

folder = Path(tempfile.mkdtemp(prefix="sktl-model-"))
joblib.dump(clf, folder / "pictures.joblib")
joblib.dump(test, folder / "paths.joblib")
code = """
import sys, joblib
clf, paths = (joblib.load(f"{sys.argv[1]}/{name}.joblib") for name in ("pictures", "paths"))
joblib.dump(clf.predict(paths), f"{sys.argv[1]}/predictions.joblib")
"""
subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
same = np.array_equal(joblib.load(folder / "predictions.joblib"), clf.predict(test))
print(f"loaded in a new process, the same predictions: {same}")
print(f"the saved model lies in {folder}")
if not same:
    raise SystemExit("the loaded model predicts something else")
