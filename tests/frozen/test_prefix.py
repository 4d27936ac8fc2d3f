"""The frozen prefix: what it computes, and how often."""

import threading
from collections import Counter
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from torch import nn
from torchvision import models

import sktl.backbones
from sktl import PretrainedImageClassifier, PretrainedImageFeatures, load_image_folder
from sktl.backbones import load_backbone
from sktl.cache import DirectoryCache, MemoryCache
from sktl.frozen.module import FrozenModule
from sktl.frozen.prefix import FrozenPrefix, frozen_prefix_of, frozen_stage_of
from sktl.images import jpeg
from sktl.images.format import learn_format
from sktl.images.preprocessing import Recipe
from sktl.images.reading import open_images

CPU = torch.device("cpu")


def images_of(X):
    return open_images(X, learn_format(X))


@pytest.fixture
def backbone():
    return load_backbone("efficientnet_lite0", "DEFAULT", 64)


@pytest.fixture
def prefix(backbone):
    """One of its own, so that its images can be counted."""
    return FrozenPrefix(backbone, None, "auto", "float32", CPU)


def test_fused_features_are_those_of_the_network(backbone, prefix, photographs):
    images = images_of(photographs[0])
    batch = backbone.recipe.apply(images.batch(range(12)))
    with torch.inference_mode():
        plain = backbone.prefix(len(backbone.stages), "auto")(batch)
    torch.testing.assert_close(prefix.module(batch), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prefix.compute(images), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["densenet121", "googlenet", "shufflenet_v2_x0_5"])
def test_fusing_keeps_other_networks_right(name, photographs):
    backbone = load_backbone(name, None, 64, seed=0)
    images = images_of(photographs[0][:2])
    batch = backbone.recipe.apply(images.batch(range(2)))
    depth = len(backbone.stages)
    with torch.inference_mode():
        plain = backbone.prefix(depth, "auto")(batch)
    fast = frozen_prefix_of(backbone, depth, "auto", "float32", CPU)
    torch.testing.assert_close(fast.module(batch), plain, rtol=1e-3, atol=1e-3)


def test_bfloat16_features_are_close(backbone, prefix, photographs):
    low = FrozenPrefix(backbone, None, "auto", "bfloat16", CPU)
    images = images_of(photographs[0])
    a, b = prefix.compute(images), low.compute(images)
    assert a.dtype is torch.float32
    assert b.dtype is torch.bfloat16
    cosine = nn.functional.cosine_similarity(a, b.float())
    assert cosine.min() > 0.99


def test_every_image_is_computed_once(prefix, photographs):
    X, _ = photographs
    cache = MemoryCache(10**8)
    whole = prefix.compute(images_of(X), cache)
    assert prefix.n_images == 12
    again = prefix.compute(images_of(X), cache)
    order = np.random.default_rng(0).permutation(12)
    shuffled = prefix.compute(images_of(X[order]), cache)
    subset = prefix.compute(images_of(list(X[::3])), cache)
    assert prefix.n_images == 12
    assert torch.equal(again, whole)
    assert torch.equal(shuffled, whole[torch.from_numpy(order)])
    assert torch.equal(subset, whole[::3])


def test_an_image_that_occurs_twice_is_computed_once(prefix, photographs):
    X = photographs[0][[0, 1, 0, 0, 1]]
    features = prefix.compute(images_of(X), MemoryCache(10**8))
    assert prefix.n_images == 2
    assert torch.equal(features[0], features[2])
    assert torch.equal(features[1], features[4])
    assert not torch.equal(features[0], features[1])


def test_changed_pixels_miss(prefix, photographs):
    X = photographs[0].copy()
    cache = MemoryCache(10**8)
    prefix.compute(images_of(X), cache)
    X[3, 100, 100, 0] ^= 255
    prefix.compute(images_of(X), cache)
    assert prefix.n_images == 13


def test_without_a_cache_every_image_is_computed_again(prefix, photographs):
    images = images_of(photographs[0])
    assert torch.equal(prefix.compute(images), prefix.compute(images))
    assert prefix.n_images == 24


def key_of(backbone, depth=8, precision="float32"):
    return frozen_prefix_of(backbone, depth, "auto", precision, CPU).key


def test_the_key_tells_what_changes_the_features(backbone):
    same = key_of(load_backbone("efficientnet_lite0", "DEFAULT", 64))
    others = [
        key_of(backbone, depth=7),
        key_of(backbone, precision="bfloat16"),
        key_of(load_backbone("efficientnet_lite0", "DEFAULT", 96)),
        key_of(load_backbone("efficientnet_lite0", None, 64, seed=0)),
        frozen_stage_of(backbone, None, "flatten", "float32", CPU).key,
    ]
    assert key_of(backbone) == same
    assert same not in others
    assert len(set(others)) == len(others)


