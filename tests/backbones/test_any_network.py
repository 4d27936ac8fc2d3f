"""Networks that are none of torchvision's: what is taken for features, stages and input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from sktl import PretrainedImageClassifier, PretrainedImageFeatures
from sktl.backbones import load_backbone
from sktl.backbones.split import TracedNetwork, make_splitter
from sktl.images.descriptions import recipe_of_module
from sktl.images.preprocessing import Recipe

pytestmark = pytest.mark.core


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labelled(images):
    """Six pictures of 8 bits, three of each class."""
    return (images * 255).byte().numpy().repeat(3, axis=0), [0, 1] * 3


def trunk(width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


# What is taken for the features ------------------------------------------------------------


class LinearByFunction(nn.Linear):
    """As in timm, for which only the class says what it is."""

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Functional(nn.Module):
    def __init__(self, classify):
        super().__init__()
        self.trunk = trunk()
        self.weight = nn.Parameter(torch.randn(5, 8))
        self.gain = nn.Parameter(torch.ones(5, 1))
        self.bias = nn.Parameter(torch.randn(5))
        self.classify = classify

    def forward(self, x):
        return self.classify(self, self.trunk(x))


CLASSIFIERS = {
    "a subclass of Linear": lambda: nn.Sequential(trunk(), LinearByFunction(8, 5)),
    "a function": lambda: Functional(lambda m, x: F.linear(x, m.weight, m.bias)),
    "a function of scaled weights": lambda: Functional(
        lambda m, x: F.linear(x, m.gain * m.weight, m.bias)
    ),
    "a matrix product": lambda: Functional(lambda m, x: x @ m.weight.T + m.bias),
    "dropout after it": lambda: Functional(
        lambda m, x: F.dropout(F.linear(x, m.weight), 0.5, m.training)
    ),
}


@pytest.mark.parametrize("build", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_logits_are_not_taken_for_features(build, images):
    network = build().eval()
    splitter = make_splitter(network, 16)
    assert isinstance(splitter, TracedNetwork)
    before = network[0] if isinstance(network, nn.Sequential) else network.trunk
    with torch.inference_mode():
        features = splitter.prefix(len(splitter.stages), "auto")(images)
        assert torch.equal(features, before(images))


def test_weights_with_another_functional_classifier_fit(images, tmp_path):
    """As with a layer: what makes the logits is left out."""
    network, other = (Functional(lambda m, x: F.linear(x, m.weight, m.bias)) for _ in range(2))
    state = network.state_dict() | {"weight": torch.zeros(9, 8), "bias": torch.zeros(9)}
    torch.save(state, tmp_path / "nine.pth")
    X = (images * 255).byte().numpy()
    features = PretrainedImageFeatures(
        other, weights=tmp_path / "nine.pth", image_size=16, cache=None
    )
    expected = PretrainedImageFeatures(network, image_size=16, cache=None).fit_transform(X)
    np.testing.assert_array_equal(features.fit_transform(X), expected)


class Heads(nn.Module):
    """Two heads, of which `join` makes the logits."""

    def __init__(self, join, width=4):
        super().__init__()
        self.one, self.other = trunk(8), trunk(width)
        self.head, self.second = nn.Linear(8, 5), nn.Linear(width, 5)
        self.join = join

    def forward(self, x):
        return self.join(self, self.one(x), self.other(x))


def test_heads_that_read_the_same_have_it_as_features(images):
    network = Heads(lambda m, x, _: (m.head(x) + m.head(F.dropout(x, 0.1, m.training))) / 2).eval()
    splitter = make_splitter(network, 16)
    with torch.inference_mode():
        features = splitter.prefix(len(splitter.stages), "auto")(images)
        assert torch.equal(features, network.one(images))


def test_heads_that_read_several_vectors_have_them_side_by_side(images):
    network = Heads(lambda m, x, y: torch.stack([m.head(x), m.second(y)]).mean(0)).eval()
    splitter = make_splitter(network, 16)
    assert splitter.classifiers == ("head", "second")
    expected = torch.cat([network.one(images), network.other(images)], 1)
    with torch.inference_mode():
        features = splitter.prefix(len(splitter.stages), "auto")(images)
        assert torch.equal(features, expected)
        rest = splitter.suffix(0, "auto").train()
        assert rest(images).shape == (2, 12)


def test_heads_that_read_vectors_of_one_width_have_their_mean(images):
    """As timm has it of a distilled DeiT's two tokens."""
    network = Heads(lambda m, x, y: (m.head(x) + m.second(y)) / 2, width=8).eval()
    splitter = make_splitter(network, 16)
    with torch.inference_mode():
        features = splitter.prefix(len(splitter.stages), "auto")(images)
        assert torch.equal(features, (network.one(images) + network.other(images)) / 2)
        assert splitter.suffix(0, "auto").train()(images).shape == (2, 8)


