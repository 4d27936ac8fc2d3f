"""PretrainedImageFeatures against torchvision's own preprocessing and network."""

import pickle
from collections import Counter

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torchvision.models import ResNet, VisionTransformer
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

import sktl.features
from sktl import PretrainedImageFeatures
from sktl.backbones import load_backbone
from sktl.cache import MemoryCache
from sktl.frozen.prefix import frozen_stage_of
from sktl.images.format import learn_format
from sktl.images.reading import open_images

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
    """A small ResNet whose batch norms have seen something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = small_resnet()
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
    # As torchvision prepares them, which `maps` come from.
    settings = {"image_size": SIZE, "precision": "float32", "resize_mode": "crop"}
    return PretrainedImageFeatures(network, **(settings | params))


def assert_close(features, expected):
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("stage", "name", "pooling"),
    [*((name, name, pooling) for name in STAGES for pooling in ("auto", "avg", "flatten")),
     *((i, STAGES[i], "auto") for i in (0, 2, 4, -1, -5, np.int64(1)))],
)  # fmt: skip
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
        network = transformer().eval()
    backbone = load_backbone(network, image_size=SIZE)
    assert backbone.stages == ("stem", *(f"encoder.layers.encoder_layer_{i}" for i in range(4)))
    prepare = ImageClassification(crop_size=SIZE, resize_size=round(256 * SIZE / 224))
    inputs = torch.stack([prepare(torch.tensor(x).permute(2, 0, 1)) for x in X])
    node = "encoder.layers.encoder_layer_2"
    with torch.no_grad():
        tokens = create_feature_extractor(network, [f"{node}.add_1"])(inputs)[f"{node}.add_1"]
    tokens = tokens.numpy()
    assert tokens.shape == (3, 5, 48)
    assert_close(make(network, stage=node).fit_transform(X), tokens.mean(1))
    flat = make(network, stage=3, pooling="flatten").fit_transform(X)
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


# Several stages ---------------------------------------------------------------------------


def overwriting_network():
    """Each block overwrites what the one before gave."""

    def block(n_in, n_out):
        return nn.Sequential(
            nn.ReLU(inplace=True), nn.Conv2d(n_in, n_out, 3, 2, 1), nn.Conv2d(n_out, n_out, 3, 1, 1)
        )

    blocks = nn.Sequential(block(8, 8), block(8, 16), block(16, 16))
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1))
    return nn.Sequential(stem, blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))


def transformer():
    """With few layers, and patches as large as ViT-B/32's."""
    return VisionTransformer(SIZE, 32, 4, 3, 48, 96)


def small_resnet():
    return ResNet(BasicBlock, [1, 1, 1, 1])


NETWORKS = {
    "resnet": (small_resnet, ["layer3", None, 0]),
    "overwriting": (overwriting_network, [1, 0, "1.2", None, 2]),
    "transformer": (transformer, [None, "encoder.layers.encoder_layer_2", 0]),
    "embedded": (lambda: "efficientnet_lite0", [-1, "stem", None]),
}


def seeded(make_network):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_network()


