"""Great-circle paths as lines for flat maps.

Lines are (n, 2) lat, lon in degrees; longitudes continue past 180. data/geometry.js has the same function; a test
compares them.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quadtree.sphere import (
    EARTH_MEAN_RADIUS_KM,
    haversine_km,
    latlon_to_unit,
    unit_to_latlon,
)


def great_circle(
    a_latlon_deg: ArrayLike, b_latlon_deg: ArrayLike, num_points: int = 40
) -> NDArray[np.float64]:
    """Evenly spaced points on the shorter great-circle path from a to b, both included, (num_points, 2).

    For equal points and antipodes only the two ends are returned.
    """
    angle = float(haversine_km(a_latlon_deg, b_latlon_deg)) / EARTH_MEAN_RADIUS_KM
    if (
        np.sin(angle) < 1e-7
    ):  # equal points or antipodes, up to a metre: the resolution of the distance near antipodes
        return unroll(np.stack([np.asarray(a_latlon_deg, np.float64), np.asarray(b_latlon_deg, np.float64)]))
    share = np.linspace(0, 1, num_points)[:, None]
    # Spherical linear interpolation (Shoemake 1985).
    unit = np.sin((1 - share) * angle) * latlon_to_unit(a_latlon_deg)
    unit = unit + np.sin(share * angle) * latlon_to_unit(b_latlon_deg)
    return unroll(unit_to_latlon(unit))


def unroll(latlon_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same line, (n, 2), with each longitude within half a turn of the one before."""
    turns = np.round(np.diff(latlon_deg[:, 1], prepend=latlon_deg[0, 1]) / 360)
    return latlon_deg - np.stack([np.zeros(len(turns)), 360 * np.cumsum(turns)], axis=1)
