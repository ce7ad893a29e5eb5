"""Calibration metrics: coverage and width of regions, and the risk-coverage curve.

A 90 % region is calibrated if it holds the truth of 90 % of the images. The risk-coverage curve scores the most
confident share of the images (Geifman & El-Yaniv 2017; for geolocation Kordopatis-Zilos et al. 2022). Both are
mergeable like `Tally`.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.metrics.protocols import Protocol
from geoloc.metrics.quantiles import Quantiles, bins_of, centers_of
from geoloc.metrics.tally import image_scores

CURVE_SHARES: Final = tuple(np.linspace(0.05, 1.0, 20).round(2).tolist())


class RegionTally:
    """Coverage and width of circles of one nominal confidence.

    Attributes:
        percent: nominal confidence, such as 90.
        num: number of images with a circle and a distance.
        num_holding: number of images whose truth lies in the circle, edge included.
        widths_km: the radii.
    """

    def __init__(self, percent: int) -> None:
        self.percent = percent
        self.num = 0
        self.num_holding = 0
        self.widths_km = Quantiles()

    def add(self, distance_km: ArrayLike, radius_km: ArrayLike) -> None:
        """Add images, (n,) distances and (n,) radii; a NaN in either leaves the image out."""
        distances, radii = np.asarray(distance_km, np.float64), np.asarray(radius_km, np.float64)
        known = np.isfinite(distances) & np.isfinite(radii)
        self.num += int(known.sum())
        self.num_holding += int((distances[known] <= radii[known]).sum())
        self.widths_km.add(radii[known])

    def merge(self, other: "RegionTally") -> None:
        """Add another tally of the same percent."""
        if other.percent != self.percent:
            raise ValueError(f"regions of {other.percent} % cannot be added to those of {self.percent} %")
        self.num += other.num
        self.num_holding += other.num_holding
        self.widths_km.merge(other.widths_km)

    def state(self) -> dict[str, Any]:
        """JSON values for `from_state`."""
        return {
            "percent": self.percent,
            "num": self.num,
            "num_holding": self.num_holding,
            "widths_km": self.widths_km.state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "RegionTally":
        """The inverse of `state`."""
        tally = cls(state["percent"])
        tally.num, tally.num_holding = state["num"], state["num_holding"]
        tally.widths_km = Quantiles.from_state(state["widths_km"])
        return tally

    def summary(self) -> dict[str, Any]:
        """`nominal` and `coverage` as fractions, median and 90th percentile of the radius in km."""
        median, wide = self.widths_km.at([0.5, 0.9]).tolist()
        return {
            "nominal": self.percent / 100,
            "coverage": self.num_holding / self.num,
            "num_images": self.num,
            "median_radius_km": median,
            "p90_radius_km": wide,
        }


class RiskCoverage:
    """Scores of the most confident images, for every share of them.

    Images are ranked by a width (a radius in km; smaller is more confident). Widths are counted in bins of 0.1 %;
    the images of one bin are tied.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        # bin of the width -> images, sum of scores (in 1/1024 points), images within each threshold
        self._columns = 2 + len(protocol.thresholds_km)
        self._bins: NDArray[np.int64] = np.empty(0, np.int64)
        self._sums: NDArray[np.int64] = np.empty((0, self._columns), np.int64)

    def add(self, distance_km: ArrayLike, width_km: ArrayLike) -> None:
        """Add images, (n,) distances and (n,) widths; a NaN in either leaves the image out."""
        distances, widths = np.asarray(distance_km, np.float64), np.asarray(width_km, np.float64)
        known = np.isfinite(distances) & np.isfinite(widths)
        distances, widths = distances[known], widths[known]
        compare = np.less if self.protocol.strict else np.less_equal
        values = np.empty((len(distances), self._columns), np.int64)
        values[:, 0] = 1
        values[:, 1] = np.rint(image_scores(distances, self.protocol) * 1024)
        values[:, 2:] = compare(distances[:, None], np.array(self.protocol.thresholds_km))
        self._take(bins_of(widths), values)

    def merge(self, other: "RiskCoverage") -> None:
        """Add another curve of the same protocol."""
        if other.protocol != self.protocol:
            raise ValueError(
                f"curves under {other.protocol.name!r} and {self.protocol.name!r} cannot be added"
            )
        self._take(other._bins, other._sums)

    def _take(self, bins: NDArray[np.int64], values: NDArray[np.int64]) -> None:
        every_bin = np.concatenate([self._bins, bins])
        every_value = np.concatenate([self._sums, values])
        if not len(every_bin):
            return
        order = np.argsort(every_bin, kind="stable")
        ordered = every_bin[order]
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        self._bins, self._sums = ordered[starts], np.add.reduceat(every_value[order], starts)

    def state(self) -> dict[str, Any]:
        """JSON values for `from_state`."""
        return {"bins": self._bins.tolist(), "sums": self._sums.tolist()}

    @classmethod
    def from_state(cls, protocol: Protocol, state: Mapping[str, Any]) -> "RiskCoverage":
        """The inverse of `state`, for the protocol of the state."""
        curve = cls(protocol)
        curve._bins = np.array(state["bins"], np.int64)
        curve._sums = np.array(state["sums"], np.int64).reshape(-1, curve._columns)
        return curve

    @property
    def num(self) -> int:
        """Number of images."""
        return int(self._sums[:, 0].sum())

    def curve(self) -> dict[str, Any]:
        """Scores per coverage; `aurc` is the mean of 1 - GeoScore/5000 over coverages.

        Returns:
            {"coverage": [...], "width_km": [...], "geoscore": [...], "accuracy_within_km": {"25": [...]}, "aurc"}:
            per coverage the largest width of the kept images and their scores; empty lists without images.
        """
        cumulative = self._sums.cumsum(axis=0)
        num = self.num
        if num == 0:
            return {"coverage": [], "width_km": [], "geoscore": [], "accuracy_within_km": {}, "aurc": None}
        at = np.searchsorted(cumulative[:, 0], np.ceil(np.array(CURVE_SHARES) * num))
        kept = cumulative[at]
        scores = cumulative[:, 1] / 1024 / cumulative[:, 0]
        return {
            "coverage": (kept[:, 0] / num).tolist(),
            "width_km": centers_of(self._bins[at]).tolist(),
            "geoscore": scores[at].tolist(),
            "accuracy_within_km": {
                f"{radius:g}": (kept[:, 2 + column] / kept[:, 0]).tolist()
                for column, radius in enumerate(self.protocol.thresholds_km)
            },
            "aurc": float(((1 - scores / 5000) * self._sums[:, 0]).sum() / num),
        }
