"""Names of places: ours against reverse_geocoder (mode 1), and both against brute force.

    python benchmarks/places.py

As many queries as OSV-5M has test images, photo-like: around cities, in random order. One thread, medians of
one run in which the two take turns. Goal: at most 0.9 of reverse_geocoder's time, and no wrong nearest city.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import reverse_geocoder
from numpy.typing import NDArray

from geoloc.geo.places import load_places
from quadtree.sphere import latlon_to_unit

NUM_QUERIES = 210_122
NUM_CHECKED = 2_000  # brute force is 144,563 distances for each
NUM_ROUNDS = 7


def photo_like_latlon_deg(num: int) -> NDArray[np.float64]:
    """Points some kilometres around cities, as photos are, (num, 2)."""
    rng = np.random.default_rng(0)
    cities = load_places().latlon_deg
    points = cities[rng.integers(0, len(cities), num)] + rng.normal(0, 0.15, (num, 2))
    return np.stack([points[:, 0].clip(-90, 90), (points[:, 1] + 180) % 360 - 180], axis=1)


def uniform_latlon_deg(num: int) -> NDArray[np.float64]:
    """Points uniform on the sphere, (num, 2)."""
    rng = np.random.default_rng(1)
    return np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, num))), rng.uniform(-180, 180, num)], axis=1)


def seconds(call: Callable[[], object]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def share_wrong(points: NDArray[np.float64], place_id: NDArray[np.int64]) -> float:
    """Share of answers that are farther than the nearest city by more than a millimetre."""
    cities = latlon_to_unit(load_places().latlon_deg)
    wrong = 0
    for point, row in zip(latlon_to_unit(points), place_id, strict=True):
        distance = np.linalg.norm(cities - point, axis=1)
        wrong += bool(distance[row] > distance.min() + 1e-6 / 6371)
    return wrong / len(points)


def main() -> None:
    """Print the two comparisons."""
    load_s = seconds(load_places)
    places = load_places()
    peer = reverse_geocoder.RGeocoder(mode=1, verbose=False)
    queries = photo_like_latlon_deg(NUM_QUERIES)
    _ = places.nearest(queries[:10]).country_codes  # builds the tree and the columns
    ours_s, peer_s = [], []
    for _ in range(NUM_ROUNDS):
        # Each as an evaluation uses it: our countries are a column, the peer's are entries of its rows.
        ours_s.append(seconds(lambda: places.nearest(queries).country_codes))
        peer_s.append(seconds(lambda: [row["cc"] for row in peer.query(queries)]))
    print(f"load the table     geoloc {load_s:.3f} s")
    print(f"{NUM_QUERIES:,} nearest    geoloc {median(ours_s):.3f} s, peer {median(peer_s):.3f} s")
    print(f"ratio              {median(ours_s) / median(peer_s):.2f} (goal <= 0.90)")
    for name, sample in (("photo-like", photo_like_latlon_deg), ("uniform", uniform_latlon_deg)):
        points = sample(NUM_CHECKED)
        peer_id = peer.tree.query(points)[1]
        ours = share_wrong(points, places.nearest(points).place_id)
        theirs = share_wrong(points, peer_id)
        print(f"wrong, {name:<11} geoloc {ours:.2%}, peer {theirs:.2%}")


if __name__ == "__main__":
    main()
