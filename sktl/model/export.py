"""Fitted estimators for programs without sktl: a torch module, and a file in the ONNX format."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..atomic import Path, replacing
from ..frozen.fusion import fold_norms
from ..images.format import EIGHT_BIT, ImageFormat, Range
from ..training.targets import Classes, Indicators, Numbers, Target
from ..version import __version__
from .exported_resize import Resize
from .joined import Model

_LARGEST_FILE = 2**31 - 2**24  # bytes of weights: a file of protocol buffers ends at 2 GiB
_OPSET = 18  # the first whose operators take all that is used here


class ReadPixels(nn.Module):
    """Bring images to uint8 as the estimator does: by the range of values that it has learned.

    Parameters
    ----------
    uint8, floating : (low, high) or str
        The values that become 0 and 255, or why images of this dtype are refused.
    """

    def __init__(self, uint8: Range | str, floating: Range | str) -> None:
        super().__init__()
        self.uint8 = uint8
        self.floating = floating

    def forward(self, images: Tensor) -> Tensor:
        """Scale a batch; what lies outside of the range is clipped."""
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images must be of uint8 or floats, got {images.dtype}.")
        limits = self.uint8 if images.dtype == torch.uint8 else self.floating
        if isinstance(limits, str):
            raise ValueError(limits)
        if images.dtype == torch.uint8 and limits == EIGHT_BIT:
            return images
        low, high = limits
        # The steps of sktl.decoding.scale_to_uint8, which round alike.
        values = images.to(torch.promote_types(images.dtype, torch.float32))
        return ((values - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)

    def extra_repr(self) -> str:
        """Show the ranges."""
        return f"uint8={self.uint8!r}, floating={self.floating!r}"


class _TorchModel(nn.Module):
    """A fitted model as one module: images in, answers out.

    Parameters
    ----------
    read : ReadPixels
    prepare : torch.nn.Module
        Resizes.
    network : torch.nn.Module
        From prepared uint8 images to what the head reads; normalises them first.
    head : torch.nn.Module
        From features to outputs.
    target : Target
        Knows what outputs mean.
    """

    def __init__(
        self,
        read: nn.Module,
        prepare: nn.Module,
        network: nn.Module,
        head: nn.Module,
        target: Target,
    ) -> None:
        super().__init__()
        self.read = read
        self.prepare = prepare
        self.network = network
        self.head = head
        self.target = target

    def forward(self, images: Tensor) -> Tensor:
        """Answer a batch.

        Parameters
        ----------
        images : uint8 or floating tensor of shape (n, 3, h, w)

        Returns
        -------
        float32 tensor with a row for each image
        """
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if not tracing and (images.ndim != 4 or images.shape[1] != 3):
            raise ValueError(f"images must be of shape (n, 3, h, w), got {tuple(images.shape)}.")
        features = self.network(self.prepare(self.read(images)))
        return self.target.answers(self.head(features))


class TorchClassifier(_TorchModel):
    """A fitted classifier as one module: images in, probabilities (n, n_classes) out.

    Parameters
    ----------
    *parts : object
        What every model has.
    classes : list
        The labels, in the order of the probabilities.
    """

    def __init__(self, *parts: Any, classes: Sequence[Any]) -> None:
        super().__init__(*parts)
        self.classes = list(classes)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Older versions' pickles have no target."""
        state = {"target": Classes(len(state["classes"]))} | state
        super().__setstate__(state)  # type: ignore[no-untyped-call]


class TorchRegressor(_TorchModel):
    """A fitted regressor as one module: images in, numbers (n,) or (n, n_outputs) out."""


def to_torch(model: Model, fmt: ImageFormat, **about: Any) -> Any:
    """Copy a fitted model; see :meth:`sktl.PretrainedImageClassifier.to_torch`.

    Parameters
    ----------
    model : Model
    fmt : ImageFormat
        How the estimator reads arrays.
    **about : list
        `classes` of a classifier.

    Returns
    -------
    TorchClassifier or TorchRegressor
    """
    read = ReadPixels(_range_of("uint8", fmt), _range_of("float32", fmt))
    return _assembled(model, read, Resize(model.backbone.recipe), about)


