"""skops files: what they hold, what has to be trusted, and what is refused."""

import io
import zipfile

import numpy as np
import pytest
import skops.io
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from skops.io.exceptions import UntrustedTypesFoundException
from torch import nn
from torchvision.models import ResNet18_Weights

from sktl import PretrainedImageClassifier, PretrainedImageFeatures

TRUSTED = [
    "sktl.classifier.PretrainedImageClassifier",
    "sktl.features.PretrainedImageFeatures",
]
pytestmark = pytest.mark.usefixtures("one_thread", "few_iterations_are_enough")


class SmallNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.block2 = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.block2(self.block1(x)).mean((2, 3)))


def make_head(in_features, n_classes):
    return nn.Linear(in_features, n_classes)


def classifier(**settings):
    settings = {"image_size": 32, "cache": None, "random_state": 0, "max_epochs": 1} | settings
    return PretrainedImageClassifier(**settings)


def features(**settings):
    return PretrainedImageFeatures(image_size=32, cache=None, **settings)


@pytest.fixture(scope="module")
def X(digits):
    return digits[0][:30]


@pytest.fixture(scope="module")
def y(digits):
    return np.array(["even", "odd"], dtype=object)[digits[1][:30] % 2]


ESTIMATORS = {
    "frozen": lambda: classifier(precision="bfloat16", random_state=np.random.RandomState(0)),
    "last stage trains": lambda: classifier(freeze=-1, early_stopping=True, head=(8,)),
    "random weights": lambda: classifier(backbone="shufflenet_v2_x0_5", weights=None, freeze=-1),
    "several stages": lambda: features(stage=["stem", None], dtype="float16"),
    "pipeline": lambda: make_pipeline(features(), LogisticRegression()),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_is_loaded_predicts_bitwise_the_same(name, X, y):
    fitted = ESTIMATORS[name]().fit(X, y)
    data = skops.io.dumps(fitted)
    assert set(skops.io.get_untrusted_types(data=data)) <= set(TRUSTED)
    loaded = skops.io.loads(data, trusted=TRUSTED)
    method = "predict_proba" if hasattr(fitted, "predict_proba") else "transform"
    expected = getattr(fitted, method)(X)
    np.testing.assert_array_equal(getattr(loaded, method)(X), expected)
    if method == "predict_proba":
        np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))


@pytest.fixture(scope="module")
def fitted(X, y):
    return classifier(max_epochs=None).fit(X, y)


def test_an_adapted_classifier(fitted, X):
    adapted = fitted.adapt(16 - X, method="label_shift")
    loaded = skops.io.loads(skops.io.dumps(adapted), trusted=TRUSTED)
    np.testing.assert_array_equal(loaded.predict_proba(X), adapted.predict_proba(X))
    assert loaded.adaptation_.method == "label_shift"
    np.testing.assert_array_equal(loaded.adaptation_.proportions, adapted.adaptation_.proportions)


def test_nothing_is_loaded_that_is_not_trusted(fitted, tmp_path):
    path = tmp_path / "model.skops"
    skops.io.dump(fitted, path)
    with pytest.raises(UntrustedTypesFoundException, match="sktl.classifier"):
        skops.io.load(path)
    loaded = skops.io.load(path, trusted=TRUSTED)
    assert loaded.classes_.tolist() == ["even", "odd"]


def test_a_file_holds_arrays_and_text_only(fitted):
    with zipfile.ZipFile(io.BytesIO(skops.io.dumps(fitted))) as file:
        members = {name: file.read(name) for name in file.namelist()}
    assert members.pop("schema.json").startswith(b"{")
    arrays = [m for m in members.values() if m.startswith(b"\x93NUMPY")]
    others = [m for m in members.values() if not m.startswith(b"\x93NUMPY")]
    for array in arrays:
        np.load(io.BytesIO(array), allow_pickle=False)
    assert len(arrays) > 100
    assert list(map(len, others)) == [16]  # the hash of name and weights of the backbone


REFUSED = {
    "backbone": SmallNet(),
    "weights": ResNet18_Weights.DEFAULT,
    "head": lambda in_features, n_classes: nn.Linear(in_features, n_classes),
    "criterion": nn.CrossEntropyLoss(weight=torch.ones(2), reduction="none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_not_be_read_is_refused(name, tmp_path):
    path = tmp_path / "model.skops"
    with pytest.raises(TypeError, match=rf"skops can't write {name}=.*joblib\.dump"):
        skops.io.dump(classifier(**{name: REFUSED[name]}), path)
    assert not path.exists()


@pytest.mark.parametrize("name", ["backbone", "head"])
def test_what_the_model_was_fitted_with_counts_as_well(name, X, y):
    fitted = classifier(**{name: REFUSED[name]}).fit(X, y)
    fitted.set_params(**{name: classifier().get_params()[name]})
    with pytest.raises(TypeError, match=f"skops can't write {name}="):
        skops.io.dumps(fitted)


def test_a_function_goes_by_its_name_and_has_to_be_trusted(X, y):
    fitted = classifier(head=make_head).fit(X, y)
    data = skops.io.dumps(fitted)
    name = f"{__name__}.make_head"
    assert skops.io.get_untrusted_types(data=data) == sorted([TRUSTED[0], name])
    loaded = skops.io.loads(data, trusted=[TRUSTED[0], name])
    np.testing.assert_array_equal(loaded.predict_proba(X), fitted.predict_proba(X))
