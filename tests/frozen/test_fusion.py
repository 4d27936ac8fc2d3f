"""Fewer and larger kernels: the same numbers, and nothing left that could be taken in."""

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from sktl.backbones import load_backbone
from sktl.frozen import fusion
from sktl.frozen.fusion import fuse, kernels

CPU = torch.device("cpu")
packs = pytest.mark.skipif(
    kernels(CPU, torch.float32) == "plain", reason="oneDNN has no kernels for this processor"
)

packs_bfloat16 = pytest.mark.skipif(
    kernels(CPU, torch.bfloat16) == "plain", reason="oneDNN has no bfloat16 on this processor"
)


def agree(module, *shape, dtype=torch.float32, atol=1e-5):
    """Compare a module before and after; give what it became."""
    graph = fx.symbolic_trace(module.eval())
    fused = fuse(graph, dtype, CPU)
    inputs = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        found, wanted = fused(inputs.to(dtype)).float(), graph(inputs)
    torch.testing.assert_close(found, wanted, rtol=atol, atol=atol)
    return [node for node in fused.graph.nodes if node.op not in ("placeholder", "output")]


def seeded(make):
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 64),
        ("efficientnet_lite0", 64),
        ("efficientnet_lite0", 65),
        ("mobilenet_v3_small", 64),
        ("shufflenet_v2_x0_5", 64),
        ("squeezenet1_1", 64),
        ("swin_t", 64),
        *(
            pytest.param(name, 96 if name == "inception_v3" else 64, marks=pytest.mark.slow)
            for name in (
                "convnext_tiny",
                "efficientnet_b0",
                "googlenet",
                "inception_v3",
                "mnasnet0_5",
                "mobilenet_v2",
                "regnet_y_400mf",
            )
        ),
    ],
)
def test_networks_compute_the_same(name, size):
    weights = "DEFAULT" if name == "efficientnet_lite0" else None
    backbone = load_backbone(name, weights, size, seed=0)
    plain = backbone.stage_features(None, "auto")
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted = plain(images)
        found = fuse(plain, torch.float32, CPU)(images)
        low = fuse(plain, torch.bfloat16, CPU)(images).float()
    scale = wanted.abs().max()
    assert (found - wanted).abs().max() < 1e-4 * scale
    assert F.cosine_similarity(low / scale, wanted / scale).min() > 0.99


@packs
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "mobilenet_v2"])
def test_nothing_is_left_between_convolutions(name):
    backbone = load_backbone(name, None, 64, seed=0)
    fused = fuse(backbone.stage_features(None, "auto"), torch.float32, CPU)
    kinds = {type(module) for module in fused.modules()}
    assert not kinds & {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Dropout}
    graphs = [module for module in fused.modules() if isinstance(module, fx.GraphModule)]
    calls = [node for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert not [node for node in calls if node.target in fusion._SUMS]


class Residual(nn.Module):
    def __init__(self, add, activation=None):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.add, self.activation = add, activation or nn.Identity()

    def forward(self, x):
        return self.activation(self.add(self.second(self.first(x)), x))


def iadd(a, b):
    a += b
    return a


@packs
@pytest.mark.parametrize("add", [torch.add, lambda a, b: a + b, lambda a, b: b + a, iadd])
@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.ReLU(inplace=True)])
def test_a_sum_and_what_follows_it_are_taken_in(add, activation):
    assert len(agree(seeded(lambda: Residual(add, activation)), 2, 4, 9, 7)) == 2


@packs
def test_after_a_sum_other_activations_stay():
    assert len(agree(seeded(lambda: Residual(torch.add, nn.SiLU())), 2, 4, 9, 7)) == 3


class Broadcast(nn.Module):
    def __init__(self, shape, layer):
        super().__init__()
        self.layer, self.other = layer, nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return F.relu(x.mean((2, 3), keepdim=True) * self.other + self.layer(x))


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((1, 4, 1, 1), lambda: nn.Conv2d(4, 4, 3)),  # the sum has the convolution's shape
        ((1, 4, 5, 5), lambda: nn.Conv2d(4, 4, (9, 7))),  # or the other's
    ],
)
def test_a_sum_may_broadcast(shape, layer):
    agree(seeded(lambda: Broadcast(shape, layer())), 2, 4, 9, 7)


class UsedTwice(nn.Module):
    """Its convolution's output is read before and after the activation."""

    def __init__(self, inplace=False):
        super().__init__()
        self.layer, self.activation = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace)

    def forward(self, x):
        maps = self.layer(x)
        return torch.cat([maps * 2, self.activation(maps), self.layer(maps)], 1)


