"""Networks in the ONNX format: the same numbers from any number of inputs, or a refusal."""

import onnxruntime
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from sktl.backbones import load_backbone, pad_same
from sktl.frozen.fusion import fold_norms
from sktl.frozen.onnx_writer import UntranslatableError
from sktl.frozen.translation import to_onnx_bytes

pytestmark = pytest.mark.core

fx.wrap("pad_same")


def run(model, inputs):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    if inputs.ndim == 4:
        inputs = inputs.movedim(1, -1)
    (outputs,) = session.run(None, {"inputs": inputs.contiguous().numpy()})
    return torch.from_numpy(outputs)


def agree(module, inputs):
    """Compare a network with its translation, which was made for one input of this shape."""
    module = module.eval()
    model, example = to_onnx_bytes(module, inputs[:1].clone())
    with torch.inference_mode():
        wanted = module(inputs.clone())
    torch.testing.assert_close(example, wanted[:1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run(model, inputs), wanted, rtol=1e-4, atol=1e-5)


def traced(forward):
    """Give a module that does what a function of a tensor does."""

    class Network(nn.Module):
        def forward(self, x):
            return forward(x)

    return fx.symbolic_trace(Network())


@pytest.fixture
def maps():
    return torch.randn(3, 4, 11, 8, generator=torch.Generator().manual_seed(0))


NETWORKS = [
    ("efficientnet_lite0", 33),
    ("resnet18", 64),
    ("mobilenet_v3_small", 64),
    ("squeezenet1_1", 64),
    *(
        pytest.param(name, 64, marks=pytest.mark.slow)
        for name in ("efficientnet_b0", "mnasnet0_5", "regnet_y_400mf", "densenet121")
    ),
]


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_networks_compute_the_same(name, size):
    weights = "DEFAULT" if name == "efficientnet_lite0" else None
    backbone = load_backbone(name, weights, size, seed=0)
    seeded = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=seeded)
    agree(fold_norms(backbone.stage_features(None, "auto")), images)


def test_part_of_a_network_goes_on_from_maps():
    backbone = load_backbone("efficientnet_lite0", image_size=64)
    with torch.inference_mode():
        images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
        maps = backbone.stage_features(2, None)(images).clone()
    agree(fold_norms(backbone.continuation(3, None, "auto")), maps)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(4, 4, (3, 1), padding=(1, 0), dilation=2, groups=4),
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.Linear(8, 5),
        nn.Linear(8, 5, bias=False),
        nn.ReLU(),
        nn.ReLU6(),
        nn.Hardtanh(-0.5, 0.25),
        nn.SiLU(),
        nn.Hardswish(),
        nn.Hardsigmoid(),
        nn.Sigmoid(),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d((3, 2), dilation=2),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((11, 8)),
        nn.Dropout(),
    ],
    ids=str,
)
def test_layers(layer, maps):
    agree(layer, maps)


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x + x * 2,
        lambda x: torch.add(x, 0.5),
        lambda x: torch.cat([x, F.relu(x)], 1),
        lambda x: torch.flatten(x, 1),
        lambda x: x.flatten(1),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean([2, 3], keepdim=True) * x,
        lambda x: F.relu6(x.contiguous()).clone(),
        lambda x: F.max_pool2d(x, kernel_size=3, stride=2),
        lambda x: F.avg_pool2d(x, kernel_size=3, stride=1, padding=1),
        lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
        lambda x: torch.sigmoid(x).relu(),
        lambda x: pad_same(x, 5, 2),
        lambda x: pad_same(x, 3, 2) + 1,
    ],
)
def test_calls(forward, maps):
    agree(traced(forward), maps)


@pytest.mark.parametrize("size", [(11, 8), (8, 11), (9, 9), (8, 8)])
def test_padding_goes_into_the_convolution(size):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(4, 4, 5, 2, groups=4)

        def forward(self, x):
            return self.convolution(pad_same(x, 5, 2))

    network = fx.symbolic_trace(Network())
    agree(network, torch.randn(2, 4, *size))
    assert b"Pad" not in to_onnx_bytes(network, torch.randn(1, 4, *size))[0].replace(b"pads", b"")


class Odd(nn.Module):
    def forward(self, x):
        return x * 2


@pytest.mark.parametrize(
    "network",
    [
        Odd(),  # a layer that nobody here knows
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.AdaptiveAvgPool2d(3),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.BatchNorm2d(4, track_running_stats=False),
        traced(lambda x: x.reshape(x.shape[0], -1)),  # what depends on the number of images
        traced(lambda x: x.mean(0, keepdim=True)),
        traced(lambda x: torch.cat([x, x])),
        traced(lambda x: x.flatten(0)),
        traced(lambda x: F.dropout(x, 0.5, True)),
        traced(lambda x: (x, x)),
        traced(lambda x: x[:, :2]),
        traced(lambda x: F.max_pool2d(pad_same(x, 3, 2), 3, 2)),  # older engines lose the zeros
    ],
)
def test_what_has_no_translation_is_refused(network, maps):
    with pytest.raises(UntranslatableError):
        to_onnx_bytes(network.eval(), maps[:1])


def test_other_inputs_are_refused(maps):
    with pytest.raises(UntranslatableError, match="float64"):
        to_onnx_bytes(nn.Identity(), maps[:1].double())
