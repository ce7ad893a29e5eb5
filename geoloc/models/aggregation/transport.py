"""Optimal-transport aggregation (SALAD): soft assignment of local features to clusters and a dustbin."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from geoloc.models.aggregation.maps import FeatureMap
from geoloc.models.aggregation.pooling import grid_of

STEPS = 3  # iterations of Sinkhorn's algorithm


def transport_plan(scores: Tensor, dustbin: Tensor) -> Tensor:
    """Share of each position in each cluster, (B, K, P), (1,) or () -> (B, K, P).

    Entropic optimal transport between P positions of mass 1 and K clusters of mass 1 with a dustbin of mass P - K, by a
    few of Sinkhorn's normalisations in logarithms (Cuturi, 2013; Izquierdo & Civera, CVPR 2024, section 3.2). P must be
    larger than K.
    """
    clusters, positions = scores.shape[1:]
    extended = torch.cat([scores, dustbin.reshape(1, 1, 1).expand(len(scores), 1, positions)], 1)
    log_rows = scores.new_zeros(clusters + 1)
    log_rows[-1] = math.log(positions - clusters)
    by_row, by_column = 0.0 * extended[:, :, :1], 0.0 * extended[:, :1]
    for _ in range(STEPS):
        by_row = log_rows[:, None] - (extended + by_column).logsumexp(2, keepdim=True)
        by_column = -(extended + by_row).logsumexp(1, keepdim=True)
    return (extended + by_row + by_column)[:, :-1].exp()


class OptimalTransport(nn.Module):
    """SALAD: normalised sums of the positions' features per cluster, after a projection of the class token.

    Args:
        channels: C of the maps.
        clusters: K.
        cluster_dim: d of a cluster's sum.
        token_dim: t of the class token's projection.
        hidden_dim: hidden width of the three perceptrons.
    """

    def __init__(
        self, channels: int, clusters: int, cluster_dim: int, token_dim: int, hidden_dim: int
    ) -> None:
        super().__init__()
        self.width = token_dim + clusters * cluster_dim
        self.token = nn.Sequential(
            nn.Linear(channels, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, token_dim)
        )
        self.feature = nn.Sequential(
            nn.Conv2d(channels, hidden_dim, 1), nn.ReLU(), nn.Conv2d(hidden_dim, cluster_dim, 1)
        )
        self.score = nn.Sequential(
            nn.Conv2d(channels, hidden_dim, 1), nn.ReLU(), nn.Conv2d(hidden_dim, clusters, 1)
        )
        self.dustbin = nn.Parameter(torch.ones(()))

    def forward(self, maps: FeatureMap) -> Tensor:
        """(B, 1, …) -> (B, t + d K) of length 1: the token's projection, then dimension by dimension."""
        grid = grid_of(maps)
        plan = transport_plan(self.score(grid).flatten(2), self.dustbin)
        sums = self.feature(grid).flatten(2) @ plan.transpose(1, 2)  # (B, d, K)
        token = functional.normalize(self.token(maps.tokens[:, 0, 0]), dim=-1)
        return functional.normalize(
            torch.cat([token, functional.normalize(sums, dim=1).flatten(1)], -1), dim=-1
        )
