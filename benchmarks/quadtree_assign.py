"""Finding the cell of a point: millions of points a second on one core.

    python benchmarks/quadtree_assign.py

Photo-like queries in random order against trees of several depths, both roots, and queries anywhere on Earth,
of which many fall into empty leaves and pay for the search for the nearest cell. The yardstick is NumPy's own
search in the sorted starts of the leaves, given the codes for free. One thread, medians. Goal: 20 M points/s
at depth 10, 5 M/s at depth 20.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from quadtree import build_quadtree
from quadtree.morton import encode

sys.path.insert(0, str(Path(__file__).parent))
from quadtree_build import photo_like_latlon_deg

NUM_TRAINING = 2_000_000
NUM_QUERIES = 2_000_000
NUM_ANYWHERE = 100_000


def million_per_second(call: Callable[[], object], num: int, rounds: int = 5) -> float:
    """Median rate of a call that handles `num` points."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return num / median(times) / 1e6


def main() -> None:
    rng = np.random.default_rng(1)
    training = photo_like_latlon_deg(NUM_TRAINING)
    queries = training[rng.permutation(NUM_TRAINING)[:NUM_QUERIES]]
    sine = rng.uniform(-1, 1, NUM_ANYWHERE)
    anywhere = np.stack([np.degrees(np.arcsin(sine)), rng.uniform(-180, 180, NUM_ANYWHERE)], axis=1)
    print("million points/s   depth  split   root     cells  assign  searchsorted  anywhere (empty)")
    for max_depth, max_points_per_cell in ((10, 1000), (20, 1000), (20, 100)):
        for root in ("world", "data"):
            tree = build_quadtree(training, max_points_per_cell, max_depth, root)
            tree.assign(queries[:1])  # makes the tables
            codes, starts = encode(queries, root_deg=tree.root_deg), tree.morton_ranges[:, 0].copy()
            is_empty = tree.assign(anywhere, return_is_empty=True)[1]
            assign = million_per_second(partial(tree.assign, queries), NUM_QUERIES)
            search = million_per_second(partial(np.searchsorted, starts, codes), NUM_QUERIES)
            far = million_per_second(partial(tree.assign, anywhere), NUM_ANYWHERE, rounds=1)
            print(
                f"{'':16} {max_depth:>7} {max_points_per_cell:>6} {root:>6} {tree.num_cells:>9,}"
                f" {assign:>7.1f} {search:>13.1f} {far:>9.2f} ({is_empty.mean():.0%})"
            )


if __name__ == "__main__":
    main()
