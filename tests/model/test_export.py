"""Classifiers as torch modules and ONNX files: the same answers, without sktl."""

import copy
import json
import pickle
import subprocess
import sys
import warnings

import joblib
import numpy as np
import onnx
import onnxruntime
import pytest
import skimage.data
import torch
from families import FAMILIES, SMALL, image_size_of
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn

import sktl
from sktl import PretrainedImageClassifier
from sktl.images.preprocessing import Recipe
from sktl.model.export import _check_size
from sktl.model.exported_resize import Resize

BOUND = 1e-4
ANY_SIZE = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
pytestmark = [
    pytest.mark.usefixtures("few_iterations_are_enough", "one_thread"),
    pytest.mark.filterwarnings("ignore:`torch.jit.:FutureWarning"),
]


def small_network():
    """A network with two stages of convolution, and random weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


class DependsOnValues(nn.Module):
    """What neither torch.fx nor an exporter can follow."""

    def __init__(self):
        super().__init__()
        self.network = small_network()

    def forward(self, images):
        return self.network(images if images.mean() < 100 else -images)


class Tanh(nn.Module):
    """A head of one's own."""

    def __init__(self, in_features, n_classes):
        super().__init__()
        self.first = nn.Linear(in_features, 8)
        self.last = nn.Linear(8, n_classes)

    def forward(self, features):
        return self.last(torch.tanh(self.first(features)))


class Loud(nn.Module):
    """A head that brings features of any size to 1, so that an error in them shows."""

    def __init__(self, in_features, n_classes):
        super().__init__()
        self.norm = nn.LayerNorm(in_features, eps=1e-30, elementwise_affine=False)
        self.last = nn.Linear(in_features, n_classes)

    def forward(self, features):
        return self.last(self.norm(features))


def classifier(**settings):
    return PretrainedImageClassifier(
        **{
            "backbone": small_network,
            "image_size": 32,
            "cache": None,
            "precision": "float32",
            "random_state": 0,
            "max_epochs": 2,
        }
        | settings
    )


def as_tensor(image):
    return torch.from_numpy(np.array(image)).movedim(-1, 0)[None].contiguous()


@pytest.fixture(scope="module")
def X(photographs):
    return photographs[0]


@pytest.fixture(scope="module")
def y(photographs):
    return photographs[1]


@pytest.fixture(scope="module")
def pictures(X):
    """(1, 3, h, w) of many sizes: large, small, upright, odd, tiny, and strips."""
    chelsea = skimage.data.chelsea()
    parts = [X[0], chelsea, skimage.data.coffee()[::-1], skimage.data.astronaut()[:, 100:401]]
    parts += [chelsea[:32, :32], chelsea[:20, :37], chelsea[:1, :1], chelsea[50:181, 30:83]]
    parts += [chelsea[:100], chelsea[:7], chelsea[:, 40:103], chelsea[:, 50:55], chelsea[:300, :99]]
    return [as_tensor(part) for part in parts]


@pytest.fixture(scope="module")
def fitted(X, y):
    """Of the embedded backbone, with text for labels."""
    return classifier(backbone="efficientnet_lite0", image_size=64).fit(
        X, np.array(["temple", "flower"])[y]
    )


def as_array(pictures):
    """With the channels last: of (n, 3, h, 1) the classifier would take the last axis for grey."""
    return pictures.movedim(1, -1).numpy()


