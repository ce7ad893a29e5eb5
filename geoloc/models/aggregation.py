"""One vector from the feature maps of an image, or of several aerial views of the same place.

All six are offered by Statewide (Fervers et al., ECCV 2024), whose choice is the spatial softmax. Positions of
all views are pooled together; no view is special. Knows nothing about backbones and what maps show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geoloc.errors import ConfigError
from geoloc.models.config import AggregationConfig, EmbeddingHeadConfig


@dataclass(frozen=True)
class FeatureMap:
    """What a backbone knows of each position of a picture.

    grid:   (..., C, H, W)  by position
    tokens: (..., T, C)     of no position: class and register tokens; T is 0 for a convolutional trunk
    """

    grid: Tensor
    tokens: Tensor

    def mean(self) -> Tensor:
        """Over positions, (..., C)."""
        return self.grid.mean((-2, -1))

    def by_place(self, num_views: int) -> FeatureMap:
        """B * V pictures as B places with V views each."""
        grid, tokens = (part.unflatten(0, (-1, num_views)) for part in (self.grid, self.tokens))
        return FeatureMap(grid, tokens)


def build_aggregation(
    config: AggregationConfig, dim: int, channels: int, map_size: tuple[int, int], num_tokens: int
) -> nn.Module:
    """The module that takes the FeatureMap of B places with V views, (B, V, …), and returns (B, dim).

    Args:
        config: which.
        dim: of the vector, before it is normalised.
        channels: C of the maps.
        map_size: H and W of the maps.
        num_tokens: T of the maps.

    Raises:
        ConfigError: this kind does not go with these maps.
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
    if num_tokens < 2:
        raise ConfigError(
            f"'two_tokens' reads a class and a distillation token, but this backbone has {num_tokens} tokens: use "
            "a distilled ViT, or the aggregation 'spatial_softmax'"
        )
    return TwoTokens(channels, dim)


def _positions(maps: FeatureMap) -> Tensor:
    """All positions of all views, (B, V, C, H, W) -> (B, V H W, C)."""
    return maps.grid.flatten(-2).transpose(-2, -1).flatten(1, 2)


