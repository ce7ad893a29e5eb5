"""Residuals of positions to cluster centres: NetVLAD, and CRN with a learned attention mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from geoloc.errors import ConfigError
from geoloc.models.aggregation.maps import FeatureMap
from geoloc.models.aggregation.pooling import grid_of


def local_descriptors(maps: FeatureMap, per_picture: int, generator: torch.Generator) -> Tensor:
    """L2-normalised features of random positions, to initialise a NetVLAD.

    Args:
        maps: maps of B images.
        per_picture: n; the published NetVLADs take 100 of each of 500 images. Maps with fewer positions give all.
        generator: generator on the CPU; samples without replacement.

    Returns:
        (B * n, C).
    """
    positions = functional.normalize(maps.grid, dim=-3).flatten(-2).transpose(-2, -1)
    count = min(per_picture, positions.shape[1])
    order = torch.rand(positions.shape[:2], generator=generator).argsort(1)[:, :count].to(positions.device)
    return positions.gather(1, order[..., None].expand(-1, -1, positions.shape[-1])).flatten(0, 1)


class NetVLAD(nn.Module):
    """NetVLAD: soft assignment of normalised positions to clusters, and sums of residuals to the centres.

    V_k = sum over positions of a_k(x) (x - c_k), a = softmax(W x); each V_k is normalised, then the whole vector
    (Arandjelović et al., CVPR 2016). Call `initialize` before training.

    Args:
        channels: C of the maps.
        clusters: K.
    """

    def __init__(self, channels: int, clusters: int = 64) -> None:
        super().__init__()
        self.width = clusters * channels
        self.assign = nn.Linear(channels, clusters, bias=False)
        self.centres = nn.Parameter(torch.rand(clusters, channels))

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, 1, …) -> (B, K C), cluster by cluster."""
        return self.vlad(grid_of(maps, normalize_positions=True))

    def vlad(self, grid: Tensor, mask: Tensor | None = None) -> Tensor:
        """From normalised positions and their weights: (B, C, H, W), (B, 1, H, W) -> (B, K C)."""
        positions = grid.flatten(2).transpose(1, 2)  # (B, P, C)
        share = self.assign(positions).softmax(-1)
        if mask is not None:
            share = share * mask.flatten(1)[..., None]
        residuals = share.transpose(1, 2) @ positions - share.sum(1)[..., None] * self.centres
        return functional.normalize(functional.normalize(residuals, dim=-1).flatten(1), dim=-1)

    @torch.no_grad()
    def initialize(self, descriptors: Tensor, seed: int = 0) -> float:
        """Set centres by k-means, and assignments in which the second-best cluster gets a hundredth on average.

        W = α c / |c| with α = -ln 0.01 / mean gap between the best and the second-best cosine.

        Args:
            descriptors: (N, C) of `local_descriptors`, N at least K; 50,000 in the published NetVLADs.
            seed: seed of k-means.

        Returns:
            α.

        Raises:
            ConfigError: there are fewer descriptors than clusters, or only one cluster.
        """
        from sklearn.cluster import KMeans

        clusters = len(self.centres)
        if not 2 <= clusters <= len(descriptors):
            raise ConfigError(
                f"NetVLAD of {clusters} clusters cannot start from {len(descriptors)} descriptors: it needs at least "
                "two clusters, and as many descriptors"
            )
        points = descriptors.float().cpu()
        found = KMeans(clusters, n_init=1, max_iter=100, random_state=seed).fit(points.numpy())
        centres = torch.from_numpy(found.cluster_centers_).float()
        direction = functional.normalize(centres, dim=-1)
        best = (points @ direction.T).topk(2, dim=-1).values
        alpha = -math.log(0.01) / float((best[:, 0] - best[:, 1]).mean())
        self.centres.copy_(centres)
        self.assign.weight.copy_(alpha * direction)
        return alpha


class CRN(NetVLAD):
    """NetVLAD with position weights from a context filter (CRN, Kim et al., CVPR 2017).

    The map at half size goes through filters of size 3, 5 and 7; their positive responses, summed and upsampled, are
    the weights. It is initialised from a trained NetVLAD. (The published code fails on maps with an odd side.)
    """

    def __init__(self, channels: int, clusters: int = 64) -> None:
        super().__init__(channels, clusters)
        self.halve = nn.AvgPool2d(3, stride=2, ceil_mode=True)
        self.filters = nn.ModuleList(
            nn.Conv2d(channels, out, size, padding=size // 2) for size, out in ((3, 32), (5, 32), (7, 20))
        )
        for layer in self.filters:
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, 1, …) -> (B, K C), cluster by cluster."""
        grid = grid_of(maps, normalize_positions=True)
        return self.vlad(grid, self.mask(grid))

    def mask(self, grid: Tensor) -> Tensor:
        """Weight of each position, (B, C, H, W) -> (B, 1, H, W), at least 0."""
        small = self.halve(grid)
        context = torch.cat([layer(small) for layer in self.filters], 1).relu().sum(1, keepdim=True)
        return functional.interpolate(context, size=grid.shape[-2:], mode="bilinear", align_corners=False)
