"""Reduced maps as one vector, which keeps positions: Conv-AP and MixVPR."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from geoloc.models.aggregation.maps import FeatureMap
from geoloc.models.aggregation.pooling import grid_of


class ConvAP(nn.Module):
    """A 1 x 1 convolution, then average pooling to a coarse grid (Ali-bey et al., GSV-Cities, Neurocomputing 2022).

    Args:
        channels: C of the maps.
        out_channels: d.
        pooled_size: rows and columns of the coarse grid.
    """

    def __init__(self, channels: int, out_channels: int, pooled_size: tuple[int, int] = (2, 2)) -> None:
        super().__init__()
        self.width = out_channels * pooled_size[0] * pooled_size[1]
        self.pooled_size = pooled_size
        self.project = nn.Conv2d(channels, out_channels, 1)

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, 1, …) -> (B, d rows columns), channel by channel."""
        pooled = functional.adaptive_avg_pool2d(self.project(grid_of(maps)), self.pooled_size)
        return pooled.flatten(1)


class FeatureMixer(nn.Module):
    """Residual perceptron over the positions of each channel: (B, C, P) -> (B, C, P)."""

    def __init__(self, num_positions: int, ratio: float) -> None:
        super().__init__()
        hidden = int(num_positions * ratio)
        self.norm = nn.LayerNorm(num_positions)
        self.mlp = nn.Sequential(
            nn.Linear(num_positions, hidden), nn.ReLU(), nn.Linear(hidden, num_positions)
        )
        for layer in (self.mlp[0], self.mlp[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, P) -> (B, C, P)."""
        mixed: Tensor = x + self.mlp(self.norm(x))
        return mixed


class MixVPR(nn.Module):
    """Mixers over positions, then projections to fewer channels and rows (Ali-bey et al., MixVPR, WACV 2023).

    Its weights belong to positions, so all maps must have one size.

    Args:
        channels: C of the maps.
        map_size: H and W of the maps.
        out_channels: d.
        out_rows: r.
        depth: number of mixers.
        ratio: width of a mixer's hidden layer relative to H W.
    """

    def __init__(
        self,
        channels: int,
        map_size: tuple[int, int],
        out_channels: int,
        out_rows: int = 4,
        depth: int = 4,
        ratio: float = 1.0,
    ) -> None:
        super().__init__()
        num_positions = map_size[0] * map_size[1]
        self.width = out_channels * out_rows
        self.mixers = nn.Sequential(*(FeatureMixer(num_positions, ratio) for _ in range(depth)))
        self.channel_projection = nn.Linear(channels, out_channels)
        self.row_projection = nn.Linear(num_positions, out_rows)

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, 1, …) -> (B, d r), channel by channel."""
        mixed = self.mixers(grid_of(maps).flatten(2))
        by_position = self.channel_projection(mixed.transpose(1, 2))  # (B, P, d)
        rows: Tensor = self.row_projection(by_position.transpose(1, 2))
        return rows.flatten(1)
