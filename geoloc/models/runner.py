"""Backend interface of a network: outputs in NumPy, computed by PyTorch or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import CheckpointError
from geoloc.models.config import NetworkConfig

# Query embeddings of B images with several views each: none; one per image from the mean of the views' features; or
# one per view.
Queries = Literal["none", "merged", "each"]
# Images with more pixels are run one at a time: sixteen photos of a phone at once need tens of gigabytes.
ALONE_PX: Final = 2**20


@dataclass(frozen=True)
class HeadOutput:
    """Outputs of the heads for B images; None for heads that the network lacks.

    Attributes:
        cell_logits: (B, C) before softmax and temperature.
        offsets: (B, C or 1, 2) inside cells, latitude first, in [-tanh_scale, tanh_scale].
        latlon_rad: (B, 2) of the regression head, radians.
    """

    cell_logits: NDArray[np.float32] | None
    offsets: NDArray[np.float32] | None
    latlon_rad: NDArray[np.float32] | None

    def location_outputs(self) -> list[NDArray[np.float32]]:
        """The outputs that are not None."""
        return [v for v in (self.cell_logits, self.offsets, self.latlon_rad) if v is not None]


class Runner(Protocol):
    """Backend of a network.

    Attributes:
        config: config of the network.
        num_cells: C of the cell head; 0 without cell head.
    """

    config: NetworkConfig
    num_cells: int

    @property
    def device(self) -> Any:
        """Device; `str` of it is "cpu" or torch's name."""
        ...

    def as_input(self, pictures: NDArray[np.float32], /) -> Any:
        """Preprocessed images of any leading shape as the backend's arrays."""
        ...

    def read(self, views: Sequence[Any], queries: Queries) -> tuple[HeadOutput, list[NDArray[np.float32]]]:
        """Head outputs of B images, and V (or 1, or no) query embeddings, each (B, D).

        Args:
            views: for each image (V, 3, h, w), from `as_input`; their features are averaged.
            queries: kind of embeddings; "each" needs the same V for all images.

        Raises:
            ConfigError: images of an unsupported shape, or there is no query embedding.
        """
        ...

    def embed_images(self, images: Any, role: str) -> NDArray[np.float32]:
        """Unit vectors for retrieval of images, (B, 3, S, S), or locations with V views, (B, V, 3, S, S) -> (B, D).

        Raises:
            ConfigError: there is no embedding of that role, or not for that number of views.
        """
        ...

    def aggregates(self, role: str) -> bool:
        """Whether an embedding is computed from feature maps, optionally of several views together."""
        ...


def check_finite(model_name: str, arrays: Sequence[NDArray[np.float32]]) -> None:
    """Check that network outputs are finite.

    Raises:
        CheckpointError: a number is NaN or infinite.
    """
    if not all(bool(np.isfinite(values).all()) for values in arrays):
        raise CheckpointError(
            f"the network of the model {model_name!r} gives numbers that are not finite: its weights are damaged, or "
            "too large for their precision; fetch or train it again"
        )


def wrong_shape(size_hw: tuple[int, int], height: int, width: int, reason: object) -> str:
    """Error message for images of an unsupported shape."""
    return (
        f"this network takes {size_hw[0]} x {size_hw[1]} pictures only, not {height} x {width} ({reason}): query mode "
        "single does not go with it; central_crop and resized do"
    )
