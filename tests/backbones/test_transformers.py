"""Models of transformers, with random weights: nothing is downloaded."""

from __future__ import annotations

import copy
import warnings

import joblib
import numpy as np
import pytest
import torch
from torch import nn

from sktl import PretrainedImageClassifier, PretrainedImageFeatures, Recipe
from sktl.backbones.from_transformers import as_network
from sktl.backbones.split import TracedNetwork, make_splitter

transformers = pytest.importorskip("transformers")

VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}
VIT |= {"intermediate_size": 64, "image_size": 32}
FOUR = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 2, 1]}
SWIN = {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4, "image_size": 32}
FOCAL = {"embed_dim": 16, "depths": [1, 1, 2, 1], "image_size": 32}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"}

# What is built, from which settings, and which of its outputs are the features.
MODELS = [
    ("ViTModel", "ViTConfig", VIT, "pooled"),
    ("ViTForImageClassification", "ViTConfig", VIT, "classifier"),
    ("DeiTModel", "DeiTConfig", VIT, "pooled"),
    ("BeitModel", "BeitConfig", VIT, "pooled"),
    ("Dinov2Model", "Dinov2Config", VIT, "pooled"),
    ("Dinov2ForImageClassification", "Dinov2Config", VIT, "classifier"),
    ("CLIPVisionModel", "CLIPVisionConfig", VIT, "pooled"),
    ("SiglipVisionModel", "SiglipVisionConfig", VIT, "pooled"),
    ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", VIT, "pooled"),
    ("ResNetModel", "ResNetConfig", RESNET, "pooled"),
    ("ResNetForImageClassification", "ResNetConfig", RESNET, "classifier"),
    ("ConvNextModel", "ConvNextConfig", FOUR, "pooled"),
    ("ConvNextForImageClassification", "ConvNextConfig", FOUR, "classifier"),
    ("ConvNextV2Model", "ConvNextV2Config", FOUR, "pooled"),
    ("SwinModel", "SwinConfig", SWIN, "pooled"),
    ("RegNetModel", "RegNetConfig", RESNET | {"groups_width": 8, "layer_type": "y"}, "pooled"),
    ("PoolFormerModel", "PoolFormerConfig", FOUR, "map"),
    ("DINOv3ViTModel", "DINOv3ViTConfig", VIT, "pooled"),
    ("FocalNetModel", "FocalNetConfig", FOCAL, "pooled"),
    ("MobileNetV2ForImageClassification", "MobileNetV2Config", {}, "classifier"),
]


def build(name, config, settings):
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()


def own_features(model, kind, images):
    if kind == "classifier":
        seen = []
        last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
        with last.register_forward_pre_hook(lambda _, given: seen.append(given[0])):
            model(pixel_values=images)
        return seen[0]
    found = model(pixel_values=images)
    if kind == "pooled":
        return found.pooler_output.flatten(1)
    return found.last_hidden_state.mean((2, 3))


@pytest.mark.parametrize(("name", "config", "settings", "kind"), MODELS, ids=lambda v: str(v)[:40])
def test_features_and_stages(name, config, settings, kind):
    model = build(name, config, settings)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splitter = make_splitter(as_network(model, 32), 32)
    n_stages = len(splitter.stages)
    assert isinstance(splitter, TracedNetwork)
    assert n_stages > 2
    with torch.inference_mode():
        expected = own_features(model, kind, images)
        whole = splitter.prefix(n_stages, "auto")(images)
        torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-4)
        for depth in range(1, n_stages):
            begun = splitter.prefix(depth, "auto")(images)
            rest = splitter.suffix(depth, "auto").eval()(begun)
            torch.testing.assert_close(rest, whole, atol=1e-5, rtol=1e-4)


def test_stages_are_the_hidden_states_that_the_library_names():
    model = build("ViTModel", "ViTConfig", VIT)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    splitter = make_splitter(as_network(model, 32), 32)
    with torch.inference_mode():
        states = model(pixel_values=images, output_hidden_states=True).hidden_states
        for stage, state in enumerate(states[:-1]):  # our last one includes the norm after it
            torch.testing.assert_close(splitter.stage_features(stage)(images), state)


