"""Mergeable scores of point predictions; the numbers do not depend on order or sharding.

    tally = Tally(protocol)
    tally.add(distance_km)          # NaN without a usable prediction
    tally.merge(another)
    tally.summary()                 # the keys of metrics.json

Sums are exact integers in units of 2^-32 (of a point, of a km). Each value is rounded to that unit once, which
changes a mean by less than 10^-9.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.metrics.protocols import Protocol
from geoloc.metrics.quantiles import Quantiles
from geoloc.metrics.scores import geoscore

QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)

_UNIT: Final = 2.0**-32
_BLOCK: Final = 1 << 15  # 2^15 values of at most 65,536 in that unit fit into 64 bits


class Tally:
    """Counts and exact sums of a set of images under one protocol.

    Attributes:
        protocol: rules of the scores.
        num_images: number of images.
        num_missing: number of images without a prediction.
        distances: quantiles of the known distances.
        num_within: (t,) numbers of images within each threshold of the protocol.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.num_images = 0
        self.num_missing = 0
        self.distances = Quantiles()
        self.num_within: NDArray[np.int64] = np.zeros(len(protocol.thresholds_km), np.int64)
        self._score_sum = 0  # of exact integers, in units of _UNIT
        self._km_sum = 0

    def add(self, distance_km: ArrayLike) -> None:
        """Add images by their distances in km, (n,) in the precision of the protocol.

        Raises:
            ValueError: a distance is negative or infinite.
        """
        distances = np.asarray(distance_km).ravel()
        known = distances[~np.isnan(distances)]
        if len(known) and not (known.min() >= 0 and np.isfinite(known.max())):
            raise ValueError(
                f"distances from {known.min()} to {known.max()} km: expected finite and not negative"
            )
        self.num_images += len(distances)
        self.num_missing += len(distances) - len(known)
        self.num_within += self._count_within(known)
        self._score_sum += exact_sum(image_scores(known, self.protocol))
        self._km_sum += exact_sum(known)
        self.distances.add(known)

    def _count_within(self, known: NDArray[Any]) -> NDArray[np.int64]:
        # Compared in the precision of the distance, as peers do.
        compare = np.less if self.protocol.strict else np.less_equal
        return np.array(
            [np.count_nonzero(compare(known, known.dtype.type(r))) for r in self.protocol.thresholds_km],
            np.int64,
        )

    def merge(self, other: "Tally") -> None:
        """Add another tally of the same protocol.

        Raises:
            ValueError: the protocols differ.
        """
        if other.protocol != self.protocol:
            raise ValueError(
                f"a tally under {other.protocol.name!r} cannot be added to one under {self.protocol.name!r}"
            )
        self.num_images += other.num_images
        self.num_missing += other.num_missing
        self.num_within = self.num_within + other.num_within
        self._score_sum += other._score_sum
        self._km_sum += other._km_sum
        self.distances.merge(other.distances)

    @property
    def num_known(self) -> int:
        """Number of images with a prediction."""
        return self.num_images - self.num_missing

    @property
    def num_counted(self) -> int:
        """Denominator of shares and GeoScore: all images, or those with a prediction."""
        return self.num_images if self.protocol.missing == "miss" else self.num_known

    @property
    def num_infinite(self) -> int:
        """Number of images that count as infinitely far."""
        return self.num_counted - self.num_known

    @property
    def geoscore(self) -> float:
        """Mean GeoScore, in [0, 5000]."""
        return self._score_sum * _UNIT / self.num_counted

    @property
    def mean_km(self) -> float | None:
        """Mean distance of the images with a prediction; None if there is none."""
        return self._km_sum * _UNIT / self.num_known if self.num_known else None

    def summary(self) -> dict[str, Any]:
        """The keys of `metrics.json`; shares are fractions, an infinite quantile is None.

        `mean_km` is over the images with a prediction. In the median and the quantiles a missing prediction counts
        as infinitely far (under "drop": not at all).

        Raises:
            ValueError: there is no image to score.
        """
        if not self.num_counted:
            raise ValueError(
                f"no image to score: {self.num_images} images, {self.num_missing} without a prediction"
            )
        quantiles_km = self.distances.at(QUANTILES, num_infinite=self.num_infinite)
        by_share = dict(zip(QUANTILES, map(_finite, quantiles_km), strict=True))
        return {
            "num_images": self.num_images,
            "num_missing": self.num_missing,
            "geoscore": self.geoscore,
            "mean_km": self.mean_km,
            "median_km": by_share[0.5],
            "quantiles_km": {f"{share:g}": value for share, value in by_share.items()},
            "accuracy_within_km": {
                f"{radius:g}": int(num) / self.num_counted
                for radius, num in zip(self.protocol.thresholds_km, self.num_within, strict=True)
            },
        }

    def state(self) -> dict[str, Any]:
        """JSON values for `from_state`."""
        return {
            "protocol": self.protocol.name,
            "num_images": self.num_images,
            "num_missing": self.num_missing,
            "num_within": self.num_within.tolist(),
            "score_sum": str(self._score_sum),  # more than 53 bits
            "km_sum": str(self._km_sum),
            "distances": self.distances.state(),
        }

    @classmethod
    def from_state(cls, protocol: Protocol, state: Mapping[str, Any]) -> "Tally":
        """The inverse of `state`.

        Raises:
            ValueError: the state is of another protocol.
        """
        if state["protocol"] != protocol.name or len(state["num_within"]) != len(protocol.thresholds_km):
            raise ValueError(
                f"a state of the protocol {state['protocol']!r} was read as one of {protocol.name!r}"
            )
        tally = cls(protocol)
        tally.num_images, tally.num_missing = state["num_images"], state["num_missing"]
        tally.num_within = np.array(state["num_within"], np.int64)
        tally._score_sum, tally._km_sum = int(state["score_sum"]), int(state["km_sum"])
        tally.distances = Quantiles.from_state(state["distances"])
        return tally


def image_scores(distance_km: ArrayLike, protocol: Protocol) -> NDArray[np.float64]:
    """GeoScore of each image under a protocol, in [0, 5000]; NaN for a NaN distance."""
    scores = geoscore(distance_km)
    return np.asarray(np.round(scores)) if protocol.round_scores else scores


def exact_sum(values: NDArray[Any]) -> int:
    """Sum of values in [0, 65536) in units of 2^-32, each rounded once; independent of the order."""
    total = 0
    for start in range(0, len(values), _BLOCK):
        fixed = np.rint(values[start : start + _BLOCK].astype(np.float64) * (1 / _UNIT))
        total += int(fixed.astype(np.int64).sum())
    return total


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