@pytest.mark.parametrize("inplace", [False, True])
def test_maps_that_are_read_twice_stay(inplace):
    agree(seeded(lambda: UsedTwice(inplace)), 2, 4, 9, 9)


class ChangedInPlace(nn.Module):
    """The sum changes what is read once more after it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        kept = x * 2
        maps = self.layer(x)
        kept += maps
        return torch.cat([kept, maps], 1)


def test_what_a_sum_changes_in_place_is_changed():
    agree(seeded(ChangedInPlace), 2, 4, 5, 5)


@packs
@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.ReLU6(),
        nn.Hardtanh(-0.5, 0.25),
        nn.SiLU(),
        nn.Hardswish(),
        nn.Hardsigmoid(),
        nn.Sigmoid(),
        nn.GELU(),
        nn.GELU(approximate="tanh"),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        lambda: nn.Conv2d(4, 8, (3, 1), dilation=2, bias=False),
    ],
)
def test_activations_are_taken_in(layer, activation):
    nodes = agree(seeded(lambda: nn.Sequential(layer(), activation)), 2, 4, 9, 8, atol=1e-4)
    assert len(nodes) == 1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 4, 3),
    ],
    ids=["same", "reflect", "transposed"],
)
def test_other_convolutions_stay_as_they_are(layer):
    assert len(agree(nn.Sequential(layer, nn.ReLU()), 2, 4, 9, 8)) == 2


@packs_bfloat16
@pytest.mark.parametrize("activation", [nn.GELU(), nn.ReLU(), nn.Identity()], ids=repr)
def test_linear_layers_of_low_precision(activation):
    module = seeded(lambda: nn.Sequential(nn.Linear(16, 32), activation, nn.Dropout()))
    nodes = agree(module, 3, 5, 16, dtype=torch.bfloat16, atol=2e-2)
    assert len(nodes) == 1


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("size", [(8, 8), (9, 9), (9, 8)])
def test_convolutions_with_same_padding(kernel_size, size):
    from sktl.backbones import efficientnet_lite

    layer = seeded(
        lambda: nn.Sequential(
            efficientnet_lite.SamePad2d(kernel_size, 2),
            nn.Conv2d(6, 6, kernel_size, stride=2, groups=6),
            nn.ReLU6(),
        )
    )
    nodes = agree(layer, 2, 6, *size)
    assert len(nodes) == (1 if kernels(CPU, torch.float32) != "plain" else 3)


def test_pixels_of_odd_images_are_normalised():
    backbone = load_backbone("efficientnet_lite0", "DEFAULT", 64)
    plain = backbone.stage_features(0, None)[0]
    fused = fuse(nn.Sequential(plain), torch.float32, CPU)
    for size in [(7, 5), (8, 8), (1, 1), (6, 16)]:
        images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
        images = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(fused(images), plain(images), rtol=0, atol=0)


def test_kernels_have_names_of_their_own():
    assert kernels(torch.device("cuda"), torch.float32) == "plain"
    assert kernels(CPU, torch.float64) == "plain"


@packs
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=packs_bfloat16)]
)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_no_call_lays_out_weights_again(dtype, n_threads, capfd):
    network = load_backbone("efficientnet_lite0").stage_features(None, "auto")
    fused = fuse(network, dtype, CPU)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with torch.inference_mode():
            for n in [1, 5]:
                images = torch.zeros(n, 3, 96, 96, dtype=torch.uint8)
                images = images.contiguous(memory_format=torch.channels_last)
                fused(images)
                capfd.readouterr()
                with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
                    fused(images)
                calls = [call.split(",") for call in capfd.readouterr().out.splitlines()]
                calls = [call for call in calls if "exec" in call]
                assert any("convolution" in call for call in calls)
                laid_out = [call[-2] for call in calls if "reorder" in call]
                assert all(shape.startswith(f"{n}x") for shape in laid_out), laid_out
    finally:
        torch.set_num_threads(before)


@packs
def test_layouts_are_few_and_change_nothing():
    layer = nn.Conv2d(16, 32, 3, padding=1)
    network = fx.symbolic_trace(nn.Sequential(layer))
    fused = fuse(network, torch.float32, CPU)
    with torch.inference_mode():
        for n in [1, 2, 3, 4, 5, 1]:
            maps = torch.rand(n, 16, 8, 8).contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(fused(maps), layer(maps), atol=1e-5, rtol=1e-5)
    (kernel,) = (m for m in fused.modules() if isinstance(m, fusion._Convolution))
    assert len(kernel._layouts) == fusion._LAYOUTS