@pytest.mark.parametrize(("pooled", "token"), [(True, False), (False, True), (False, False)])
def test_what_is_taken_of_several_outputs(pooled, token):
    """The pooled output, else the class token, else the mean of the tokens."""
    torch.manual_seed(0)
    if pooled or token:
        model = transformers.ViTModel(transformers.ViTConfig(**VIT), add_pooling_layer=pooled)
    else:
        config = transformers.SiglipVisionConfig(**VIT, vision_use_head=False)
        model = transformers.SiglipVisionModel(config)
    model.eval()
    X = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    features = PretrainedImageFeatures(
        model, preprocessing=Recipe(32, 32), cache=None, precision="float32"
    )
    pixels = torch.from_numpy(X).permute(0, 3, 1, 2)
    with torch.inference_mode():
        given = (pixels / 255 - torch.tensor(Recipe().mean)[:, None, None]) / torch.tensor(
            Recipe().std
        )[:, None, None]
        found = model(pixel_values=given)
        hidden = found.last_hidden_state
        expected = found.pooler_output if pooled else hidden[:, 0] if token else hidden.mean(1)
    np.testing.assert_allclose(features.fit_transform(X), expected, atol=1e-4)


def test_an_embedding_of_images_goes_before_the_pooled_output():
    config = transformers.CLIPVisionConfig(**VIT, projection_dim=12)
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    splitter = make_splitter(as_network(model, 32), 32)
    with torch.inference_mode():
        expected = model(pixel_values=images).image_embeds
        found = splitter.prefix(len(splitter.stages), "auto")(images)
        torch.testing.assert_close(found, expected)


def test_the_last_block_is_fine_tuned_and_all_is_kept(tmp_path):
    model = build("ViTForImageClassification", "ViTConfig", VIT)
    X = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    y = [0, 1] * 6
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    clf = PretrainedImageClassifier(
        model, freeze=-1, preprocessing=processor, max_epochs=1, random_state=0
    )
    clf.fit(X, y)
    assert clf.freeze_ == len(clf.stages_) - 1
    trained = {name for name, _ in clf.net_.module_.suffix.named_parameters()}
    assert trained and not any("layer_0" in name or "layers.0" in name for name in trained)
    joblib.dump(clf, tmp_path / "model.joblib")
    expected = clf.predict_proba(X)
    np.testing.assert_array_equal(joblib.load(tmp_path / "model.joblib").predict_proba(X), expected)
    pixels = torch.from_numpy(X).permute(0, 3, 1, 2)
    with torch.inference_mode():
        np.testing.assert_allclose(clf.to_torch()(pixels).numpy(), expected, atol=1e-3)


def test_weights_of_a_file_have_the_names_of_the_library(tmp_path):
    model = build("ViTForImageClassification", "ViTConfig", VIT)
    with torch.no_grad():
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            parameter.add_(0.01)
    state = other.state_dict() | {"classifier.weight": torch.zeros(7, 32)}
    state["classifier.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "other.pth")
    X = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    settings = {"preprocessing": Recipe(32, 32), "cache": None}
    found = PretrainedImageFeatures(model, weights=tmp_path / "other.pth", **settings)
    expected = PretrainedImageFeatures(other, **settings).fit_transform(X)
    np.testing.assert_array_equal(found.fit_transform(X), expected)


TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"intermediate_size": 16, "vocab_size": 20}
BAD = [
    (lambda: transformers.BertModel(transformers.BertConfig(**TEXT)), r"takes \['input_ids'\]"),
    (
        lambda: transformers.CLIPModel(
            transformers.CLIPConfig(text_config=TEXT, vision_config=VIT)
        ),
        "images and text.*model.vision_model",
    ),
    (
        lambda: transformers.YolosForObjectDetection(
            transformers.YolosConfig(**VIT | {"image_size": [32, 32]})
        ),
        "another task",
    ),
    (
        lambda: transformers.ViTModel(transformers.ViTConfig(**VIT | {"image_size": 64})),
        "can't take images of 32 x 32",
    ),
    (
        lambda: transformers.ViTModel(transformers.ViTConfig(**VIT | {"num_channels": 1})),
        "takes images of 1 channel",
    ),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_models_for_something_else(make, message):
    X = np.zeros((4, 32, 32, 3), np.uint8)
    clf = PretrainedImageClassifier(make(), preprocessing=Recipe(32, 32))
    with pytest.raises(ValueError, match=message):
        clf.fit(X, [0, 1, 0, 1])
    assert not hasattr(clf, "classes_")
