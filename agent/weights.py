"""Safetensors files as raw bytes, without a tensor library: names, types, the hash of a model's weights.

Not here: what the tensors of an adapter must be called (`agent.adapters`), and loading them (`agent.engine`).
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

# An exponent of ones is an infinity or not a number.
_EXPONENT_BITS = {"BF16": (np.uint16, 0x7F80), "F16": (np.uint16, 0x7C00), "F32": (np.uint32, 0x7F800000)}


@dataclass(frozen=True, slots=True)
class RawTensor:
    """One tensor of a safetensors file.

    Attributes:
        dtype: as the format spells it: `BF16`, `F32`, `I64`.
        data: its bytes, mapped from the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    @property
    def is_finite(self) -> bool:
        """Whether this is a floating-point tensor of at most 32 bits without NaN and infinities."""
        if self.dtype not in _EXPONENT_BITS:
            return False
        kind, exponent = _EXPONENT_BITS[self.dtype]
        bits = np.frombuffer(self.data, dtype=kind)
        return not bool(((bits & exponent) == exponent).any())


def read_tensors(file: Path) -> list[RawTensor]:
    """The tensors of a safetensors file, by name; nothing is read before it is looked at.

    Raises:
        ValueError: it is not a safetensors file, or a broken one.
        OSError: it cannot be read.
    """
    try:
        with safe_open(file, framework="np"):  # checks the header: sizes, offsets, overlaps
            content = np.memmap(file, dtype=np.uint8, mode="r").data
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file: {error}") from error
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in sorted(header.items()):
        first, last = entry["data_offsets"]
        data = content[start + first : start + last]
        tensors.append(RawTensor(name, entry["dtype"], tuple(entry["shape"]), data))
    return tensors


def model_tensors(folder: Path) -> list[RawTensor]:
    """The tensors of all safetensors files in `folder`. Raises as `read_tensors`."""
    return [tensor for file in sorted(folder.glob("*.safetensors")) for tensor in read_tensors(file)]


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the tensors of a model: the same however they are sharded and in whatever order they lie.

    Reads all of them: half a second for the embedded model.

    Args:
        folder: of a model in safetensors.

    Raises:
        ValueError: there are none, or a file is broken.
        OSError: a file cannot be read.
    """
    tensors = model_tensors(folder)
    if not tensors:
        raise ValueError(f"{folder} holds no weights: no *.safetensors file with a tensor in it")
    digest = hashlib.sha256()
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        digest.update(json.dumps([tensor.name, tensor.dtype, tensor.shape]).encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def remembered_sha256(folder: Path) -> str:
    """`weights_sha256`, read again only when a file of the folder has changed. Raises as it does."""
    files = [(file.name, file.stat()) for file in sorted(folder.glob("*.safetensors"))]
    return _sha256_of_state(folder, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in files))


@functools.lru_cache(maxsize=4)
def _sha256_of_state(folder: Path, _: tuple[tuple[str, int, int], ...]) -> str:
    return weights_sha256(folder)
