"""Networks of timm and Hugging Face by name, from a cache as a download leaves it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import sktl
from sktl import FileFormatError, PretrainedImageFeatures
from sktl.files.container import read_sealed, write_sealed

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

X = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)

# Run in a process of its own, since the hub's cache is chosen when it is imported.
IN_CACHE = '''
import sys
from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors.torch import save_file

import sktl
from sktl import MissingWeightsError, PretrainedImageClassifier, PretrainedImageFeatures

X = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def in_cache(repository, write):
    folder = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123456789012345678901234567890123456789"
    snapshot.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(snapshot.name)
    write(snapshot)


def check(name, module, **settings):
    """By name as by the module, in a file, and refused once the weights are others."""
    named = PretrainedImageFeatures(name, cache=None, **settings).fit(X)
    given = PretrainedImageFeatures(module, cache=None, **settings).fit(X)
    found = named.transform(X)
    np.testing.assert_allclose(found, given.transform(X), atol=1e-5)
    named.save("small.sktl", include_backbone=False)
    named.save("whole.sktl")
    for file in ("small.sktl", "whole.sktl"):
        np.testing.assert_array_equal(sktl.load(file).transform(X), found)
    return named


torch.manual_seed(0)
network = timm.create_model("resnet10t.c3_in1k", pretrained=False)
in_cache(
    "timm/resnet10t.c3_in1k",
    lambda folder: save_file(network.state_dict(), folder / "model.safetensors"),
)
named = check("timm/resnet10t.c3_in1k", network, image_size=32)
own = timm.data.resolve_model_data_config(network)
assert named.__sktl_backbone__().recipe.mean == own["mean"]

vit = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}
config = transformers.ViTConfig(**vit, intermediate_size=64, image_size=32)
processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
models = {
    "me/classifier": transformers.ViTForImageClassification(config),
    "me/base": transformers.ViTModel(config, add_pooling_layer=False),
}
for repository, model in models.items():
    in_cache(repository, model.save_pretrained)
    in_cache(repository, processor.save_pretrained)
    check(f"hf/{repository}", model.eval(), preprocessing=processor)
    recipe = PretrainedImageFeatures(f"hf/{repository}").__sktl_backbone__().recipe
    assert (recipe.crop, recipe.resize_mode) == (32, "squash")
clf = PretrainedImageClassifier("hf/me/base", freeze=-1, max_epochs=1).fit(X, [0, 1] * 3)
assert clf.freeze_ == 3, clf.stages_

other = transformers.ViTModel(config, add_pooling_layer=False)
in_cache("me/base", other.save_pretrained)
from sktl.backbones.loading import _loaded

_loaded.clear()  # as in another process
try:
    sktl.load("small.sktl")
except MissingWeightsError as error:
    assert "not the ones" in str(error), error
else:
    raise AssertionError("other weights were taken for those of the fit")

for name, message in (
    ("timm/resnet34.a1_in1k", "could not be had from Hugging Face's hub"),
    ("hf/me/nothing", "could not be had from Hugging Face's hub"),
):
    try:
        PretrainedImageFeatures(name).fit(X)
    except OSError as error:
        assert message in str(error) and HF_HUB_CACHE in str(error), error
    else:
        raise AssertionError(name)
print("all is well")
'''


def test_networks_in_the_cache_of_the_hub(tmp_path):
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IN_CACHE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.stdout.strip().endswith("all is well"), done.stderr[-3000:]


def test_names_of_timm_are_listed():
    found = sktl.list_backbones("timm/*dinov2*")
    assert "timm/vit_small_patch14_dinov2.lvd142m" in found
    assert all("dinov2" in name and name.startswith("timm/") for name in found)
    assert sktl.list_backbones("resnet1*") == ["resnet101", "resnet152", "resnet18"]
    assert not any(name.startswith("timm/") for name in sktl.list_backbones())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet18.a9_in1k", "Did you mean 'timm/resnet18.a1_in1k'"),
        ("timm/resnet81", r"Did you mean 'timm/resnet\d+"),
        ("hf/", "names no repository"),
        ("hf/a/b/c", "names no repository"),
        ("tim/resnet18", "'timm/<name>', 'hf/<repository>'"),
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises(ValueError, match=message):
        PretrainedImageFeatures(name).fit(X)


def test_weights_of_a_hub_are_its_own():
    with pytest.raises(ValueError, match="part of the name"):
        PretrainedImageFeatures("timm/resnet18", weights="IMAGENET1K_V1").fit(X)


def test_random_weights_of_timm_are_the_same_in_each_fit(tmp_path):
    features = PretrainedImageFeatures(
        "timm/resnet10t.c3_in1k", weights=None, image_size=32, cache=None
    )
    first = features.fit_transform(X)
    np.testing.assert_array_equal(features.fit_transform(X), first)
    features.save(tmp_path / "model.sktl")
    np.testing.assert_array_equal(sktl.load(tmp_path / "model.sktl").transform(X), first)
    document, tensors = read_sealed(tmp_path / "model.sktl")
    document["model"]["backbone"]["name"] = "timm/no_such_thing"
    write_sealed(tmp_path / "model.sktl", document, tensors)
    with pytest.raises(FileFormatError, match="timm has no model"):
        sktl.load(tmp_path / "model.sktl")


def test_a_network_that_makes_tensors_in_forward_is_saved(tmp_path):
    features = PretrainedImageFeatures(
        "timm/eva02_tiny_patch14_224", weights=None, image_size=28, cache=None
    )
    expected = features.fit_transform(X)
    features.save(tmp_path / "model.sktl")
    np.testing.assert_array_equal(sktl.load(tmp_path / "model.sktl").transform(X), expected)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install sktl\[timm\]"):
        PretrainedImageFeatures("timm/resnet18").fit(X)
