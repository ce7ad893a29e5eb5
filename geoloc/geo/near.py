"""Radius search on the WGS84 ellipsoid."""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quadtree.sphere import EARTH_MEAN_RADIUS_KM, geodesic_km, latlon_to_unit, validate_latlon_deg

# A degree of the ellipsoid is at most 0.56 % shorter than one of the mean sphere.
_SLACK: Final = 1.006


def rows_within_m(
    latlon_deg: ArrayLike, others_latlon_deg: ArrayLike, radius_m: float
) -> list[NDArray[np.int64]]:
    """Rows of the other points within a radius of each point, the radius included.

    Args:
        latlon_deg: (n, 2).
        others_latlon_deg: (m, 2).
        radius_m: at most a few hundred kilometres.

    Returns:
        n arrays of rows, each ascending.

    Raises:
        InvalidCoordinateError: a coordinate is invalid.
    """
    from scipy.spatial import cKDTree

    points, others = validate_latlon_deg(latlon_deg), validate_latlon_deg(others_latlon_deg)
    if not len(points) or not len(others):
        return [np.zeros(0, np.int64) for _ in points]
    angle = min(_SLACK * radius_m / 1000 / EARTH_MEAN_RADIUS_KM, np.pi)
    chord = 2 * np.sin(angle / 2) + 1e-9
    found = cKDTree(latlon_to_unit(others)).query_ball_point(
        latlon_to_unit(points), chord, return_sorted=True
    )
    counts = np.array([len(rows) for rows in found])
    rows = np.concatenate([np.asarray(part, np.int64) for part in found])
    is_near = 1000 * geodesic_km(np.repeat(points, counts, axis=0), others[rows]) <= radius_m
    return [
        part[near]
        for part, near in zip(*(np.split(x, np.cumsum(counts)[:-1]) for x in (rows, is_near)), strict=True)
    ]
