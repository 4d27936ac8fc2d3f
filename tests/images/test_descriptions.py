"""Preprocessing as other libraries describe it, followed as they follow it themselves."""

from __future__ import annotations

import copy
import pickle
import warnings

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from torch import nn
from torchvision import transforms
from torchvision.models import EfficientNet_V2_S_Weights, ResNet18_Weights, get_model
from torchvision.transforms import InterpolationMode, v2

import sktl
from sktl import PretrainedImageClassifier, PretrainedImageFeatures, Recipe
from sktl.backbones import load_backbone
from sktl.files.container import FileFormatError
from sktl.images.descriptions import read_recipe
from sktl.images.preprocessing import Normalize
from sktl.model.exported_resize import Resize

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SHAPES = [(300, 400), (411, 260), (90, 120)]


def pictures():
    """Smooth, as photographs are, so that a pixel more or less shows, and rounding doesn't."""
    generator = np.random.default_rng(0)
    for height, width in SHAPES:
        small = generator.integers(0, 256, (12, 15, 3), dtype=np.uint8)
        yield Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def ours(recipe, picture):
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    return Normalize(recipe.mean, recipe.std)(recipe.apply(pixels))[0]


def assert_same(recipe, picture, theirs, levels=1.5):
    """Within the rounding of resized pixels to one of 256 levels."""
    found = ours(recipe, picture)
    assert found.shape == theirs.shape
    step = 1 / (255 * torch.tensor(recipe.std)).reshape(3, 1, 1)
    assert float(((found - theirs).abs() / step).max()) <= levels


# torchvision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [ResNet18_Weights.DEFAULT, EfficientNet_V2_S_Weights.DEFAULT])
def test_torchvision(weights):
    recipe = read_recipe(weights.transforms())
    assert recipe == read_recipe(weights) == read_recipe(weights.transforms)
    for picture in pictures():
        assert_same(recipe, picture, weights.transforms()(picture))


