"""Build aggregations from their config, and make unit vectors for retrieval."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from geoloc.errors import ConfigError
from geoloc.models.aggregation.maps import FeatureMap
from geoloc.models.aggregation.mixing import ConvAP, MixVPR
from geoloc.models.aggregation.pooling import (
    ClassToken,
    FirstPosition,
    GeneralizedMean,
    MaxPooling,
    RegionalMaxPooling,
    ResidualRetrieval,
    SequencePooling,
    SumPooling,
)
from geoloc.models.aggregation.statewide import (
    MeanPooling,
    NormalizedMean,
    SpatialAwareAggregation,
    SpatialMixtureDecoder,
    SpatialSoftmax,
    TwoTokens,
)
from geoloc.models.aggregation.transport import OptimalTransport
from geoloc.models.aggregation.vlad import CRN, NetVLAD
from geoloc.models.config import AggregationConfig, EmbeddingHeadConfig


def build_aggregation(
    config: AggregationConfig, dim: int, channels: int, map_size: tuple[int, int], num_tokens: int
) -> nn.Module:
    """Module from the FeatureMap of B locations with V views, (B, V, …), to (B, width).

    Args:
        config: config of the aggregation.
        dim: dimension of the embedding, and width of Statewide's kinds; the others have the attribute `width`.
        channels: C of the maps.
        map_size: H and W of the maps.
        num_tokens: T of the maps.

    Raises:
        ConfigError: this kind does not fit these maps.
    """
    height, width = map_size
    if config.kind == "spatial_softmax":
        return SpatialSoftmax(channels, dim, config.heads)
    if config.kind == "mean":
        return MeanPooling(channels, dim)
    if config.kind == "smd":
        return SpatialMixtureDecoder(channels, dim, config.heads, config.num_views * height * width)
    if config.kind == "safa":
        return SpatialAwareAggregation(channels, dim, config.heads, config.num_views, map_size)
    if config.kind == "sample4geo":
        if dim != channels:
            raise ConfigError(
                f"'sample4geo' does not project, so an embedding of dim {dim} needs a backbone with as many "
                f"channels; this one has {channels}: use dim {channels}, or the aggregation 'mean'"
            )
        return NormalizedMean(channels)
    if config.kind == "two_tokens":
        if num_tokens < 2:
            raise ConfigError(
                f"'two_tokens' reads a class and a distillation token, but this backbone has {num_tokens} tokens: "
                "use a distilled ViT, or the aggregation 'spatial_softmax'"
            )
        return TwoTokens(channels, dim)
    return _build_for_streets(config, dim, channels, map_size, num_tokens)


def _build_for_streets(
    config: AggregationConfig, dim: int, channels: int, map_size: tuple[int, int], num_tokens: int
) -> nn.Module:
    height, width = map_size
    if config.kind == "gem":
        return GeneralizedMean(
            channels,
            normalize_positions=config.normalize_positions,
            normalize_channels=config.normalize_channels,
        )
    if config.kind in _BY_CHANNEL:
        return _BY_CHANNEL[config.kind](channels, normalize_positions=config.normalize_positions)
    if config.kind == "cosplace":
        return GeneralizedMean(channels, normalize_positions=True)
    if config.kind in ("netvlad", "crn"):
        return (NetVLAD if config.kind == "netvlad" else CRN)(channels, config.clusters)
    if config.kind == "convap":
        rows, columns = config.pooled_size
        return ConvAP(channels, config.out_channels or dim // (rows * columns), config.pooled_size)
    if config.kind == "mixvpr":
        out_channels = config.out_channels or dim // config.out_rows
        return MixVPR(channels, map_size, out_channels, config.out_rows, config.mix_depth, config.mlp_ratio)
    if config.kind == "optimal_transport":
        if not num_tokens or height * width <= config.clusters:
            raise ConfigError(
                f"'optimal_transport' needs a class token and more positions than its {config.clusters} clusters; "
                f"found {num_tokens} tokens and {height * width} positions: "
                "use a ViT, larger pictures, or fewer clusters"
            )
        cluster_dim = config.out_channels or 128
        return OptimalTransport(channels, config.clusters, cluster_dim, config.token_dim, config.hidden_dim)
    if config.kind == "cls" and not num_tokens:
        raise ConfigError(
            "'cls' reads the class token, but this backbone has none: use a ViT that has, or the aggregation 'gem'"
        )
    if config.kind == "cls":
        return ClassToken(channels)
    return {"rrm": ResidualRetrieval, "first": FirstPosition, "seqpool": SequencePooling}[config.kind](
        channels
    )


_BY_CHANNEL: dict[str, Callable[..., nn.Module]] = {
    "spoc": SumPooling,
    "mac": MaxPooling,
    "rmac": RegionalMaxPooling,
}


class AggregatingHead(nn.Module):
    """Unit vectors for retrieval from the feature maps of B * V images, with V views of each location.

    Args:
        config: config with an aggregation.
        channels: C of the maps.
        map_size: H and W of the maps.
        num_tokens: T of the maps.

    Attributes:
        pool: the aggregation.
        fc: a linear layer after it, or None.
        pca: a linear layer on the normalised vectors, or None; see `fit_pca`.

    Raises:
        ConfigError: the aggregation does not fit these maps, or the embedding's dim.
    """

    def __init__(
        self, config: EmbeddingHeadConfig, channels: int, map_size: tuple[int, int], num_tokens: int
    ) -> None:
        super().__init__()
        aggregation = config.aggregation
        assert aggregation is not None
        self.num_views, self._normalize_pooled = aggregation.num_views, aggregation.normalize_pooled
        self.pool = build_aggregation(aggregation, config.dim, channels, map_size, num_tokens)
        width = getattr(self.pool, "width", config.dim)
        self.fc: nn.Linear | None = None
        self.pca: nn.Linear | None = None
        if (fc_dim := config.fc_dim) is not None:
            self.fc = nn.Linear(width, fc_dim)
            width = fc_dim
        if aggregation.pca:
            self.pca = nn.Linear(width, config.dim)
        elif width != config.dim:
            raise ConfigError(
                f"{aggregation.kind!r} makes {width} numbers of this backbone's maps, but the embedding's dim is "
                f"{config.dim}: use dim {width}, or add a linear layer (fc_dim, pca)"
            )

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B * V, …), the views of a location consecutive -> (B, dim) of length 1."""
        x = self._projected(maps)
        if self.pca is not None:
            x = self.pca(nn.functional.normalize(x, dim=-1))
        return nn.functional.normalize(x, dim=-1)

    def before_pca(self, maps: FeatureMap) -> Tensor:
        """Unit vectors for fitting `pca`; arguments as for `forward`."""
        return nn.functional.normalize(self._projected(maps), dim=-1)

    def _projected(self, maps: FeatureMap) -> Tensor:
        x: Tensor = self.pool(maps.by_location(self.num_views))
        if self.fc is None:
            return x
        return self.fc(nn.functional.normalize(x, dim=-1) if self._normalize_pooled else x)  # type: ignore[no-any-return]
