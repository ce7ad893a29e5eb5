"""Greedy clusters by hand, and against the greedy rule in plain Python."""

from itertools import islice

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from geoloc.data.hard_clusters import hard_clusters, scan_sizes
from quadtree.sphere import haversine_km

Array = NDArray[np.float64]


def by_the_rule(street: Array, aerial: Array, latlon: Array, size: int, min_distance_m: float) -> list[int]:
    unused, order = list(range(len(street))), []
    while unused:
        cluster = [unused.pop(0)]
        while len(cluster) < size and unused:
            similarity = {j: sum(float(street[m] @ aerial[j]) for m in cluster) for j in unused}
            far = [
                j
                for j in unused
                if all(haversine_km(latlon[j], latlon[m]) * 1000 > min_distance_m for m in cluster)
            ]
            best = max(far or unused, key=lambda j: (similarity[j], -j))
            unused.remove(best)
            cluster.append(best)
        order += cluster
    return order


@pytest.mark.parametrize(
    ("count", "size", "spread_deg"), [(90, 7, 1e-3), (64, 8, 1e-4), (50, 30, 1.0), (5, 9, 1.0)]
)
def test_clusters_follow_the_rule(count: int, size: int, spread_deg: float) -> None:
    rng = np.random.default_rng(count)
    street, aerial = rng.normal(size=(2, count, 6))
    latlon = np.array([42.0, -71.0]) + rng.uniform(0, spread_deg, (count, 2))
    found = hard_clusters(torch.from_numpy(street), torch.from_numpy(aerial), latlon, size)
    assert found.tolist() == by_the_rule(street, aerial, latlon, size, 30.0)
    assert sorted(found.tolist()) == list(range(count))


def test_clusters_by_hand() -> None:
    """Six pairs in two towns that look alike within themselves; 4 looks most like 0 but stands beside it."""
    looks = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.9], [1.0, 0.1], [0.8, 0.3]])
    north_m = np.array([0, 1000, 2000, 3000, 29, 5000])
    latlon = np.stack([np.degrees(north_m / 6_371_008.8), np.zeros(6)], -1)
    # From 0: 4 (1.0) is too near, so 2 (0.9). Street sum (1.9, 0.1): 5 (1.55) beats 3 (0.28) and 1 (0.1).
    # Then 1 begins: 3 (0.9), then 4.
    assert hard_clusters(looks, looks, latlon, 3).tolist() == [0, 2, 5, 1, 3, 4]
    # With 28 m, 4 is far enough. Street sum (2.0, 0.1): 2 (1.81) beats 5 (1.63).
    assert hard_clusters(looks, looks, latlon, 3, min_distance_m=28).tolist() == [0, 4, 2, 1, 3, 5]


def test_where_all_are_too_near_the_most_similar_joins() -> None:
    looks = torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.7, 0.0]])
    assert hard_clusters(looks, looks, np.zeros((3, 2)), 2).tolist() == [0, 2, 1]


def test_street_vectors_ask_and_aerial_vectors_answer() -> None:
    street = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    aerial = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    latlon = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    assert hard_clusters(street, aerial, latlon, 2).tolist() == [0, 1, 2]


def test_scans_double_after_enough_samples() -> None:
    sizes = list(islice(scan_sizes(), 300))
    # 167 batches of 30 are the first 5010 samples, 84 scans of 2 batches the next 5040.
    assert sizes[:167] == [1] * 167
    assert sizes[167:251] == [2] * 84
    assert sizes[251] == 4
    assert list(islice(scan_sizes(10, 3, 2.0, 1, 10), 5)) == [3, 6, 10, 10, 10]
