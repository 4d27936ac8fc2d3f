"""Adapting a classifier to images of another source."""

import warnings
from functools import partial

import joblib
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import sktl.model.alignment
from sktl import (
    DomainShiftWarning,
    NoDomainShiftWarning,
    PretrainedImageClassifier,
    load,
    load_image_folder,
)
from sktl.model.adapt import METHODS, _learn_statistics
from sktl.model.alignment import (
    _aligned,
    _surest,
    _times_power,
    aligned_head,
    class_shift,
    standardized_head,
)
from sktl.model.source_domain import (
    Home,
    LabelledFeatures,
    LinearHead,
    Settings,
    Standardization,
    fit_head,
    held_out_proba,
    sample_rows,
)

SIZE = 64
SETTINGS = Settings(weight_decay=1e-2, label_smoothing=0.0)
pytestmark = pytest.mark.usefixtures("one_thread")


def labelled(features, labels, n_classes, weights=None):
    weights = np.ones(len(labels)) if weights is None else weights
    return LabelledFeatures(*map(torch.as_tensor, (features, labels, weights)), n_classes)


def clusters(rng, counts, n_features=12, spread=0.4):
    """Rows around a centre a class; the centres are always the same."""
    centres = np.random.default_rng(0).normal(size=(len(counts), n_features))
    labels = np.repeat(np.arange(len(counts)), counts)
    return centres[labels] + spread * rng.normal(size=(len(labels), n_features)), labels


def accuracy(head, features, labels):
    return (head.proba(torch.as_tensor(features)).argmax(1).numpy() == labels).mean()


# Features ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 40])
@pytest.mark.parametrize("exponent", [-0.5, 0.5])
def test_power_of_a_shrunk_covariance(n, exponent):
    rng = np.random.default_rng(0)
    centred, rows = (torch.as_tensor(rng.normal(size=(k, 9))) for k in (n, 7))
    covariance = centred.T @ centred / n + sktl.model.alignment._SHRINKAGE * torch.eye(9)
    values, vectors = torch.linalg.eigh(covariance)
    expected = rows @ vectors @ torch.diag(values**exponent) @ vectors.T
    torch.testing.assert_close(_times_power(rows, centred, exponent), expected)


def test_aligned_features_have_the_targets_covariance(monkeypatch):
    monkeypatch.setattr(sktl.model.alignment, "_SHRINKAGE", 1e-9)
    rng = np.random.default_rng(0)
    features, labels = clusters(rng, [300, 200, 100])
    weights = rng.uniform(0.5, 2, len(labels))
    target = rng.normal(size=(500, 12)) @ rng.normal(size=(12, 12))
    found = _aligned(labelled(features, labels, 3, weights), torch.as_tensor(target)).features
    mean = np.average(found.numpy(), axis=0, weights=weights)
    np.testing.assert_allclose(mean, 0, atol=1e-8)
    covariance = np.cov(found.numpy().T, aweights=weights, bias=True)
    np.testing.assert_allclose(covariance, np.cov(target.T, bias=True), rtol=1e-5, atol=1e-5)


def test_a_head_folded_reads_features_as_they_are():
    rng = np.random.default_rng(0)
    rows = torch.as_tensor(rng.normal(3, 5, size=(30, 4)))
    rows[:, 1] = 7  # a feature that doesn't vary
    scale = Standardization.of(rows)
    head = LinearHead(torch.as_tensor(rng.normal(size=(3, 4))), torch.as_tensor(rng.normal(size=3)))
    folded = scale.folded_into(head)
    torch.testing.assert_close(folded.proba(rows), head.proba(scale(rows)))


@pytest.mark.parametrize("pseudo_labels", [False, True])
@pytest.mark.parametrize("counts", [[60, 60, 60], [110, 60, 10]])
def test_shifted_and_scaled_features_are_recognised(counts, pseudo_labels):
    rng = np.random.default_rng(1)
    source, known = clusters(rng, [50, 50, 50])
    target, labels = clusters(rng, counts)
    target = 3 * target * np.linspace(0.2, 2, 12) + np.linspace(-8, 8, 12)
    rows = labelled(source, known, 3)
    moved = torch.as_tensor(target)
    before = accuracy(fit_head(rows, SETTINGS), target, labels)
    head = aligned_head(Home(rows, SETTINGS), moved, pseudo_labels=pseudo_labels)
    after = accuracy(head, target, labels)
    assert after > 0.95 > 0.8 > before
    assert after >= accuracy(standardized_head(Home(rows, SETTINGS), moved), target, labels)


