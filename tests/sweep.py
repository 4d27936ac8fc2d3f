"""One network of each family of timm, transformers and open_clip, with random weights.

``python tests/sweep.py`` tries them and writes the table of docs/networks.md anew. Networks are
made small where their builder lets them be, since what is asked is whether they are understood.
"""

from __future__ import annotations

import gc
import math
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from sktl import PretrainedImageClassifier, Recipe
from sktl.backbones.split import OpaqueNetwork, Splitter
from sktl.frozen.prefix import FrozenPrefix
from sktl.images.format import learn_format
from sktl.images.reading import open_images

PAGE = Path(__file__).parents[1] / "docs" / "networks.md"
CLOSE = 1e-4  # of the largest value: float32 in another order of the operations


class Network(NamedTuple):
    """What is built: a name of its library's, a small image size, and what makes it small."""

    library: str
    name: str
    size: int
    options: dict[str, Any]


_VIT = {"embed_dim": 48, "depth": 3, "num_heads": 3}
_FOUR_BLOCKS = {"layers": (1, 1, 1, 1)}
_FOUR_DEPTHS = {"depths": (1, 1, 2, 1)}

# By modules of timm: the smallest of each, or a small one, and what makes it smaller.
TIMM: dict[str, dict[str, Any]] = {
    # beit
    "beit_base_patch16_224": _VIT,
    # byoanet, byobnet
    "botnet26t_256": {},
    "halonet26t": {"size": 256},
    "lambda_resnet26t": {"size": 128},
    "gernet_s": {},
    "mobileone_s0": {},
    "repvgg_a0": {},
    "resnet50_clip": {},
    # cait, coat, convit, convmixer, convnext
    "cait_xxs24_224": _VIT,
    "coat_lite_tiny": {"serial_depths": (1, 1, 1, 1)},
    "coat_tiny": {"serial_depths": (1, 1, 1, 1), "parallel_depth": 2},
    "convit_tiny": {"embed_dim": 48, "depth": 4, "local_up_to_layer": 2},
    "convmixer_768_32": {},
    "convnext_atto": _FOUR_DEPTHS,
    "convnextv2_atto": _FOUR_DEPTHS,
    # cpubone, crossvit, csatv2, cspnet, cspnext, davit
    "cpubone_b0_bfrobust": {},
    "crossvit_tiny_240": {"size": 240},
    "csatv2": {},
    "cs3darknet_focus_s": {},
    "cspnext_s": {},
    "davit_tiny": {"embed_dims": (16, 32, 64, 96), "num_heads": (1, 2, 4, 6)} | _FOUR_DEPTHS,
    # deepseek_vit, deit, densenet, dla, dpn, edgenext
    "deepseek_vit_412m": {"size": 224} | _VIT,
    "deit_tiny_distilled_patch16_224": _VIT,
    "deit3_small_patch16_224": _VIT,
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "dla46x_c": {},
    "dpn48b": {"k_sec": (1, 1, 2, 1)},
    "edgenext_xx_small": {},
    # efficientformer, efficientformer_v2, efficientnet
    "efficientformer_l1": {"size": 224},
    "efficientformerv2_s0": {},
    "efficientnet_b0": {},
    "mixnet_s": {},
    "mobilenetv2_035": {},
    "tinynet_e": {},
    # efficientvim, efficientvit_mit, efficientvit_msra, eva, fasternet, fastvit, focalnet
    "efficientvim_m1": {},
    "efficientvit_b0": {},
    "efficientvit_m0": {},
    "eva02_tiny_patch14_224": _VIT,
    "vit_small_patch16_dinov3": _VIT,
    "fasternet_t0": {},
    "fastvit_t8": {},
    "fastvit_mci0": {"layers": (1, 1, 1, 1)},
    "focalnet_tiny_srf": {},
    # gcvit, gemma4_vit, ghostnet, hardcorenas, hgnet, hiera, hieradet_sam2, hrnet
    "gcvit_xxtiny": {"size": 224},
    "gemma4_vit_167m": _VIT,
    "ghostnet_050": {},
    "ghostnetv2_100": {},
    "ghostnetv3_050": {},
    "hardcorenas_a": {},
    "hgnetv2_b0": {},
    "hiera_tiny_224": {"embed_dim": 24},
    "hieradet_small": {},
    "hrnet_w18_small": {},
    # iformer, inception_next, inception_resnet_v2, inception_v3, inception_v4
    "iformer_t": {},
    "inception_next_atto": _FOUR_DEPTHS,
    "inception_resnet_v2": {"size": 96},
    "inception_v3": {"size": 96},
    "inception_v4": {"size": 96},
    # lcnetv2, levit, lowformer, mambaout, maxxvit, metaformer, mlp_mixer
    "lcnetv2_small": {},
    "levit_128s": {},
    "lowformer_b0": {},
    "mambaout_femto": _FOUR_DEPTHS,
    "coatnet_pico_rw_224": {},
    "maxvit_pico_rw_256": {},
    "maxxvitv2_nano_rw_256": {},
    "poolformer_s12": {},
    "gmlp_ti16_224": {},
    "mixer_s32_224": {},
    "resmlp_12_224": {},
    # mobilenetv3, mobilenetv5, mobilevit, mvitv2
    "fbnetv3_b": {},
    "lcnet_035": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small_035": {},
    "mobilenetv4_hybrid_medium": {},
    "mobilenetv5_base": {},
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "mvitv2_tiny": {},
    "mvitv2_small_cls": {},
    # naflexvit, nasnet, nest, nextvit, nfnet, pit, pnasnet, pvt_v2
    "naflexvit_base_patch16_gap": {},
    "nest_tiny": {"size": 128},
    "nextvit_small": {},
    "dm_nfnet_f0": {},
    "nf_regnet_b0": {},
    "pit_ti_224": {},
    "pit_ti_distilled_224": {},
    "pnasnet5large": {},
    "pvt_v2_b0": {},
    # qwen3_vit, rdnet, regnet, repghost, repvit, res2net, resnest, resnet, resnetv2
    "qwen3_vit_88m": _VIT,
    "rdnet_tiny": {},
    "regnetx_002": {},
    "repghostnet_050": {},
    "repvit_m0_9": {},
    "res2net50_48w_2s": _FOUR_BLOCKS,
    "resnest14d": {},
    "resnet10t": {},
    "resnetblur18": _FOUR_BLOCKS,
    "resnetv2_18": {},
    # rexnet, selecsls, senet, sequencer, shvit, sknet, starnet, swiftformer
    "rexnet_100": {},
    "selecsls42": {},
    "legacy_seresnet18": _FOUR_BLOCKS,
    "sequencer2d_s": {"layers": (1, 1, 2, 1)},
    "shvit_s1": {},
    "skresnet18": _FOUR_BLOCKS,
    "starnet_s1": {},
    "swiftformer_xs": {},
    # swin_transformer, swin_transformer_v2, swin_transformer_v2_cr, tiny_vit, tnt, tresnet, twins
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1, 2, 1)},
    "swin_s3_tiny_224": {"embed_dim": 24, "depths": (1, 1, 2, 1)},
    "swinv2_tiny_window8_256": {"embed_dim": 24, "depths": (1, 1, 2, 1)},
    "swinv2_cr_tiny_ns_224": {"embed_dim": 24, "depths": (1, 1, 2, 1)},
    "tiny_vit_5m_224": {},
    "tnt_s_patch16_224": {"depth": 3},
    "twins_pcpvt_small": {"depths": (1, 1, 2, 1)},
    "twins_svt_small": {"depths": (1, 1, 2, 1)},
    # vgg, visformer, vision_transformer and what is like it, vitamin, volo, vovnet
    "visformer_tiny": {},
    "aimv2_large_patch14_224": _VIT,
    "vit_tiny_patch16_224": _VIT,
    "vit_small_patch14_reg4_dinov2": _VIT,
    "vit_base_patch32_clip_224": _VIT,
    "vit_little_patch16_reg4_gap_256": _VIT,
    "vit_tiny_r_s16_p8_224": _VIT,
    "vit_relpos_small_patch16_224": _VIT,
    "samvit_base_patch16_224": _VIT | {"global_attn_indexes": [1]},
    "ese_vovnet19b_slim_dw": {},
    # xception, xception_aligned, xcit
    "xcit_nano_12_p16_224": {"depth": 3},
}

