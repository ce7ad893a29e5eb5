"""Evaluation: 210,122 predictions with every metric, and how far distances are from the memory's speed.

    OMP_NUM_THREADS=1 python benchmarks/evaluate.py
    OMP_NUM_THREADS=1 python benchmarks/evaluate.py --pairs 10000000      # a quick look

The first part is `geoloc evaluate` without its report: two CSVs of OSV-5M's size are read, matched and scored, names
of places, intervals, breakdowns, regions and curves included. "After start-up" is after imports and the table of
cities with its search tree. Seconds are of the processor, which on a busy machine say more than a clock's.

The second streams float32 pairs, 1.6 GB of them, in portions, as an evaluation does. Its floor is what the same pairs
cost when they are only read and one number is written for each: 16 bytes in, 4 bytes out. The two take turns.

Goals: <= 2 s and <= 500 MB for the first, <= 4 times the floor for the second.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from geoloc.evaluate.evaluation import Evaluation
from geoloc.evaluate.matching import match
from geoloc.files.tables import read_points
from geoloc.geo.continents import density_class
from geoloc.geo.places import load_places
from geoloc.metrics.distances import haversine_km
from geoloc.metrics.protocols import get_protocol
from geoloc.metrics.tally import Tally
from quadtree.sphere import destination_latlon_deg

sys.path.insert(0, str(Path(__file__).parent))
from places import NUM_QUERIES, photo_like_latlon_deg

NUM_ROUNDS = 5
PORTION = 1 << 20  # pairs


def cpu_s(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def write_tables(folder: Path) -> tuple[Path, Path]:
    """Predictions with errors like a good model's, in another order than the truth; both as CSV."""
    rng = np.random.default_rng(5)
    truth = photo_like_latlon_deg(NUM_QUERIES)
    error_km = np.exp(rng.normal(4.5, 2.2, NUM_QUERIES)).clip(0, 19_000)
    predicted = destination_latlon_deg(truth, rng.uniform(0, 360, NUM_QUERIES), error_km)
    radius_km = error_km * np.exp(rng.normal(1, 1, NUM_QUERIES))
    paths = folder / "truth.csv", folder / "predictions.csv"
    with open(paths[0], "w", encoding="ascii") as file:
        file.write("id,latitude,longitude\n")
        file.writelines(f"{i:015},{lat:.6f},{lon:.6f}\n" for i, (lat, lon) in enumerate(truth.tolist()))
    with open(paths[1], "w", encoding="ascii") as file:
        file.write("id,latitude,longitude,radius_50_km,radius_90_km\n")
        file.writelines(
            f"{i:015},{predicted[i, 0]:.6f},{predicted[i, 1]:.6f},{radius_km[i] / 3:.3f},{radius_km[i]:.3f}\n"
            for i in rng.permutation(NUM_QUERIES)
        )
    return paths


def whole_evaluation() -> None:
    """Print the time of each protocol and the memory."""
    with tempfile.TemporaryDirectory() as name:
        truth, predictions = write_tables(Path(name))
        for warm in (load_places().nearest, load_places().nearest_in_degrees, density_class):
            _ = warm([[0.0, 0.0]])
        _ = [load_places().names, load_places().admin1, load_places().admin2, load_places().country_codes]

        def evaluate(protocol: str) -> None:
            evaluation = Evaluation(get_protocol(protocol))
            evaluation.add(match(read_points(truth), read_points(predictions)))
            evaluation.metrics()

        for protocol in ("geodesic", "osv5m", "pigeon"):
            seconds = median(cpu_s(lambda: evaluate(protocol)) for _ in range(NUM_ROUNDS))  # noqa: B023
            print(f"{NUM_QUERIES:,} predictions, {protocol:<9} {seconds:.2f} s (goal <= 2)")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"most memory {peak_mb:>22,.0f} MB (goal <= 500)")


def streamed_pairs(num_pairs: int) -> None:
    """Print the time of distances and of a whole tally against the floor."""
    rng = np.random.default_rng(0)
    some = rng.uniform([-80, -180], [80, 180], (2, PORTION, 2)).astype(np.float32)
    num_portions = max(1, num_pairs // PORTION)
    # Every pair has a place of its own in memory: no cache holds them.
    a, b = (np.tile(points, (num_portions, 1)) for points in some)
    out = np.zeros(len(a), np.float32)
    parts = [slice(start, start + PORTION) for start in range(0, len(a), PORTION)]

    def floor() -> None:
        for part in parts:
            np.add(a[part, 0], b[part, 0], out=out[part])  # touches every line of the three, computes nothing

    def distances() -> None:
        for part in parts:
            out[part] = haversine_km(a[part], b[part], radius_km=6371.0, dtype=np.dtype(np.float32))

    def tallied() -> None:
        tally = Tally(get_protocol("osv5m"))
        for part in parts:
            tally.add(tally.protocol.distance.km(a[part], b[part]))
        tally.summary()

    times: dict[str, list[float]] = {"floor": [], "distances": [], "distances and scores": []}
    for _ in range(3):
        for name, call in zip(times, (floor, distances, tallied), strict=True):
            times[name].append(cpu_s(call))
    for name, seconds in times.items():
        ratio = median(s / f for s, f in zip(seconds, times["floor"], strict=True))
        goal = " (goal <= 4)" if name == "distances" else ""
        print(f"{len(a):,} pairs, {name:<21} {median(seconds):6.2f} s, {ratio:.1f} x floor{goal}")
    print(f"floor: {len(a) * 20 / median(times['floor']) / 1e9:.1f} GB/s of pairs")


def main() -> None:
    """Print both parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=100_000_000)
    options = parser.parse_args()
    whole_evaluation()
    streamed_pairs(options.pairs)


if __name__ == "__main__":
    main()
