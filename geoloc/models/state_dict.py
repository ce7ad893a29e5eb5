"""Read tensors from foreign files: safetensors, or torch.save with `weights_only`, so that no file can run code.

Tensors that claim more memory than the file has are refused.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from geoloc.errors import CheckpointError

# Keys under which trainers' checkpoints hold the network's tensors: Lightning's and the VG benchmark's.
_NETWORKS = ("state_dict", "model_state_dict")


def read_tensors(path: Path, *, bare: bool = False) -> dict[str, Tensor]:
    """The network's tensors from a .safetensors file, a state dict, or a trainer's checkpoint with one.

    Args:
        path: path of the file.
        bare: also accept a single tensor, which is named "tensor".

    Raises:
        CheckpointError: the file contains something else, or more than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        _refuse_compressed(path)
        with torch.serialization.safe_globals(_plain_numpy()):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a foreign file can fail in any way
        raise CheckpointError(
            f"{path} holds no plain state dict ({_why(error)}): if you trust the file, load it with its own code and "
            "save its state_dict with safetensors.torch.save_file"
        ) from error
    if bare and isinstance(found, Tensor):
        found = {"tensor": found}
    if isinstance(found, dict):
        found = next((found[key] for key in _NETWORKS if isinstance(found.get(key), dict)), found)
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds more than tensors by name; save the model's state_dict() alone")
    for name, tensor in found.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            kind = "without numbers" if tensor.device.type == "meta" else str(tensor.layout)
            raise CheckpointError(f"{path}: its tensor {name!r} is {kind}; only dense ones are read")
        there = tensor.untyped_storage().nbytes()
        if tensor.nbytes > there:  # an expanded view of few numbers
            raise CheckpointError(
                f"{path}: its tensor {name!r} claims {tensor.nbytes:,} bytes and has {there:,}"
            )
    return found


def _refuse_compressed(path: Path) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(
                        f"{path} holds {member.filename!r} compressed, of {member.file_size:,} bytes: torch.save never "
                        "writes such a file; download it again from its author"
                    )


def _why(error: Exception) -> str:
    """Short reason of a loading error."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return f"it names {named[1]}"
    first = str(error).partition("\n")[0]
    # The unpickler's KeyError is a bare number, and torch's message recommends unsafe loading.
    return first if " " in first and "weights_only" not in first else "torch.save has not written it"


def _plain_numpy() -> list[Any]:
    """NumPy's arrays and numbers, in which trainers keep their metrics."""
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    made_by = [multiarray._reconstruct, multiarray.scalar]
    by_old_name = [(make, f"numpy.core.multiarray.{make.__name__}") for make in made_by]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u8", "b1")]
    return [*made_by, *by_old_name, np.ndarray, np.dtype, *kinds]
