"""Saved files, as they are and as somebody may have changed them."""

import copy
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

import sktl
from sktl import (
    PretrainedImageClassifier,
    PretrainedImageFeatures,
)

DATA = Path(__file__).parent / "data"
DIGITS = slice(44, 108)  # of the checksum, in every file


def classifier(**settings):
    """Of tiny images; with no cache, which would hide that weights are lost."""
    settings = {"image_size": 32, "cache": None, "random_state": 0, "max_epochs": 2} | settings
    return PretrainedImageClassifier(**settings)


def features(**settings):
    return PretrainedImageFeatures(**{"image_size": 32, "cache": None} | settings)


def reload(estimator, path, **how):
    estimator.save(path, **how)
    return sktl.load(path)


def seal(content):
    """Give content the checksum that belongs to it, as docs/saving.md has it."""
    content = bytearray(content)
    content[DIGITS] = b"0" * 64
    content[DIGITS] = hashlib.sha256(content).hexdigest().encode()
    return bytes(content)


def open_up(content):
    """Header, document and tensors' bytes."""
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n])
    return header, json.loads(header["__metadata__"]["sktl"]), content[8 + n :]


def close(header, document, data):
    header = copy.deepcopy(header)
    text = document if isinstance(document, str) else json.dumps(document)
    header["__metadata__"]["sktl"] = text
    encoded = json.dumps(header, separators=(",", ":")).encode()
    return seal(len(encoded).to_bytes(8, "little") + encoded + data)


def rewrite(path, change):
    """Change a document and seal it again, as somebody with bad intentions would."""
    header, document, data = open_up(path.read_bytes())
    changed = change(document)
    path.write_bytes(close(header, document if changed is None else changed, data))


def retensor(path, change):
    """Change the tensors of a file."""
    metadata = open_up(path.read_bytes())[1]
    tensors = load_file(path)
    change(tensors)
    held = {n: t.contiguous() for n, t in tensors.items()}
    zeros = {"checksum": "sha256:" + "0" * 64, "sktl": json.dumps(metadata)}
    header, end = {"__metadata__": zeros}, 0
    for name, tensor in held.items():
        code = {torch.float64: "F64", torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": code,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    data = b"".join(t.numpy().tobytes() for t in held.values())
    path.write_bytes(close(header, metadata, data))