class SpatialSoftmax(nn.Module):
    """Heads that look at some positions of some views: Statewide's pooling.

    Every head scores each position, and the softmax of its scores over all positions and views weighs its share
    of a linear projection of the features.
    """

    def __init__(self, channels: int, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.score = nn.Linear(channels, heads, bias=False)
        self.value = nn.Linear(channels, dim)

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, V, …) -> (B, dim), head by head."""
        x = self.norm(_positions(maps))
        weights = self.score(x).softmax(1)  # (B, P, heads)
        # A head's weights sum to 1, so pooling before projecting gives the same, without (B, P, dim) in memory.
        pooled = torch.einsum("bph,bpc->bhc", weights, x)
        weight = self.value.weight.unflatten(0, (self.heads, -1))  # (heads, dim / heads, C)
        out = torch.einsum("bhc,hdc->bhd", pooled, weight)
        return out.flatten(1) + self.value.bias


class MeanPooling(nn.Module):
    """The mean over positions and views, normalised and projected."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.value = nn.Linear(channels, dim)

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, V, …) -> (B, dim)."""
        value: Tensor = self.value(self.norm(maps.mean().mean(1)))
        return value


class NormalizedMean(nn.Module):
    """The mean over positions and views, normalised and not projected (Sample4Geo, Deuser et al., ICCV 2023)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, V, …) -> (B, C)."""
        value: Tensor = self.norm(maps.mean().mean(1))
        return value


class SpatialMixtureDecoder(nn.Module):
    """Positions mixed by a perceptron, then weighed by heads that know where they are (Statewide's SMD).

    Its weights belong to positions, so it takes maps of one size only. A head is dim / heads channels wide.
    """

    def __init__(self, channels: int, dim: int, heads: int, num_positions: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.value = nn.Linear(channels, dim // heads)
        self.mix = nn.Sequential(
            nn.Linear(num_positions, 4 * num_positions),
            nn.GELU(),
            nn.Linear(4 * num_positions, num_positions),
        )
        self.pool = nn.Linear(num_positions, heads)

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, V, …) -> (B, dim), head by head."""
        value = self.value(self.norm(_positions(maps)))  # (B, P, dim / heads)
        by_channel = self.mix(value.transpose(1, 2))
        pooled: Tensor = self.pool(by_channel).transpose(1, 2).flatten(1)
        return pooled


class SpatialAwareAggregation(nn.Module):
    """Heads whose weights over positions are read off the positions' mean channel (SAFA, Shi et al. 2019).

    Its weights belong to positions, so it takes maps of one size only. As in Statewide, channels are projected
    first and positions are halved on both axes by max pooling.
    """

    def __init__(
        self, channels: int, dim: int, heads: int, num_views: int, map_size: tuple[int, int]
    ) -> None:
        super().__init__()
        num_positions = num_views * math.ceil(map_size[0] / 2) * math.ceil(map_size[1] / 2)
        hidden = max(1, num_positions // 2)
        self.norm = nn.LayerNorm(channels)
        self.value = nn.Linear(channels, dim // heads)
        self.halve = nn.MaxPool2d(2, ceil_mode=True)
        # Every head has its own pair of layers.
        self.squeeze = nn.Linear(num_positions, heads * hidden)
        self.expand_weight = nn.Parameter(torch.empty(heads, hidden, num_positions))
        self.expand_bias = nn.Parameter(torch.zeros(heads, num_positions))
        nn.init.trunc_normal_(self.expand_weight, std=hidden**-0.5)

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, V, …) -> (B, dim), head by head."""
        by_position = maps.grid.movedim(-3, -1)  # (B, V, H, W, C)
        value = self.value(self.norm(by_position)).movedim(-1, -3)
        value = self.halve(value.flatten(0, 1)).unflatten(0, value.shape[:2])
        value = _positions(FeatureMap(value, maps.tokens))  # (B, P, dim / heads)
        squeezed = self.squeeze(value.mean(-1)).unflatten(-1, (len(self.expand_bias), -1))
        weights = torch.einsum("bhs,hsp->bhp", squeezed, self.expand_weight) + self.expand_bias
        return torch.einsum("bpc,bhp->bhc", value, weights).flatten(1)


class TwoTokens(nn.Module):
    """The mean of two projections, of a class and a distillation token (as TransGeo, Zhu et al., CVPR 2022)."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.of_class = nn.Linear(channels, dim)
        self.of_distillation = nn.Linear(channels, dim)

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, 1, …) -> (B, dim)."""
        tokens = self.norm(maps.tokens[:, 0, :2])
        value: Tensor = (self.of_class(tokens[:, 0]) + self.of_distillation(tokens[:, 1])) / 2
        return value


class AggregatingHead(nn.Module):
    """Unit vectors for retrieval from the feature maps of B * V pictures: V views of a place together.

    Args:
        config: with an aggregation.
        channels: C of the maps.
        map_size: H and W of the maps.
        num_tokens: T of the maps.

    Raises:
        ConfigError: the aggregation does not go with these maps.
    """

    def __init__(
        self, config: EmbeddingHeadConfig, channels: int, map_size: tuple[int, int], num_tokens: int
    ) -> None:
        super().__init__()
        assert config.aggregation is not None
        self.num_views = config.aggregation.num_views
        self.pool = build_aggregation(config.aggregation, config.dim, channels, map_size, num_tokens)

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B * V, …), the views of a place one after the other -> (B, dim) of length 1."""
        return nn.functional.normalize(self.pool(maps.by_place(self.num_views)), dim=-1)


class EmbeddingScale(nn.Module):
    """How long embeddings are in a loss; Statewide's are 6 long, so that logits are 36 times a cosine.

    Embeddings themselves stay unit vectors, as the index stores them: give losses the `temperature`.

    Args:
        scale: of both vectors.
        learnable: whether it trains, as a logarithm, so that it stays positive.

    Raises:
        ConfigError: the scale is not positive.
    """

    log_scale: Tensor

    def __init__(self, scale: float = 6.0, *, learnable: bool = False) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ConfigError(f"an embedding's scale is {scale}; it must be positive")
        value = torch.tensor(math.log(scale))
        if learnable:
            self.log_scale = nn.Parameter(value)
        else:
            self.register_buffer("log_scale", value)

    def temperature(self) -> Tensor:
        """1 / scale², which divides cosines."""
        return torch.exp(-2 * self.log_scale)