_HF = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}
_HF |= {"intermediate_size": 64, "image_size": 64}
_FOUR = {"hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 2, 1]}
_SWIN = {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4, "image_size": 64}
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"}

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "BeitModel": _HF,
    "BitModel": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "num_groups": 4},
    "CLIPVisionModel": _HF,
    "ConvNextV2Model": _FOUR,
    "CvtModel": {"embed_dim": [16, 24, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
    "DeiTForImageClassification": _HF,
    "Dinov2WithRegistersModel": _HF,
    "FocalNetModel": {"embed_dim": 16, "depths": [1, 1, 2, 1], "image_size": 64},
    "HieraModel": {"embed_dim": 16, "image_size": [64, 64], "depths": [1, 1, 2, 1]},
    "MobileNetV2ForImageClassification": {},
    "MobileViTModel": {"image_size": 64},
    "PoolFormerModel": _FOUR,
    "RegNetForImageClassification": _RESNET | {"groups_width": 8, "layer_type": "y"},
    "SiglipVisionModel": _HF,
    "SwiftFormerModel": {"embed_dims": [16, 24, 32, 48], "depths": [1, 1, 2, 1]},
    "ViTForImageClassification": _HF,
}

OPEN_CLIP: dict[str, dict[str, Any]] = {
    "a vision transformer": {"image_size": 64, "layers": 3, "width": 64, "patch_size": 16},
    "a residual network": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
    "timm's ConvNeXt": {"image_size": 64, "timm_model_name": "convnext_atto"},
}

# Of these families nothing is small enough to be tried here.
LEFT_OUT = {
    "nasnet": "its one network has 88.8 million parameters; `pnasnet5large` is like it",
    **dict.fromkeys(("tresnet", "vgg", "vitamin", "volo", "xception"), "large at any setting"),
}


def networks() -> list[Network]:
    """All that are tried."""
    known = {"timm": TIMM, "transformers": TRANSFORMERS, "open_clip": OPEN_CLIP}
    return [
        Network(library, name, options.get("size", 64), options)
        for library, found in known.items()
        for name, options in found.items()
    ]


# Building --------------------------------------------------------------------------------


def build(network: Network) -> nn.Module:
    """Build a network of a library, with random weights that leave no layer without effect."""
    torch.manual_seed(0)
    options = {name: value for name, value in network.options.items() if name != "size"}
    make = {"timm": _timm, "transformers": _transformers, "open_clip": _open_clip}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        module = make[network.library](network, options)
    return _livened(module).eval()


def _timm(network: Network, options: dict[str, Any]) -> nn.Module:
    import timm

    try:
        return timm.create_model(network.name, img_size=network.size, **options)
    except TypeError:  # it takes images of any size
        return timm.create_model(network.name, **options)


def _transformers(network: Network, options: dict[str, Any]) -> nn.Module:
    import transformers

    model = getattr(transformers, network.name)
    return model(model.config_class(**options))


def _open_clip(network: Network, options: dict[str, Any]) -> nn.Module:
    import open_clip

    text = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=24, vision_cfg=options, text_cfg=text)
    settings = open_clip.transform.PreprocessCfg(size=network.size)
    open_clip.model.set_model_preprocess_cfg(model, vars(settings))
    return model


