"""Statewide's aggregations over the feature maps of a photo, or of several aerial views (Fervers et al., ECCV 2024).

Its choice is the spatial softmax. Positions of all views are pooled together, and projected to the wanted width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from geoloc.models.aggregation.maps import FeatureMap


class SpatialSoftmax(nn.Module):
    """Statewide's pooling: attention heads over the positions of all views.

    Every head scores each position; the softmax of its scores weights a linear projection of the features.
    """

    def __init__(self, channels: int, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.score = nn.Linear(channels, heads, bias=False)
        self.value = nn.Linear(channels, dim)

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, V, …) -> (B, dim), head by head."""
        x = self.norm(maps.positions())
        weights = self.score(x).softmax(1)  # (B, P, heads)
        # A head's weights sum to 1, so pooling before projecting is equal, and needs no (B, P, dim) in memory.
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
    """Positions mixed by a perceptron, then pooled by heads with a weight per position (Statewide's SMD).

    Its weights belong to positions, so all maps must have one size. A head has dim / heads channels.
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
        value = self.value(self.norm(maps.positions()))  # (B, P, dim / heads)
        by_channel = self.mix(value.transpose(1, 2))
        pooled: Tensor = self.pool(by_channel).transpose(1, 2).flatten(1)
        return pooled


class SpatialAwareAggregation(nn.Module):
    """Heads with position weights computed from the mean over channels (SAFA, Shi et al. 2019).

    Its weights belong to positions, so all maps must have one size. As in Statewide, channels are projected first, and
    max pooling halves both axes.
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
        value = FeatureMap(value, maps.tokens).positions()  # (B, P, dim / heads)
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
