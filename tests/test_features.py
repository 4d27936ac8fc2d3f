"""PretrainedImageFeatures against torchvision's own preprocessing and network."""

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.models import resnet18, vit_b_32
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from sktl import PretrainedImageFeatures
from sktl.backbones import load_backbone

SIZE = 64


pytestmark = pytest.mark.usefixtures("one_thread")


STAGES = ["stem", "layer1", "layer2", "layer3", "layer4"]
NODES = ["maxpool", *STAGES[1:]]
WIDTHS = [64, 64, 128, 256, 512]


@pytest.fixture(scope="module")
def photographs(photographs):
    """Of the size that others are resized to: resizing has tests of its own."""
    side = round(256 * SIZE / 224)
    return photographs[0][:, :side, :side].copy(), photographs[1]


@pytest.fixture(scope="module")
def network():
    """ResNet-18 whose batch norms have seen something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = resnet18(weights=None)
        network(torch.randn(8, 3, SIZE, SIZE))
    return network.eval()


@pytest.fixture(scope="module")
def maps(network, photographs):
    """Output of each stage, and what the classifier reads."""
    prepare = ImageClassification(
        crop_size=SIZE,
        resize_size=round(256 * SIZE / 224),
        interpolation=InterpolationMode.BILINEAR,
    )
    inputs = torch.stack([prepare(torch.tensor(x).permute(2, 0, 1)) for x in photographs[0]])
    extractor = create_feature_extractor(network, [*NODES, "flatten"])
    with torch.no_grad():
        outputs = extractor(inputs)
    return {name: outputs[node].numpy() for name, node in zip(STAGES, NODES, strict=True)} | {
        None: outputs["flatten"].numpy()
    }


def make(network, **params):
    settings = {"image_size": SIZE, "precision": "float32"}
    return PretrainedImageFeatures(network, **(settings | params))


def assert_close(features, expected):
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("stage", "name"),
    [*((name, name) for name in STAGES), *((i, STAGES[i]) for i in (0, 2, 4, -1, -5)),
     (np.int64(1), "layer1")],
)  # fmt: skip
@pytest.mark.parametrize("pooling", ["auto", "avg", "flatten"])
def test_stages_are_the_network_s_own(network, maps, photographs, stage, name, pooling):
    features = make(network, stage=stage, pooling=pooling).fit_transform(photographs[0])
    whole = maps[name]
    expected = whole.reshape(12, -1) if pooling == "flatten" else whole.mean((2, 3))
    assert features.dtype == np.float32
    assert features.shape == expected.shape
    assert_close(features, expected)


def test_no_stage_is_what_the_classifier_reads(network, maps, photographs):
    features = make(network).fit_transform(photographs[0])
    assert features.dtype == np.float32
    assert_close(features, maps[None])
    flat = make(network, pooling="flatten").fit_transform(photographs[0])
    assert_close(flat, maps["layer4"].reshape(12, -1))


def test_fit_then_transform(network, photographs):
    X = photographs[0]
    fitted = make(network, stage="layer2").fit(X[:3])
    whole = fitted.transform(X)
    assert_close(whole, make(network, stage="layer2").fit_transform(X))
    assert_close(np.concatenate([fitted.transform(X[i : i + 5]) for i in (0, 5, 10)]), whole)


@pytest.mark.parametrize(("stage", "width"), [*zip(STAGES, WIDTHS, strict=True), (None, 512)])
def test_names_of_features(network, photographs, stage, width):
    fitted = make(network, stage=stage).fit(photographs[0][:2])
    names = fitted.get_feature_names_out()
    assert list(names) == [f"{stage or 'penultimate'}_{i}" for i in range(width)]
    assert fitted.stages_ == STAGES


def test_pandas_output(network, photographs):
    fitted = make(network, stage=0).set_output(transform="pandas")
    frame = fitted.fit_transform(photographs[0][:2])
    assert list(frame.columns) == list(fitted.get_feature_names_out())
    assert frame.shape == (2, 64)


@pytest.mark.parametrize("cache", [None, "memory", "directory"])
def test_cache(network, maps, photographs, tmp_path, cache):
    cache = str(tmp_path) if cache == "directory" else cache
    for _ in range(2):
        features = make(network, stage=1, cache=cache).fit_transform(photographs[0])
        assert_close(features, maps["layer1"].mean((2, 3)))


def test_stages_do_not_share_cached_rows(network, photographs):
    """Of one width, so that a mistaken hit would show in the values only."""
    X = photographs[0]
    first, second = (make(network, stage=stage).fit_transform(X) for stage in (0, 1))
    assert first.shape == second.shape
    assert not np.allclose(first, second, atol=1e-3)


def test_bfloat16_is_near(network, maps, photographs):
    fitted = make(network, precision="bfloat16").fit(photographs[0])
    features = fitted.transform(photographs[0])
    assert fitted.precision_ == "bfloat16"
    assert features.dtype == np.float32
    expected = maps[None]
    assert features == pytest.approx(expected, abs=0.05 * float(np.abs(expected).max()))
    assert not np.array_equal(features, make(network).fit_transform(photographs[0]))


def test_tokens_of_a_transformer(photographs):
    X = photographs[0][:3]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = vit_b_32(weights=None, image_size=SIZE).eval()
    backbone = load_backbone(network, image_size=SIZE)
    assert backbone.stages == ("stem", *(f"encoder.layers.encoder_layer_{i}" for i in range(12)))
    prepare = ImageClassification(crop_size=SIZE, resize_size=round(256 * SIZE / 224))
    inputs = torch.stack([prepare(torch.tensor(x).permute(2, 0, 1)) for x in X])
    node = "encoder.layers.encoder_layer_3"
    with torch.no_grad():
        tokens = create_feature_extractor(network, [f"{node}.add_1"])(inputs)[f"{node}.add_1"]
    tokens = tokens.numpy()
    assert tokens.shape == (3, 5, 768)
    assert_close(make(network, stage=node).fit_transform(X), tokens.mean(1))
    flat = make(network, stage=4, pooling="flatten").fit_transform(X)
    assert_close(flat, tokens.reshape(3, -1))


def test_random_weights_are_the_same_in_every_fit(photographs):
    X = photographs[0][:2]
    first, second = (
        make("squeezenet1_1", weights=None, cache=None).fit_transform(X) for _ in range(2)
    )
    assert np.array_equal(first, second)


def test_network_and_global_state_are_untouched(network, photographs):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    make(network, stage=2).fit(photographs[0]).transform(photographs[0])
    make("squeezenet1_1", weights=None).fit(photographs[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_in_a_pipeline(network, photographs):
    scaled = make_pipeline(make(network), StandardScaler()).fit_transform(photographs[0])
    assert scaled.shape == (12, 512)
    assert scaled.mean(0) == pytest.approx(np.zeros(512), abs=1e-5)
