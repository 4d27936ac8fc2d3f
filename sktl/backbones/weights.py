"""Where a network's weights come from, and whether they fit it."""

from __future__ import annotations

import difflib
import functools
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.hub
import xxhash
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.vision_transformer import interpolate_embeddings

from ..images.preprocessing import Recipe, Size
from ..messages import shown
from .efficientnet_lite import LITES, load_published_state
from .hubs import hub_recipe, is_of_hub
from .registry import EMBEDDED, default_weights

_FILE_ENDINGS = (".pth", ".pt", ".bin", ".safetensors")
# Auxiliary classifiers serve training from scratch only; sktl builds networks without them.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_SHOWN = 10
IMAGENET_RECIPE = Recipe()


@dataclass(frozen=True)
class WeightsSource:
    """Weights that have been named but not read.

    Attributes
    ----------
    recipe : Recipe
        The preprocessing that belongs to them.
    read : callable or None
        Gives the state dict; None leaves the network as it is built.
    name : str
        How messages call them.
    address : str
        Path or address of the file; the embedded weights' hash.
    built_in : bool, default=False
        Whether the network is built with them, by the library that it is from.
    """

    recipe: Recipe
    read: Callable[[], dict[str, Tensor]] | None
    name: str
    address: str = ""
    built_in: bool = False

    def content(self) -> str:
        """What stands for the weights: the hash of a file, or an address that never changes."""
        if not os.path.isfile(self.address):
            return self.address
        status = os.stat(self.address)
        return _hash_file(self.address, status.st_mtime_ns, status.st_size, status.st_ino)


@functools.lru_cache(maxsize=64)
def _hash_file(path: str, *stamp: int) -> str:
    """Hash a file; the stamp tells that a file seen before has changed."""
    hasher = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            hasher.update(block)
    return hasher.hexdigest()


def find_weights(backbone: Any, weights: Any) -> WeightsSource:
    """Find the weights for a backbone without reading them.

    Parameters
    ----------
    backbone : str, torch.nn.Module or callable
        A name must be known.
    weights : str, path, torchvision WeightsEnum or None
        "DEFAULT", a member's name with or without its class ("ResNet50_Weights.IMAGENET1K_V2"),
        a member, a file (.pth or .safetensors), or None for random weights.

    Raises
    ------
    ValueError
        If the backbone has no such weights.
    """
    named = isinstance(backbone, str)
    if _is_path(weights):
        path = Path(weights).expanduser()
        if not path.is_file():
            raise ValueError(f"weights={os.fspath(weights)!r}: there is no such file.")
        return WeightsSource(_own_recipe(backbone), lambda: _read_file(path), str(path), str(path))
    if weights is None or (not named and weights == "DEFAULT"):
        return WeightsSource(_own_recipe(backbone), None, "random")
    if is_of_hub(backbone) and weights == "DEFAULT":
        return WeightsSource(hub_recipe(backbone), None, backbone, built_in=True)
    if is_of_hub(backbone):
        raise ValueError(
            f"weights={shown(weights)}: {backbone} has 'DEFAULT', the hub's; a path to a state "
            "dict and None (random weights) are accepted, too. timm's others are part of the name, "
            "as in 'timm/resnet18.a1_in1k'."
        )
    if isinstance(weights, WeightsEnum):
        return _torchvision_source(weights)
    if not named:
        raise ValueError(
            f"weights={shown(weights)} needs a backbone with a name. A module comes with its own "
            'weights: leave weights="DEFAULT", or give the path of a state dict.'
        )
    if backbone in LITES:
        return _lite_source(backbone, weights)
    return _torchvision_source(_member(backbone, weights))


def _is_path(weights: Any) -> bool:
    if isinstance(weights, os.PathLike):
        return True
    return isinstance(weights, str) and (
        weights.endswith(_FILE_ENDINGS) or os.sep in weights or "/" in weights
    )


def _own_recipe(backbone: Any) -> Recipe:
    if is_of_hub(backbone):
        return hub_recipe(backbone)
    if isinstance(backbone, str):
        if backbone in LITES:
            return LITES[backbone].recipe
        return Recipe.from_transforms(default_weights(backbone).transforms())
    return IMAGENET_RECIPE


def _lite_source(backbone: str, weights: Any) -> WeightsSource:
    if weights not in ("DEFAULT", "IMAGENET1K"):
        raise ValueError(
            f"{backbone} has no weights {shown(weights)}; choose 'DEFAULT', a path to a state "
            "dict, or None for random weights."
        )
    lite = LITES[backbone]
    read = functools.partial(load_published_state, backbone)
    return WeightsSource(lite.recipe, read, "IMAGENET1K", f"sha256:{lite.sha256}")


