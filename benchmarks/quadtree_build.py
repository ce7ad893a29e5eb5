"""Building a quadtree: ours against OSV-5M's rule as a plain recursion over pandas frames.

    python benchmarks/quadtree_build.py

Photo-like points, depth 10, 1000 points a cell. Both leaf tables must be identical. One thread; the median of
our builds over the median of the recursion in the same run, because a shared machine makes times alone
worthless.
Goal: 20 times as fast at 1 M and 5 M points, 8 times at 100 k, and at most 300 MB over the input at 5 M.
"""

import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quadtree import build_quadtree

sys.path.insert(0, str(Path(__file__).parent))
from references.osv5m_rule import build_leaves

T = TypeVar("T")

SIZES = {100_000: (9, 3), 1_000_000: (7, 2), 5_000_000: (5, 1)}  # rounds of ours, and of the slow recursion


def photo_like_latlon_deg(num: int) -> NDArray[np.float64]:
    """Clusters of very different size and spread, as photos are, (num, 2)."""
    rng = np.random.default_rng(0)
    centers = np.stack(
        [np.degrees(np.arcsin(rng.uniform(-0.8, 0.95, 2000))), rng.uniform(-180, 180, 2000)], 1
    )
    weights = rng.pareto(1.1, 2000) + 0.1
    cluster = rng.choice(2000, num, p=weights / weights.sum())
    points = centers[cluster] + rng.standard_normal((num, 2)) * rng.gamma(1, 0.5, 2000)[cluster, None]
    return np.stack([points[:, 0].clip(-90, 90), (points[:, 1] + 180) % 360 - 180], axis=1)


def timed(call: Callable[[], T], rounds: int) -> tuple[float, T]:
    """Median time of a call in seconds, and its last result."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return median(times), result


def extra_mb(call: Callable[[], object]) -> float:
    """Most memory that a call held at once, as NumPy's allocations tell."""
    tracemalloc.start()
    call()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak_bytes / 1e6


def main() -> None:
    points = photo_like_latlon_deg(max(SIZES))
    print("   points  recursion  root=data  ratio root=world  ratio  identical")
    for num, (our_rounds, slow_rounds) in SIZES.items():
        some = points[:num]
        frame = pd.DataFrame(some, columns=["latitude", "longitude"])
        data_s, tree = timed(partial(build_quadtree, some, root="data"), our_rounds)
        world_s, _ = timed(partial(build_quadtree, some), our_rounds)
        slow_s, leaves = timed(partial(build_leaves, frame), slow_rounds)
        identical = (
            tuple(leaves["path"]) == tree.paths
            and np.array_equal(leaves[["south", "west", "north", "east"]], tree.bounds_deg)
            and np.allclose(leaves[["latitude", "longitude"]], tree.center_latlon_deg, rtol=0, atol=1e-11)
        )
        print(
            f"{num:>9,} {slow_s:>8.3f} s {data_s:>8.3f} s {slow_s / data_s:>5.1f}x {world_s:>8.3f} s "
            f"{slow_s / world_s:>5.1f}x  {identical}"
        )
    for max_depth in (10, 20):
        memory_mb = extra_mb(partial(build_quadtree, points, max_depth=max_depth))
        print(
            f"memory over the input, {max(SIZES):,} points, depth {max_depth}: {memory_mb:.0f} MB at the peak"
        )


if __name__ == "__main__":
    main()