def test_a_second_head_that_looks_at_places_is_left_out(images):
    """VOLO adds the greatest of the logits of all tokens."""

    class Places(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, stride=4)
            self.head, self.aux = nn.Linear(8, 5), nn.Linear(8, 5)

        def forward(self, x):
            tokens = self.embed(x).flatten(2).transpose(1, 2)
            return self.head(tokens[:, 0]) + 0.5 * self.aux(tokens[:, 1:]).max(1)[0]

    network = Places().eval()
    splitter = make_splitter(network, 16)
    with torch.inference_mode():
        features = splitter.prefix(len(splitter.stages), "auto")(images)
        assert torch.equal(features, network.embed(images)[:, :, 0, 0])


class NormAndLinear(nn.Module):
    """A classifier that is one layer of two, as in LeViT."""

    def __init__(self, *sizes):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(sizes[0]), nn.Dropout()
        self.linear = nn.Linear(*sizes)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x):
        return self.linear(self.drop(self.norm(x)))


def test_a_norm_that_is_one_layer_with_the_classifier_is_no_feature(images):
    network = nn.Sequential(trunk(), NormAndLinear(8, 5)).eval()
    splitter = make_splitter(network, 16)
    assert splitter.classifiers == ("1.linear",)
    with torch.inference_mode():
        features = splitter.prefix(len(splitter.stages), "auto")(images)
        assert torch.equal(features, network[0](images))


def test_heads_of_which_each_has_a_learned_share(images):
    network = Heads(lambda m, x, y: m.share[0] * m.head(x) + m.share.softmax(0)[1] * m.second(y))
    network.share = nn.Parameter(torch.tensor([0.3, 0.7]))
    splitter = make_splitter(network.eval(), 16)
    assert splitter.classifiers == ("head", "second")
    expected = torch.cat([network.one(images), network.other(images)], 1)
    with torch.inference_mode():
        features = splitter.prefix(len(splitter.stages), "auto")(images)
        assert torch.equal(features, expected)


class Cosine(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = trunk()
        self.weight = nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        return F.normalize(self.trunk(x)) @ F.normalize(self.weight).T


def test_an_output_that_may_be_class_scores_is_a_warning():
    with pytest.warns(UserWarning, match="can't tell its classifier: its whole output, 5 wide"):
        make_splitter(Cosine(), 16)


class ResidualHead(nn.Module):
    """An addition of something that is no logits."""

    def __init__(self):
        super().__init__()
        self.trunk, self.layer = trunk(), nn.Linear(8, 8)

    def forward(self, x):
        x = self.trunk(x)
        return x + self.layer(x)


def test_a_linear_layer_beside_other_things_is_no_classifier(images):
    network = ResidualHead().eval()
    with pytest.warns(UserWarning, match="can't tell"):
        splitter = make_splitter(network, 16)
    with torch.inference_mode():
        features = splitter.prefix(len(splitter.stages), "auto")(images)
        assert torch.equal(features, network(images))


@pytest.mark.parametrize("build", [trunk, lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())])
def test_a_network_without_a_classifier_is_no_warning(build):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_splitter(build(), 16)


# Stages ------------------------------------------------------------------------------------


