"""The posterior over the Earth: weighted kernels on the sphere, and all that is computed from them.

Cells with their offsets and candidates are *atoms*: a point on the sphere, a weight and a kernel width. The kernel is
an isotropic Gaussian on the tangent plane, represented by a fixed spiral of points, so the posterior is one cloud of
weighted points and every question about it is a weighted sum.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from geoloc.posterior.utility import Utility, mass_in_disc, sharp
from quadtree.sphere import EARTH_MEAN_RADIUS_KM

FloatArray = NDArray[np.float64]

POINTS_PER_ATOM = 16
HALF_TURN_KM = np.pi * EARTH_MEAN_RADIUS_KM
# The truth may lie where the cloud has no point. This mass reaches from the farthest point to the antipode, so that
# every radius has a mass.
MASS_BEYOND = 1e-6
# Search for the best point; chosen by comparison with a fine grid on random posteriors.
STARTS = 3
STEPS = 4
RELAXATION = 1.5
MIDPOINT_ATOMS = 24
MAX_SEARCHED = 1536  # cloud points; the lightest beyond do not move the best point, and would take long


def distance_km(unit: FloatArray, others: FloatArray) -> FloatArray:
    """Great-circle distances between unit vectors, (m, 3), (n, 3) -> (m, n) km.

    One matrix product and the half-angle form: good to 0.2 m at any distance, far below every kernel width.
    """
    half_squared = 0.5 - 0.5 * (unit @ others.T)
    return np.asarray(2 * EARTH_MEAN_RADIUS_KM * np.arcsin(np.sqrt(np.clip(half_squared, 0.0, 1.0))))


@lru_cache(maxsize=8)
def _spiral(n: int) -> FloatArray:
    """Points that represent a standard 2-D Gaussian, (n, 2): rings of equal mass, golden angle.

    Transformed linearly so that mean and covariance are exactly 0 and the identity.
    """
    mass = (np.arange(n) + 0.5) / n
    radius, angle = np.sqrt(-2 * np.log1p(-mass)), np.arange(n) * np.pi * (3 - np.sqrt(5))
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    points -= points.mean(0)
    return np.asarray(points @ np.linalg.inv(np.linalg.cholesky(points.T @ points / n)).T)


class Posterior:
    """A distribution over the Earth.

    Args:
        unit: (k, 3) unit vectors of the atoms, k >= 1.
        weight: (k,) not negative, not all zero.
        scale_km: (k,) kernel widths, the standard deviation per axis; 0 is a point.
        background_unit: (n, 3) points without kernel for the mass that no atom holds.
        background_weight: (n,). All weights together are scaled to sum 1.

    Attributes:
        cloud_unit: (m, 3) unit vectors of the points that represent it.
        cloud_weight: (m,) their weights, sum 1.
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
        self.unit, self.weight, self.scale_km = unit, weight / total, scale_km
        spread = np.repeat(self.weight / POINTS_PER_ATOM, POINTS_PER_ATOM)
        self.cloud_unit = np.concatenate([_spread(unit, scale_km).reshape(-1, 3), background_unit])
        self.cloud_weight = np.concatenate([spread, background_weight / total])

    def point(self, utility: Utility) -> FloatArray:
        """The unit vector that maximises the expected utility.

        The most promising points are improved by Weiszfeld's iteration on the sphere (geometric median; Fletcher et al.
        2009), and the best point seen is returned. For "within" only the atoms count: background points have no
        density.
        """
        if len(self.cloud_unit) == POINTS_PER_ATOM:  # a single atom: its centre is best for every utility
            return np.asarray(self.unit[0])
        unit, weight, scale_km = self.cloud_unit, self.cloud_weight, np.zeros(1)
        if utility.kind == "within":
            unit, weight, scale_km = self.unit, self.weight, self.scale_km
        if len(weight) > MAX_SEARCHED:
            heaviest = np.argpartition(-weight, MAX_SEARCHED)[:MAX_SEARCHED]
            unit, weight = unit[heaviest], weight[heaviest]
        place = self._promising(utility)
        best, most = place[0], -np.inf
        for step in range(STEPS + 1):
            d = distance_km(place, unit)
            value = utility.expected(d, scale_km) @ weight
            if value.max() > most:
                best, most = place[value.argmax()], value.max()
            if step < STEPS:
                pull = weight * utility.pull(d, scale_km)
                place = _step_towards(place, unit, d / EARTH_MEAN_RADIUS_KM, pull)
        return np.asarray(best)

    def _promising(self, utility: Utility) -> FloatArray:
        """(STARTS, 3) points to start from: atoms, their mean, and for "within" centres of discs that hold several."""
        places = [self.unit, self.cloud_weight @ self.cloud_unit]
        if utility.kind == "within":
            d = distance_km(self.unit, self.unit)
            heaviest = np.argsort(-self.weight, kind="stable")[:MIDPOINT_ATOMS]
            a, b = heaviest[np.stack(np.triu_indices(len(heaviest), 1))]
            reachable = d[a, b] < 2 * utility.radius_km
            places += [
                (self.weight * (d <= utility.radius_km)) @ self.unit,
                (self.unit[a] + self.unit[b])[reachable],
            ]
        place = np.concatenate([np.atleast_2d(p) for p in places])
        place /= np.maximum(np.linalg.norm(place, axis=-1, keepdims=True), 1e-300)
        d = distance_km(place, self.unit)
        if utility.kind == "within":
            scale = sharp(self.scale_km)
            value = ndtr((utility.radius_km - d) / scale) * -np.expm1(-((utility.radius_km / scale) ** 2) / 2)
        else:  # a kernel increases every expected distance
            value = utility.expected(np.sqrt(d**2 + 1.25 * self.scale_km**2), self.scale_km)
        return np.asarray(place[np.argsort(-(value @ self.weight), kind="stable")[:STARTS]])

    def _mass_curve(self, unit: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Distances from a point and the mass within them, both ascending, from 0 to the antipode."""
        d = distance_km(unit[None], self.cloud_unit)[0]
        order = d.argsort(kind="stable")
        mass = self.cloud_weight[order].cumsum() * (1 - MASS_BEYOND)
        return np.concatenate([[0.0], d[order], [HALF_TURN_KM]]), np.concatenate([[0.0], mass, [1.0]])

    def mass_within(self, unit: FloatArray, radius_km: float) -> float:
        """The posterior's mass in the circle around a point, in [0, 1]; (3,) -> ()."""
        return float(np.interp(radius_km, *self._mass_curve(unit)))

    def probability_within(self, unit: FloatArray, radius_km: float) -> float:
        """Probability that the truth is within a radius of a point, in [0, 1]; (3,) -> ().

        As `mass_within`, but integrated over the kernels: the radius may be far smaller than a kernel.
        """
        mass = mass_in_disc(distance_km(unit[None], self.unit)[0], self.scale_km, np.float64(radius_km))
        return min(1.0, float(mass @ self.weight))

    def radii_km(self, unit: FloatArray, masses: list[float]) -> list[float]:
        """Radii of the circles around a point that hold these masses: the inverse of `mass_within`."""
        d, mass = self._mass_curve(unit)
        return [float(r) for r in np.interp(masses, mass, d)]


def _step_towards(place: FloatArray, unit: FloatArray, angle_rad: FloatArray, pull: FloatArray) -> FloatArray:
    """Move points (m, 3) along the mean of the tangents to `unit` (n, 3), weighted by `pull` (m, n)."""
    # The tangent of length `angle` towards u is angle / sin(angle) * (u - cos(angle) * point).
    tangent = (pull / np.maximum(np.sinc(angle_rad / np.pi), 1e-2)) @ unit
    tangent -= (tangent * place).sum(-1, keepdims=True) * place
    tangent *= RELAXATION / np.maximum(pull.sum(-1, keepdims=True), 1e-300)
    length = np.linalg.norm(tangent, axis=-1, keepdims=True)
    moved = np.cos(length) * place + np.sinc(length / np.pi) * tangent
    return np.asarray(moved / np.linalg.norm(moved, axis=-1, keepdims=True))


def _spread(unit: FloatArray, scale_km: FloatArray) -> FloatArray:
    """The kernel's points around each atom, (k, 3), (k,) -> (k, POINTS_PER_ATOM, 3) unit vectors."""
    # Any two orthogonal tangents do: the kernel is isotropic. The axis least along the atom keeps them exact.
    helper = np.eye(3)[np.abs(unit).argmin(-1)]
    across = np.cross(unit, helper)
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    other = np.cross(unit, across)
    steps = _spiral(POINTS_PER_ATOM)[None] * (scale_km / EARTH_MEAN_RADIUS_KM)[:, None, None]
    angle = np.linalg.norm(steps, axis=-1, keepdims=True)
    direction = steps / np.maximum(angle, 1e-300)
    angle = np.minimum(angle, np.pi)
    tangent = direction[..., :1] * across[:, None] + direction[..., 1:] * other[:, None]
    return np.asarray(np.cos(angle) * unit[:, None] + np.sin(angle) * tangent)