@pytest.mark.parametrize("pooling", ["auto", "avg", "flatten"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_several_stages_side_by_side(photographs, kind, pooling):
    X = photographs[0][:3]
    make_network, stages = NETWORKS[kind]
    if (kind, pooling) == ("overwriting", "flatten"):
        stages = stages[:3] + stages[4:]  # its last stage's map is what None gives, too
    backbone = seeded(make_network)
    fitted, *single = (
        make(backbone, stage=stage, pooling=pooling).fit(X) for stage in (tuple(stages), *stages)
    )
    assert_close(fitted.transform(X), np.hstack([each.transform(X) for each in single]))
    names = np.hstack([each.get_feature_names_out() for each in single])
    assert list(fitted.get_feature_names_out()) == list(names)


def test_several_stages_run_each_layer_once(photographs):
    network = seeded(overwriting_network)
    counts = Counter()
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):  # a copy of the network takes the hook with it
            module.register_forward_hook(lambda *_, name=name: counts.update([name]))
    runs = []
    for stage in (None, [1, None, 0]):
        counts.clear()
        make(network, stage=stage, cache=None).fit_transform(photographs[0])
        runs.append(dict(counts))
    assert len(runs[0]) == 7
    assert runs[0] == runs[1]


def test_one_stage_in_a_list_is_that_stage(network, photographs):
    fitted, alone = (make(network, stage=s).fit(photographs[0]) for s in (["layer2"], "layer2"))
    assert fitted._prefix.key == alone._prefix.key
    assert list(fitted.get_feature_names_out()) == list(alone.get_feature_names_out())


@pytest.mark.parametrize("by_name", [True, False])
def test_order_and_number_of_stages_are_in_the_key(network, photographs, by_name):
    backbone = "efficientnet_lite0" if by_name else network
    stages = [(0, 1), (1, 0), 0, 1, (0, None), (None, 0), (0, 1, None), None]
    fitted = [make(backbone, stage=stage).fit(photographs[0][:1]) for stage in stages]
    assert len({each._prefix.key for each in fitted}) == len(stages)


def test_several_stages_are_cached(photographs):
    X = photographs[0]
    network = seeded(overwriting_network)
    fitted = make(network, stage=[2, 0]).fit(X)
    whole = fitted.transform(X)
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(fitted.transform(X[order]), whole[order])
    np.testing.assert_array_equal(fitted.transform(X[::3]), whole[::3])
    np.testing.assert_array_equal(make(network, stage=[2, 0]).fit_transform(X), whole)
    assert fitted._prefix.n_images == 12


@pytest.mark.parametrize(
    ("kept", "stages", "n_computed"),
    [(1, (2, None), 0), (0, (3, 1), 0), (1, (3, 1), 12), (2, (0, None), 12), (3, (None, 3), 12)],
)
def test_several_stages_go_on_from_what_lies_before_all(photographs, kept, stages, n_computed):
    images = open_images(photographs[0], learn_format(photographs[0]))
    backbone = load_backbone(seeded(overwriting_network), image_size=SIZE)
    cpu, cache = torch.device("cpu"), MemoryCache(10**8)
    frozen_stage_of(backbone, kept, None, "float32", cpu).compute(images, cache)
    prefix = frozen_stage_of(backbone, stages, "auto", "float32", cpu)
    found = prefix.compute(images, cache)
    assert prefix.n_images == n_computed
    torch.testing.assert_close(found, prefix.compute(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ([], "stage is empty"),
        ((), "stage is empty"),
        (["layer1", 1], "'layer1' and 1, which are the same"),
        ([None, "stem", None], "None and None, which are the same"),
        ([-1, 4], "-1 and 4, which are the same"),
        (["layer1", "layer9"], "no stage 'layer9'"),
        ([0, 5], "no stage 5"),
        ([0, 1.0], r"no stage 1\.0"),
        ([["layer1"]], r"no stage \['layer1'\]"),
    ],
)
def test_bad_lists_of_stages(network, photographs, stage, words):
    with pytest.raises(ValueError, match=words):
        make(network, stage=stage).fit(photographs[0])


class DataDependent(nn.Module):
    """What torch.fx can't follow."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, 4)
        self.classifier = nn.Linear(4, 2)

    def forward(self, x):
        features = self.convolution(x)
        if features.mean() > 100:
            features = -features
        return self.classifier(features.mean((2, 3)))


def test_a_network_that_cannot_be_traced_has_one_stage(photographs):
    X, network = photographs[0][:2], seeded(DataDependent)
    with pytest.raises(ValueError, match=r"can't trace this network.*stage=None"):
        make(network, stage=[0, None]).fit(X)
    with pytest.raises(ValueError, match="no stage 'convolution'"):
        make(network, stage=["convolution", None]).fit(X)
    only = make(network, stage=[-1]).set_output(transform="pandas").fit_transform(X)
    assert list(only.columns) == [f"network_{i}" for i in range(4)]
    assert_close(only, make(network).fit_transform(X))


# Names ------------------------------------------------------------------------------------


def test_names_tell_channel_and_position(network, maps, photographs):
    fitted = make(network, stage=["layer3", "layer2"], pooling="flatten")
    frame = fitted.set_output(transform="pandas").fit_transform(photographs[0])
    for stage, channel, row, column in [("layer2", 5, 7, 0), ("layer3", 255, 1, 3)]:
        values = maps[stage][:, channel, row, column]
        assert_close(frame[f"{stage}_{channel}_{row}_{column}"], values)
    assert frame.shape[1] == 256 * 4 * 4 + 128 * 8 * 8


def test_names_where_channels_lie_last(photographs):
    fitted = make("swin_t", weights=None, stage=0, pooling="flatten").fit(photographs[0][:2])
    names = list(fitted.get_feature_names_out())
    assert names[:2] == ["stem_0_0_0", "stem_1_0_0"]
    assert names[96] == "stem_0_0_1"
    assert names[-1] == "stem_95_15_15"


def test_names_of_tokens(photographs):
    network = seeded(transformer)
    frames = [
        make(network, stage=[1], pooling=pooling)
        .set_output(transform="pandas")
        .fit_transform(photographs[0][:2])
        for pooling in ("flatten", "avg")
    ]
    stage = "encoder.layers.encoder_layer_0"
    tokens = frames[0][[f"{stage}_{token}_7" for token in range(5)]]
    assert_close(tokens.mean(axis=1), frames[1][f"{stage}_7"].to_numpy())
    assert list(frames[0].columns[[1, 48]]) == [f"{stage}_0_1", f"{stage}_1_0"]


def test_flattened_features_of_no_stage_are_numbered(network, photographs):
    fitted = make(network, pooling="flatten").fit(photographs[0][:2])
    assert list(fitted.get_feature_names_out()) == [f"penultimate_{i}" for i in range(512 * 2 * 2)]


def test_in_a_column_transformer_and_a_union(network, photographs, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path, picture in zip(paths, photographs[0], strict=False):
        Image.fromarray(picture).save(path)
    frame = pd.DataFrame({"file": paths, "width": [3.0, 4.0, 5.0]})
    columns = ColumnTransformer(
        [("picture", make(network, stage=["stem", None]), ["file"])], remainder="passthrough"
    )
    table = columns.set_output(transform="pandas").fit_transform(frame)
    assert list(table.columns[[0, 63, 64, -1]]) == [
        "picture__stem_0",
        "picture__stem_63",
        "picture__penultimate_0",
        "remainder__width",
    ]
    union = FeatureUnion([("early", make(network, stage=0)), ("late", make(network))])
    both = union.set_output(transform="pandas").fit_transform(paths)
    assert list(both.columns[[0, -1]]) == ["early__stem_0", "late__penultimate_511"]
    np.testing.assert_allclose(both, table.iloc[:, :-1], rtol=1e-4, atol=1e-4)


# Number format and blocks -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, "float16", np.float32, "float32"])
@pytest.mark.parametrize("stage", [None, [1, None]])
def test_dtype(network, photographs, dtype, stage):
    X = photographs[0]
    fitted = make(network, stage=stage, dtype=dtype)
    features, exact = fitted.fit_transform(X), make(network, stage=stage).fit_transform(X)
    assert features.dtype == fitted.transform(X[:3]).dtype == np.dtype(dtype)
    np.testing.assert_array_equal(features, exact.astype(dtype))


@pytest.mark.parametrize("dtype", ["float64", np.float64, int, None, "half"])
def test_bad_dtype(network, photographs, dtype):
    with pytest.raises(ValueError, match="'dtype' parameter of PretrainedImageFeatures"):
        make(network, dtype=dtype).fit(photographs[0])


@pytest.mark.parametrize("sign", [1, -1])
def test_features_beyond_float16_are_an_error(photographs, sign):
    X = photographs[0]
    network = seeded(overwriting_network)
    with torch.no_grad():
        network[1][2][2].weight.mul_(sign * 1e7)
    assert np.abs(make(network).fit_transform(X)).max() > 65504
    fitted = make(network, dtype=np.float16)
    with pytest.raises(ValueError, match=r"beyond the range of float16.*dtype=np\.float32"):
        fitted.fit_transform(X)
    assert not hasattr(fitted, "stages_")
    with pytest.raises(ValueError, match="beyond the range of float16"):
        fitted.fit(X).transform(X)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("cache", [None, "directory"])
def test_blocks(network, photographs, monkeypatch, tmp_path, cache, dtype):
    """In blocks of five, with pictures that occur again in a later block."""
    cache = str(tmp_path) if cache == "directory" else cache
    X = photographs[0][[*range(12), 0, 3, 11]]
    whole = make(network, stage=[0, None], cache=None, dtype=dtype).fit_transform(X)
    monkeypatch.setattr(sktl.features, "_BLOCK", 5)
    fitted = make(network, stage=[0, None], cache=cache, dtype=dtype)
    features = fitted.fit_transform(X)
    assert features.dtype == dtype
    np.testing.assert_allclose(features, whole, rtol=1e-3, atol=1e-5)
    assert fitted._prefix.n_images == (15 if cache is None else 12)


def test_fit_transform_computes_once_without_a_cache(photographs):
    fitted = make(seeded(overwriting_network), cache=None)
    fitted.fit_transform(photographs[0])
    assert fitted._prefix.n_images == 12
    assert fitted.fit(photographs[0])._prefix.n_images == 1


# Files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NETWORKS)
def test_loaded_features_of_several_stages_are_the_same(photographs, tmp_path, kind):
    X = photographs[0][:3]
    make_network, stages = NETWORKS[kind]
    fitted = make(seeded(make_network), stage=stages, dtype=np.float16, cache=None).fit(X)
    joblib.dump(fitted, tmp_path / "features.joblib")
    for loaded in (pickle.loads(pickle.dumps(fitted)), joblib.load(tmp_path / "features.joblib")):
        features = loaded.transform(X)
        assert features.dtype == np.float16
        np.testing.assert_array_equal(features, fitted.transform(X))
        assert list(loaded.get_feature_names_out()) == list(fitted.get_feature_names_out())
