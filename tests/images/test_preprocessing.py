"""Preprocessing against torchvision's own transforms, on photographs."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, fx
from torchvision import models
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from sktl.images.decoding import decode_file
from sktl.images.format import learn_format
from sktl.images.preprocessing import Normalize, Recipe
from sktl.images.reading import open_images

ALL_WEIGHTS = [
    weights
    for name in models.list_models(module=models)
    for weights in models.get_model_weights(name)
]
SOME_WEIGHTS = [
    models.ResNet18_Weights.IMAGENET1K_V1,  # bilinear
    models.ResNet50_Weights.IMAGENET1K_V2,  # bilinear, another size
    models.EfficientNet_B0_Weights.IMAGENET1K_V1,  # bicubic
    models.Inception_V3_Weights.IMAGENET1K_V1,  # odd crop
    models.ViT_L_16_Weights.IMAGENET1K_SWAG_E2E_V1,  # no margin, larger than most pictures
]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def photographs() -> list[np.ndarray]:
    """Of different sizes and orientations, some odd, as (h, w, 3) arrays."""
    china, flower = load_sample_images().images
    chelsea = skimage.data.chelsea()  # 300 x 451
    return [
        china,
        flower[:, 100:401],
        chelsea,
        np.ascontiguousarray(chelsea.swapaxes(0, 1)),
        skimage.data.coffee(),
        chelsea[100:151, 150:203],
    ]


def as_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(image)).movedim(-1, 0)


def recipe(interpolation: str = "bilinear", antialias: bool = True) -> Recipe:
    return Recipe(256, 224, interpolation, *IMAGENET, antialias)


def resized_whole(images: Tensor, recipe: Recipe) -> Tensor:
    """Resize then crop, without a window."""
    height, width = images.shape[-2:]
    short = min(height, width)
    size = [recipe.resize * height // short, recipe.resize * width // short]
    mode = InterpolationMode(recipe.interpolation)
    resized = F.resize(images, size, interpolation=mode, antialias=recipe.antialias)
    return F.center_crop(resized, [recipe.crop])


def is_channels_last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last)


def test_reads_the_recipe_of_every_torchvision_model():
    assert len({weights.__class__ for weights in ALL_WEIGHTS}) == 80
    for weights in ALL_WEIGHTS:
        transforms = weights.transforms()
        found = Recipe.from_transforms(transforms)
        assert [found.resize] == transforms.resize_size
        assert [found.crop] == transforms.crop_size
        assert InterpolationMode(found.interpolation) == transforms.interpolation
        assert list(found.mean) == transforms.mean
        assert list(found.std) == transforms.std
        assert found.antialias is True
        hash(found)


@pytest.mark.parametrize("weights", SOME_WEIGHTS, ids=str)
def test_agrees_with_torchvision_on_photographs(weights):
    transforms = weights.transforms()
    ours = Recipe.from_transforms(transforms)
    normalize = Normalize(ours.mean, ours.std)
    grey_levels = torch.tensor(ours.std).reshape(3, 1, 1) * 255
    for photograph in photographs():
        expected = transforms(Image.fromarray(photograph))
        images = ours.apply(as_tensor(photograph)[None])
        difference = ((normalize(images)[0] - expected) * grey_levels).abs()
        assert difference.median() < 0.01
        assert difference.max() < 2.01


def test_a_list_is_its_images_one_by_one_and_in_order():
    images = [as_tensor(photograph) for photograph in photographs()]
    images += [image.flip(-1).contiguous() for image in images]
    together = recipe().apply(images)
    assert together.shape == (len(images), 3, 224, 224)
    assert together.dtype == torch.uint8
    assert is_channels_last(together)
    for row, image in enumerate(images):
        assert torch.equal(together[row], recipe().apply(image[None])[0])


def test_a_list_larger_than_a_stack_equals_a_batch(monkeypatch):
    monkeypatch.setattr("sktl.images.preprocessing._STACK_BYTES", 400_000)
    faces = as_tensor(skimage.data.astronaut()).unfold(1, 128, 96).unfold(2, 128, 96)
    faces = faces.flatten(1, 2).movedim(1, 0)
    assert torch.equal(recipe().apply(list(faces)), recipe().apply(faces))


@pytest.mark.parametrize("interpolation", ["nearest", "nearest-exact", "bilinear", "bicubic"])
def test_the_memory_layout_does_not_matter(interpolation):
    interleaved = as_tensor(skimage.data.coffee())[None]
    planar = interleaved.contiguous()
    found = recipe(interpolation).apply(interleaved), recipe(interpolation).apply(planar)
    assert all(map(is_channels_last, found))
    assert torch.equal(*found)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("short", [1, 2, 7, 60, 131, 256, 299])
def test_a_strip_is_resized_as_if_whole(short, interpolation, antialias):
    """The window around the crop changes its pixels by a grey level at most, two at edges."""
    chelsea = as_tensor(skimage.data.chelsea())[None]
    wide = F.resize(chelsea, [900, 1353])[..., 300 : 300 + short, :]
    strips = recipe(interpolation, antialias)
    for image in (wide, wide.transpose(2, 3)):
        difference = strips.apply(image).int() - resized_whole(image, strips).int()
        assert difference.abs().max() <= 2
        assert difference.abs().float().mean() < 0.05


def test_a_window_of_a_wide_panorama_shows_its_middle():
    """Each column has its own grey; a shift of the window would change all."""
    ramp = torch.linspace(0, 4000, 4000).sub(1872).clamp(0, 255).to(torch.uint8)
    panorama = ramp.expand(1, 3, 256, 4000)
    assert torch.equal(recipe().apply(panorama)[0, 0, 0], ramp[1888 : 1888 + 224])


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 30), (30, 1), (3, 2), (2, 20_000), (1_000_000, 1), (5, 1_000_003)]
)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_any_size_works(size, interpolation):
    """Resized whole, the last ones would have gigabytes."""
    grey = torch.full((1, 3, *size), 77, dtype=torch.uint8)
    images = recipe(interpolation).apply(grey)
    assert images.shape == (1, 3, 224, 224)
    assert (images == 77).all()


def test_no_images():
    assert recipe().apply([]).shape == (0, 3, 224, 224)
    assert recipe().apply(torch.empty(0, 3, 40, 50, dtype=torch.uint8)).shape == (0, 3, 224, 224)


def test_at_scales_the_resize():
    assert recipe().at(112) == Recipe(128, 112, "bilinear", *IMAGENET)
    assert recipe().at(224) == recipe()
    assert recipe().at(1).resize == 1
    assert recipe("bicubic", False).at(299) == Recipe(342, 299, "bicubic", *IMAGENET, False)
    assert recipe().at(64).apply([as_tensor(skimage.data.coffee())]).shape == (1, 3, 64, 64)


def test_wrong_recipes_say_so():
    with pytest.raises(ValueError, match=r"interpolation must be one of .*'bicubic'.*'hamming'"):
        Recipe(256, 224, "hamming", *IMAGENET)
    with pytest.raises(ValueError, match="between 1 and resize=200 pixels, got 224"):
        Recipe(200, 224, "bilinear", *IMAGENET)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalize(dtype):
    images = as_tensor(skimage.data.coffee())[None]
    normalize = Normalize(*IMAGENET).to(dtype)
    mean, std = (torch.tensor(values).double().reshape(3, 1, 1) for values in IMAGENET)
    expected = (images / 255.0 - mean) / std
    found = normalize(images)
    assert found.dtype == dtype
    assert is_channels_last(found)
    assert found.double().sub(expected).abs().max() < 4 * torch.finfo(dtype).eps


def test_normalize_traces_without_freezing_the_dtype():
    images = as_tensor(skimage.data.coffee())[None]
    normalize = Normalize(*IMAGENET)
    traced = fx.symbolic_trace(copy.deepcopy(normalize))
    assert torch.equal(traced(images), normalize(images))
    assert traced.to(torch.bfloat16)(images).dtype == torch.bfloat16


def test_pickles():
    normalize = pickle.loads(pickle.dumps(Normalize(*IMAGENET)))
    assert torch.equal(normalize.shift, Normalize(*IMAGENET).shift)
    assert pickle.loads(pickle.dumps(recipe())) == recipe()


# Files of many pixels ------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A photograph of 1708 x 2560 pixels as JPEG and PNG, and one that is turned."""
    photo = Image.fromarray(load_sample_images().images[1]).resize((2560, 1708), Image.LANCZOS)
    folder = tmp_path_factory.mktemp("large")
    photo.save(folder / "plain.jpg", quality=95)
    photo.save(folder / "plain.png", compress_level=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.ROTATE_90).save(folder / "turned.jpg", quality=95, exif=exif)
    return folder


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("plain.jpg", None, (1708, 2560)),
        ("plain.jpg", 500, (1708, 2560)),  # half of it would be less than twice 500
        ("plain.jpg", 427, (854, 1280)),
        ("plain.jpg", 200, (427, 640)),
        ("plain.jpg", 10, (214, 320)),  # an eighth is the least
        ("turned.jpg", 200, (427, 640)),
        ("plain.png", 10, (1708, 2560)),
    ],
)
def test_large_jpegs_are_decoded_at_a_fraction(large, name, size, shape):
    assert decode_file(str(large / name), size).shape == (*shape, 3)


@pytest.mark.parametrize("name", ["plain.jpg", "turned.jpg"])
def test_decoding_at_a_fraction_hardly_shows(large, name):
    recipe = Recipe(256, 224, "bilinear", (0.5,) * 3, (0.5,) * 3)
    paths = [str(large / name)]
    found = recipe.batch(open_images(paths, learn_format(paths)), [0])
    whole = torch.from_numpy(decode_file(str(large / "plain.jpg"))).permute(2, 0, 1)
    difference = (found.float() - recipe.apply([whole]).float()).abs()
    assert difference.mean() < 2
    assert difference.quantile(0.99) < 16


def test_without_antialiasing_all_pixels_are_decoded(large):
    recipe = Recipe(256, 224, "bilinear", (0.5,) * 3, (0.5,) * 3, antialias=False)
    paths = [str(large / "plain.jpg")]
    found = recipe.batch(open_images(paths, learn_format(paths)), [0])
    whole = torch.from_numpy(decode_file(paths[0])).permute(2, 0, 1)
    assert torch.equal(found, recipe.apply([whole]))
