"""The network: one backbone, and heads that read its features.

Knows nothing about files, images or losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from geoloc.errors import ConfigError
from geoloc.models.config import NetworkConfig
from geoloc.models.heads import EmbeddingHead, OffsetHead, RegressionHead, mlp


@dataclass(frozen=True)
class NetworkOutput:
    """What the heads say of B images; None where the network has no such head.

    features:     (B, D)          of the backbone, not normalised
    cell_logits:  (B, C)          before the softmax and before temperature
    offsets:      (B, C or 1, 2)  inside cells, latitude first, in [-tanh_scale, tanh_scale]
    latlon_rad:   (B, 2)          plain regression, radians
    """

    features: Tensor
    cell_logits: Tensor | None
    offsets: Tensor | None
    latlon_rad: Tensor | None


class GeoNetwork(nn.Module):
    """Backbone and heads.

    Args:
        config: which heads.
        backbone: a module (B, 3, S, S) -> (B, D) with the attribute `feature_dim`.
        bounds_deg: (C, 4) south, west, north, east of the cells; needed with a cell head.
        center_latlon_deg: (C, 2) representative points of the cells; needed with a cell head.
    """

    def __init__(
        self,
        config: NetworkConfig,
        backbone: nn.Module,
        bounds_deg: NDArray[np.float64] | None = None,
        center_latlon_deg: NDArray[np.float64] | None = None,
    ) -> None:
        super().__init__()
        dim = int(backbone.feature_dim)  # type: ignore[arg-type]
        self.config = config
        self.backbone = backbone
        self.cells: nn.Sequential | None = None
        self.offsets: OffsetHead | None = None
        self.regression = RegressionHead(dim, config.regression) if config.regression else None
        self.embeddings = nn.ModuleDict(
            {role: EmbeddingHead(dim, c) for role, c in config.embeddings.items()}
        )
        if config.cells is not None:
            if bounds_deg is None or center_latlon_deg is None:
                raise ConfigError(
                    "a network with a cell head needs the cells' bounds and centres: give a quadtree"
                )
            self.cells = mlp(dim, config.cells.hidden_dims, len(bounds_deg))
            if config.offsets is not None:
                self.offsets = OffsetHead(dim, config.offsets, bounds_deg, center_latlon_deg)

    def forward(self, images: Tensor) -> NetworkOutput:
        """(B, 3, S, S) normalised images -> what every head but the embeddings says."""
        return self.read(self.backbone(images))

    def read(self, features: Tensor) -> NetworkOutput:
        """The heads alone, from features that are already there: (B, D)."""
        return NetworkOutput(
            features=features,
            cell_logits=None if self.cells is None else self.cells(features),
            offsets=None if self.offsets is None else self.offsets(features),
            latlon_rad=None if self.regression is None else self.regression(features),
        )

    def embed(self, features: Tensor, role: str) -> Tensor:
        """Unit vectors for retrieval, (B, D) -> (B, dim), role "query", "aerial" or "street"."""
        if role not in self.embeddings:
            known = ", ".join(sorted(self.embeddings)) or "none"
            raise ConfigError(
                f"this model has no embedding for {role!r} (it has: {known}); train one, or use another"
            )
        return self.embeddings[role](features)  # type: ignore[no-any-return]
