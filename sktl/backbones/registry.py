"""The backbones that have a name, and how to build them."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torchvision.models
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models import WeightsEnum

from ..images.preprocessing import Size, height_width
from ..messages import shown
from .efficientnet_lite import LITES
from .given import plain_copy
from .hubs import TIMM, build_from_hub, check_hub_name, is_of_hub, timm_names

EMBEDDED = "efficientnet_lite0"


def list_backbones(pattern: str | None = None) -> list[str]:
    """Names that `backbone` accepts.

    Parameters
    ----------
    pattern : str or None, default=None
        Such as "*resnet*". One that begins with "timm/" looks through timm's names, such as
        "timm/*dinov2*"; that needs timm. None is for all that have a name of sktl's: the networks
        of EfficientNet-Lite, of which the first is embedded and the weights of the others are
        installed with ``sktl[lite]``, and torchvision's classifiers.

    Returns
    -------
    list of str
        Repositories of Hugging Face, "hf/...", can't be listed.

    Examples
    --------
    >>> from sktl import list_backbones
    >>> list_backbones("resnet1*")
    ['resnet101', 'resnet152', 'resnet18']
    """
    if pattern is not None and pattern.startswith(TIMM):
        return timm_names(pattern)
    names = [*LITES, *torchvision.models.list_models(module=torchvision.models)]
    return [name for name in names if pattern is None or fnmatch.fnmatchcase(name, pattern)]


def check_name(name: str) -> None:
    """Raise a ValueError with the nearest names if there is no such backbone."""
    if is_of_hub(name):
        check_hub_name(name)
        return
    names = list_backbones()
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(
        f"Unknown backbone {shown(name)}.{hint} sktl.list_backbones() gives all {len(names)} "
        "names; 'timm/<name>', 'hf/<repository>', a torch.nn.Module or a callable that returns "
        "one are accepted, too."
    )


def default_weights(name: str) -> WeightsEnum:
    """Torchvision's DEFAULT weights of one of its models."""
    return torchvision.models.get_model_weights(name)["DEFAULT"]


@dataclass(frozen=True)
class Architecture:
    """All that builds a network again, without its weights.

    Attributes
    ----------
    source : str, torch.nn.Module or callable
        A name of :func:`list_backbones` or of a hub, a module to copy, or what makes one.
    image_size : int or (int, int)
        Height and width of the images in pixels; some networks are built for one size.
    transform_input : bool
        Whether an Inception network renormalises its input, as torchvision's weights need.
    """

    source: str | nn.Module | Callable[[], nn.Module]
    image_size: Size
    transform_input: bool = False
    options: dict[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Work out what torchvision's builder needs."""
        object.__setattr__(self, "options", self._options())

    def _options(self) -> dict[str, Any]:
        name = self.source
        if not isinstance(name, str):
            return {}
        if name in ("googlenet", "inception_v3"):
            inception = {"aux_logits": False, "init_weights": not self.transform_input}
            return inception | {"transform_input": self.transform_input}
        if name.startswith("vit_"):
            return {"image_size": self.image_size}
        if name.startswith("maxvit_"):
            return {"input_size": height_width(self.image_size)}
        return {}

    def build(self, *, initialise: bool) -> nn.Module:
        """Build the network on the CPU.

        Parameters
        ----------
        initialise : bool
            False leaves out the random initialisation, for weights that are replaced anyway.

        Raises
        ------
        TypeError
            If a callable returns something other than a module.
        ValueError
            If the network can't be built for this image size.
        """
        if isinstance(self.source, nn.Module):
            return plain_copy(self.source)
        if is_of_hub(self.source):
            return build_from_hub(str(self.source), self.image_size, pretrained=False)
        if str(self.source).startswith("vit_") and not isinstance(self.image_size, int):
            raise ValueError(
                f"image_size={self.image_size}: {self.source} takes square images only. Pass one "
                "number, or choose a convolutional network."
            )
        if not isinstance(self.source, str):
            return _call(self.source)
        lite = LITES.get(self.source)
        make = _torchvision_builder(self.source) if lite is None else lite.build
        try:
            if initialise:
                return make(**self.options)
            with _NoInitialisation():
                return make(**self.options)
        except (ValueError, AssertionError, RuntimeError) as error:
            raise ValueError(
                f"{self.source} can't be built for image_size={self.image_size}: {error}"
            ) from error


def _torchvision_builder(name: str) -> Callable[..., nn.Module]:
    def build(**options: Any) -> nn.Module:
        network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        return network

    return build


def _call(factory: Callable[[], nn.Module]) -> nn.Module:
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise TypeError(
            f"backbone={shown(factory)} must be callable without arguments ({error}); wrap it in "
            "a function or functools.partial that needs none."
        ) from error
    except ValueError:  # some built-in callables have no signature
        pass
    module = factory()
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"The backbone callable must return a torch.nn.Module, got {type(module).__name__}."
        )
    return plain_copy(module)


class _NoInitialisation(TorchFunctionMode):
    """Fill with zeros instead of random numbers; rejection samplers then end at once."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("uniform_", "normal_"):
            tensor = args[0] if args else kwargs["tensor"]
            return tensor.detach().zero_()
        return func(*args, **kwargs)
