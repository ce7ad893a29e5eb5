"""Tensors in a safetensors file of a known form: its header, and arrays on the mapped file."""

import json
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import IntegrityError

_SAFETENSORS_NAMES: Final = {
    np.dtype(np.float64): "F64",
    np.dtype(np.int64): "I64",
    np.dtype(np.uint64): "U64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",
}

TensorSpecs = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]  # name -> dtype and shape, in file order


def tensor_header(tensors: TensorSpecs) -> bytes:
    """The header of a safetensors file: 8 bytes of length, then JSON, padded to a multiple of 64 bytes.

    The expected header is known before a file is read, so it is compared and never parsed.
    """
    table, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = offset + _num_bytes(dtype, shape)
        table[name] = {
            "dtype": _SAFETENSORS_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text


def _num_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    size = dtype.itemsize
    for length in shape:
        size *= length
    return size


def map_tensors(path: Path, tensors: TensorSpecs) -> tuple[dict[str, NDArray[Any]], mmap.mmap]:
    """Read-only arrays on a mapped safetensors file, and the map, which outlives the file's name.

    Raises:
        IntegrityError: the file is missing, or its size or header is not that of these tensors.
    """
    header = tensor_header(tensors)
    mapped = map_file(path)
    size = len(header) + sum(_num_bytes(dtype, shape) for dtype, shape in tensors.values())
    if len(mapped) != size or mapped[: len(header)] != header:
        raise IntegrityError(
            f"{path} has another size or header than the manifest implies: fetch or build the database again"
        )
    arrays, offset = {}, len(header)
    for name, (dtype, shape) in tensors.items():
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(mapped, dtype, count, offset).reshape(shape)
        offset += _num_bytes(dtype, shape)
    return arrays, mapped


def map_file(path: Path) -> mmap.mmap:
    """Map a file for reading.

    Raises:
        IntegrityError: it is missing or empty.
    """
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: the file is empty
        raise IntegrityError(
            f"{path} is missing or empty, but the manifest lists it: fetch or build the database again"
        ) from None
