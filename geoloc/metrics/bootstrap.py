"""Bootstrap confidence intervals of scores and of differences between two models.

Percentile intervals (Efron & Tibshirani 1993, chapters 6 and 13) with a fixed seed. Resampling n images draws the
counts of the values from a multinomial, so the intervals of one set need only its histogram and do not depend on
the sharding.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.metrics.protocols import Protocol
from geoloc.metrics.tally import Tally, image_scores

LEVEL: Final = 0.95
NUM_RESAMPLES: Final = 1000
SEED: Final = 0

_COARSER_BY: Final = 5  # bins of 3 %; the spread of their middles is exact to 0.1 %
_PORTION: Final = 100  # resamples per block


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: lower end.
        high: upper end, perhaps infinite for a median.
    """

    low: float
    high: float

    def to_list(self) -> list[float | None]:
        """JSON values; None for an infinite end."""
        return [float(end) if np.isfinite(end) else None for end in (self.low, self.high)]


def intervals(tally: Tally, *, level: float = LEVEL, num_resamples: int = NUM_RESAMPLES) -> dict[str, Any]:
    """Intervals of `geoscore`, `mean_km`, `median_km` and each `accuracy_within_km`, as [low, high] lists.

    Bins count as their middles, and the interval of a mean is shifted by the difference between the histogram's
    mean and the exact one. The bootstrap of a share is a binomial; that of a median lies between order statistics
    whose ranks are binomial.
    """
    rng = np.random.default_rng(SEED)
    centers, counts = tally.distances.histogram(coarser_by=_COARSER_BY)
    counts = np.append(counts, tally.num_infinite)
    total = int(counts.sum())
    if total == 0:
        return {}
    scores = np.append(image_scores(centers, tally.protocol), 0.0)
    lengths = np.append(centers, 0.0)
    geoscores, means = np.empty(num_resamples), np.empty(num_resamples)
    for start in range(0, num_resamples, _PORTION):
        part = slice(start, min(start + _PORTION, num_resamples))
        drawn = rng.multinomial(total, counts / total, size=part.stop - part.start)
        geoscores[part] = drawn @ scores / total
        num_known = drawn[:, :-1].sum(axis=1)
        means[part] = np.where(num_known, drawn @ lengths / np.maximum(num_known, 1), np.nan)
    geoscores += tally.geoscore - counts @ scores / total
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    ranks = np.quantile(rng.binomial(total, 0.5, num_resamples), tails) / total
    found: dict[str, Any] = {
        "level": level,
        "geoscore": _percentile(geoscores, level).to_list(),
        "median_km": Interval(*tally.distances.at(ranks, num_infinite=tally.num_infinite)).to_list(),
    }
    if tally.mean_km is not None:
        means += tally.mean_km - counts @ lengths / counts[:-1].sum()
        found["mean_km"] = _percentile(means[np.isfinite(means)], level).to_list()
    found["accuracy_within_km"] = {
        f"{radius:g}": _percentile(rng.binomial(total, num / total, num_resamples) / total, level).to_list()
        for radius, num in zip(tally.protocol.thresholds_km, tally.num_within, strict=True)
    }
    return found


def paired_differences(
    a_distance_km: ArrayLike,
    b_distance_km: ArrayLike,
    protocol: Protocol,
    *,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Any]:
    """Differences B - A of each score on the same images, with paired bootstrap intervals.

    Args:
        a_distance_km: (n,) distances of A, NaN without a prediction.
        b_distance_km: (n,) distances of B for the same images in the same order.
        protocol: rules of the scores; a missing prediction is a miss under every protocol.
        level: of the intervals.
        num_resamples: number of resamples.

    Returns:
        score -> {"a", "b", "difference", "interval", "share_better"}; for distances "share_better" counts negative
        differences, for all other scores positive ones; a tie counts half.

    Raises:
        ValueError: the shapes differ, or there is no image.
    """
    a, b = np.asarray(a_distance_km), np.asarray(b_distance_km)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"a comparison needs the same images for both; found shapes {a.shape} and {b.shape}")
    columns = {"geoscore": [np.nan_to_num(image_scores(d, protocol), nan=0.0) for d in (a, b)]}
    compare = np.less if protocol.strict else np.less_equal
    for radius in protocol.thresholds_km:
        columns[f"accuracy_within_km.{radius:g}"] = [
            compare(d, d.dtype.type(radius)).astype(float) for d in (a, b)
        ]
    both = np.isfinite(a) & np.isfinite(b)
    found = {}
    if both.any():
        logs = [np.log10(np.maximum(d[both].astype(np.float64), 1e-6)) for d in (a, b)]
        found["log10_km"] = _paired(logs[0], logs[1], level, num_resamples, smaller_is_better=True)
    for name, (of_a, of_b) in columns.items():
        found[name] = _paired(of_a, of_b, level, num_resamples)
    return found


def _paired(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    level: float,
    num_resamples: int,
    *,
    smaller_is_better: bool = False,
) -> dict[str, Any]:
    differences = b - a
    resampled = _resampled_means(differences, num_resamples)
    better = -resampled if smaller_is_better else resampled
    return {
        "a": float(a.mean()),
        "b": float(b.mean()),
        "difference": float(differences.mean()),
        "interval": _percentile(resampled, level).to_list(),
        "share_better": float((better > 0).mean() + 0.5 * (better == 0).mean()),
    }


def _resampled_means(values: NDArray[np.float64], num_resamples: int) -> NDArray[np.float64]:
    """Means of resamples; equal values are drawn together."""
    rng = np.random.default_rng(SEED)
    distinct, counts = np.unique(values, return_counts=True)
    total = len(values)
    if len(distinct) <= 4096:
        drawn = rng.multinomial(total, counts / total, size=num_resamples)
        return np.asarray(drawn @ distinct / total)
    means = np.empty(num_resamples)
    for number in range(num_resamples):
        means[number] = values[rng.integers(0, total, total)].mean()
    return means


def _percentile(values: NDArray[Any], level: float) -> Interval:
    # "nearest", because a value can be infinite.
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return Interval(float(low), float(high))