STEPS = {
    "crop": [transforms.Resize(40), transforms.CenterCrop(32), transforms.ToTensor()],
    "oblong": [transforms.Resize(40), transforms.CenterCrop((32, 24)), transforms.ToTensor()],
    "squash": [transforms.Resize((32, 40), InterpolationMode.BICUBIC), transforms.ToTensor()],
    "squash and crop": [
        transforms.Resize((40, 40)),
        transforms.CenterCrop(32),
        transforms.PILToTensor(),
        transforms.ConvertImageDtype(torch.float32),
    ],
    "v2": [
        v2.RGB(),
        v2.Resize([40]),
        v2.CenterCrop(32),
        v2.ToImage(),
        v2.ToDtype(torch.float32, True),
    ],
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_rows_of_transforms(steps):
    compose = (
        v2 if type(steps[0]).__module__.startswith("torchvision.transforms.v2") else transforms
    )
    compose = compose.Compose([*steps, compose.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])])
    recipe = read_recipe(compose)
    for picture in pictures():
        assert_same(recipe, picture, torch.as_tensor(compose(picture)))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([transforms.RandomCrop(32)], "RandomCrop is none of"),
        ([transforms.ToTensor()], "no Resize"),
        ([transforms.Resize(32), transforms.ToTensor()], "several sizes"),
        ([transforms.Resize(32), transforms.CenterCrop(40)], "crop must be between"),
    ],
)
def test_transforms_that_no_recipe_can_say(steps, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(transforms.Compose(steps))


# timm ----------------------------------------------------------------------------------------

TIMM = [
    {"crop_pct": 0.875, "crop_mode": "center"},
    {"crop_pct": 1.0, "crop_mode": "squash"},
    {"crop_pct": 0.9, "crop_mode": "squash"},
    {
        "crop_pct": 0.95,
        "crop_mode": "center",
        "input_size": (3, 64, 64),
        "interpolation": "bilinear",
    },
]


@pytest.mark.parametrize("config", TIMM)
def test_timm(config):
    create_transform = pytest.importorskip("timm.data").create_transform
    config = {"input_size": (3, 96, 96), "interpolation": "bicubic", **HALF} | config
    theirs = create_transform(**config, is_training=False)
    recipe = read_recipe(config)
    assert read_recipe(theirs) == recipe
    for picture in pictures():
        assert_same(recipe, picture, theirs(picture))


def test_timm_pads_with_the_colour_that_the_network_sees_as_nothing():
    create_transform = pytest.importorskip("timm.data").create_transform
    config = {"input_size": (3, 96, 96), "interpolation": "bicubic", "crop_pct": 1.0, **HALF}
    config |= {"crop_mode": "border"}
    theirs = create_transform(**config, is_training=False)
    recipe = read_recipe(config)
    assert recipe.resize_mode == "pad"
    picture = next(iter(pictures()))
    rows, columns = recipe.place(picture.height, picture.width)
    inside = (slice(None), slice(rows.start + 1, rows.stop - 1), columns)
    difference = (ours(recipe, picture) - theirs(picture))[inside].abs().max()
    assert float(difference) * 127.5 <= 12  # it rounds the height otherwise, by one of 72 rows


# open_clip -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_open_clip(mode):
    factory = pytest.importorskip("open_clip.transform")
    config = {"size": 64, "interpolation": "bicubic", "resize_mode": mode, **HALF}
    given = config if mode == "shortest" else config | {"size": (64, 64)}
    theirs = factory.image_transform_v2(factory.PreprocessCfg(**given), is_train=False)
    recipe = read_recipe(config)
    for picture in pictures():
        assert_same(recipe, picture, theirs(picture))
    if mode == "squash":
        assert read_recipe(theirs) == recipe


# transformers ----------------------------------------------------------------------------------

CROP = {"crop_size": {"height": 64, "width": 64}}
# Where an odd number of pixels is cut off, transformers begins one before torchvision: not here.
PROCESSORS = [
    ("ViTImageProcessor", {"size": {"height": 64, "width": 64}}),
    (
        "DeiTImageProcessor",
        {"size": {"height": 80, "width": 80}} | CROP,
    ),
    (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 64}} | CROP,
    ),
    (
        "BitImageProcessor",
        {"size": {"shortest_edge": 80}} | CROP,
    ),
    ("SiglipImageProcessor", {"size": {"height": 64, "width": 48}}),
    ("BeitImageProcessor", {}),
    ("PvtImageProcessor", {}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 64}, "crop_pct": 0.8}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ("LevitImageProcessor", {}),
    ("PoolFormerImageProcessor", {}),
    ("EfficientNetImageProcessor", {"size": {"height": 64, "width": 64}}),
    ("ViTImageProcessor", {"do_rescale": False, "do_normalize": False}),
    ("ViTImageProcessor", {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1]}),
    ("ViTImageProcessor", {"resample": 0}),
]


@pytest.mark.parametrize(("name", "settings"), PROCESSORS)
def test_transformers(name, settings):
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, name)(**settings)
    recipe = read_recipe(processor)
    assert read_recipe(processor.to_dict()) == recipe
    for picture in pictures():
        theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
        assert_same(recipe, picture, theirs)


@pytest.mark.parametrize(
    "pixels", [{"size": 64}, {"size": 64, "do_center_crop": True, "crop_size": 64}]
)
def test_old_files_of_transformers_say_one_number(pixels):
    config = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    config |= {"size": 64} | pixels
    mode = "crop" if "crop_size" in pixels else "squash"
    assert read_recipe(config) == Recipe(64, 64, "bicubic", **HALF, resize_mode=mode)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"do_pad": True}, "do_pad"),
        ({"do_resize": False}, "any size"),
        ({"size": {"shortest_edge": 64, "longest_edge": 90}}, "several sizes"),
        ({"size": {"shortest_edge": 64}}, "several sizes"),
        ({"resample": 1}, "lanczos"),
        ({"image_mean": [0.5]}, "expected 3"),
    ],
)
def test_processors_that_no_recipe_can_say(more, message):
    config = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 8, "width": 8}}
    with pytest.raises(ValueError, match=f"preprocessing can't be followed: .*{message}"):
        read_recipe(config | more)


