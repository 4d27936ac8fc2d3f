"""Depthwise convolutions: their gradients, and what is left as it is."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from sktl import PretrainedImageClassifier
from sktl.training.depthwise import _Depthwise, train_depthwise_fast

# channels, height, width, kernel, stride, padding, dilation, bias
CASES = [
    (8, 7, 9, 5, 1, 2, 1, False),
    (8, 13, 13, 5, 2, 0, 1, True),
    (8, 14, 14, 7, 1, 3, 1, True),
    (8, 15, 12, (3, 5), (2, 1), (1, 2), 1, False),
    (8, 12, 12, 5, 1, 4, 2, False),
    (8, 16, 16, 3, 2, 1, 1, False),
    (4, 40, 40, 5, 2, 2, 1, True),
]


def gradients(layer, maps, upstream, low):
    maps = maps.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        output = layer(maps)
    output.backward(upstream.to(output))
    return output.detach(), maps.grad, *(p.grad.clone() for p in layer.parameters())


@pytest.mark.parametrize(
    ("channels", "height", "width", "kernel", "stride", "padding", "dilation", "bias"), CASES
)
def test_gradients_are_those_of_the_convolution(
    channels, height, width, kernel, stride, padding, dilation, bias
):
    torch.manual_seed(0)
    geometry = (kernel, stride, padding, dilation, channels, bias)
    layer = nn.Conv2d(channels, channels, *geometry).to(memory_format=torch.channels_last)
    # Of few digits, so that bfloat16 holds them as they are.
    maps = torch.randint(-8, 9, (3, channels, height, width)) / 4.0
    maps = maps.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-8, 9, layer.weight.shape) / 8)
    upstream = torch.randint(-4, 5, layer(maps).shape) / 2.0
    _, *wanted = gradients(layer, maps, upstream, low=False)
    quick = copy.deepcopy(layer)
    train_depthwise_fast(quick)
    output, *found = gradients(quick, maps, upstream, low=True)
    assert output.dtype is torch.bfloat16
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype is torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_other_convolutions_are_left_alone():
    layers = [
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.Conv2d(1, 1, 3),
        nn.Conv2d(8, 8, 3, groups=8, padding="same"),
        nn.Conv2d(8, 8, 3, groups=8, padding=1, padding_mode="reflect"),
    ]
    before = [dict(vars(layer)) for layer in layers]
    train_depthwise_fast(nn.Sequential(*layers))
    assert [dict(vars(layer)) for layer in layers] == before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_weights_of_its_own(copied):
    layer = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)
    train_depthwise_fast(layer)
    other = copied(layer)
    maps = torch.ones(1, 8, 6, 6)
    with torch.no_grad():
        other.weight.zero_()
        assert layer(maps).any()
        assert not other(maps).any()


def test_only_training_in_bfloat16_takes_them(monkeypatch):
    layer = nn.Conv2d(8, 8, 5, padding=2, groups=8)
    train_depthwise_fast(layer)
    maps = torch.ones(1, 8, 6, 6)
    taken = []
    apply = _Depthwise.apply
    monkeypatch.setattr(_Depthwise, "apply", lambda *args: taken.append(1) or apply(*args))
    layer(maps)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        layer(maps)
    assert not taken
    with torch.autocast("cpu", torch.bfloat16):
        layer(maps)
    assert taken


def test_the_embedded_network_trains_with_them(monkeypatch):
    taken = []
    backward = _Depthwise.backward
    monkeypatch.setattr(
        _Depthwise, "backward", staticmethod(lambda *args: taken.append(1) or backward(*args))
    )
    X = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    clf = PretrainedImageClassifier(
        freeze="none", max_epochs=1, batch_size=6, image_size=32, precision="bfloat16"
    )
    clf.fit(X, [0, 1] * 6)
    assert len(taken) == 2 * 16  # a batch has a gradient of each block's depthwise convolution
