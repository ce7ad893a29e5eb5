"""Greedy clusters of hard examples (Statewide, Fervers et al., ECCV 2024).

for num_batches in scan_sizes(batch_size=30):
    street, aerial = …                                   # embeddings of the next num_batches * 30 pairs
    order = InOrder(pairs[hard_clusters(street, aerial, latlon_deg)])
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from quadtree.sphere import EARTH_MEAN_RADIUS_KM, latlon_to_unit, validate_latlon_deg


def hard_clusters(
    street: Tensor,
    aerial: Tensor,
    latlon_deg: ArrayLike,
    cluster_size: int = 30,
    min_distance_m: float = 30.0,
) -> NDArray[np.int64]:
    """Order of pairs in which each run of `cluster_size` is a cluster of hard examples.

    Greedy: a cluster starts with the first unused pair. Then the unused pair is added whose aerial vector has the
    largest sum of similarities to the cluster's street vectors, and whose aerial centre is farther than
    `min_distance_m` from every member's. If there is none, the distance is ignored, and the loss masks the pair. Ties
    go to the first pair.

    A step is one product of the unused aerial vectors with the sum of the cluster's street vectors: n pairs take about
    2/3 n² D multiplications on the vectors' device, and one copy of the vectors.

    Args:
        street: (n, D) vectors of the photos.
        aerial: (n, D) vectors of the aerial views, on the same device.
        latlon_deg: (n, 2) centres of the aerial views.
        cluster_size: pairs in a cluster; the last cluster may be smaller.
        min_distance_m: smallest distance between aerial centres in a cluster.

    Returns:
        (n,) a permutation of 0 … n - 1.

    Raises:
        InvalidCoordinateError: a coordinate is invalid.
    """
    unit = latlon_to_unit(validate_latlon_deg(latlon_deg))
    chord = 2 * math.sin(min_distance_m / (2000 * EARTH_MEAN_RADIUS_KM))
    ground = cKDTree(unit)
    pool = _Pool(aerial)
    order: list[int] = []
    while len(order) < len(unit):
        target = torch.zeros_like(street[0])
        too_near: set[int] = set()
        for member in range(min(cluster_size, len(unit) - len(order))):
            chosen = pool.most_similar(target, too_near) if member else pool.first()
            pool.take(chosen)
            order.append(chosen)
            target = target + street[chosen]
            too_near.update(ground.query_ball_point(unit[chosen], chord))
    return np.array(order, dtype=np.int64)


class _Pool:
    """Aerial vectors of unused pairs; used ones are masked, and removed when they are half of the pool."""

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = vectors
        self._indices = np.arange(len(vectors))  # pair of each row, ascending
        self._row_of_pair = np.arange(len(vectors))
        self._penalty = vectors.new_zeros(len(vectors))
        self._is_used = np.zeros(len(vectors), np.bool_)
        self._first_row = 0
        self._num_used = 0

    def first(self) -> int:
        while self._is_used[self._first_row]:
            self._first_row += 1
        return int(self._indices[self._first_row])

    def most_similar(self, target: Tensor, too_near: set[int]) -> int:
        similarity = self._vectors @ target + self._penalty
        rows = self._row_of_pair[list(too_near)]
        allowed = similarity.clone() if len(rows) else similarity
        allowed[torch.from_numpy(rows[rows >= 0]).to(allowed.device)] = -torch.inf
        best = int(allowed.argmax())
        if allowed[best] == -torch.inf:
            best = int(similarity.argmax())
        return int(self._indices[best])

    def take(self, pair: int) -> None:
        row = self._row_of_pair[pair]
        self._is_used[row] = True
        self._penalty[row] = -torch.inf
        self._num_used += 1
        if 2 * self._num_used > len(self._indices):
            self._compact()

    def _compact(self) -> None:
        kept = np.flatnonzero(~self._is_used)
        self._row_of_pair[self._indices] = -1
        self._indices = self._indices[kept]
        self._row_of_pair[self._indices] = np.arange(len(kept))
        rows = torch.from_numpy(kept).to(self._vectors.device)
        self._vectors, self._penalty = self._vectors[rows], self._penalty[rows]
        self._is_used = np.zeros(len(kept), np.bool_)
        self._first_row = self._num_used = 0


def scan_sizes(
    batch_size: int = 30,
    first: int = 1,
    factor: float = 2.0,
    raise_after_samples: int = 5000,
    maximum: int = 16384,
) -> Iterator[int]:
    """Number of batches to embed and cluster together, scan by scan, without end (defaults: Statewide's).

    The size grows by `factor` whenever at least `raise_after_samples` samples were trained with it, up to `maximum`
    batches; early scans are small because early vectors change quickly.
    """
    size, trained = first, 0
    while True:
        yield size
        trained += size * batch_size
        if trained >= raise_after_samples:
            size, trained = min(math.ceil(size * factor), maximum), 0