@pytest.mark.parametrize("value", [3, "imagenet", nn.Linear(2, 2), [Recipe()]])
def test_what_is_no_description(value):
    with pytest.raises(TypeError, match="preprocessing must be a sktl.Recipe"):
        read_recipe(value)


def test_a_dict_of_something_else_is_named_by_its_keys():
    with pytest.raises(ValueError, match=r"has the keys \['height', 'mean'\]"):
        read_recipe({"mean": 0.5, "height": 3})


# Recipes ---------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_imagenet():
    assert Recipe() == read_recipe(ResNet18_Weights.IMAGENET1K_V1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (1, 2)}, "mean must be three numbers"),
        ({"mean": 0.5}, "mean must be three numbers"),
        ({"std": (0, 1, 1)}, "std must be three numbers above 0"),
        ({"std": (1, 1, float("nan"))}, "std must be three numbers above 0"),
        ({"crop": 0}, "crop must be a number of pixels"),
        ({"crop": 224.5}, "crop must be a number of pixels"),
        ({"crop": 300}, "crop must be between 1 and resize=256"),
        ({"interpolation": "cubic"}, "interpolation must be one of"),
        ({"resize_mode": "auto"}, "resize_mode must be one of"),
    ],
)
def test_recipes_that_are_none(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


def test_squashed_and_cropped_pictures_are_exported_bitwise():
    recipe = Recipe(40, 32, resize_mode="squash_crop")
    pixels = torch.randint(0, 256, (2, 3, 57, 91), dtype=torch.uint8)
    program = torch.jit.trace(Resize(recipe), (pixels,), check_trace=False)
    other = torch.randint(0, 256, (1, 3, 70, 45), dtype=torch.uint8)
    for given in (pixels, other):
        assert torch.equal(program(given), recipe.apply(given))


# The parameter -----------------------------------------------------------------------------------

OTHER = Recipe(40, 32, "bicubic", **HALF, resize_mode="crop")


@pytest.fixture
def X():
    return np.random.default_rng(0).integers(0, 256, (8, 48, 60, 3), dtype=np.uint8)


y = [0, 1] * 4


def test_it_takes_the_place_of_what_comes_with_the_network(X):
    clf = PretrainedImageClassifier(preprocessing=OTHER).fit(X, y)
    assert clf.__sktl_backbone__().recipe == OTHER
    features = PretrainedImageFeatures(preprocessing=OTHER, cache=None).fit_transform(X)
    network = clf.__sktl_backbone__()
    pixels = torch.from_numpy(X).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = network.stage_features(None, "auto")(OTHER.apply(pixels)).numpy()
    np.testing.assert_allclose(features, expected, atol=2e-2 * expected.max())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("squash", 224)),
        ({"preprocessing": OTHER}, ("crop", 32)),
        ({"preprocessing": OTHER, "resize_mode": "pad"}, ("pad", 32)),
        ({"preprocessing": OTHER, "image_size": 64}, ("crop", 64)),
        ({"resize_mode": "crop", "image_size": 64}, ("crop", 64)),
    ],
)
def test_what_goes_before_what(settings, expected):
    recipe = PretrainedImageFeatures(**settings).__sktl_backbone__().recipe
    assert (recipe.resize_mode, recipe.crop) == expected


def test_a_cache_tells_them_apart(X):
    """Of one size, so that only mean and deviation differ."""
    base = PretrainedImageFeatures(preprocessing=OTHER, cache="memory")
    other = clone(base).set_params(preprocessing=Recipe(40, 32, "bicubic"))
    first, second = (e.fit_transform(X) for e in (base, other))
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(clone(other).set_params(cache=None).fit_transform(X), second)


