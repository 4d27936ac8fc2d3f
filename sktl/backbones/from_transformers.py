"""Models of transformers, which return several things, as networks that return one tensor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..images.sizes import Size, height_width
from .values import refuse_images

# The first of these that a model returns is taken.
_OUTPUTS = ("logits", "image_embeds", "pooler_output", "last_hidden_state")
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")


class TransformersNetwork(nn.Module):
    """A model of transformers, of whose outputs one is kept.

    That is, the first that there is: the logits, whose classifier is left out like any network's;
    the embedding of the image; the pooled output; the class token; the mean of all tokens or of the
    map.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    image_size : int or (int, int)
        Height and width of the images that it is tried with.

    Raises
    ------
    ValueError
        If the model doesn't take images alone, can't take images of this size, or is made for
        another task.
    """

    def __init__(self, model: nn.Module, image_size: Size) -> None:
        super().__init__()
        self.model = model
        _check_input(model)
        found = _try(model, image_size)
        self.output = next((name for name in _OUTPUTS if name in found), "")
        value = found.get(self.output)
        if value is None or (self.output in ("logits", "image_embeds") and value.ndim != 2):
            names = {name: tuple(v.shape) for name, v in found.items()}
            raise ValueError(
                f"{type(model).__name__} gives {names}, none of which is a vector or map for each "
                "image. It is made for another task: pass what it is built on (in transformers, "
                "AutoModel.from_pretrained, or an attribute such as model.base_model)."
            )
        # A class token stands before the others, and only the names of weights tell of it.
        self.has_class_token = any(
            name.rpartition(".")[2] in _CLASS_TOKENS for name, _ in model.named_parameters()
        )

    @property
    def gives_embeddings(self) -> bool:
        """Whether its last layer classifies nothing."""
        return self.output != "logits"

    def forward(self, images: Tensor) -> Tensor:
        """One tensor for a batch: logits, vectors, or a map or tokens that are pooled later."""
        value: Tensor = self.model(pixel_values=images)[self.output]
        if self.output == "pooler_output":
            return value.flatten(1)
        if self.output == "last_hidden_state" and value.ndim == 3 and self.has_class_token:
            return value[:, 0]
        return value


def as_network(model: nn.Module, image_size: Size) -> nn.Module:
    """A network that returns one tensor; only models of transformers are changed for it."""
    return TransformersNetwork(model, image_size) if is_of_transformers(model) else model


def own_module(network: nn.Module) -> nn.Module:
    """Undo :func:`as_network`: the module whose weights have the names that its library gives."""
    return network.model if isinstance(network, TransformersNetwork) else network


def is_of_transformers(module: object) -> bool:
    """Whether it is a model of transformers, which needn't be imported to tell."""
    return any(
        kind.__name__ == "PreTrainedModel" and kind.__module__.startswith("transformers.")
        for kind in type(module).__mro__
    )


def _check_input(model: nn.Module) -> None:
    name = getattr(model, "main_input_name", "pixel_values")
    required = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    other = sorted({name, *required} - {"pixel_values"})
    if hasattr(model, "get_image_features"):
        raise ValueError(
            f"{type(model).__name__} takes images and text. Pass its tower for images, such as "
            "model.vision_model."
        )
    if other:
        raise ValueError(f"{type(model).__name__} takes {other}, and sktl gives images alone.")


@torch.no_grad()
def _try(model: nn.Module, image_size: Size) -> dict[str, Tensor]:
    """The tensors that a model gives for an image."""
    model.eval()
    images = torch.zeros(1, 3, *height_width(image_size))
    try:
        found: Any = model(pixel_values=images)
    except Exception as error:
        refuse_images(model, image_size, error)
    if not isinstance(found, Mapping):
        raise ValueError(
            f"{type(model).__name__} returns a {type(found).__name__}. Build it with "
            "return_dict=True, its default."
        )
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