def _range_of(dtype: str, fmt: ImageFormat) -> Range | str:
    try:
        return fmt.range_of(np.dtype(dtype))
    except ValueError as error:
        return str(error)


def _assembled(
    model: Model, read: ReadPixels, prepare: nn.Module, about: Mapping[str, Any]
) -> _TorchModel:
    network, head = fold_norms(model.whole_network()), copy.deepcopy(model.net.module_.head)
    kind = TorchRegressor if isinstance(model.target, Numbers) else TorchClassifier
    module = kind(read, prepare, network, head, model.target, **about)
    return module.cpu().float().requires_grad_(False).eval()


# ONNX --------------------------------------------------------------------------------


def to_onnx(model: Model, fmt: ImageFormat, path: Path, **about: Any) -> None:
    """Write a fitted model as ONNX; see :meth:`sktl.PretrainedImageClassifier.to_onnx`.

    Parameters
    ----------
    model : Model
    fmt : ImageFormat
        How the estimator reads arrays.
    path : str or path
    **about : list
        `classes` of a classifier.
    """
    onnx = _import_onnx()
    limits = _range_of("uint8", fmt)
    # Where uint8 arrays are refused, they may still come from files, which are of 8 bits.
    low, high = limits = EIGHT_BIT if isinstance(limits, str) else limits
    prepare = Resize(model.backbone.recipe)
    module = _assembled(model, ReadPixels(limits, limits), prepare, about)
    _check_size(module)
    output, meaning = _output(model.target)
    proto = _converted(module, model.backbone.recipe.size, output)
    properties = {
        "sktl_version": __version__,
        "input": f"images: uint8 (n, 3, height, width), RGB, {low:g} is black and {high:g} white; "
        "of any size, since resizing and normalising are inside",
        "output": f"{output}: float32 {meaning}",
    } | {name: json.dumps(values) for name, values in about.items()}
    onnx.helper.set_model_props(proto, properties)
    with replacing(path) as file:
        file.write(proto.SerializeToString())


def _output(target: Target) -> tuple[str, str]:
    """Name of a file's output, and what it is."""
    if isinstance(target, Numbers):
        return "numbers", "(n,)" if target.flat else f"(n, {target.n_outputs})"
    if isinstance(target, Indicators):
        return "probabilities", "(n, n_labels), of each label, that the image has it"
    return "probabilities", "(n, n_classes), in the order of classes"


def _import_onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise ImportError(
            f"to_onnx needs the packages onnx and onnxscript ({error}): pip install sktl[onnx]"
        ) from error
    return onnx


def _check_size(module: nn.Module) -> None:
    tensors = (*module.parameters(), *module.buffers())
    n_bytes = sum(tensor.nbytes for tensor in tensors)
    if n_bytes > _LARGEST_FILE:
        raise ValueError(
            f"The network's weights take {n_bytes:,} bytes, and an ONNX file holds at most 2 GiB. "
            "Use to_torch and torch.export.save."
        )


def _converted(module: nn.Module, size: tuple[int, int], output: str) -> Any:
    """The model in ONNX's own classes."""
    example = torch.zeros(2, 3, size[0] + 3, size[1] + 5, dtype=torch.uint8)
    names = {0: "n", 2: "height", 3: "width"}
    sizes = {axis: torch.export.Dim(name) for axis, name in names.items()}
    try:
        program = torch.export.export(module, (example,), dynamic_shapes=(sizes,))
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=[output],
            dynamic_shapes=(names,),
            opset_version=_OPSET,
            verbose=False,
        )
    except Exception as error:  # the exporter raises whatever a network's code does
        raise ValueError(
            f"The network can't be exported to ONNX: {_reason(error)} Use to_torch."
        ) from error
    assert exported is not None
    return exported.model_proto


def _reason(error: BaseException) -> str:
    """The first line of what went wrong first; torch's own summary takes pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