def test_means_of_other_frequencies_do_not_mislead():
    rng = np.random.default_rng(2)
    source, known = clusters(rng, [60, 60, 60], spread=1.0)
    target, labels = clusters(rng, [150, 15, 15], spread=1.0)
    rows, same = labelled(source, known, 3), torch.as_tensor(target)
    aligned = accuracy(
        aligned_head(Home(rows, SETTINGS), same, pseudo_labels=False), target, labels
    )
    standardized = accuracy(standardized_head(Home(rows, SETTINGS), same), target, labels)
    assert aligned > standardized + 0.05
    assert aligned >= accuracy(fit_head(rows, SETTINGS), target, labels) - 0.02


def test_the_surest_of_each_class():
    proba = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.8, 0.2]])
    rows, labels = _surest(proba.double(), 0.5)
    assert rows.tolist() == [0, 4, 3]
    assert labels.tolist() == [0, 0, 1]


def test_class_frequencies_are_found():
    rng = np.random.default_rng(3)
    source, known = clusters(rng, [100, 100, 100], spread=0.8)
    rows = labelled(source, known, 3)
    target, _ = clusters(rng, [240, 50, 10], spread=0.8)
    seen = fit_head(rows, SETTINGS).proba(torch.as_tensor(target)).mean(0)
    ratios = class_shift(held_out_proba(rows, SETTINGS), rows, seen)
    np.testing.assert_allclose(ratios / 3, [0.8, 50 / 300, 10 / 300], atol=0.05)


def test_no_row_is_judged_by_a_head_that_knows_it():
    rng = np.random.default_rng(4)
    noise = rng.normal(size=(60, 200))
    rows = labelled(noise, np.repeat([0, 1], 30), 2)
    proba = held_out_proba(rows, SETTINGS)
    assert (proba.argmax(1) == rows.labels).double().mean() < 0.75
    assert accuracy(fit_head(rows, SETTINGS), noise, rows.labels.numpy()) == 1
    assert held_out_proba(labelled(noise[:3], np.array([0, 1, 1]), 2), SETTINGS) is None


@pytest.mark.parametrize(("n", "most"), [(400, 400), (40_000, 1000)])
def test_a_sample_has_every_class_and_its_share(n, most):
    rng = np.random.default_rng(0)
    labels = rng.choice(3, n, p=[0.7, 0.29, 0.01])
    labels[:2] = [3, 4]  # classes of one image
    rows = sample_rows(labels, 4 * 512)
    assert most / 2 <= len(rows) <= most + 5
    assert len(np.unique(rows)) == len(rows)
    shares = np.bincount(labels[rows]) / len(rows)
    np.testing.assert_allclose(shares, np.bincount(labels) / n, atol=0.01)
    assert set(labels[rows]) == {0, 1, 2, 3, 4}
    assert len(sample_rows(labels, 2**20)) <= 4 + 5


# Classifiers -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_sources():
    """Digits in white on black to learn from, and others in black on white."""
    X, y = load_digits(return_X_y=True)
    return X[:200], y[:200], 16 - X[200:500], y[200:500]


@pytest.fixture(scope="module")
def fitted(two_sources):
    X, y, _, _ = two_sources
    return PretrainedImageClassifier(image_size=SIZE).fit(X, y)


def make_network():
    """A small network with batch norm that has seen images."""
    layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2)]
    network = nn.Sequential(
        *layers, nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 10),
    )  # fmt: skip
    with torch.no_grad():
        network(torch.randn(64, 3, 32, 32))
    return network.eval()


def make_plain_network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )


@pytest.mark.parametrize("method", ["pseudo_labels", "coral", "standardize"])
def test_other_images_are_recognised_better(fitted, two_sources, method):
    _, _, X, y = two_sources
    adapted = fitted.adapt(X, method=method)
    assert adapted.score(X, y) > fitted.score(X, y) + 0.05
    about = adapted.adaptation_
    assert (about.method, about.n_images) == (method, len(X))
    np.testing.assert_allclose(about.proportions, adapted.predict_proba(X).mean(0), atol=1e-6)
    assert 0.5 < about.expected_accuracy < about.source_accuracy <= 1


