"""One file of tensors and a document: written whole or not at all, and read only unchanged.

It is a safetensors file. The header's metadata hold a SHA-256 of the whole file and one JSON
document; docs/saving.md describes them for readers in other languages.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..atomic import Path, replacing

# The digits of the checksum stand at the same place in every file, so that it can be taken of
# the file as it is, with zeros in their place.
_START = b'{"__metadata__":{"checksum":"sha256:'
_CHECKSUM = slice(8 + len(_START), 8 + len(_START) + 64)
_HEADER_LIMIT = 16 * 2**20
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# How files begin that somebody may take for ours.
_OTHERS = {
    b"\x80": "It is a pickle or joblib file, which runs code when it is loaded: joblib.load reads "
    "it, if you trust it.",
    b"PK": "It is a zip archive, perhaps of torch.save.",
    b"\x1f\x8b": "It is compressed.",
}


class FileFormatError(ValueError):
    """A file isn't one that sktl saved, has been damaged, or describes no model."""


class NotSavableError(ValueError):
    """An estimator holds something that can't be saved without code."""


def write_sealed(path: Path, document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a file; whoever reads meanwhile, or kills the process, finds the old or the new one.

    Parameters
    ----------
    path : str or path
    document : dict
        What JSON can say.
    tensors : dict of str to torch.Tensor

    Raises
    ------
    NotSavableError
        If the document is too large or a tensor's dtype unknown.
    """
    # As safetensors wants it: aligned, so the largest numbers come first.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    blocks = [raw_bytes(tensors[name]) for name in names]
    header = _header(document, {name: tensors[name] for name in names})
    start = len(header).to_bytes(8, "little") + header
    digits = _checksum(start, blocks)
    with replacing(path) as file:
        file.write(start[: _CHECKSUM.start] + digits + start[_CHECKSUM.stop :])
        for block in blocks:
            file.write(block)


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's values in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def dtype_name(tensor: Tensor) -> str:
    """What safetensors calls a tensor's dtype."""
    if tensor.dtype not in _DTYPES:
        raise NotSavableError(f"Tensors of {tensor.dtype} can't be saved. Use joblib.dump.")
    return _DTYPES[tensor.dtype]


def _header(document: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    entries: dict[str, Any] = {
        "__metadata__": {"checksum": "sha256:" + 64 * "0", "sktl": _to_json(document)}
    }
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": dtype_name(tensor),
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    header = _to_json(entries).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > _HEADER_LIMIT:
        raise NotSavableError(
            f"What is to be saved beside the weights takes {len(header):,} bytes, and "
            f"{_HEADER_LIMIT:,} is the most. Use joblib.dump."
        )
    return header


def _to_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _checksum(start: bytes, blocks: Iterable[bytes | memoryview]) -> bytes:
    """The digits for a file that begins with `start`, whatever stands at their place now."""
    hasher = hashlib.sha256(start[: _CHECKSUM.start] + 64 * b"0" + start[_CHECKSUM.stop :])
    for block in blocks:
        hasher.update(block)
    return hasher.hexdigest().encode()


# Reading -----------------------------------------------------------------------------


def read_sealed(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """Read a file, if it is as it was written.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    document : object
        What JSON gives; nothing but its syntax has been checked.
    tensors : dict of str to torch.Tensor

    Raises
    ------
    FileFormatError
        If the file is something else or has changed.
    OSError
        If it can't be read.
    """
    name = os.fspath(path)
    content, n_header = _read_unchanged(name)
    header = _from_json(name, content[8 : 8 + n_header])
    metadata = header["__metadata__"]  # it is there, or the file would begin otherwise
    if not isinstance(metadata, dict) or set(metadata) != {"checksum", "sktl"}:
        raise FileFormatError(f"{name}: its metadata must be a checksum and a document.")
    if not isinstance(metadata["sktl"], str):
        raise FileFormatError(f"{name}: its document must be text.")
    document = _from_json(name, metadata["sktl"].encode("utf-8", "surrogatepass"))
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise FileFormatError(f"{name}: its tensors can't be read: {error}") from error
    return document, tensors


def _read_unchanged(name: str) -> tuple[bytes, int]:
    """The content, and how many bytes the header takes."""
    status = os.stat(name)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{name} is a folder. Give the path of a file.")
    if not stat.S_ISREG(status.st_mode):  # a pipe may never end
        raise FileFormatError(f"{name} is not a regular file.")
    with open(name, "rb") as file:
        beginning = file.read(_CHECKSUM.stop)
        n_header = _check_beginning(name, beginning)
        if n_header > min(_HEADER_LIMIT, status.st_size - 8):
            raise FileFormatError(
                f"{name} is damaged or cut off: its header should take {n_header:,} bytes, of "
                f"{status.st_size:,} in all."
            )
        content = beginning + file.read(status.st_size - len(beginning))
    if (
        _checksum(content[: _CHECKSUM.stop], [memoryview(content)[_CHECKSUM.stop :]])
        != (content[_CHECKSUM])
    ):
        raise FileFormatError(
            f"{name} is damaged or cut off: its content is not what its checksum was taken of. "
            "Get the file again from where it was saved."
        )
    return content, n_header


def _check_beginning(name: str, beginning: bytes) -> int:
    """Refuse other files; give the length that the header is said to have."""
    if not beginning:
        raise FileFormatError(f"{name} is empty.")
    if beginning[8 : _CHECKSUM.start] == _START:
        return int.from_bytes(beginning[:8], "little")
    hint = next((hint for start, hint in _OTHERS.items() if beginning.startswith(start)), "")
    raise FileFormatError(f"{name} is not a file of sktl's save. {hint}".rstrip())


def _from_json(name: str, text: bytes) -> Any:
    try:
        return json.loads(
            text.decode(), parse_constant=_refuse_constant, object_pairs_hook=_without_repeats
        )
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{name}: its JSON can't be read: {error}") from error


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # readers would disagree about which counts
        raise ValueError("a name occurs twice in an object")
    return found
