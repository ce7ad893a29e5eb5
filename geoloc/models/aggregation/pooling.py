"""Poolings of an image's map to one number per channel, or to one token.

All take the FeatureMap of B locations with one view each, (B, 1, …), and return (B, width).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from geoloc.models.aggregation.maps import FeatureMap


def grid_of(maps: FeatureMap, *, normalize_positions: bool = False) -> Tensor:
    """The map of the only view, (B, 1, C, H, W) -> (B, C, H, W), with L2-normalised positions on request."""
    grid = maps.grid[:, 0]
    return functional.normalize(grid, dim=1) if normalize_positions else grid


class GeneralizedMean(nn.Module):
    """GeM: per channel (mean over positions of max(x, eps)^p)^(1/p) with learned p (Radenović et al., TPAMI 2019).

    Args:
        channels: C of the maps.
        normalize_positions: L2-normalise each position before, as CosPlace and the VG benchmark do.
        normalize_channels: L2-normalise each channel over all positions before, instead.
        p: initial p.
        eps: lower bound of values, for a finite gradient of the power.
    """

    def __init__(
        self,
        channels: int,
        *,
        normalize_positions: bool = False,
        normalize_channels: bool = False,
        p: float = 3.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.width, self.normalize_positions, self.eps = channels, normalize_positions, eps
        self.normalize_channels = normalize_channels
        self.p = nn.Parameter(torch.full((1,), p))

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, 1, …) -> (B, C)."""
        grid = grid_of(maps, normalize_positions=self.normalize_positions)
        if self.normalize_channels:
            grid = functional.normalize(grid.flatten(2), dim=2).unflatten(2, grid.shape[2:])
        return grid.clamp(min=self.eps).pow(self.p).mean((-2, -1)).pow(1 / self.p)


class SumPooling(nn.Module):
    """SPoC as a mean over positions, equal to the sum after normalisation (Babenko & Lempitsky, ICCV 2015)."""

    def __init__(self, channels: int, *, normalize_positions: bool = False) -> None:
        super().__init__()
        self.width, self.normalize_positions = channels, normalize_positions

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, 1, …) -> (B, C)."""
        return grid_of(maps, normalize_positions=self.normalize_positions).mean((-2, -1))


class MaxPooling(nn.Module):
    """MAC: the largest activation of each channel (Tolias et al., ICLR 2016)."""

    def __init__(self, channels: int, *, normalize_positions: bool = False) -> None:
        super().__init__()
        self.width, self.normalize_positions = channels, normalize_positions

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, 1, …) -> (B, C)."""
        return grid_of(maps, normalize_positions=self.normalize_positions).amax((-2, -1))


class RegionalMaxPooling(nn.Module):
    """R-MAC: normalised MACs of the map and of squares at several sizes, summed (Tolias et al., ICLR 2016).

    Args:
        channels: C of the maps.
        levels: number of square sizes.
        overlap: wanted overlap of neighbours along the longer side at the first level.
    """

    def __init__(
        self, channels: int, *, normalize_positions: bool = False, levels: int = 3, overlap: float = 0.4
    ) -> None:
        super().__init__()
        self.width, self.normalize_positions = channels, normalize_positions
        self.levels, self.overlap = levels, overlap

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, 1, …) -> (B, C)."""
        grid = grid_of(maps, normalize_positions=self.normalize_positions)
        total = _at_unit_length(grid.amax((-2, -1)))
        for row, column, side in squares(grid.shape[-2], grid.shape[-1], self.levels, self.overlap):
            square = grid[..., row : row + side, column : column + side]
            total = total + _at_unit_length(square.amax((-2, -1)))
        return total


def squares(height: int, width: int, levels: int, overlap: float) -> Iterator[tuple[int, int, int]]:
    """Top row, left column and side of R-MAC's squares on a map.

    At level l = 1, 2, … the side is 2 s / (l + 1), with s the shorter side of the map; l squares lie along the shorter
    side and l + e along the longer one, evenly spaced. e in 1 … 6 gives the overlap nearest to the wanted one.
    """
    short, long = sorted((height, width))
    extra = 0
    if short < long:
        extra = min(range(1, 7), key=lambda e: abs(1 - (long - short) / e / short - overlap))
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        if not side:
            return
        counts = (level + extra if size > short else level for size in (height, width))
        starts = [
            [0] if n == 1 else [i * (size - side) // (n - 1) for i in range(n)]
            for n, size in zip(counts, (height, width), strict=True)
        ]
        yield from ((row, column, side) for row in starts[0] for column in starts[1])


def _at_unit_length(vectors: Tensor) -> Tensor:
    # The published R-MAC adds its epsilon to the length.
    length: Tensor = vectors.norm(dim=-1, keepdim=True)
    return vectors / (length + 1e-6)


class ResidualRetrieval(nn.Module):
    """RRM: mean, then a residual perceptron between two layer norms (Kordopatis-Zilos et al., 2021)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = channels
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.out_norm = nn.LayerNorm(channels)

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, 1, …) -> (B, C)."""
        x = self.norm(grid_of(maps).mean((-2, -1)))
        out: Tensor = self.out_norm(x + self.mlp(x))
        return out


class ClassToken(nn.Module):
    """The class token, which is the first token without position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = channels

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, 1, …) -> (B, C)."""
        return maps.tokens[:, 0, 0]


class FirstPosition(nn.Module):
    """The top left position, which the VG benchmark takes as the class token of a CCT."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = channels

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, 1, …) -> (B, C)."""
        return maps.grid[:, 0, :, 0, 0]


class SequencePooling(nn.Module):
    """SeqPool: positions weighted by the softmax of a learned score (CCT, Hassani et al., 2021)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = channels
        self.score = nn.Linear(channels, 1)
        nn.init.trunc_normal_(self.score.weight, std=math.sqrt(1 / channels))
        nn.init.zeros_(self.score.bias)

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, 1, …) -> (B, C)."""
        positions = maps.positions()
        weights: Tensor = self.score(positions).softmax(1)
        return (weights * positions).sum(1)
