"""Backend interface of a network: outputs in NumPy, computed by PyTorch or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import CheckpointError
from geoloc.models.config import NetworkConfig

# Of B images with several views each: no query embeddings; of the mean of the views' features, one an image; or of
# each view.
Queries = Literal["none", "merged", "each"]
# A picture of more pixels goes through a network alone: sixteen photos of a telephone at once need tens of gigabytes.
ALONE_PX: Final = 2**20


@dataclass(frozen=True)
class HeadOutput:
    """What the heads say of B images; None where the network has no such head.

    cell_logits:  (B, C)          before the softmax and before temperature
    offsets:      (B, C or 1, 2)  inside cells, latitude first, in [-tanh_scale, tanh_scale]
    latlon_rad:   (B, 2)          plain regression, radians
    """

    cell_logits: NDArray[np.float32] | None
    offsets: NDArray[np.float32] | None
    latlon_rad: NDArray[np.float32] | None

    def location_outputs(self) -> list[NDArray[np.float32]]:
        """Those that there are."""
        return [v for v in (self.cell_logits, self.offsets, self.latlon_rad) if v is not None]


class Runner(Protocol):
    """A network that can be run.

    Attributes:
        config: of the network.
        num_cells: C of the cell head; 0 without.
    """

    config: NetworkConfig
    num_cells: int

    @property
    def device(self) -> Any:
        """Where it computes; `str` of it is "cpu" or a name that torch knows."""
        ...

    def as_input(self, pictures: NDArray[np.float32], /) -> Any:
        """Preprocessed pictures of any leading shape as its own kind of array."""
        ...

    def read(self, views: Sequence[Any], queries: Queries) -> tuple[HeadOutput, list[NDArray[np.float32]]]:
        """What the network says of B images, and V (or 1, or no) query embeddings, each (B, D).

        Args:
            views: of each image, (V, 3, h, w), as `as_input` makes them; their features are averaged.
            queries: which embeddings; "each" needs the same V of all images.

        Raises:
            ConfigError: pictures of a shape that the network does not take, or it has no query embedding.
        """
        ...

    def embed_images(self, images: Any, role: str) -> NDArray[np.float32]:
        """Unit vectors of pictures for retrieval, (B, 3, S, S), or places, (B, V, 3, S, S) -> (B, D).

        Raises:
            ConfigError: there is no embedding of that role, or not for so many views.
        """
        ...

    def aggregates(self, role: str) -> bool:
        """Whether an embedding is made from feature maps, perhaps of several views together."""
        ...


def check_finite(model_name: str, arrays: Sequence[NDArray[np.float32]]) -> None:
    """Refuse network outputs that are not finite.

    Raises:
        CheckpointError: one of the numbers is NaN or infinite.
    """
    if not all(bool(np.isfinite(values).all()) for values in arrays):
        raise CheckpointError(
            f"the network of the model {model_name!r} gives numbers that are not finite: its weights are damaged, or "
            "too large for their precision; fetch or train it again"
        )


def wrong_shape(size_hw: tuple[int, int], height: int, width: int, reason: object) -> str:
    """What an error says of pictures that a network does not take."""
    return (
        f"this network takes {size_hw[0]} x {size_hw[1]} pictures only, not {height} x {width} ({reason}): query mode "
        "single does not go with it; central_crop and resized do"
    )
