"""Depthwise convolutions that a CPU trains in bfloat16 without losing time on their gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


@dataclass(frozen=True)
class _Geometry:
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        geometry = (self.stride, self.padding, self.dilation)
        return F.conv2d(maps, weight, bias, *geometry, groups=len(weight))

    def gradients(
        self, gradient: Tensor, maps: Tensor, weight: Tensor, wanted: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """By the maps, the weight and the bias."""
        return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
            gradient,
            maps,
            weight,
            [len(weight)],
            self.stride,
            self.padding,
            self.dilation,
            transposed=False,
            output_padding=[0, 0],
            groups=len(weight),
            output_mask=wanted,
        )


class _Depthwise(torch.autograd.Function):
    """Forward in autocast's number format, and gradients in float32.

    oneDNN has no bfloat16 kernels for most of these gradients, and what it does in their place
    takes up to 50 times as long.
    """

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry
    ) -> Tensor:
        ctx.save_for_backward(maps.bfloat16(), weight)
        ctx.geometry = geometry
        return geometry.convolve(maps, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight = ctx.saved_tensors
        *wanted, _ = ctx.needs_input_grad
        found = ctx.geometry.gradients(gradient.float(), maps.float(), weight, wanted)
        return *(g if w else None for g, w in zip(found, wanted, strict=True)), None


def _forward(geometry: _Geometry, layer: nn.Conv2d, maps: Tensor) -> Tensor:
    weight, bias = layer.weight, layer.bias
    low = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
    if low and maps.device.type == "cpu" and torch.is_grad_enabled():
        result: Tensor = _Depthwise.apply(maps, weight, bias, geometry)
        return result
    return geometry.convolve(maps, weight, bias)


def train_depthwise_fast(network: nn.Module) -> None:
    """Give depthwise convolutions gradients in float32 where they train in bfloat16 on a CPU.

    Parameters
    ----------
    network : torch.nn.Module
        Its modules stay what they are, but for how they train.
    """
    for layer in network.modules():
        if type(layer) is nn.Conv2d and _is_depthwise(layer):
            geometry = _Geometry(layer.stride, layer.padding, layer.dilation)  # type: ignore[arg-type]
            layer.forward = partial(_forward, geometry, layer)  # type: ignore[method-assign]


def _is_depthwise(layer: nn.Conv2d) -> bool:
    one_each = layer.groups == layer.in_channels == layer.out_channels > 1
    return one_each and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