def _livened(network: nn.Module) -> nn.Module:
    """Move scales, biases and statistics away from 0 and 1, where they hide what is left out."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim < 2 or max(parameter.shape[1:]) == 1:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.mul_(1 + 0.3 * torch.rand(buffer.shape, generator=generator))
    return network


def tensors_of(size: int) -> Tensor:
    """Three images with random pixels."""
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))


def pictures() -> list[np.ndarray[Any, Any]]:
    """Four crops of two photographs, wide and high ones, whose sides stay whole numbers."""
    first, second = load_sample_images().images
    return [part for p in (first, second) for part in (p[60:300, 80:400], p[80:400, 200:440])]


# What the libraries say ------------------------------------------------------------------


@torch.inference_mode()
def own_features(network: Network, module: nn.Module, images: Tensor) -> Tensor:
    """The features by the library's own words."""
    if network.library == "timm":
        return module.forward_head(module.forward_features(images), pre_logits=True)
    if network.library == "open_clip":
        return module.encode_image(images)
    if network.name.endswith("ForImageClassification"):
        return _read_by_classifier(module, images)
    found = module(pixel_values=images)
    pooled = found.get("pooler_output")
    if pooled is not None:
        return pooled.flatten(1)
    last = found.last_hidden_state
    return last[:, 0] if last.ndim == 3 else last.mean((2, 3))


