"""The network: a backbone, and heads that read its features or its feature maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from geoloc.errors import ConfigError
from geoloc.models.aggregation import AggregatingHead
from geoloc.models.config import NetworkConfig
from geoloc.models.heads import EmbeddingHead, OffsetHead, RegressionHead, mlp


@dataclass(frozen=True)
class NetworkOutput:
    """Outputs of the heads for B images; None for heads that the network lacks.

    Attributes:
        features: (B, D) of the backbone, not normalised.
        cell_logits: (B, C) before softmax and temperature.
        offsets: (B, C or 1, 2) inside cells, latitude first, in [-tanh_scale, tanh_scale].
        latlon_rad: (B, 2) of the regression head, radians.
    """

    features: Tensor
    cell_logits: Tensor | None
    offsets: Tensor | None
    latlon_rad: Tensor | None


class GeoNetwork(nn.Module):
    """Backbone and heads.

    Args:
        config: config of the heads.
        backbone: a module (B, 3, S, S) -> (B, D) with the attribute `feature_dim`.
        bounds_deg: (C, 4) south, west, north, east of the cells; needed with a cell head.
        center_latlon_deg: (C, 2) representative points of the cells; needed with a cell head.
        aerial_backbone: backbone for aerial views; needed if the config has one.
    """

    def __init__(
        self,
        config: NetworkConfig,
        backbone: nn.Module,
        bounds_deg: NDArray[np.float64] | None = None,
        center_latlon_deg: NDArray[np.float64] | None = None,
        aerial_backbone: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if (config.aerial_backbone is None) != (aerial_backbone is None):
            raise ConfigError(
                "the config and the network must agree on an aerial backbone; found one in "
                f"{'the arguments' if config.aerial_backbone is None else 'the config'} only"
            )
        dim = int(backbone.feature_dim)  # type: ignore[arg-type]
        self.config = config
        self.backbone = backbone
        self.aerial_backbone = aerial_backbone
        self.cells: nn.Sequential | None = None
        self.offsets: OffsetHead | None = None
        self.regression = RegressionHead(dim, config.regression) if config.regression else None
        self.embeddings = nn.ModuleDict()
        for role, embedding in config.embeddings.items():
            tower = self.tower_of(role)
            self.embeddings[role] = (
                EmbeddingHead(int(tower.feature_dim), embedding)  # type: ignore[arg-type]
                if embedding.aggregation is None
                else AggregatingHead(
                    embedding,
                    int(tower.feature_dim),  # type: ignore[arg-type]
                    tower.map_size,  # type: ignore[arg-type]
                    int(tower.num_tokens),  # type: ignore[arg-type]
                )
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
        """(B, 3, S, S) normalised images -> outputs of all heads but the embeddings."""
        return self.read(self.backbone(images))

    def read(self, features: Tensor) -> NetworkOutput:
        """Outputs of the heads from features, (B, D)."""
        return NetworkOutput(
            features=features,
            cell_logits=None if self.cells is None else self.cells(features),
            offsets=None if self.offsets is None else self.offsets(features),
            latlon_rad=None if self.regression is None else self.regression(features),
        )

    def tower_of(self, role: str) -> nn.Module:
        """The backbone for the images of a role."""
        return (
            self.aerial_backbone if role == "aerial" and self.aerial_backbone is not None else self.backbone
        )

    def with_embeddings(self, images: Tensor, role: str) -> tuple[Tensor, Tensor]:
        """Features and unit vectors of images in one pass: (B, 3, S, S) -> (B, D), (B, dim).

        Raises:
            ConfigError: there is no such embedding, or it has another tower or several views.
        """
        head = self._embedding(role)
        if self.tower_of(role) is not self.backbone:
            raise ConfigError(f"the images of {role!r} have a tower of their own: use embed_images")
        if not isinstance(head, AggregatingHead):
            features = self.backbone(images)
            return features, head(features)
        maps = self.backbone.feature_map(images)  # type: ignore[operator]
        return maps.mean(), head(maps)

    def aggregates(self, role: str) -> bool:
        """Whether an embedding is computed from feature maps; then only `embed_images` can compute it."""
        return isinstance(self._embedding(role), AggregatingHead)

    def embed(self, features: Tensor, role: str) -> Tensor:
        """Unit vectors for retrieval, (B, D) -> (B, dim), role "query", "aerial" or "street".

        Raises:
            ConfigError: there is no such embedding, or it is computed from feature maps.
        """
        head = self._embedding(role)
        if isinstance(head, AggregatingHead):
            raise ConfigError(
                f"this model's embedding of {role!r} is made from feature maps, not from features: use embed_images"
            )
        return head(features)  # type: ignore[no-any-return]

    def embed_images(self, images: Tensor, role: str) -> Tensor:
        """Unit vectors of images, (B, 3, S, S), or of locations with V views each, (B, V, 3, S, S) -> (B, dim).

        Raises:
            ConfigError: there is no such embedding, or not for that number of views.
        """
        head, tower = self._embedding(role), self.tower_of(role)
        num_views = images.shape[1] if images.ndim == 5 else 1
        expected = head.num_views if isinstance(head, AggregatingHead) else 1
        if num_views != expected:
            raise ConfigError(
                f"this model's embedding of {role!r} needs {expected} view(s) of a location; found {num_views}"
            )
        flat = images.flatten(0, 1) if images.ndim == 5 else images
        if isinstance(head, AggregatingHead):
            return head(tower.feature_map(flat))  # type: ignore[operator, no-any-return]
        return head(tower(flat))  # type: ignore[no-any-return]

    def _embedding(self, role: str) -> nn.Module:
        name = self.config.embedding_of(role)
        if name not in self.embeddings:
            known = ", ".join(sorted(self.embeddings)) or "none"
            raise ConfigError(
                f"this model has no embedding for {role!r} (it has: {known}); train one, or use another"
            )
        return self.embeddings[name]
