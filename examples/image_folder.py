"""Classify a folder of pictures, one sub-folder a class: search, save and load.

``python examples/image_folder.py path/to/pictures``
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import joblib
import numpy as np
from sklearn.model_selection import GridSearchCV, train_test_split

from sktl import PretrainedImageClassifier, load_image_folder

if len(sys.argv) != 2:
    raise SystemExit(__doc__)
pictures = load_image_folder(sys.argv[1])
print(f"{len(pictures.data)} pictures of {len(pictures.target_names)} kinds")
train, test, y_train, y_test = train_test_split(
    pictures.data,
    pictures.target_names[pictures.target],
    stratify=pictures.target,
    random_state=0,
)

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

folder = Path(tempfile.mkdtemp(prefix="sktl-pictures-"))
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