def test_the_key_names_the_decoder(backbone, monkeypatch):
    with_library = FrozenPrefix(backbone, None, "auto", "float32", CPU).key
    monkeypatch.setattr(jpeg, "decoder", lambda: "another")
    assert FrozenPrefix(backbone, None, "auto", "float32", CPU).key != with_library


@pytest.mark.parametrize("change", ["weight", "dilation", "statistic", "attribute"])
def test_the_key_of_a_module_tells_its_settings(change):
    def make(changed):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        if changed and change == "weight":
            network[0].weight.data[0, 0, 0, 0] += 1e-3
        if changed and change == "dilation":
            network[0].dilation = (2, 2)
        if changed and change == "statistic":
            network[1].running_var[0] += 1e-3
        if changed and change == "attribute":
            network[1].eps = 1e-2
        return load_backbone(network, image_size=32)

    keys = [key_of(b, depth=len(b.stages)) for b in (make(False), make(False), make(True))]
    assert keys[0] == keys[1] != keys[2]


def test_more_threads_give_the_same_features(prefix, photographs):
    images = images_of(np.concatenate([photographs[0]] * 9))
    assert torch.equal(prefix.compute(images, n_jobs=3), prefix.compute(images))


def test_files_are_read_while_the_network_runs(prefix, photographs, tmp_path, monkeypatch):
    """The first batch stays in the network until files of the next one have been read."""
    paths = [str(tmp_path / f"{i}.jpg") for i in range(18)]
    for i, path in enumerate(paths):
        Image.fromarray(photographs[0][i % 12]).save(path)
    met, runs, has_read = [], threading.Event(), threading.Event()
    read, run = Recipe.read, FrozenModule.__call__
    first = threading.Lock()

    def watched_read(self, images, indices):
        if first.acquire(blocking=False):
            return read(self, images, indices)
        met.append(runs.wait(60))
        prepared = read(self, images, indices)
        has_read.set()
        return prepared

    def watched_run(self, batch):
        runs.set()
        met.append(has_read.wait(60))
        return run(self, batch)

    expected = prefix.compute(images_of(paths))
    monkeypatch.setattr(Recipe, "read", watched_read)
    monkeypatch.setattr(FrozenModule, "__call__", watched_run)
    found = prefix.compute(images_of(paths), n_jobs=2)
    assert torch.equal(found, expected)
    assert len(met) > 2
    assert all(met)


def test_a_search_computes_each_image_once(digits):
    X, y = digits
    clf = PretrainedImageClassifier(
        image_size=33, pooling="network", precision="float32", random_state=0
    )
    shared = frozen_stage_of(clf._load_backbone(), None, "auto", "float32", CPU)
    search = GridSearchCV(clf, {"weight_decay": [1e-2, 1e-3, 1e-4]}, cv=4)
    search.fit(X, y)
    search.predict(X)
    clone(search).fit(X[::-1], y[::-1])
    assert shared.n_images == len(X)


def test_classifier_and_transformer_share_features(digits):
    X, y = digits
    features = PretrainedImageFeatures(image_size=34)
    features.fit(X)
    shared = features._prefix
    before = shared.n_images
    PretrainedImageClassifier(image_size=34, pooling="network").fit(X, y)
    features.transform(X)
    assert shared.n_images == before == len(X)


# From shallower features ---------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """Images that went through any prefix, by its last stage."""
    counts = Counter()
    run = FrozenPrefix._run

    def counting(self, load, places, *how):
        for batch, features in run(self, load, places, *how):
            counts[self.stage] += len(batch)
            yield batch, features

    monkeypatch.setattr(FrozenPrefix, "_run", counting)
    return counts


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_deeper_boundary_goes_on_from_a_shallower_one(
    backbone, counted, photographs, tmp_path, precision
):
    images = images_of(photographs[0])
    cache = DirectoryCache(tmp_path)
    n = len(backbone.stages)
    frozen_prefix_of(backbone, n - 2, "auto", precision, CPU).compute(images, cache)
    deeper = [frozen_prefix_of(backbone, d, "auto", precision, CPU) for d in (n - 1, n)]
    deeper.append(frozen_stage_of(backbone, n - 3, "avg", precision, CPU))
    deeper.append(frozen_stage_of(backbone, n - 2, "avg", precision, CPU))
    for prefix in deeper:
        found = prefix.compute(images, cache)
        torch.testing.assert_close(found, prefix.compute(images), rtol=2e-2, atol=2e-2)
        assert found.dtype is prefix.compute(images).dtype
    # One run for the cache; all others are those without one, two a prefix.
    assert counted == {n - 3: 12 + 24, n - 2: 24 + 24, None: 24}


def test_images_that_the_shallower_features_lack_are_computed(backbone, counted, photographs):
    X = photographs[0]
    cache = MemoryCache(10**9)
    frozen_prefix_of(backbone, 6, "auto", "float32", CPU).compute(images_of(X[:5]), cache)
    whole = frozen_prefix_of(backbone, 8, "auto", "float32", CPU)
    found = whole.compute(images_of(X), cache)
    assert counted == {5: 5, None: 7}
    torch.testing.assert_close(found, whole.compute(images_of(X)), rtol=1e-4, atol=1e-4)


