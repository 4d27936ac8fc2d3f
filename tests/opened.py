"""What sktl reads of images of any kind."""

import numpy as np
import torch

from sktl.images.format import learn_format
from sktl.images.reading import open_images


def as_nchw(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def read(X, **params):
    """All images of X, with the format learned from X itself."""
    images = open_images(X, learn_format(X, **params))
    return images.batch(range(len(images)))


def digests(X, fmt=None, **params):
    images = open_images(X, fmt or learn_format(X, **params))
    return [images.digest(i) for i in range(len(images))]