def _read_by_classifier(module: nn.Module, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    heads = [m for m in module.modules() if isinstance(m, nn.Linear)]
    heads = [m for m in heads if m.out_features == module.config.num_labels]
    hooks = [h.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for h in heads]
    module(pixel_values=images)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen).mean(0)


def own_transform(network: Network, module: nn.Module) -> Any:
    """What the library makes of a picture; transformers' models know nothing of it."""
    if network.library == "timm":
        from timm.data import create_transform

        return create_transform(**_timm_config(network, module))
    if network.library == "open_clip":
        from open_clip.transform import PreprocessCfg, image_transform_v2

        return image_transform_v2(PreprocessCfg(size=network.size), is_train=False)
    return None


def _timm_config(network: Network, module: nn.Module) -> dict[str, Any]:
    from timm.data import resolve_model_data_config

    config: dict[str, Any] = resolve_model_data_config(module)
    return config | {"input_size": (3, network.size, network.size)}


# What sktl finds -------------------------------------------------------------------------


def classifier(network: Network, module: nn.Module, freeze: Any = -1) -> PretrainedImageClassifier:
    """An estimator of the network, with its library's preprocessing."""
    preprocessing: Any = {
        "timm": lambda: _timm_config(network, module),
        "transformers": lambda: Recipe(network.size, network.size),
        "open_clip": lambda: module.visual.preprocess_cfg,
    }[network.library]()
    return PretrainedImageClassifier(
        module.visual if network.library == "open_clip" else module,
        preprocessing=preprocessing,
        freeze=freeze,
        max_epochs=1,
        cache=None,
        precision="float32",
        random_state=0,
    )


