"""What can be done with a classifier can be done with networks of timm, transformers, open_clip."""

from __future__ import annotations

import joblib
import numpy as np
import pytest
import torch
from sweep import Network, build
from sweep import classifier as classifier_of

from sktl import NotSavableError, PretrainedImageClassifier

VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}
HF = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
HF |= {"intermediate_size": 16, "image_size": 32}
CLIP = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}

NETWORKS = [
    Network("timm", "vit_tiny_patch16_224", 64, VIT),
    Network("timm", "resnet10t", 64, {"channels": (8, 16, 16, 16)}),  # has batch norm
    Network("transformers", "ViTForImageClassification", 32, HF),
    Network("open_clip", "a vision transformer", 32, CLIP),
]
WITH_BATCH_NORM = {"resnet10t"}


def images(seed):
    return np.random.default_rng(seed).integers(0, 256, (8, 40, 48, 3), dtype=np.uint8)


X, Y = images(0), [0, 1] * 4
pytestmark = pytest.mark.filterwarnings("ignore:Training stopped")


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda n: f"{n.library}-{n.name}")
def network(request):
    pytest.importorskip(request.param.library)
    return request.param


@pytest.fixture(scope="module")
def clf(network) -> PretrainedImageClassifier:
    clf = classifier_of(network, build(network)).set_params(freeze=-1)
    return clf.fit(X, Y)


def test_joblib(clf, tmp_path):
    joblib.dump(clf, tmp_path / "model.joblib")
    loaded = joblib.load(tmp_path / "model.joblib")
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    assert loaded.stages_ == clf.stages_


def test_a_file_without_code_holds_networks_by_name_alone(clf, tmp_path):
    with pytest.raises(NotSavableError, match="joblib"):
        clf.save(tmp_path / "model.sktl")
    assert not (tmp_path / "model.sktl").exists()


def test_the_module_answers_as_the_classifier(clf):
    with torch.inference_mode():
        found = clf.to_torch()(torch.from_numpy(X).movedim(-1, 1)).numpy()
    np.testing.assert_allclose(found, clf.predict_proba(X), atol=1e-4)


@pytest.mark.parametrize("method", ["grad_cam", "integrated_gradients"])
def test_explanations(clf, network, method):
    pytest.importorskip("captum")
    before = clf.predict_proba(X)
    found = clf.explain(X[:2], method=method)
    assert found.shape == (2, network.size, network.size)
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0
    np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_gradients_add_up_to_the_difference_from_the_mean_colour(clf):
    """Completeness, Sundararajan et al. 2017, proposition 1; arXiv:1703.01365."""
    pytest.importorskip("captum")
    recipe = clf.__sktl_backbone__().recipe
    mean = np.round(np.array(recipe.mean) * 255).astype(np.uint8)
    score = clf.decision_function(np.stack([X[0], np.broadcast_to(mean, X[0].shape)]))
    found = [clf.explain(X[:1], label, method="integrated_gradients").sum() for label in (0, 1)]
    np.testing.assert_allclose(found[1] - found[0], score[0] - score[1], rtol=0.05, atol=0.02)


@pytest.mark.parametrize("method", ["coral", "pseudo_labels", "adabn"])
def test_adapting(clf, network, method):
    others = images(1) // 2
    if method == "adabn" and network.name not in WITH_BATCH_NORM:
        with pytest.raises(ValueError, match="batch norm"):
            clf.adapt(others, X_source=X, y_source=Y, method=method)
        return
    before = clf.predict_proba(X)
    adapted = clf.adapt(others, X_source=X, y_source=Y, method=method, check=False)
    assert adapted.adaptation_.method == method
    assert not np.array_equal(adapted.predict_proba(others), clf.predict_proba(others))
    np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_onnx(clf, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    clf.to_onnx(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for pictures in (X, X[:3, :33, :37]):
        (found,) = session.run(
            None, {"images": np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))}
        )
        np.testing.assert_allclose(found, clf.predict_proba(pictures), atol=1e-4)
