"""The preprocessing of pretrained networks, as the libraries that they come from describe it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchvision import transforms as v1
from torchvision.models import WeightsEnum
from torchvision.transforms import InterpolationMode, v2

from ..messages import shown
from .preprocessing import Recipe
from .sizes import Size, as_size, height_width

_Config = Mapping[str, Any]

_ACCEPTED = (
    "a sktl.Recipe; weights of torchvision or their transforms(); a data configuration of timm, a "
    "preprocess_cfg of open_clip or an image processor of transformers, as these or as a dict; or "
    "a torchvision Compose of Resize, CenterCrop, ToTensor and Normalize"
)
_CROP_MODES = {"squash": "squash_crop", "border": "pad"}  # of timm
_CLIP_MODES = {"squash": "squash", "longest": "pad"}  # of open_clip
# Pillow's numbers, as transformers translates them for torchvision.
_RESAMPLING = {
    0: "nearest-exact",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
# What only brings the picture into the form that others read, or is done for every picture here.
_FORMS = {
    *("ToTensor", "MaybeToTensor", "PILToTensor", "MaybePILToTensor", "ToImage"),
    *("RGB", "MaybeConvertMode"),
}
_SCALING = {"ConvertImageDtype", "ToDtype"}


def read_recipe(description: Any) -> Recipe:
    """Read how pictures are prepared from what another library says of it.

    Parameters
    ----------
    description : object
        See the parameter `preprocessing` of :class:`sktl.PretrainedImageClassifier`.

    Returns
    -------
    Recipe

    Raises
    ------
    TypeError
        If it is none of the kinds that are known.
    ValueError
        If it says something that a recipe can't.
    """
    if isinstance(description, Recipe):
        return description
    if isinstance(description, WeightsEnum):
        return Recipe.from_transforms(description.transforms())
    if isinstance(description, functools.partial):  # such as weights.transforms
        return read_recipe(description())
    if isinstance(description, v1.Compose | v2.Compose):
        return _explained(_of_steps, description.transforms)
    if all(hasattr(description, name) for name in ("resize_size", "crop_size", "mean", "std")):
        return _explained(Recipe.from_transforms, description)
    config = description
    if not isinstance(config, Mapping) and hasattr(config, "to_dict"):
        config = config.to_dict()  # of transformers, and timm's own class of configurations
    if isinstance(config, Mapping):
        for keys, read in _KINDS:
            if keys <= config.keys():
                return _explained(read, config)
        raise ValueError(
            f"preprocessing={shown(description)} is no description that is known. It has the keys "
            f"{sorted(map(str, config))[:12]}; known are 'input_size', 'mean' and 'std' (timm), "
            "'size', 'mean' and 'std' (open_clip), 'size', 'image_mean' and 'image_std' "
            "(transformers)."
        )
    raise TypeError(f"preprocessing must be {_ACCEPTED}; got {shown(description)}.")


def recipe_of_module(module: object) -> Recipe | None:
    """Read the preprocessing that timm and open_clip keep with their networks, if there is one."""
    for name in ("pretrained_cfg", "preprocess_cfg"):
        config = getattr(module, name, None)
        if isinstance(config, Mapping) and any(keys <= config.keys() for keys, _ in _KINDS):
            return read_recipe(config)
    return None


def _explained(read: Callable[[Any], Recipe], description: Any) -> Recipe:
    try:
        return read(description)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"preprocessing can't be followed: {reason} sktl.Recipe(...) says it in words of its "
            "own, and a network that needs more can do it in its forward."
        ) from error


def _of_timm(config: _Config) -> Recipe:
    crop = as_size(config["input_size"][-2:])
    share = config.get("crop_pct") or 0.875
    sides = tuple(max(n, int(n / share)) for n in height_width(crop))
    mode = _CROP_MODES.get(config.get("crop_mode") or "", "crop")
    if mode == "squash_crop" and sides == height_width(crop):
        mode = "squash"
    return _recipe(
        as_size(sides),
        crop,
        config.get("interpolation") or "bicubic",
        config["mean"],
        config["std"],
        mode,
    )


def _of_open_clip(config: _Config) -> Recipe:
    size = as_size(config["size"])
    mode = _CLIP_MODES.get(config.get("resize_mode") or "", "crop")
    interpolation = config.get("interpolation") or "bicubic"
    return _recipe(size, size, interpolation, config["mean"], config["std"], mode)


# transformers --------------------------------------------------------------------------


def _of_transformers(config: _Config) -> Recipe:
    for name in ("do_flip_channel_order", "do_pad", "rescale_offset"):
        if config.get(name):
            raise ValueError(f"{name} is none of resizing, cropping and normalising.")
    if config.get("do_resize") is False:
        raise ValueError("do_resize=False leaves pictures of any size.")
    resize, crop, mode = _sizes_of_transformers(config)
    resample = config.get("resample", 2)
    interpolation = _RESAMPLING.get(int(resample), str(resample))
    return _recipe(resize, crop, interpolation, *_statistics_of_transformers(config), mode)


def _sizes_of_transformers(config: _Config) -> tuple[Size, Size, str]:
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    size, crops = config["size"], bool(config.get("do_center_crop"))
    crop = _both_sides(config["crop_size"]) if crops else None
    if isinstance(size, int):
        size = {"shortest_edge": size} if crops else {"height": size, "width": size}
    given = {name for name, side in dict(size).items() if side is not None}
    if given == {"height", "width"}:
        whole = _both_sides(size)
        if crop is None or crop == whole:
            return whole, whole, "squash"
        return whole, crop, "squash_crop"
    if given != {"shortest_edge"}:
        raise ValueError(f"size={dict(size)} leaves pictures of several sizes.")
    side = int(size["shortest_edge"])
    # Three of transformers' classes resize to another size than their `size` says.
    if kind.startswith("ConvNext") and side >= 384:
        return side, side, "squash"
    if kind.startswith("ConvNext"):
        return int(side / config["crop_pct"]), side, "crop"
    if kind.startswith("Levit"):
        side = int(256 / 224 * side)
    if kind.startswith("PoolFormer") and config.get("crop_pct"):
        side = int(side / config["crop_pct"])
    if crop is None:
        raise ValueError(f"size={dict(size)} without a crop leaves pictures of several sizes.")
    return side, crop, "crop"


def _both_sides(size: Any) -> Size:
    if isinstance(size, int):
        return size
    sides = dict(size)
    if "shortest_edge" in sides and sides["shortest_edge"] is not None:
        return int(sides["shortest_edge"])
    return as_size((sides["height"], sides["width"]))


def _statistics_of_transformers(config: _Config) -> tuple[list[float], list[float]]:
    """Mean and deviation of values of 0 to 1."""
    mean, std = [0.0] * 3, [1.0] * 3
    if config.get("do_normalize", True):
        mean, std = (_three(config[name]) for name in ("image_mean", "image_std"))
    rescale = config.get("do_rescale", True)
    white = 255 * float(config.get("rescale_factor", 1 / 255)) if rescale else 255.0
    if abs(white - 1) > 1e-6:
        mean, std = [m / white for m in mean], [s / white for s in std]
    kind = str(config.get("image_processor_type"))
    if kind.startswith("EfficientNet") and config.get("include_top", True):
        std = [s * s for s in std]  # divides by it again
    return mean, std


def _three(value: Any) -> list[float]:
    """A number for each channel, of which a single one stands for all."""
    return [float(value)] * 3 if isinstance(value, int | float) else [float(v) for v in value]


# torchvision's transforms, one after the other -------------------------------------------


def _of_steps(steps: Sequence[Any]) -> Recipe:
    """Read a row of transforms, as open_clip and timm make it for evaluation."""
    sizes: dict[str, Any] = {}
    mean, std = [0.0] * 3, [1.0] * 3
    for step in steps:
        name = type(step).__name__
        if name == "Resize":
            sizes |= {"resize": step.size, "interpolation": step.interpolation}
            sizes["antialias"] = step.antialias is not False
        elif name == "CenterCrop":
            sizes["crop"] = as_size(step.size)
        elif name == "Normalize":
            mean, std = (_three(v[0] if len(v) == 1 else v) for v in (step.mean, step.std))
        elif name not in _FORMS | _SCALING and not _only_converts(step):
            raise ValueError(f"{name} is none of Resize, CenterCrop, ToTensor and Normalize.")
    if "resize" not in sizes:
        raise ValueError("it has no Resize, which leaves pictures of any size.")
    resize, one_side = sizes["resize"], False
    if isinstance(resize, int) or len(resize) == 1:
        resize, one_side = _single(resize), True
    resize, crop = as_size(resize), sizes.get("crop")
    if crop is None and one_side:
        raise ValueError("Resize to one side without CenterCrop leaves pictures of several sizes.")
    crop = resize if crop is None else crop
    whole = "squash" if crop == resize else "squash_crop"
    mode = "crop" if one_side else whole
    interpolation = InterpolationMode(sizes["interpolation"]).value
    return _recipe(resize, crop, interpolation, mean, std, mode, sizes["antialias"])


def _only_converts(step: Any) -> bool:
    """Whether it is a function to RGB, as open_clip has one among its transforms."""
    return getattr(step, "__name__", "") in ("_convert_to_rgb", "to_rgb_ensure")


def _single(size: Any) -> int:
    return int(size) if isinstance(size, int) else int(size[0])


def _recipe(
    resize: Size,
    crop: Size,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    mode: str,
    antialias: bool = True,
) -> Recipe:
    red, green, blue = map(float, mean)
    std_red, std_green, std_blue = map(float, std)
    return Recipe(
        resize,
        crop,
        interpolation,
        (red, green, blue),
        (std_red, std_green, std_blue),
        antialias,
        mode,
    )


# Keys that tell whose a dict is; the first that fits is taken.
_KINDS: tuple[tuple[set[str], Callable[[_Config], Recipe]], ...] = (
    ({"input_size", "mean", "std"}, _of_timm),
    ({"size", "image_mean", "image_std"}, _of_transformers),
    ({"size", "mean", "std"}, _of_open_clip),
)
