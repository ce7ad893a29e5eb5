"""The posterior over the Earth: weighted points with a kernel, and everything that is read off it.

Cells with their offsets (and later aerial and street candidates) are *atoms*: a point on the sphere, a weight and a
kernel width. The kernel is an isotropic Gaussian on the tangent plane, represented by a fixed spiral of points, so the
whole posterior is one cloud of weighted points and every question about it is a weighted sum. Knows nothing about
models or images.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import ConfigError
from geoloc.metrics.scores import GEOSCORE_SCALE_KM
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, unit_to_latlon

FloatArray = NDArray[np.float64]

POINTS_PER_ATOM = 16
STARTING_ATOMS = 8
REFINEMENT_STEPS = 4
_GOLDEN_ANGLE_RAD = np.pi * (3 - np.sqrt(5))


@dataclass(frozen=True)
class Utility:
    """What a point estimate should be good at, as a function of its distance to the truth.

    Attributes:
        kind: "geoscore" maximises the expected GeoScore, "median" minimises the expected distance, "within"
            maximises the probability to be within `radius_km`.
    """

    kind: str
    radius_km: float = 0.0

    @staticmethod
    def parse(text: str | Utility) -> Utility:
        """Read "geoscore", "median" or "within:25km"."""
        if isinstance(text, Utility):
            return text
        if text in ("geoscore", "median"):
            return Utility(text)
        if (match := re.fullmatch(r"within:(\d+(?:\.\d+)?)(?:km)?", text)) and float(match[1]) > 0:
            return Utility("within", float(match[1]))
        raise ConfigError(f"utility is {text!r}; expected geoscore, median or within:<radius in km>, as in within:25km")

    def value(self, distance_km: FloatArray) -> FloatArray:
        """The utility of being that far from the truth; larger is better."""
        if self.kind == "geoscore":
            return np.exp(distance_km / -GEOSCORE_SCALE_KM)
        if self.kind == "median":
            return -distance_km
        return (distance_km <= self.radius_km).astype(np.float64)

    def pull(self, distance_km: FloatArray) -> FloatArray:
        """How strongly a cloud point pulls the estimate towards itself, per km of distance.

        The derivative of the utility over the distance: fixed points of the weighted mean with these weights are
        stationary points of the expected utility (Weiszfeld's iteration; mean shift for "within").
        """
        # Below a kilometre the pull would grow without bound; there it no longer matters.
        if self.kind == "geoscore":
            return np.exp(distance_km / -GEOSCORE_SCALE_KM) / np.maximum(distance_km, 1.0)
        if self.kind == "median":
            return 1.0 / np.maximum(distance_km, 1.0)
        return (distance_km <= self.radius_km).astype(np.float64)


def distance_km(unit: FloatArray, others: FloatArray) -> FloatArray:
    """Great-circle distances between unit vectors, (m, 3), (n, 3) -> (m, n) km.

    One matrix product and the half-angle form: good to 0.2 m at any distance, far below every kernel width.
    """
    half_squared = 0.5 - 0.5 * (unit @ others.T)
    return np.asarray(2 * EARTH_MEAN_RADIUS_KM * np.arcsin(np.sqrt(np.clip(half_squared, 0.0, 1.0))))


@lru_cache(maxsize=8)
def _spiral(n: int) -> FloatArray:
    """n points that stand for a standard 2-D Gaussian: equal-mass rings, golden angle; unit variance per axis."""
    mass = (np.arange(n) + 0.5) / n
    radius, angle = np.sqrt(-2 * np.log1p(-mass)), np.arange(n) * _GOLDEN_ANGLE_RAD
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    points -= points.mean(0)
    return np.asarray(points / points.std(0))


class Posterior:
    """A distribution over the Earth.

    Args:
        unit: (k, 3) unit vectors of the atoms.
        weight: (k,) not negative.
        scale_km: (k,) kernel widths, the standard deviation per axis.
        background_unit: (n, 3) points without kernel for the mass that no atom holds.
        background_weight: (n,). All weights together are scaled to sum 1.
    """

    def __init__(
        self,
        unit: FloatArray,
        weight: FloatArray,
        scale_km: FloatArray,
        background_unit: FloatArray | None = None,
        background_weight: FloatArray | None = None,
    ) -> None:
        if background_unit is None or background_weight is None:
            background_unit, background_weight = np.zeros((0, 3)), np.zeros(0)
        total = weight.sum() + background_weight.sum()
        self.unit, self.weight = unit, weight / total
        self.cloud_unit = _spread(unit, scale_km).reshape(-1, 3)
        self.cloud_weight = np.repeat(self.weight / POINTS_PER_ATOM, POINTS_PER_ATOM)
        self.background_unit, self.background_weight = background_unit, background_weight / total

    def point(self, utility: Utility) -> FloatArray:
        """The unit vector that maximises the expected utility: the best of the heaviest atoms, then refined."""
        starts = self.unit[np.argsort(-self.weight, kind="stable")[:STARTING_ATOMS]]
        expected = utility.value(distance_km(starts, self.cloud_unit)) @ self.cloud_weight
        best = starts[expected.argmax()]
        value = float(expected.max())
        for _ in range(REFINEMENT_STEPS):
            d = distance_km(best[None], self.cloud_unit)[0]
            moved = (self.cloud_weight * utility.pull(d)) @ self.cloud_unit
            length = np.linalg.norm(moved)
            if length < 1e-12:  # nothing pulls: no point within the radius, or perfect balance
                break
            moved /= length
            moved_value = float(utility.value(distance_km(moved[None], self.cloud_unit)[0]) @ self.cloud_weight)
            if moved_value <= value:
                break
            best, value = moved, moved_value
        return np.asarray(best)

    def _mass_curve(self, unit: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Distances from a point and the mass within them, both ascending from 0."""
        d = np.concatenate(
            [distance_km(unit[None], self.cloud_unit)[0], distance_km(unit[None], self.background_unit)[0]]
        )
        order = d.argsort(kind="stable")
        mass = np.concatenate([self.cloud_weight, self.background_weight])[order].cumsum()
        return np.concatenate([[0.0], d[order]]), np.concatenate([[0.0], mass])

    def mass_within(self, unit: FloatArray, radius_km: float) -> float:
        """The posterior's mass in the circle around a point, in [0, 1]."""
        return float(np.interp(radius_km, *self._mass_curve(unit), right=1.0))

    def radii_km(self, unit: FloatArray, masses: list[float]) -> list[float]:
        """The circles around a point that hold these masses: the inverse of `mass_within`."""
        d, mass = self._mass_curve(unit)
        return [float(r) for r in np.interp(masses, mass, d)]

    def heatmap(self) -> tuple[FloatArray, FloatArray]:
        """The cloud as it is drawn: (n, 2) degrees and (n,) weights."""
        unit = np.concatenate([self.cloud_unit, self.background_unit])
        return unit_to_latlon(unit), np.concatenate([self.cloud_weight, self.background_weight])


def _spread(unit: FloatArray, scale_km: FloatArray) -> FloatArray:
    """The kernel's points around each atom, (k, 3), (k,) -> (k, POINTS_PER_ATOM, 3) unit vectors."""
    # Any two directions across the atom do: the kernel is isotropic. The axis least along the atom keeps them exact.
    helper = np.eye(3)[np.abs(unit).argmin(-1)]
    across = np.cross(unit, helper)
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    other = np.cross(unit, across)
    steps = _spiral(POINTS_PER_ATOM)[None] * (scale_km / EARTH_MEAN_RADIUS_KM)[:, None, None]
    angle = np.minimum(np.linalg.norm(steps, axis=-1, keepdims=True), np.pi)
    direction = steps / np.maximum(np.linalg.norm(steps, axis=-1, keepdims=True), 1e-300)
    tangent = direction[..., :1] * across[:, None] + direction[..., 1:] * other[:, None]
    return np.asarray(np.cos(angle) * unit[:, None] + np.sin(angle) * tangent)


def choose_cells(probs: FloatArray, mass: float = 0.95, most: int = 32) -> NDArray[np.int64]:
    """The fewest cells that hold `mass`, at most `most`, best first: (C,) -> (k,) cell ids."""
    most = min(most, len(probs))
    top = np.argpartition(-probs, most - 1)[:most]
    top = top[np.lexsort((top, -probs[top]))]
    enough = int(np.searchsorted(probs[top].cumsum(), mass)) + 1
    return top[:enough].astype(np.int64)