def fit(network: Network, module: nn.Module) -> PretrainedImageClassifier:
    """Fit with all but the last stage frozen, or all where there are no stages.

    A warning is an error, but that one epoch is few.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="Training stopped")
        try:
            return classifier(network, module).fit(pictures(), [0, 0, 1, 1])
        except ValueError as error:
            if not re.search("can't trace this network|only stage", str(error)):
                raise
            return classifier(network, module, "all").fit(pictures(), [0, 0, 1, 1])


def distance(found: Tensor, expected: Tensor) -> float:
    """Greatest difference, of the greatest value; infinite for tensors of other shapes."""
    if found.shape != expected.shape:
        return math.inf
    return float((found - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def distances(
    network: Network, module: nn.Module, clf: PretrainedImageClassifier
) -> dict[str, float]:
    """How far features are from the library's, and two parts of a network from the whole."""
    backbone = clf.__sktl_backbone__()
    splitter: Splitter = backbone.splitter
    images, n = tensors_of(network.size), len(splitter.stages)
    whole = splitter.prefix(n, "auto")(images)
    found = {"features": distance(whole, own_features(network, module, images))}
    transform = own_transform(network, module)
    if transform is not None:
        prepared = torch.stack([transform(Image.fromarray(p)) for p in pictures()])
        expected = own_features(network, module, prepared)
        prefix = FrozenPrefix(backbone, None, "auto", "float32", torch.device("cpu"))
        features = prefix.compute(open_images(pictures(), learn_format(pictures())))
        found["pictures"] = distance(features, expected)
    for depth in {n // 2, n - 1} - {0}:
        begun = splitter.prefix(depth, "auto")(images)
        rest = splitter.suffix(depth, "auto").eval()(begun)
        found[f"cut at {splitter.stages[depth - 1]}"] = distance(rest, whole)
    for name, value in _named_points(network, module, splitter, images).items():
        own = splitter.stage_features(splitter.stages.index(name))(images)
        if own.ndim == 3:  # a class token may be put before the others at the end of a stage
            own = own[:, -value.shape[1] :]
        found[f"output of {name}"] = distance(own, value)
    return found


def _named_points(
    network: Network, module: nn.Module, splitter: Splitter, images: Tensor
) -> dict[str, Tensor]:
    """The outputs of modules that timm names as stages of its own, where sktl has them, too."""
    if network.library != "timm" or isinstance(splitter, OpaqueNetwork):
        return {}
    infos = getattr(module, "feature_info", None) or []
    named = dict.fromkeys(info.get("module") for info in infos)
    # The last stage has the norm, too, that follows it.
    names = [name for name in named if name in splitter.stages[:-1] and name != "stem"]
    seen: dict[str, Tensor] = {}
    hooks = [
        module.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.__setitem__(name, out)
        )
        for name in names
    ]
    module(images)
    for hook in hooks:
        hook.remove()
    return {name: out for name, out in seen.items() if isinstance(out, Tensor)}


def trained_share(clf: PretrainedImageClassifier) -> float:
    """How much of the network's weights has been trained."""
    trained = sum(p.numel() for p in clf.net_.module_.suffix.parameters())
    network = clf.__sktl_backbone__().splitter.network
    return trained / sum(p.numel() for p in network.parameters())


# The table -------------------------------------------------------------------------------


def row_of(network: Network, clf: PretrainedImageClassifier, found: dict[str, float]) -> str:
    """What the table says of a network."""
    n_stages = len(clf.stages_)
    cells = [
        network.library,
        network.name if network.library == "open_clip" else f"`{network.name}`",
        str(network.size),
        _bound(found["features"]),
        _bound(found["pictures"]) if "pictures" in found else "",
        str(n_stages) if n_stages > 1 else "whole",
    ]
    return "| " + " | ".join(cells) + " |"


def _bound(value: float) -> str:
    """The next power of ten above a distance."""
    return "0" if value == 0 else f"1e{math.ceil(math.log10(value))}"


def read() -> dict[tuple[str, str], list[str]]:
    """Cells of the table's rows, by library and network."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    return {(row[0], row[1].strip("`")): row for row in rows[2:]}


def main() -> None:
    """Write the table anew."""
    rows = []
    for network in networks():
        module = build(network)
        clf = fit(network, module)
        rows.append(row_of(network, clf, distances(network, module, clf)))
        print(rows[-1], flush=True)
        del module, clf
        gc.collect()  # a fitted network is in cycles, and large
    text = PAGE.read_text(encoding="utf-8")
    head = text[: text.index("\n| ---")].rpartition("\n")[0]
    lines = text[len(head) :].strip().splitlines()[:2]
    PAGE.write_text("\n".join([head, *lines, *rows, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
