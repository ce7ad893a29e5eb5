"""What an adapter makes of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geoloc.errors import CheckpointError
from geoloc.images.preprocess import Preprocess
from geoloc.models.network import GeoNetwork
from quadtree import Quadtree


@dataclass(frozen=True)
class Gallery:
    """Places that a model compares photos with.

    Attributes:
        latlon_deg: (n, 2).
        encode: (m, 2) degrees -> (m, dim), of any length.
        logit_scale: times a cosine, it is the logarithm of a place's odds.
        fingerprint: digest of what `encode` is made of.
        provenance: of the coordinates.
        licence: of the coordinates.
    """

    latlon_deg: NDArray[np.float64]
    encode: Callable[[NDArray[np.float64]], Tensor]
    logit_scale: float
    fingerprint: str
    provenance: str
    licence: str


@dataclass(frozen=True)
class Adapted:
    """A published checkpoint in our terms, as `Geolocalizer` takes it.

    Attributes:
        network: in evaluation mode.
        preprocess: as it was published for.
        quadtree: of a model with cells.
        gallery: of a model that answers with places of a list.
    """

    network: GeoNetwork
    preprocess: Preprocess
    quadtree: Quadtree | None = None
    gallery: Gallery | None = None


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of tensors by name."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


_Module = TypeVar("_Module", bound=nn.Module)


def fill(network: _Module, state: dict[str, Tensor], origin: str) -> _Module:
    """Give a network its tensors, all of them; in evaluation mode afterwards.

    Raises:
        CheckpointError: one is missing, left over or of another shape.
    """
    counters = {name: t for name, t in network.state_dict().items() if name.endswith("num_batches_tracked")}
    try:
        network.load_state_dict(counters | state)  # files older than PyTorch 1.0 do not count batches
    except RuntimeError as error:
        raise CheckpointError(
            f"{origin} does not fit the network that its shapes describe: {error}"
        ) from error
    return network.eval()
