"""Networks of timm and of Hugging Face's hub by name: "timm/<name>" and "hf/<repository>"."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import importlib
import inspect
import re
from types import ModuleType
from typing import Any, cast

from torch import nn

from ..compat import class_for
from ..images.descriptions import read_recipe
from ..images.preprocessing import Recipe
from ..images.sizes import Size, height_width
from ..messages import shown

TIMM, HF = "timm/", "hf/"
_PACKAGES = {TIMM: "timm", HF: "transformers"}
_REPOSITORY = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def is_of_hub(name: object) -> bool:
    """Whether a backbone's name is of timm or of Hugging Face's hub."""
    return isinstance(name, str) and name.startswith((TIMM, HF))


def timm_names(pattern: str) -> list[str]:
    """Names of timm that a pattern fits, with and without the tag of their weights."""
    timm = _package(TIMM)
    names = dict.fromkeys([*timm.list_models(), *timm.list_pretrained()])
    return sorted(TIMM + name for name in names if fnmatch.fnmatchcase(TIMM + name, pattern))


def check_hub_name(name: str) -> None:
    """Raise an error if a name of a hub can't be one.

    Raises
    ------
    ImportError
        If the package that builds it isn't installed.
    ValueError
        If timm has no such model, or Hugging Face can't have such a repository.
    """
    if name.startswith(HF):
        _package(HF)
        if not _REPOSITORY.fullmatch(name.removeprefix(HF)):
            raise ValueError(
                f"backbone={shown(name)} names no repository; write 'hf/<owner>/<name>', such as "
                "'hf/facebook/dinov2-small'."
            )
        return
    _, own = _package(TIMM), name.removeprefix(TIMM)
    model = own.partition(".")[0]
    names = [n.removeprefix(TIMM) for n in _all_timm_names()]
    if own in names:
        return
    tagged = [n for n in names if n.partition(".")[0] == model and n != model]
    near = tagged[:3] or difflib.get_close_matches(own, names, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(repr(TIMM + n) for n in near)}?" if near else ""
    raise ValueError(
        f"timm has no model {shown(own)}.{hint} sktl.list_backbones('timm/*') gives all names."
    )


@functools.cache
def _all_timm_names() -> tuple[str, ...]:
    return tuple(timm_names(TIMM + "*"))


def _package(hub: str) -> ModuleType:
    package = _PACKAGES[hub]
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"backbone={hub + '...'!r} needs the package {package} ({error}): "
            f"pip install sktl[{package}]"
        ) from error


def hub_recipe(name: str) -> Recipe:
    """The preprocessing that belongs to a network's weights.

    Raises
    ------
    OSError
        If it is neither in the hub's cache nor to be downloaded.
    """
    own = _own_name(name)
    if name.startswith(TIMM):
        return read_recipe(_package(TIMM).get_pretrained_cfg(own).to_dict())
    processor = _fetched(name, _package(HF).AutoImageProcessor.from_pretrained, own)
    return read_recipe(processor)


def build_from_hub(name: str, image_size: Size, *, pretrained: bool) -> nn.Module:
    """Build a network, with the hub's weights or with random ones.

    Parameters
    ----------
    name : str
    image_size : int or (int, int)
        Some networks of timm are built for one size.
    pretrained : bool

    Raises
    ------
    OSError
        If its configuration or weights are neither in the hub's cache nor to be downloaded.
    """
    make = _build_of_timm if name.startswith(TIMM) else _build_of_transformers
    return make(name, image_size, pretrained)


def _build_of_timm(name: str, image_size: Size, pretrained: bool) -> nn.Module:
    timm, own = _package(TIMM), _own_name(name)
    config = timm.get_pretrained_cfg(own)
    if pretrained and not config.has_weights:
        raise ValueError(
            f"timm has no weights for {own}. Give a path of a state dict, or weights=None for "
            "random ones."
        )
    create = functools.partial(timm.create_model, own, pretrained=pretrained)
    if height_width(image_size) != tuple(config.input_size[-2:]):
        try:
            return cast(nn.Module, _fetched(name, create, img_size=height_width(image_size)))
        except TypeError:  # of any size
            pass
    return cast(nn.Module, _fetched(name, create))


def _build_of_transformers(name: str, image_size: Size, pretrained: bool) -> nn.Module:
    transformers, repository = _package(HF), _own_name(name)
    config = _fetched(name, transformers.AutoConfig.from_pretrained, repository)
    made_by = (getattr(config, "architectures", None) or [""])[0]
    classifies = str(made_by).endswith("ForImageClassification")
    auto = transformers.AutoModelForImageClassification if classifies else transformers.AutoModel
    kind = getattr(transformers, str(made_by), None) if classifies else class_for(auto, config)
    # A pooling layer over the class token is random where the weights have none.
    takes = kind is not None and "add_pooling_layer" in inspect.signature(kind).parameters
    options: dict[str, Any] = {"add_pooling_layer": False} if takes else {}
    if not pretrained:
        network = auto.from_config(config, **options)
    else:
        network, about = _fetched(
            name, auto.from_pretrained, repository, output_loading_info=True, **options
        )
        if about["missing_keys"]:
            raise ValueError(
                f"The repository {repository} lacks weights of {type(network).__name__}: "
                f"{sorted(about['missing_keys'])[:5]}."
            )
    tower = getattr(network, "vision_model", None)
    return tower if isinstance(tower, nn.Module) else network


def _own_name(name: str) -> str:
    return name.removeprefix(TIMM).removeprefix(HF)


def _fetched(name: str, get: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what may download, and say what to do where it can't."""
    try:
        return get(*args, **kwargs)
    except (TypeError, MemoryError):
        raise
    except Exception as error:  # httpx, huggingface_hub and transformers have classes of their own
        from huggingface_hub.constants import HF_HUB_CACHE

        lines = [line for line in str(error).splitlines() if line.strip()]
        raise OSError(
            f"{name} could not be had from Hugging Face's hub ({type(error).__name__}: "
            f"{lines[0] if lines else 'no message'}). It needs a network once; a repository with "
            "restricted access needs a login, too. Without a network: copy the repository's folder "
            f"from another machine's cache to {HF_HUB_CACHE}; or pass a module with its weights; "
            "or choose backbone='efficientnet_lite0', whose weights are installed with sktl."
        ) from error