def check_torch(clf, images):
    """The module, traced and exported at one size, answers as the classifier at any size."""
    module = clf.to_torch()
    example = images[0].repeat(2, 1, 1, 1)
    forms = {"module": module, "traced": torch.jit.trace(module, example, check_trace=False)}
    exported = torch.export.export(module, (example,), dynamic_shapes=(ANY_SIZE,))
    forms["exported"] = exported.module()
    for picture in images:
        expected = clf.predict_proba(as_array(picture))
        for name, form in forms.items():
            found = form(picture)
            assert found.dtype is torch.float32
            np.testing.assert_allclose(found, expected, atol=BOUND, rtol=0, err_msg=name)


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def check_onnx(clf, images, path):
    clf.to_onnx(path)
    run = session(path)
    classes = np.array(json.loads(run.get_modelmeta().custom_metadata_map["classes"]))
    np.testing.assert_array_equal(classes, clf.classes_)
    for picture in images:
        (found,) = run.run(["probabilities"], {"images": picture.numpy()})
        expected = clf.predict_proba(as_array(picture))
        np.testing.assert_allclose(found, expected, atol=BOUND, rtol=0)
        np.testing.assert_array_equal(classes[found.argmax(1)], clf.predict(as_array(picture)))


# Pixels ------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize, crop", [(36, 32), (101, 64), (232, 224)])
def test_a_trace_has_the_pixels_of_the_recipe_at_any_size(pictures, interpolation, resize, crop):
    recipe = Recipe(resize, crop, interpolation, (0, 0, 0), (1, 1, 1))
    traced = torch.jit.trace(Resize(recipe), pictures[0])
    for picture in pictures:
        assert torch.equal(traced(picture), recipe.apply(picture)), picture.shape


def test_resizing_that_programs_cannot_have_says_so(X, y):
    recipe = Recipe(36, 32, "nearest", (0, 0, 0), (1, 1, 1))
    images = as_tensor(X[0])
    assert torch.equal(Resize(recipe)(images), recipe.apply(images))
    with pytest.raises(ValueError, match="interpolation='nearest'"):
        torch.jit.trace(Resize(recipe), images)


# torch -------------------------------------------------------------------------------


def test_torch_answers_as_the_classifier_does_on_pictures_of_any_size(fitted, pictures):
    check_torch(fitted, pictures)