@pytest.mark.parametrize("method", METHODS)
def test_the_classifier_stays_and_the_copy_is_whole(fitted, two_sources, method, tmp_path):
    X, y, other = two_sources[0], two_sources[1], two_sources[2][:60]
    before = fitted.predict_proba(other)
    adapted = fitted.adapt(other, X, y, method=method)
    assert np.array_equal(fitted.predict_proba(other), before)
    assert not hasattr(fitted, "adaptation_")
    proba = adapted.predict_proba(other)
    assert proba.shape == before.shape
    assert not np.allclose(proba, before)
    assert np.array_equal(adapted.classes_, fitted.classes_)
    assert adapted.get_params() == fitted.get_params()
    joblib.dump(adapted, tmp_path / "adapted.joblib")
    loaded = joblib.load(tmp_path / "adapted.joblib")
    np.testing.assert_array_equal(loaded.predict_proba(other), proba)
    assert loaded.adaptation_.method == method
    again = clone(adapted).fit(X, y)
    assert not hasattr(again, "adaptation_")
    np.testing.assert_allclose(again.predict_proba(other), before, atol=1e-6)


def test_a_loaded_classifier_adapts_as_well(fitted, two_sources, tmp_path):
    X, y, other, _ = two_sources
    joblib.dump(fitted, tmp_path / "clf.joblib")
    loaded = joblib.load(tmp_path / "clf.joblib")
    expected = fitted.adapt(other).predict_proba(other)
    np.testing.assert_allclose(loaded.adapt(other).predict_proba(other), expected, atol=1e-6)
    given = fitted.adapt(other, X, y).predict_proba(other)
    np.testing.assert_allclose(given, expected, atol=1e-6)  # all images of the fit were kept


def test_frozen_features_are_computed_once(two_sources):
    X, y, other, _ = two_sources
    clf = PretrainedImageClassifier(make_network(), image_size=32, precision="float32").fit(X, y)
    prefix = clf._model.prefix
    assert prefix.n_images == len(X)
    for method in ("pseudo_labels", "coral", "standardize", "label_shift"):
        clf.adapt(other, method=method).predict(other)
    assert prefix.n_images == len(X) + len(other)


@pytest.mark.parametrize("params", [{"freeze": -1}, {"freeze": "none"}, {"head": (16,)}])
def test_trained_stages_and_hidden_layers(two_sources, params, tmp_path):
    X, y, other, labels = two_sources
    clf = PretrainedImageClassifier(
        image_size=32, max_epochs=2, random_state=0, precision="float32", **params
    ).fit(X, y)
    features = clf.transform(X)
    np.testing.assert_allclose(clf._sample.features, features, rtol=1e-4, atol=1e-4)
    adapted = clf.adapt(other)
    assert adapted.freeze_ == clf.freeze_
    np.testing.assert_array_equal(adapted.transform(X), features)
    assert isinstance(adapted.net_.module_.head[-1], nn.Linear)
    assert adapted.score(other, labels) > clf.score(other, labels)
    entropies = clf.adapt(other[:60], method="tent")
    assert entropies.freeze_ == 0
    assert not np.allclose(entropies.transform(X), features)


def test_batch_norm_learns_the_statistics_of_the_images(two_sources):
    X, y, other, _ = two_sources
    network = make_network()
    clf = PretrainedImageClassifier(network, image_size=32, precision="float32").fit(X, y)
    adapted = clf.adapt(other, X, y, method="adabn")
    suffix = adapted.net_.module_.suffix
    first = next(m for m in suffix.modules() if isinstance(m, nn.BatchNorm2d))
    images = clf._model.backbone.recipe.apply(clf._open(other, reset=False).batch(range(300)))
    with torch.inference_mode():
        maps = network[0](suffix[0](images))
    torch.testing.assert_close(first.running_mean, maps.mean((0, 2, 3)), rtol=0.02, atol=0.02)
    assert not torch.allclose(network[1].running_mean, first.running_mean, atol=0.05)
    kept = clf._model.whole_network()
    torch.testing.assert_close(kept(images), torch.as_tensor(clf.transform(other)))
    _learn_statistics(kept, [first], iter([]))  # leaves the network in evaluation mode
    assert not any(m.training for m in kept.modules())


