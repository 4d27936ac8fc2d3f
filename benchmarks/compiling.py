"""What torch.compile would make of the frozen prefix, and after how many images it would pay."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch._inductor.config
from common import arguments, pictures, take_turns, weights_file
from torch import nn

from sktl.backbones import load_backbone
from sktl.frozen.fusion import fold_norms
from sktl.frozen.module import FrozenModule
from sktl.hardware import PRECISIONS, choose_precision

NETWORKS = ("efficientnet_lite0", "resnet18", "resnet50", "convnext_tiny", "vit_b_16")
BATCH = 32
CPU = torch.device("cpu")


def prefix(name: str) -> nn.Module:
    """Load a network of which all stages are frozen."""
    weights = "DEFAULT" if name == "efficientnet_lite0" else weights_file(name)
    return load_backbone(name, weights).stage_features(None, "auto")


def compiled(module: nn.Module, precision: str, images: torch.Tensor) -> Callable[[], None]:
    """Compile with weights as constants; full batches only, so that it is done once."""
    module = fold_norms(module).requires_grad_(False).to(PRECISIONS[precision])
    run = torch.compile(module.to(memory_format=torch.channels_last))

    @torch.inference_mode()
    def pass_over_all() -> None:
        for batch in images.split(BATCH):
            run(batch.contiguous(memory_format=torch.channels_last))

    return pass_over_all


def main() -> None:
    """Print both sides' milliseconds an image, and the seconds that compiling takes."""
    args = arguments(__doc__, images=128, networks=len(NETWORKS), repeats=3)
    torch._inductor.config.freezing = True
    images = torch.from_numpy(pictures(args.images)[0]).movedim(3, 1)
    precision = choose_precision("auto", CPU)
    print(f"{precision}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in NETWORKS[: args.networks]:
        module = prefix(name)
        as_it_is = FrozenModule(module, precision, CPU)
        by_compiler = compiled(module, precision, images)
        as_it_is.all_of(images)
        start = time.perf_counter()
        by_compiler()
        seconds = time.perf_counter() - start
        sides = {"ours": lambda run=as_it_is: run.all_of(images), "compiled": by_compiler}
        medians = take_turns(sides, args.repeats)
        ours, theirs = (1000 * medians[side] / args.images for side in sides)
        seconds -= medians["compiled"]
        pays = f"after {1000 * seconds / (ours - theirs):,.0f} images" if theirs < ours else "never"
        print(
            f"  {name:<20}{ours:6.2f} ms an image, compiled {theirs:6.2f}, {theirs / ours:.3f} of "
            f"it; compiling takes {seconds:.0f} s and pays {pays}",
            flush=True,
        )


if __name__ == "__main__":
    main()
