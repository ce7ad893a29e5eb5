"""Cell accuracy per depth of the quadtree, and Statewide's recall over cells."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.metrics.distances import WGS84
from quadtree.morton import MAX_DEPTH, encode


def common_depth(
    a_latlon_deg: ArrayLike, b_latlon_deg: ArrayLike, max_depth: int = MAX_DEPTH
) -> NDArray[np.int64]:
    """Depth of the smallest box of the world quadtree that holds both points, (n, 2) and (n, 2) -> (n,).

    Raises:
        InvalidCoordinateError: a coordinate is invalid.
    """
    differing = encode(a_latlon_deg, max_depth) ^ encode(b_latlon_deg, max_depth)
    # Highest differing base-4 digit; frexp is exact, because codes have at most 48 bits.
    num_bits = np.frexp(differing.astype(np.float64))[1].astype(np.int64)
    return np.asarray(max_depth - (num_bits + 1) // 2)


class DepthTally:
    """Cell accuracy per depth; mergeable.

    Attributes:
        counts: (max_depth + 1,) numbers of images by the depth of the deepest common cell.
        num_missing: number of images without a prediction.
    """

    def __init__(self, max_depth: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros(max_depth + 1, np.int64)
        self.num_missing = 0

    def add(self, predicted_latlon_deg: ArrayLike, true_latlon_deg: ArrayLike) -> None:
        """Add n images; a NaN is a missing prediction."""
        predicted, true = (
            np.asarray(predicted_latlon_deg, np.float64),
            np.asarray(true_latlon_deg, np.float64),
        )
        known = np.isfinite(predicted).all(axis=1)
        depth = common_depth(predicted[known], true[known], len(self.counts) - 1)
        self.counts += np.bincount(depth, minlength=len(self.counts))
        self.num_missing += int((~known).sum())

    def merge(self, other: "DepthTally") -> None:
        """Add another tally of the same depth."""
        self.counts = self.counts + other.counts
        self.num_missing += other.num_missing

    def state(self) -> dict[str, Any]:
        """JSON values for `from_state`."""
        return {"counts": self.counts.tolist(), "num_missing": self.num_missing}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "DepthTally":
        """The inverse of `state`."""
        tally = cls(len(state["counts"]) - 1)
        tally.counts, tally.num_missing = np.array(state["counts"], np.int64), state["num_missing"]
        return tally

    def summary(self, *, count_missing: bool = True) -> dict[str, float]:
        """Depth (from 1) -> share of images whose prediction lies in the truth's cell at that depth."""
        total = int(self.counts.sum()) + self.num_missing * count_missing
        if total == 0:
            return {}
        at_least = self.counts[::-1].cumsum()[::-1]
        return {str(depth): int(at_least[depth]) / total for depth in range(1, len(self.counts))}


def statewide_recall(
    true_latlon_deg: ArrayLike,
    candidate_latlon_deg: ArrayLike,
    contains_truth: ArrayLike,
    *,
    cell_size_m: float,
    at: Sequence[int] = (1, 5, 10, 50, 100),
    within_m: Sequence[float] = (0.0, 25.0, 50.0, 100.0),
) -> dict[str, dict[str, float]]:
    """Statewide's Recall@k<r over cells (Fervers et al. 2024, evaluation code).

    With r = 0 the one cell that contains the photo must be among the k best. With r > 0 the centre of at least one
    of them must lie less than r from the photo; that is defined only for r > cell / √2, because below it a photo in
    the corner of the right cell would count as wrong.

    Args:
        true_latlon_deg: (n, 2) where the photos were taken.
        candidate_latlon_deg: (n, m, 2) centres of each photo's cells, best first; NaN where there are fewer.
        contains_truth: (n, m) whether that cell is the one that contains the photo.
        cell_size_m: side of a cell.
        at: numbers k.
        within_m: radii r in metres.

    Returns:
        "0", "25", … -> {"1": share, …}.

    Raises:
        ValueError: a radius between 0 and cell / √2.
    """
    true, candidates = np.asarray(true_latlon_deg, np.float64), np.asarray(candidate_latlon_deg, np.float64)
    num, width = candidates.shape[:2]
    for radius in within_m:
        if 0 < radius <= cell_size_m / np.sqrt(2):
            raise ValueError(
                f"recall within {radius:g} m is not defined for cells of {cell_size_m:g} m: ask for 0 (the containing "
                f"cell) or more than {cell_size_m / np.sqrt(2):.1f} m"
            )
    repeated = np.repeat(true, width, axis=0)
    distance_m = 1000 * WGS84.km(candidates.reshape(-1, 2), repeated).reshape(num, width)
    found: dict[str, dict[str, float]] = {}
    for radius in within_m:
        is_hit = np.asarray(contains_truth, bool) if radius == 0 else distance_m < radius
        first = np.where(is_hit.any(axis=1), is_hit.argmax(axis=1), width)
        found[f"{radius:g}"] = {str(k): float((first < k).mean()) for k in at}
    return found