def test_entropy_falls_and_only_norms_change(two_sources):
    X, y, other, _ = two_sources
    network = make_network()
    clf = PretrainedImageClassifier(network, image_size=32, precision="float32").fit(X, y)
    aligned = clf.adapt(other, method="coral")
    surer = clf.adapt(other, method="tent")

    def entropy(model):
        return -(model.predict_proba(other) * model.predict_log_proba(other)).sum(1).mean()

    assert entropy(surer) < entropy(aligned)
    changed = {
        name.rpartition("body.")[2]
        for (name, tensor), old in zip(
            surer.net_.module_.suffix.state_dict().items(),
            clf._model.whole_network().state_dict().values(),
            strict=True,
        )
        if not torch.equal(tensor, old)
    }
    assert changed == {"1.weight", "1.bias", "4.weight", "4.bias"}


def test_label_shift_where_only_frequencies_differ(fitted):
    X, y = load_digits(return_X_y=True)
    X, y = X[500:], y[500:]
    rare = np.isin(y, [3, 8, 9]) & (np.arange(len(y)) % 12 > 0)
    X, y = X[~rare], y[~rare]
    adapted = fitted.adapt(X, method="label_shift")
    assert adapted.score(X, y) > fitted.score(X, y)
    assert adapted.adaptation_.proportions[[3, 8, 9]].sum() < 0.12
    heads = [clf.net_.module_.head[-1] for clf in (adapted, fitted)]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert (heads[0].bias < heads[1].bias)[[3, 8, 9]].all()


def test_files_names_and_two_classes(save_photographs, tmp_path):
    files = sorted(save_photographs(tmp_path).rglob("*.jpg"))
    kinds = np.array([file.parent.name for file in files])
    clf = PretrainedImageClassifier(image_size=SIZE).fit(list(map(str, files)), kinds)
    grey = [np.asarray(Image.open(file).convert("L")) for file in files]
    adapted = clf.adapt(grey, list(map(str, files)), kinds)
    assert adapted.score(grey, kinds) == 1
    assert adapted.decision_function(grey).shape == (12,)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_few_images(fitted, two_sources, n):
    _, _, X, y = two_sources
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DomainShiftWarning)
        adapted = fitted.adapt(X[:n])
    assert np.isfinite(adapted.predict_proba(X)).all()
    if n == 50:
        assert adapted.score(X, y) > fitted.score(X, y)


def test_images_that_are_too_different(fitted, two_sources):
    X = two_sources[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DomainShiftWarning)
        fitted.adapt(X)
    noise = np.random.default_rng(0).uniform(0, 16, size=(100, 64))
    with pytest.warns(DomainShiftWarning, match="is to be expected, where it was"):
        fitted.adapt(noise)


@pytest.fixture(scope="module")
def stamp_halves(stamps):
    """Pictures of one half of the stamps with labels, and those of the other half."""
    found = load_image_folder(stamps)
    pictures = np.empty(len(found.data), dtype=object)
    pictures[:] = [Image.open(path).convert("RGB") for path in found.data]
    X, other, y, answers = train_test_split(
        pictures, found.target, test_size=0.5, stratify=found.target, random_state=0
    )
    return X, y, other, answers


@pytest.fixture(scope="module")
def fitted_to_stamps(stamp_halves):
    X, y, _, _ = stamp_halves
    return PretrainedImageClassifier(image_size=96).fit(X, y)


def changed(pictures, change):
    made = np.empty(len(pictures), dtype=object)
    made[:] = [change(picture) for picture in pictures]
    return made


def test_grey_pictures_leave_the_classifier_as_it_is(fitted_to_stamps, stamp_halves, tmp_path):
    _, _, X, y = stamp_halves
    grey = changed(X, lambda picture: picture.convert("L"))
    with pytest.warns(NoDomainShiftWarning, match="check=False"):
        left = fitted_to_stamps.adapt(grey)
    np.testing.assert_array_equal(left.predict_proba(grey), fitted_to_stamps.predict_proba(grey))
    assert left.adaptation_.adapted is False
    assert left.adaptation_.expected_accuracy < left.adaptation_.source_accuracy + 0.03
    left.save(tmp_path / "left.sktl")
    assert load(tmp_path / "left.sktl").adaptation_.adapted is False
    assert fitted_to_stamps.adapt(grey, check=False).adaptation_.adapted
    assert fitted_to_stamps.adapt(grey, method="label_shift").adaptation_.adapted


