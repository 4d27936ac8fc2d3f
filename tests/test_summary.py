"""What notebooks show of an estimator."""

import html
import re

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sktl import PretrainedImageClassifier, PretrainedImageFeatures

NAMES = np.array(["a<b & c", "other"])


@pytest.fixture(scope="module")
def data():
    X, y = load_digits(n_class=2, return_X_y=True)
    return X[:20], NAMES[y[:20]]


def facts(view):
    """Names and values in the section on what was learned."""
    (section,) = re.findall(r'<div class="sktl-fitted".*?</table></div>', view, re.DOTALL)
    cells = re.findall(r"<t[hd].*?</t[hd]>", section)
    cells = [html.unescape(re.sub("<[^>]*>", "|", cell)) for cell in cells]
    plain = [re.sub(r"\|+", "|", cell).strip("|") for cell in cells]
    return dict(zip(plain[::2], plain[1::2], strict=True))


def test_a_fitted_classifier(data):
    clf = PretrainedImageClassifier(image_size=32, freeze=-1, max_epochs=1)
    unfitted = clf._repr_html_()
    assert "sktl-fitted" not in unfitted
    view = clf.fit(*data)._repr_html_()
    told = facts(view)
    stages = told.pop("Stages (❄\ufe0e frozen)").split("|")
    assert [s.removeprefix("❄\ufe0e ") for s in stages] == [*clf.stages_, "head"]
    assert [s.startswith("❄") for s in stages] == [True] * clf.freeze_ + [False, False]
    n_trained = sum(p.numel() for p in clf.net_.module_.parameters())
    assert told == {
        "Backbone": "efficientnet_lite0",
        "Trained parameters": f"{n_trained:,}",
        "Classes": "2: a<b & c, other",
        "Device": str(clf.device_),
        "Precision": clf.precision_,
    }
    assert "a<b & c" not in view.partition("sktl-fitted")[2].partition("</div>")[0]
    assert view.count("parameters-table") >= unfitted.count("parameters-table") > 0
    assert "max_epochs" in view


def test_fitted_features(data):
    features = PretrainedImageFeatures(stage=["stem", "features.2"], image_size=32)
    told = facts(features.fit(data[0])._repr_html_())
    assert told["Features"] == "56, float32"
    assert told["Stages (❄\ufe0e frozen)"].count("❄") == 3


def test_inside_others(data):
    pipeline = make_pipeline(PretrainedImageFeatures(image_size=32), LogisticRegression())
    assert "sktl-fitted" not in pipeline._repr_html_()
    assert facts(pipeline.fit(*data)._repr_html_())["Backbone"] == "efficientnet_lite0"
    search = GridSearchCV(PretrainedImageClassifier(image_size=32), {"weight_decay": [1e-3]}, cv=2)
    assert facts(search.fit(*data)._repr_html_())["Classes"] == "2: a<b & c, other"


def test_many_classes_and_a_callable(data):
    def small():
        from torchvision.models import squeezenet1_1

        return squeezenet1_1(weights=None)

    X = np.repeat(data[0], 4, axis=0)
    names = [f"{'x' * 40}{i:02}" for i in range(40)] * 2
    clf = PretrainedImageClassifier(small, weights=None, image_size=32).fit(X, names)
    told = facts(clf._repr_html_())
    assert told["Backbone"] == "small"
    assert told["Classes"] == "40: " + ", ".join([f"{'x' * 30}…"] * 6) + ", …"