def _member(backbone: str, weights: Any) -> WeightsEnum:
    members = default_weights(backbone).__class__
    name = weights.removeprefix(f"{members.__name__}.") if isinstance(weights, str) else weights
    if isinstance(name, str) and name in members.__members__:
        return members[name]
    names = list(members.__members__)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"{backbone} has no weights {shown(weights)}.{hint} It has {names}; a path to a state dict "
        "(.pth or .safetensors) and None (random weights) are accepted, too."
    )


def _torchvision_source(member: WeightsEnum) -> WeightsSource:
    recipe = Recipe.from_transforms(member.transforms())
    return WeightsSource(recipe, lambda: _download(member), str(member), member.url)


def _download(member: WeightsEnum) -> dict[str, Tensor]:
    """Let torchvision fetch, check and cache the file."""
    try:
        return dict(member.get_state_dict(progress=False, check_hash=True))
    except OSError as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise OSError(
            f"The weights {member} could not be downloaded from {member.url} ({error}). Without a "
            f"network, choose one of: backbone={EMBEDDED!r}, whose weights are installed with "
            f"sktl; weights=<path of a .pth or .safetensors file>; the file "
            f"{Path(member.url).name} copied to {folder}; weights=None for random weights."
        ) from error


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} can't be read as a state dict: it holds Python objects other than tensors and "
            "plain containers, or is no file of torch's. Save module.state_dict() with torch.save."
        ) from error
    except (EOFError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} can't be read as a state dict: {error}") from error
    except Exception as error:  # safetensors has an exception class of its own
        if type(error).__module__.startswith("safetensors"):
            raise ValueError(f"{path} can't be read as a state dict: {error}") from error
        raise
    return _unwrap(state, path)


def _unwrap(state: Any, path: Path) -> dict[str, Tensor]:
    """Accept the usual checkpoints that hold the state dict under one key."""
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"{path} holds no state dict (tensors by name) but a {type(state).__name__}. Save "
            "module.state_dict(), not the module."
        )
    return dict(state)


def load_weights(
    network: nn.Module, state: dict[str, Tensor], classifiers: Sequence[str], name: str
) -> None:
    """Put weights into a network, whatever its classifier's shape.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place.
    state : dict of str to torch.Tensor
    classifiers : sequence of str
        Paths of the linear layers that make the logits, or of their weights; those keys may be
        missing, unexpected or misshapen.
    name : str
        How the message calls the weights.

    Raises
    ------
    ValueError
        If other keys don't fit; the message lists them.
    """
    state = {key: value for key, value in state.items() if not key.startswith(_AUXILIARY)}
    own = network.state_dict()
    state = _fit_image_size(state, own)
    optional = _keys_below(classifiers, {*own, *state})
    missing = [k for k in own if k not in state and k not in optional]
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own and k not in optional]
    misshapen = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and k not in optional and state[k].shape != own[k].shape
    ]
    if missing or unexpected or misshapen:
        lists = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
        raise ValueError(
            f"The weights {name} do not fit {type(network).__name__}. "
            + " ".join(f"{what}: {_enumerate(keys)}." for what, keys in lists.items() if keys)
        )
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    network.load_state_dict(fitting, strict=False)


def _keys_below(paths: Sequence[str], keys: set[str]) -> set[str]:
    return {key for key in keys if any(key == p or key.startswith(p + ".") for p in paths)}


def _enumerate(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def _fit_image_size(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Interpolate a vision transformer's position embedding to another image size.

    Dosovitskiy et al. 2021, "An image is worth 16x16 words", arXiv 2010.11929, section 3.2.
    """
    key = "encoder.pos_embedding"
    if key not in state or key not in own or state[key].shape == own[key].shape:
        return state
    if state[key].shape[-1] != own[key].shape[-1] or "conv_proj.weight" not in own:
        return state
    patch = own["conv_proj.weight"].shape[-1]
    side = round((own[key].shape[1] - 1) ** 0.5)
    return dict(interpolate_embeddings(side * patch, patch, dict(state)))


@dataclass(frozen=True)
class Adjustment:
    """What the parameters of an estimator make of the preprocessing that a network brings.

    Parameters
    ----------
    given : Recipe or None
        Takes its place.
    image_size : int, (int, int) or None
        Height and width of the images in pixels; None is the recipe's own.
    resize_mode : {"auto", "crop", "squash", "pad"}
        "auto" is that of `given`, or else "squash".
    """

    given: Recipe | None
    image_size: Size | None
    resize_mode: str

    def __call__(self, own: Recipe) -> Recipe:
        """The recipe that is followed."""
        recipe, mode = own if self.given is None else self.given, self.resize_mode
        if mode == "auto":
            mode = "squash" if self.given is None else recipe.resize_mode
        if self.image_size is not None:
            recipe = recipe.at(self.image_size)
        return replace(recipe, resize_mode=mode)
