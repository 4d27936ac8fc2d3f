"""Private names of other packages, each with what happens where it is missing.

Nothing of theirs that is private is used anywhere else, but for oneDNN's kernels.
"""

from __future__ import annotations

import copyreg
import traceback
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from skorch.callbacks import EarlyStopping
from torch import Tensor

# The key of a transformer's state under which scikit-learn keeps what `set_output` was told.
OUTPUT_CONFIG = "_sklearn_output_config"


def new_object() -> Callable[..., Any]:
    """The function by which pickle makes an object without calling `__init__`.

    pickle knows it by name. Without it, files would name another function.
    """
    made: Callable[..., Any] = copyreg.__newobj__  # type: ignore[attr-defined]
    return made


def before_compiling(module: torch.nn.Module) -> torch.nn.Module:
    """The module that torch.compile was given; the module itself if none was, or torch hides it."""
    original = getattr(module, "_orig_mod", None)
    return original if isinstance(original, torch.nn.Module) else module


def class_for(auto: Any, config: Any) -> Any:
    """The class that one of transformers' AutoModels makes of a configuration; None if unknown."""
    try:
        return auto._model_mapping[type(config)]
    except (KeyError, AttributeError):
        return None


def has_bfloat16_units() -> bool:
    """Whether the processor multiplies matrices in bfloat16; where torch can't say, it doesn't."""
    asks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, ask, lambda: False)() for ask in asks)


def html_above(params: Any, html: Callable[[], str]) -> Any:
    """Show something above scikit-learn's table of parameters, where there is such a table."""
    table = getattr(params, "_html_repr", None)
    if table is not None:
        params._html_repr = lambda: html() + table()
    return params


def is_early_stopping(error: KeyboardInterrupt) -> bool:
    """Whether skorch's EarlyStopping raised it, rather than the user."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(isinstance(frame.f_locals.get("self"), EarlyStopping) for frame, _ in frames)


# Adam's kernels ------------------------------------------------------------------------

_ADAM = {torch.optim.Adam: "_fused_adam_", torch.optim.AdamW: "_fused_adamw_"}


def adam_step(
    kind: type[torch.optim.Optimizer],
) -> Callable[[dict[str, Any], list[Tensor], list[Tensor], list[Tensor]], None] | None:
    """Give what takes a step of Adam or AdamW on a CPU, as torch's optimizers do inside.

    Parameters
    ----------
    kind : type
        The optimizer.

    Returns
    -------
    callable or None
        Takes a parameter group, the running means of its gradients and of their squares, and the
        numbers of its steps. None if torch has no such kernel, or if it doesn't do what the
        optimizer does.
    """
    # Classes can be hashed, but the type checker sees what their instances have.
    right = kind in _ADAM and _steps_are_right(kind)  # type: ignore[arg-type]
    return _step_of(kind) if right else None


def _step_of(
    kind: type[torch.optim.Optimizer],
) -> Callable[[dict[str, Any], list[Tensor], list[Tensor], list[Tensor]], None]:
    kernel = getattr(torch, _ADAM[kind])
    count = torch._foreach_add_

    def step(
        group: dict[str, Any], mean: list[Tensor], square: list[Tensor], n_steps: list[Tensor]
    ) -> None:
        count(n_steps, 1)
        kernel(
            group["params"],
            [p.grad for p in group["params"]],
            mean,
            square,
            [],
            n_steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    return step


@lru_cache
def _steps_are_right(kind: type[torch.optim.Optimizer]) -> bool:
    """Take three steps by the kernel and by the optimizer; this shows it once in a process."""
    numbers = torch.arange(-6, 6, dtype=torch.float32, device="cpu").reshape(3, 4)
    ours, theirs = (torch.nn.Parameter(numbers.clone()) for _ in range(2))
    settings: dict[str, Any] = {"lr": 1e-2, "weight_decay": 1e-1, "fused": True}
    optimizers = [kind([p], **settings) for p in (ours, theirs)]
    try:
        for i in range(3):
            for parameter in (ours, theirs):
                parameter.grad = (numbers + i).square() / 10 - 1
            optimizers[1].step()
            if i == 0:
                optimizers[0].step()
                continue
            state = optimizers[0].state[ours]
            names = ("exp_avg", "exp_avg_sq", "step")
            with torch.no_grad():
                _step_of(kind)(optimizers[0].param_groups[0], *([state[n]] for n in names))
        return torch.equal(ours, theirs)
    except Exception:  # whatever torch raises: the optimizer's own steps do
        return False