class Wayward(nn.Module):
    """A block that torch.fx can't follow."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        if x.mean() > 1e6:
            x = x / 2
        return x + self.norm(self.second(self.first(x).relu()))


class WaywardNetwork(nn.Module):
    def __init__(self, n=3):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.blocks = nn.Sequential(*(Wayward() for _ in range(n)))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def test_blocks_that_cannot_be_followed_are_stages_all_the_same(images):
    network = WaywardNetwork().eval()
    splitter = make_splitter(network, 16)
    assert splitter.stages == ("stem", "blocks.0", "blocks.1", "blocks.2")
    with torch.inference_mode():
        expected = network.blocks[:2](network.stem(images))
        assert torch.equal(splitter.stage_features(2)(images), expected)
        rest = splitter.suffix(3, "auto").eval()(expected)
        assert torch.equal(rest, network.blocks(network.stem(images)).mean((2, 3)))


def test_the_last_block_alone_trains(labelled):
    X, y = labelled
    network = WaywardNetwork()
    clf = PretrainedImageClassifier(network, freeze=-1, image_size=16, max_epochs=1, random_state=0)
    clf.fit(X, y)
    assert clf.freeze_ == 3
    trained = {name for name, _ in clf.net_.module_.suffix.named_parameters()}
    assert trained and all("blocks.2" in name.replace("_", ".") for name in trained)


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = trunk()
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.trunk(x)
        return self.fc(x * 2 if x.sum() > 0 else x)


@pytest.mark.parametrize("freeze", [-1, 1, -3])
def test_a_number_of_stages_of_an_opaque_network_is_an_error_that_says_why(labelled, freeze):
    X, y = labelled
    clf = PretrainedImageClassifier(Opaque(), freeze=freeze, image_size=16)
    with pytest.raises(ValueError, match=r"can't trace this network \(TraceError: symbolically"):
        clf.fit(X, y)
    assert not hasattr(clf, "classes_")


@pytest.mark.parametrize(("freeze", "depth"), [(0, 0), ("none", 0), ("all", 1)])
def test_an_opaque_network_can_be_frozen_whole_or_not_at_all(labelled, freeze, depth):
    X, y = labelled
    clf = PretrainedImageClassifier(Opaque(), freeze=freeze, image_size=16, max_epochs=1).fit(X, y)
    assert clf.freeze_ == depth


class SideBySide(nn.Module):
    """Two branches from the first layer to the last."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.fc = trunk(), trunk(), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.one(x) + self.other(x.flip(3)))


def test_all_but_the_last_of_one_stage_is_not_nothing(labelled):
    X, y = labelled
    clf = PretrainedImageClassifier(SideBySide(), freeze=-1, image_size=16, max_epochs=1)
    with pytest.raises(
        ValueError, match='freeze=-1 would train all .* only stage.*"all" or "none"'
    ):
        clf.fit(X, y)
    assert clf.set_params(freeze="none").fit(X, y).freeze_ == 0


class StemAndBlocks(nn.Module):
    """Layers of networks that differ in what blocks are told."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)) for _ in range(2)
        )
        self.fc = nn.Linear(8, 5)


class CountsImages(StemAndBlocks):
    """The number of images is asked for once, and used by each block, as in CoaT."""

    def forward(self, x):
        n_first = x.shape[0]
        x = self.stem(x)
        n = x.shape[0]
        for block in self.blocks:
            x = block(x.reshape(n, 8, 256).reshape(n_first, 8, 16, 16))
        return self.fc(x.mean((2, 3)))


def test_the_number_of_images_flowing_along_is_no_obstacle(images):
    network = CountsImages().eval()
    splitter = make_splitter(network, 16)
    assert splitter.stages == ("stem", "blocks.0", "blocks.1")
    more = torch.cat([images, images.flip(0), images])
    with torch.inference_mode():
        whole = splitter.prefix(3, "auto")(more)
        torch.testing.assert_close(network.fc(whole), network(more))
        for depth in (1, 2):
            rest = splitter.suffix(depth, "auto").eval()
            torch.testing.assert_close(rest(splitter.prefix(depth, "auto")(more)), whole)


def test_a_stem_and_the_stages_are_no_two_stages():
    """Both may be sequences, as in CSPNeXt, and so may something after them."""

    def layers(n, width):
        return nn.Sequential(*(nn.Conv2d(width, width, 1) for _ in range(n)))

    stages = nn.Sequential(*(layers(3, 8) for _ in range(4)))
    stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    network = nn.Sequential()
    for name, part in {"stem": stem, "stages": stages, "head": head}.items():
        network.add_module(name, part)
    assert make_splitter(network, 16).stages == ("stem", *(f"stages.{i}" for i in range(4)))


class Volumes(nn.Module):
    """Kernels for volumes beside those for maps, as in networks of lambda layers."""

    def __init__(self):
        super().__init__()
        self.first, self.last = trunk_block(3), trunk_block(8)
        self.depth = nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.first(x)
        x = self.last(self.depth(x.unsqueeze(1)).squeeze(1))
        return self.fc(x.mean((2, 3)))


def trunk_block(width):
    return nn.Sequential(nn.Conv2d(width, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))


@pytest.mark.parametrize("freeze", ["all", -1, "none"])
def test_kernels_for_volumes_are_frozen_and_trained(labelled, freeze):
    X, y = labelled
    clf = PretrainedImageClassifier(Volumes(), freeze=freeze, image_size=16, max_epochs=1)
    assert np.isfinite(clf.fit(X, y).predict_proba(X)).all()


class NumbersOfNumPy(nn.Module):
    """In training alone, as in DINOv3 of transformers."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.fc = trunk_block(3), trunk_block(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.last(self.first(x))
        if self.training:
            x = x * np.exp(np.float64(0.1))
        return self.fc(x.mean((2, 3)))


