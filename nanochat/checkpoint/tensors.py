"""The safetensors format: written as a stream that is hashed on the way, read with the library.

Knows nothing of folders or of what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.checkpoint.folder import Entry, Sink, hashing_file
from nanochat.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]

_CHUNK_BYTES = 8 << 20
_NAMES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


def header(tensors: Tensors) -> bytes:
    """Return the length-prefixed JSON header of a safetensors file, padded to 8 bytes."""
    entries: dict[str, object] = {}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _NAMES[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def chunks(tensors: Tensors) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file, tensor by tensor, without a copy where they lie in memory."""
    import torch

    yield header(tensors)
    for tensor in tensors.values():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel() == 0:
            continue
        view: memoryview = flat.view(torch.uint8).numpy().data
        for start in range(0, len(view), _CHUNK_BYTES):
            yield view[start : start + _CHUNK_BYTES]


def write_tensors(path: Path, tensors: Tensors) -> Entry:
    """Write, hash and fsync a safetensors file; returns its manifest entry.

    Raises:
        StorageError: the volume is full or failing.
    """
    with hashing_file(path) as (file, entry):
        copy_to(file, tensors)
    return entry


def copy_to(sink: Sink, tensors: Tensors) -> None:
    """Write the bytes of a safetensors file to `sink`."""
    for chunk in chunks(tensors):
        sink.write(chunk)


def entry_of(tensors: Tensors) -> Entry:
    """Return the manifest entry that `write_tensors` would return, without writing."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks(tensors):
        digest.update(chunk)
        size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def read_tensors(path: Path, *, device: str = "cpu") -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name.

    Raises:
        DataError: the file is missing or is not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path, device=device)
    except FileNotFoundError:
        raise DataError(f"`{path}` does not exist") from None
    except SafetensorError as error:
        raise DataError(f"`{path}` is not a safetensors file: {error}") from None
    return tensors