def test_a_module_goes_on_from_features_of_the_same_fit_or_search(counted, photographs):
    X, y = photographs
    torch.manual_seed(0)
    network = models.resnet18(weights=None)
    for freeze in (2, 4, "all"):
        PretrainedImageClassifier(network, freeze=freeze, image_size=48, max_epochs=1).fit(X, y)
    assert sum(counted.values()) >= len(X)


# What need not be loaded ----------------------------------------------------------------


def count_loading(X, folder, name, report):
    """In a process that has loaded nothing, fit twice and predict, then predict without a cache."""
    torch.set_num_threads(1)
    loading, cache, counts = sktl.backbones.loading, folder / "cache", []
    with mock.patch.object(loading, "_prepare", side_effect=loading._prepare) as prepare:
        clf = PretrainedImageClassifier(image_size=48, cache=cache).fit(X, np.arange(12) // 6)
        PretrainedImageFeatures(image_size=48, cache=cache).fit(X)
        clf.predict(X)
        counts.append(prepare.call_count)
        clf.set_params(cache=None)
        np.save(folder / name, clf.predict_proba(255 - X))
        counts.append(prepare.call_count)
    report.send((*counts, len(clf.stages_), clf.freeze_))


def test_a_fit_whose_rows_are_all_known_does_not_load_the_backbone(told_by, photographs, tmp_path):
    files = "first.npy", "second.npy"
    told = [told_by(count_loading, photographs[0], tmp_path, file) for file in files]
    assert told == [(1, 1, 8, 8), (0, 1, 8, 8)]
    assert np.array_equal(np.load(tmp_path / "first.npy"), np.load(tmp_path / "second.npy"))


def test_changed_weights_miss(photographs, tmp_path):
    X, y = photographs
    network = models.resnet18(weights=None)
    keys = []
    for change in (0.0, 1e-3):
        network.conv1.weight.data[0, 0, 0, 0] += change
        torch.save(network.state_dict(), tmp_path / "weights.pth")
        clf = PretrainedImageClassifier(
            "resnet18", weights=tmp_path / "weights.pth", image_size=32, cache=tmp_path
        )
        keys.append(clf.fit(X, y)._model.prefix.key)
        assert clf._model.prefix.n_images == len(X)
    assert keys[0] != keys[1]


def test_weights_that_change_before_they_are_needed_are_refused(photographs, tmp_path):
    X, y = photographs
    file = tmp_path / "weights.pth"
    torch.save(models.resnet18(weights=None).state_dict(), file)
    settings = {"weights": file, "image_size": 32, "cache": tmp_path}
    PretrainedImageClassifier("resnet18", **settings).fit(X, y)
    sktl.backbones.loading._loaded.clear()
    clf = PretrainedImageClassifier("resnet18", **settings).fit(X, y)
    assert not clf._model.backbone.is_loaded
    torch.save(models.resnet18(weights=None).state_dict(), file)
    with pytest.raises(OSError, match=r"weights\.pth has changed"):
        clf.predict(255 - X)


# Precision -------------------------------------------------------------------------------


def differing(settings, X, y):
    """Accuracy in both precisions, its standard error, and the share of other predictions."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    predicted = [
        cross_val_predict(
            PretrainedImageClassifier(precision=precision, random_state=0, **settings),
            X,
            y,
            cv=folds,
        )
        for precision in ("float32", "bfloat16")
    ]
    right = [(p == y).mean() for p in predicted]
    error = (right[0] * (1 - right[0]) / len(y)) ** 0.5
    return right, error, (predicted[0] != predicted[1]).mean()


def test_bfloat16_costs_no_accuracy_on_few_digits():
    X, y = (part[:150] for part in load_digits(return_X_y=True))
    right, error, _ = differing({"image_size": 32}, X, y)
    assert abs(right[0] - right[1]) < error


@pytest.mark.slow
def test_bfloat16_costs_no_accuracy_on_digits():
    X, y = load_digits(return_X_y=True)
    right, error, share = differing({"image_size": 64}, X, y)
    assert abs(right[0] - right[1]) < error
    assert share <= 0.01


@pytest.mark.slow
def test_bfloat16_costs_no_accuracy_on_photographs(stamps):
    pictures = load_image_folder(stamps)
    right, error, share = differing({"image_size": 128}, pictures.data, pictures.target)
    assert abs(right[0] - right[1]) < error
    assert share <= 0.01


@pytest.mark.gpu
def test_features_on_a_gpu_are_those_of_the_cpu(backbone, prefix, photographs):
    on_gpu = FrozenPrefix(backbone, None, "auto", "float32", torch.device("cuda"))
    images = images_of(photographs[0])
    features = on_gpu.compute(images)
    assert features.device.type == "cpu"
    torch.testing.assert_close(features, prefix.compute(images), rtol=1e-2, atol=1e-2)