def test_numbers_of_numpy_in_training(labelled):
    X, y = labelled
    clf = PretrainedImageClassifier(NumbersOfNumPy(), freeze=-1, image_size=16, max_epochs=1)
    assert np.isfinite(clf.fit(X, y).predict_proba(X)).all()


class HandsSizesOn(StemAndBlocks):
    """Each block is told height and width, as in MViT and DINOv3."""

    def forward(self, x):
        x = self.stem(x)
        n, c, h, w = x.shape
        places = torch.arange(h * w, dtype=x.dtype).reshape(1, 1, h, w)
        for block in self.blocks:
            x = block(x.reshape(n, c, h, w) + places / (h * w))
        return self.fc(x.mean((2, 3)))


def traces_a_dtype_handed_on():
    try:
        fx.symbolic_trace(lambda x: torch.arange(4, dtype=x.dtype))
    except TypeError:
        return False
    return True


@pytest.mark.skipif(
    not traces_a_dtype_handed_on(), reason="of this torch, arange takes no dtype while tracing"
)
def test_the_size_of_images_flowing_along_is_no_obstacle(images):
    network = HandsSizesOn().eval()
    splitter = make_splitter(network, 16)
    assert splitter.stages == ("stem", "blocks.0", "blocks.1")
    more = torch.cat([images, images.flip(0), images])  # another number than was tried
    with torch.inference_mode():
        whole = splitter.prefix(3, "auto")(more)
        for depth in (1, 2):
            rest = splitter.suffix(depth, "auto").eval()
            torch.testing.assert_close(rest(splitter.prefix(depth, "auto")(more)), whole)
        torch.testing.assert_close(network.fc(whole), network(more))


# Input and output --------------------------------------------------------------------------


class MakesTensors(nn.Module):
    def __init__(self, on_device):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 5)
        self.on_device = on_device

    def forward(self, x):
        device = x.device if self.on_device else None
        x = self.conv(x) + torch.ones(8, 1, 1, device=device)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("on_device", [False, True])
