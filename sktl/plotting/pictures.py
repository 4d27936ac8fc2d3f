"""From what users pass as X to small pictures; and to the estimator inside another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..images.format import learn_format
from ..images.reading import Images, open_images
from .drawing import Picture

_SIDE = 200  # pixels, of the longer side


def innermost(estimator: Any, *, step: int = -1) -> Any:
    """The best estimator of a search, and a step of a pipeline."""
    while True:
        if hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif hasattr(estimator, "steps"):
            estimator = estimator.steps[step][1]
        else:
            return estimator


def fitted_classifier(estimator: Any, display: str, attribute: str) -> Any:
    """The image classifier in an estimator, which must have an attribute.

    Raises
    ------
    TypeError
        If it hasn't.
    """
    found = innermost(estimator)
    if not hasattr(found, attribute):
        raise TypeError(
            f"{display} needs a fitted PretrainedImageClassifier, alone or as the last step of a "
            f"Pipeline; {type(found).__name__} has no {attribute}."
        )
    return found


def open_pictures(X: Any, estimator: Any = None) -> Images:
    """Open X as the estimator reads it; with none that reads images, as X itself suggests."""
    reader = innermost(estimator, step=0)
    return open_images(X, getattr(reader, "_format", None) or learn_format(X))


def small_pictures(images: Images, indices: Sequence[int]) -> list[Picture]:
    """Read some images at the size of a thumbnail, as uint8 arrays of shape (h, w, 3)."""
    return [_small(np.asarray(images.batch([i], _SIDE)[0].permute(1, 2, 0))) for i in indices]


def file_names(images: Images, indices: Sequence[int]) -> list[str]:
    """Names of the files of some images, "" for one without; none where all are."""
    names = [Path(images.path(i) or "").name for i in indices]
    return names if any(names) else []


def _small(pixels: Picture) -> Picture:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)