SETTINGS = {
    "nothing frozen": {"freeze": "none"},
    "one stage frozen": {"freeze": 1},
    "hidden layers": {"head": (8, 4), "dropout": 0.2},
    "a head of one's own": {"head": Tanh},
    "avg": {"pooling": "avg"},
    "flatten": {"pooling": "flatten"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_torch_takes_every_kind_of_classifier(settings, X, y, pictures):
    check_torch(classifier(**settings).fit(X, y), pictures[:2])


@pytest.mark.parametrize("freeze", ["all", "none"])
def test_networks_that_cannot_be_traced(freeze, X, y, tmp_path):
    clf = classifier(backbone=DependsOnValues(), freeze=freeze).fit(X, y)
    found = clf.to_torch()(as_tensor(X[0]))
    np.testing.assert_allclose(found, clf.predict_proba(X[:1]), atol=BOUND)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="can't be exported to ONNX: GuardOnDataDependent"):
        clf.to_onnx(path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("method", ["coral", "adabn", "tent"])
def test_adapted_classifiers(method, X, y):
    clf = classifier().fit(X, y).adapt(X[:, ::-1].copy(), X, y, method=method)
    found = clf.to_torch()(torch.from_numpy(X).movedim(-1, 1))
    np.testing.assert_allclose(found, clf.predict_proba(X), atol=BOUND)


def test_loaded_classifiers(fitted, X, tmp_path):
    joblib.dump(fitted, tmp_path / "clf.joblib")
    fitted.save(tmp_path / "clf.sktl")
    images = torch.from_numpy(X[:3]).movedim(-1, 1)
    expected = fitted.to_torch()(images)
    for loaded in (joblib.load(tmp_path / "clf.joblib"), sktl.load(tmp_path / "clf.sktl")):
        assert torch.equal(loaded.to_torch()(images), expected)


def test_low_precision_is_left_behind(X, y):
    clf = classifier(precision="bfloat16", freeze=1).fit(X, y)
    module = clf.to_torch()
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    found = module(torch.from_numpy(X).movedim(-1, 1))
    np.testing.assert_allclose(found, clf.predict_proba(X), atol=1e-2)


def test_the_module_is_a_copy_ready_for_use(fitted, X):
    expected = fitted.predict_proba(X[:2])
    module = fitted.to_torch()
    assert module.classes == ["flower", "temple"]
    assert not any(part.training for part in module.modules())
    assert not any(p.requires_grad for p in module.parameters())
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()
    np.testing.assert_array_equal(fitted.predict_proba(X[:2]), expected)
    np.testing.assert_allclose(fitted.to_torch()(as_tensor(X[0])), expected[:1], atol=BOUND)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_the_module_can_be_copied_and_pickled(fitted, X, copied):
    module, images = fitted.to_torch(), as_tensor(X[0])
    assert torch.equal(copied(module)(images), module(images))


@pytest.mark.slow
def test_compiled(X, y, pictures):
    module = classifier().fit(X, y).to_torch()
    compiled = torch.compile(module, backend="aot_eager", dynamic=True, fullgraph=True)
    for picture in pictures[:2]:
        np.testing.assert_allclose(compiled(picture), module(picture), atol=BOUND)


def test_saved_programs_need_no_sktl(X, y, pictures, tmp_path):
    clf = classifier().fit(X, y)
    module = clf.to_torch()
    images, other = pictures[0].repeat(2, 1, 1, 1), pictures[1]
    exported = torch.export.export(module, (images,), dynamic_shapes=(ANY_SIZE,))
    torch.export.save(exported, tmp_path / "model.pt2")
    torch.jit.trace(module, images, check_trace=False).save(tmp_path / "model.pt")
    np.save(tmp_path / "picture.npy", other.numpy())
    code = """
import sys
sys.modules["sktl"] = None
import numpy, torch
picture = torch.from_numpy(numpy.load("picture.npy"))
print(torch.export.load("model.pt2").module()(picture)[0, 0].item())
print(torch.jit.load("model.pt")(picture)[0, 0].item())
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    expected = clf.predict_proba(other)[0, 0]
    np.testing.assert_allclose([float(n) for n in run.stdout.split()], expected, atol=BOUND)


# Ranges ------------------------------------------------------------------------------


@pytest.mark.parametrize("high", [1, 16, 255])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_read_by_the_range_that_fit_saw(high, dtype, X, y):
    rng = np.random.default_rng(0)
    # Also values between two grey levels, where rounding decides, and beyond the range.
    values = (X[:, :50, :60] + rng.integers(-1, 2, (12, 50, 60, 3)) / 2) * (high / 255)
    clf = classifier().fit(np.clip(values, 0, high).astype(dtype), y)
    assert clf.pixel_range_ == (0, high)
    values = values.astype(dtype)
    found = clf.to_torch()(torch.from_numpy(values).movedim(-1, 1))
    np.testing.assert_allclose(found, clf.predict_proba(values), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_given_range_counts_for_all(dtype, X, y):
    clf = classifier(pixel_range=(50, 150)).fit(X, y)
    values = X[:, :50, :60].astype(dtype)
    images = torch.from_numpy(values).movedim(-1, 1)
    np.testing.assert_allclose(clf.to_torch()(images), clf.predict_proba(values), atol=1e-6)


@pytest.mark.parametrize("seen, given", [(np.uint8, np.float32), (np.float64, np.uint8)])
def test_what_the_classifier_refuses_the_module_refuses(seen, given, X, y):
    scale = 1 if seen is np.uint8 else 16 / 255
    clf = classifier().fit((X * scale).astype(seen), y)
    values = X[:1].astype(given)
    with pytest.raises(ValueError, match="fit saw") as refusal:
        clf.predict_proba(values)
    with pytest.raises(ValueError) as found:
        clf.to_torch()(as_tensor(values[0]))
    assert str(found.value) == str(refusal.value)


def test_images_of_another_kind_are_refused(fitted):
    module = fitted.to_torch()
    with pytest.raises(ValueError, match=r"\(n, 3, h, w\), got \(2, 40, 40, 3\)"):
        module(torch.zeros(2, 40, 40, 3, dtype=torch.uint8))
    with pytest.raises(TypeError, match="uint8 or floats, got torch.int64"):
        module(torch.zeros(2, 3, 40, 40, dtype=torch.int64))


# ONNX --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(fitted, tmp_path_factory):
    """The path of the embedded backbone's classifier."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fitted.to_onnx(path)
    return path


def test_onnx_answers_as_the_classifier_does_on_pictures_of_any_size(fitted, file, pictures):
    run = session(file)
    for picture in pictures:
        for images in (picture, picture.repeat(3, 1, 1, 1)):
            (found,) = run.run(None, {"images": images.numpy()})
            np.testing.assert_allclose(
                found, fitted.predict_proba(as_array(images)), atol=BOUND, rtol=0
            )
            labels = np.array(["flower", "temple"])[found.argmax(1)]
            np.testing.assert_array_equal(labels, fitted.predict(as_array(images)))


def test_onnx_files_tell_what_they_are(file):
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about["classes"]) == ["flower", "temple"]
    assert about["sktl_version"] == sktl.__version__
    assert "uint8 (n, 3, height, width), RGB, 0 is black and 255 white" in about["input"]
    (images,), (probabilities,) = model.graph.input, model.graph.output
    assert images.name == "images"
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    sides = [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim]
    assert sides == ["n", 3, "height", "width"]
    assert probabilities.name == "probabilities"


def test_onnx_takes_other_heads_ranges_and_numbers_for_labels(X, y, pictures, tmp_path):
    settings = {"freeze": 1, "head": Tanh, "pooling": "flatten", "pixel_range": (50, 150)}
    clf = classifier(**settings).fit(X, 7 - 2 * y)
    check_onnx(clf, [as_tensor(X[0, :50, :60]), *pictures[:2]], tmp_path / "model.onnx")


def test_the_last_step_of_a_pipeline_takes_digits_as_pictures(digits, tmp_path):
    """Rows of 0 to 16: uint8 arrays would be refused, and files of pictures aren't."""
    clf = make_pipeline(FunctionTransformer(), classifier()).fit(*digits)
    path = tmp_path / "model.onnx"
    clf[-1].to_onnx(path)
    pictures = np.rint(digits[0][:8].reshape(8, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.repeat(pictures[:, None], 3, axis=1)
    (found,) = session(path).run(None, {"images": images})
    np.testing.assert_allclose(found, clf.predict_proba(digits[0][:8]), atol=BOUND)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name if name in SMALL else pytest.param(name, marks=pytest.mark.all_models)
        for name in FAMILIES
    ],
)
def test_every_family_of_networks(name, X, y, tmp_path):
    clf = classifier(
        backbone=name, weights=None, image_size=image_size_of(name), head=Loud, max_epochs=1
    )
    clf.fit(X[::3], y[::3])
    images = as_tensor(X[4, :130, :190])
    module = pickle.loads(pickle.dumps(clf.to_torch()))
    traced = torch.jit.trace(module, images.repeat(2, 1, 1, 1), check_trace=False)
    for form in (module, traced):
        np.testing.assert_allclose(form(images), clf.predict_proba(images), atol=BOUND)
    check_onnx(clf, [images, as_tensor(X[5])], tmp_path / "model.onnx")


# Errors ------------------------------------------------------------------------------


def test_before_fit(tmp_path):
    with pytest.raises(NotFittedError):
        classifier().to_torch()
    with pytest.raises(NotFittedError):
        classifier().to_onnx(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named(package, fitted, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install sktl\[onnx\]"):
        fitted.to_onnx(tmp_path / "model.onnx")


def test_a_network_too_large_for_a_file_is_refused():
    _check_size(nn.Linear(20_000, 20_000, device="meta"))
    with pytest.raises(ValueError, match="2,500,200,000 bytes, .* at most 2 GiB"):
        _check_size(nn.Linear(25_000, 25_002, device="meta", bias=False))