def test_a_network_may_make_tensors_in_forward(images, on_device):
    network = MakesTensors(on_device).eval()
    X = (images * 255).byte().numpy()
    features = PretrainedImageFeatures(network, image_size=16, cache=None).fit_transform(X)
    normalized = (images * 255).byte().float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalized = (normalized - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        expected = (network.conv(normalized) + 1).mean((2, 3)).numpy()
    np.testing.assert_allclose(features, expected, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_than_three_are_named(channels):
    network = nn.Sequential(nn.Conv2d(channels, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(ValueError, match=f"takes images of {channels} channel.* gives 3"):
        make_splitter(network, 16)


class Several(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3)
        self.kind = kind

    def forward(self, x):
        x = self.one(x)
        y = self.other(x)
        return {"stem": x, "last": y} if self.kind is dict else self.kind((x, y))


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_several_outputs_are_an_error(kind):
    with pytest.raises(ValueError, match=f"one tensor .* a {kind.__name__} of 2 things"):
        make_splitter(Several(kind), 16)


def test_auxiliary_outputs_in_training_are_dropped(images):
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = trunk()
            self.fc, self.aux = nn.Linear(8, 5), nn.Linear(8, 5)

        def forward(self, x):
            x = self.trunk(x)
            return (self.fc(x), self.aux(x)) if self.training else self.fc(x)

    splitter = make_splitter(Auxiliary(), 16)
    assert splitter.classifiers == ("fc",)
    assert splitter.suffix(0, "auto").train()(images).shape == (2, 8)


# Preprocessing -----------------------------------------------------------------------------

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.mark.parametrize(
    ("name", "config", "mode"),
    [
        ("pretrained_cfg", {"input_size": (3, 16, 16), "crop_mode": "squash"}, "squash"),
        ("pretrained_cfg", {"input_size": (3, 16, 16), "crop_mode": "border"}, "pad"),
        ("pretrained_cfg", {"input_size": (3, 16, 16), "crop_mode": "center"}, "crop"),
        ("preprocess_cfg", {"size": (16, 16), "resize_mode": "squash"}, "squash"),
        ("preprocess_cfg", {"size": 16, "resize_mode": "longest"}, "pad"),
        ("preprocess_cfg", {"size": 16, "resize_mode": "shortest"}, "crop"),
    ],
)
def test_preprocessing_that_a_network_brings(name, config, mode):
    network = trunk()
    more = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "crop_pct": 1.0}
    setattr(network, name, config | more)
    assert recipe_of_module(network) == Recipe(16, 16, "bilinear", MEAN, STD, resize_mode=mode)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load_backbone(network)
    assert (found.recipe.mean, found.recipe.std, found.recipe.crop) == (MEAN, STD, 16)
    said = [w for w in caught if f"resize_mode='{mode}'" in str(w.message)]
    assert len(said) == (mode != "crop")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_backbone(network, resize_mode=mode)


@pytest.mark.parametrize("build", [lambda: nn.Sequential(trunk(), nn.Linear(8, 5)), Opaque])
def test_an_embedding_is_no_class_scores(build, images):
    """What brings open_clip's preprocessing is a tower, and its last layer a projection."""
    network = build().eval()
    network.preprocess_cfg = {"size": 16, "mean": MEAN, "std": STD}
    splitter = make_splitter(network, 16)
    with torch.inference_mode():
        found = splitter.prefix(len(splitter.stages), "auto")(images)
        torch.testing.assert_close(found, network(images))


def test_a_tower_of_open_clip_gives_what_it_encodes():
    open_clip = pytest.importorskip("open_clip")
    skimage_data = pytest.importorskip("skimage.data")
    Image = pytest.importorskip("PIL.Image")
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms("ViT-S-32", pretrained=None)
    model.eval()
    picture = skimage_data.chelsea()
    features = PretrainedImageFeatures(model.visual, resize_mode="crop", cache=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = features.fit_transform(np.stack([picture, picture[:, ::-1]]))[:1]
    with torch.inference_mode():
        expected = model.encode_image(transform(Image.fromarray(picture))[None]).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-2 * np.abs(expected).max())


# timm --------------------------------------------------------------------------------------

# Name and number of stages, and why it is here.
TIMM = [
    ("mobilenetv3_small_100", 6),  # a Linear that torch.fx traces into
    ("levit_128s", 4),  # two heads behind batch norms
    ("swin_tiny_patch4_window7_224", 5),  # torch.fx needs timm's list of leaves
    ("tf_efficientnet_b0", 8),
    ("eva02_tiny_patch14_224", 13),  # makes tensors in forward
]


@pytest.mark.parametrize(("name", "n_stages"), TIMM)
def test_features_of_timm_are_those_that_it_names(name, n_stages):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False).eval()
    size = network.pretrained_cfg["input_size"][-1]
    splitter = make_splitter(network, size)
    assert len(splitter.stages) == n_stages
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
        found = splitter.prefix(n_stages, "auto")(images)
        torch.testing.assert_close(found, expected)
        begun = splitter.prefix(n_stages - 1, "auto")(images)
        torch.testing.assert_close(splitter.suffix(n_stages - 1, "auto").eval()(begun), expected)


def test_feature_maps_of_timm_are_no_backbone():
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet18", pretrained=False, features_only=True)
    with pytest.raises(ValueError, match="a list of 5 things.*features_only=False"):
        make_splitter(network, 64)
