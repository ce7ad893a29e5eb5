"""Distances as published evaluators compute them: formula, radius and precision.

    Distance(formula="haversine", radius_km=6371.0, precision="float32").km(predicted_latlon_deg, true_latlon_deg)

Distances differ by up to 0.67 % between evaluators, which moves images across the thresholds. They are computed
in blocks that stay in the cache.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quadtree.sphere import EARTH_MEAN_RADIUS_KM, geodesic_km

Formula: TypeAlias = Literal["geodesic", "haversine", "haversine-arcsin"]
Floats: TypeAlias = NDArray[np.floating]

_BLOCK: Final = 1 << 15  # pairs; all buffers fit into a second-level cache


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Distance between two points.

    Attributes:
        formula: "geodesic" is the geodesic on the WGS84 ellipsoid (Karney 2013, by pyproj). The others are great
            circles by the haversine, a = sin²(Δlat/2) + cos lat₁ cos lat₂ sin²(Δlon/2): "haversine" is
            2R·atan2(√a, √(1-a)), "haversine-arcsin" 2R·arcsin(√a). If a rounds to above 1 (antipodes), peers with
            the arcsine return NaN; we return half the circumference.
        radius_km: of the sphere; unused for the ellipsoid.
        precision: of coordinates in radians and of the computation; the error of float32 is up to 2 m.
    """

    formula: Formula = "geodesic"
    radius_km: float = EARTH_MEAN_RADIUS_KM
    precision: Literal["float32", "float64"] = "float64"

    def km(self, a_latlon_deg: ArrayLike, b_latlon_deg: ArrayLike) -> Floats:
        """Distances of n pairs, (n, 2) and (n, 2) degrees, latitude first -> (n,) km; NaN gives NaN.

        Raises:
            ValueError: the shapes are not (n, 2), or differ.
        """
        a, b = np.asarray(a_latlon_deg), np.asarray(b_latlon_deg)
        if a.ndim != 2 or a.shape != b.shape or a.shape[1] != 2:
            raise ValueError(
                f"distances need two arrays (n, 2), latitude first; found {a.shape} and {b.shape}"
            )
        if self.formula == "geodesic":
            return _geodesic_km(a, b)
        return haversine_km(
            a,
            b,
            radius_km=self.radius_km,
            dtype=np.dtype(self.precision),
            arcsin=self.formula == "haversine-arcsin",
        )

    def __str__(self) -> str:
        if self.formula == "geodesic":
            return "WGS84 geodesic"
        ending = "arcsin" if self.formula == "haversine-arcsin" else "atan2"
        return f"haversine ({ending} form), radius {self.radius_km} km, {self.precision}"


WGS84: Final = Distance()


def haversine_km(
    a_latlon_deg: NDArray[np.generic],
    b_latlon_deg: NDArray[np.generic],
    *,
    radius_km: float = EARTH_MEAN_RADIUS_KM,
    dtype: np.dtype[np.floating] = np.dtype(np.float64),  # noqa: B008  an immutable constant
    arcsin: bool = False,
) -> Floats:
    """Great-circle distances, (n, 2) and (n, 2) degrees -> (n,) km of `dtype`; see `Distance`.

    `quadtree.sphere.haversine_km` is the same formula with one radius and precision; a test compares them.
    """
    num = len(a_latlon_deg)
    distance_km = np.empty(num, dtype)
    buffers = np.empty((6, min(num, _BLOCK)), dtype)
    for start in range(0, num, _BLOCK):
        part = slice(start, start + _BLOCK)
        size = min(_BLOCK, num - start)
        lat_a, lon_a, lat_b, lon_b, h, spare = buffers[:, :size]
        for column, values in ((lat_a, a_latlon_deg[part, 0]), (lon_a, a_latlon_deg[part, 1])):
            np.multiply(values, np.pi / 180, out=column, casting="unsafe")
        for column, values in ((lat_b, b_latlon_deg[part, 0]), (lon_b, b_latlon_deg[part, 1])):
            np.multiply(values, np.pi / 180, out=column, casting="unsafe")
        _half_sine_squared(lon_b, lon_a, out=spare)
        _half_sine_squared(lat_b, lat_a, out=h)
        spare *= np.cos(lat_a, out=lat_a)
        spare *= np.cos(lat_b, out=lat_b)
        h += spare
        np.minimum(h, 1, out=h)  # NaN stays NaN
        angle = distance_km[part]
        if arcsin:
            np.arcsin(np.sqrt(h, out=h), out=angle)
        else:
            np.subtract(1, h, out=spare)
            np.arctan2(np.sqrt(h, out=h), np.sqrt(spare, out=spare), out=angle)
        angle *= 2 * radius_km
    return distance_km


def _half_sine_squared(b: Floats, a: Floats, out: Floats) -> None:
    np.subtract(b, a, out=out)
    out *= 0.5
    np.sin(out, out=out)
    out *= out


def _geodesic_km(a: NDArray[np.generic], b: NDArray[np.generic]) -> Floats:
    known = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    distance_km = np.full(len(a), np.nan)
    distance_km[known] = geodesic_km(a[known], b[known])
    return distance_km