def test_blurred_pictures_are_adapted_to(fitted_to_stamps, stamp_halves):
    _, _, X, y = stamp_halves
    blurred = changed(X, lambda p: p.filter(ImageFilter.GaussianBlur(max(p.size) / 60)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoDomainShiftWarning)
        adapted = fitted_to_stamps.adapt(blurred)
    assert adapted.score(blurred, y) > fitted_to_stamps.score(blurred, y) + 0.03


def test_more_pictures_of_the_same_kind_help_where_labels_are_few(stamp_halves):
    X, y, more, answers = stamp_halves
    few = np.concatenate([np.flatnonzero(y == name)[:4] for name in np.unique(y)])
    clf = PretrainedImageClassifier(image_size=96).fit(X[few], y[few])
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoDomainShiftWarning)
        adapted = clf.adapt(more)
    assert adapted.score(more, answers) > clf.score(more, answers)


def test_one_picture_a_class_tells_nothing_of_what_adapting_does(stamp_halves):
    X, y, more, _ = stamp_halves
    one = [np.flatnonzero(y == name)[0] for name in np.unique(y)]
    clf = PretrainedImageClassifier(image_size=96).fit(X[one], y[one])
    with pytest.warns(NoDomainShiftWarning, match="one image only.*check=False"):
        left = clf.adapt(more)
    np.testing.assert_array_equal(left.predict_proba(more), clf.predict_proba(more))


def test_what_cannot_be_adapted(fitted, two_sources):
    X, y, other, _ = two_sources
    with pytest.raises(ValueError, match="method='magic' is not one of"):
        fitted.adapt(other, method="magic")
    with pytest.raises(ValueError, match="X_source and y_source belong together"):
        fitted.adapt(other, X)
    with pytest.raises(ValueError, match="needs X_source|Pass them as X_source"):
        fitted.adapt(other, method="adabn")
    with pytest.raises(ValueError, match=r"y_source holds \[11\]"):
        fitted.adapt(other, X[:1], [11])
    with pytest.raises(ValueError, match=r"y_source lacks the classes \[1, 2"):
        fitted.adapt(other, X[:1], y[:1])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        fitted.adapt(other, X, y[:-1])
    with pytest.raises(ValueError, match="X has 63 features"):
        fitted.adapt(other[:, 1:])
    with pytest.raises(Exception, match="not fitted"):
        PretrainedImageClassifier().adapt(other)


@pytest.mark.parametrize("check", [True, False])
def test_networks_without_norms(two_sources, check):
    """What can't be done is an error, also where nothing speaks for doing it."""
    X, y, other, _ = two_sources
    clf = PretrainedImageClassifier(make_plain_network, image_size=32, random_state=0).fit(X, y)
    adapt = partial(clf.adapt, other, check=check)
    with pytest.raises(ValueError, match="Pass them as X_source"):
        adapt(method="adabn")
    with pytest.raises(ValueError, match='"adabn" needs batch norm'):
        adapt(X, y, method="adabn")
    with pytest.raises(ValueError, match='"tent" adjusts norms'):
        adapt(method="tent")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DomainShiftWarning)
        warnings.simplefilter("ignore", NoDomainShiftWarning)
        assert adapt().predict(other).shape == (len(other),)


def test_no_images_were_kept(two_sources):
    X, y, other, labels = two_sources
    clf = PretrainedImageClassifier(image_size=SIZE)
    clf.partial_fit(X, y, classes=np.unique(y))
    with pytest.raises(ValueError, match="kept no images of its fit"):
        clf.adapt(other)
    adapted = clf.adapt(other, X, y)
    assert adapted.score(other, labels) > clf.score(other, labels)
    changed = adapted.adapt(other[:60], X, y, method="tent")
    with pytest.raises(ValueError, match="kept no images of its fit"):
        changed.adapt(other)


def test_classes_of_one_image(two_sources):
    X, y, other, _ = two_sources
    first = np.unique(y, return_index=True)[1]
    clf = PretrainedImageClassifier(image_size=SIZE).fit(X[first], y[first])
    adapted = clf.adapt(other)
    assert adapted.adaptation_.expected_accuracy is None
    with pytest.raises(ValueError, match="two of each at least"):
        clf.adapt(other, method="label_shift")