def test_a_module_with_none_is_a_warning_and_no_other_is(X):
    network = get_model("resnet18", weights=None)
    with pytest.warns(UserWarning, match="ResNet brings no preprocessing.*64 x 64 pixels") as said:
        PretrainedImageFeatures(network, image_size=64, cache=None).fit_transform(X[:2])
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = {"preprocessing": Recipe(), "image_size": 64, "cache": None}
        PretrainedImageFeatures(network, **settings).fit_transform(X[:2])
        network.pretrained_cfg = {"input_size": (3, 64, 64), **HALF}
        found = load_backbone(network, resize_mode="auto").recipe
    assert (found.mean, found.crop, found.resize_mode) == (HALF["mean"], 64, "squash")


@pytest.mark.parametrize("given", [3, {"mean": 0.5}, transforms.Compose([])])
def test_a_bad_one_leaves_the_estimator_as_it_was(X, given):
    clf = PretrainedImageClassifier(preprocessing=given, image_size=32)
    with pytest.raises((TypeError, ValueError), match="preprocessing"):
        clf.fit(X, y)
    assert not hasattr(clf, "classes_")


DESCRIPTIONS = {
    "Recipe": OTHER,
    "dict": {"input_size": (3, 32, 32), "interpolation": "bicubic", "crop_pct": 0.8, **HALF},
    "transforms": transforms.Compose(
        [
            transforms.Resize(40, InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(*HALF.values()),
        ]
    ),
}


@pytest.mark.parametrize("given", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_it_is_copied_pickled_and_saved(X, given, tmp_path):
    clf = PretrainedImageClassifier(preprocessing=given, random_state=0).fit(X, y)
    expected = clf.predict_proba(X)
    assert clf.__sktl_backbone__().recipe == OTHER
    assert read_recipe(clone(clf).preprocessing) == OTHER
    joblib.dump(clf, tmp_path / "model.joblib")
    clf.save(tmp_path / "model.sktl")
    clf.save(tmp_path / "small.sktl", include_backbone=False)
    for loaded in (
        pickle.loads(pickle.dumps(clf)),
        copy.deepcopy(clf),
        joblib.load(tmp_path / "model.joblib"),
        sktl.load(tmp_path / "model.sktl"),
        sktl.load(tmp_path / "small.sktl"),
    ):
        assert read_recipe(loaded.preprocessing) == OTHER
        assert type(loaded.preprocessing) in (type(given), Recipe)
        np.testing.assert_array_equal(loaded.predict_proba(X), expected)
        again = clone(loaded).fit(X, y)
        np.testing.assert_allclose(again.predict_proba(X), expected, atol=1e-5)


def test_the_export_follows_it(X):
    clf = PretrainedImageClassifier(preprocessing=OTHER, precision="float32").fit(X, y)
    module = clf.to_torch()
    with torch.inference_mode():
        found = module(torch.from_numpy(X).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(found, clf.predict_proba(X), atol=1e-4)


def test_a_file_without_the_backbone_needs_the_same_preprocessing(X, tmp_path):
    """What a default says may change with a version; the file knows what it was."""
    from sktl.files.container import read_sealed, write_sealed

    path = tmp_path / "small.sktl"
    PretrainedImageFeatures(preprocessing=OTHER).fit(X).save(path, include_backbone=False)
    document, tensors = read_sealed(path)
    document["parameters"]["preprocessing"]["mean"] = [0.1, 0.2, 0.3]
    write_sealed(path, document, tensors)
    with pytest.raises(FileFormatError, match="prepared otherwise"):
        sktl.load(path)
    document["parameters"]["preprocessing"] |= {"crop": 4096}
    write_sealed(path, document, tensors)
    with pytest.raises(FileFormatError, match="crop must be between"):
        sktl.load(path)
