"""Result of an adapter."""

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
    """Locations that a model compares photos with.

    Attributes:
        latlon_deg: (n, 2).
        encode: (m, 2) degrees -> (m, dim), of any length.
        logit_scale: factor from a cosine to a logit.
        fingerprint: digest of the encoder's tensors.
        provenance: source of the coordinates.
        licence: licence of the coordinates.
    """

    latlon_deg: NDArray[np.float64]
    encode: Callable[[NDArray[np.float64]], Tensor]
    logit_scale: float
    fingerprint: str
    provenance: str
    licence: str


@dataclass(frozen=True)
class Adapted:
    """A published checkpoint as our network.

    Attributes:
        network: network in evaluation mode.
        preprocess: its published preprocessing.
        quadtree: cells of a model with cell head.
        gallery: locations of a retrieval model with a gallery.
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
    """Load all tensors of a network, and set it to evaluation mode.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    counters = {name: t for name, t in network.state_dict().items() if name.endswith("num_batches_tracked")}
    try:
        network.load_state_dict(counters | state)  # files older than PyTorch 1.0 lack num_batches_tracked
    except RuntimeError as error:
        raise CheckpointError(
            f"{origin} does not fit the network that its shapes describe: {error}"
        ) from error
    return network.eval()
