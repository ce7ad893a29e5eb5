"""Tensors whose numbers follow from their names, so that a checkpoint of millions needs no file.

The peers' networks were filled with exactly these outside the repository; a fixture keeps the names, the shapes, a
digest of all tensors, and what the peer's own code made of the pictures of `pictures`.
"""

import hashlib
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def state_of(shapes: Mapping[str, Sequence[int]], gain: float) -> dict[str, Tensor]:
    """A network's tensors by their names and shapes; `gain` keeps deep ones from fading out."""
    return {
        name: torch.from_numpy(np.array(_numbers(name, tuple(shape), gain))) for name, shape in shapes.items()
    }


def _numbers(name: str, shape: tuple[int, ...], gain: float) -> NDArray[np.generic]:
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    u = 2 * np.random.default_rng(zlib.crc32(name.encode())).random(shape, np.float32) - 1
    if name.endswith("logit_scale"):
        return np.asarray(4 + u / 2, np.float32)
    if "acc_w" in name:  # CRN's sum, which was never trained
        return np.full(shape, float(name.endswith("weight")), np.float32)
    if name.endswith("running_var"):
        return np.asarray(1 + u / 2)
    if name.endswith(".p"):
        return np.full(shape, 2.5, np.float32) + u / 2
    if len(shape) <= 1:
        is_scale = name.endswith(("weight", "gamma", "scale"))
        return np.asarray((1 + u / 4) if is_scale else u / 4)
    fan_in = int(np.prod(shape[1:]))
    return np.asarray((u * (3 / fan_in) ** 0.5 * gain).astype(np.float32))


def digest(state: Mapping[str, Tensor]) -> str:
    """Of all names and bytes: the same as where the peer ran."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode())
        found.update(np.ascontiguousarray(state[name].numpy()).tobytes())
    return found.hexdigest()


def pictures(size_px: int | Sequence[int], number: int = 2) -> Tensor:
    """Normalised pictures, (number, 3, S, S) or (number, 3, height, width)."""
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    noise = np.random.default_rng(7).standard_normal((number, 3, height, width))
    return torch.from_numpy(noise.astype(np.float32))
