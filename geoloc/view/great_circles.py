"""Circles and great-circle paths as lines for flat maps.

Lines are (n, 2) lat, lon in degrees; longitudes continue past 180. data/geometry.js has the same functions; a test
compares them.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quadtree.sphere import (
    EARTH_MEAN_RADIUS_KM,
    destination_latlon_deg,
    haversine_km,
    latlon_to_unit,
    unit_to_latlon,
)


def circle_rings(
    center_latlon_deg: ArrayLike, radius_km: float, num_points: int = 180
) -> list[NDArray[np.float64]]:
    """Rings that bound all points within `radius_km`, to be filled by the even-odd rule; each (n, 2).

    Mostly one ring of `num_points` + 1 points, last = first. A circle that holds a pole reaches to the edge
    of the map, so its ring goes on there, two points more. One that holds both poles is the whole map with a
    hole around the antipode.
    """
    half_turn_km = np.pi * EARTH_MEAN_RADIUS_KM
    radius_km = min(radius_km, half_turn_km)
    bearing_deg = 360.0 * (np.arange(num_points + 1) % num_points) / num_points
    ring = unroll(destination_latlon_deg(center_latlon_deg, bearing_deg, radius_km))
    latitude = float(np.asarray(center_latlon_deg, dtype=np.float64)[0])
    holds_north = radius_km / half_turn_km * 180 > 90 - latitude
    holds_south = radius_km / half_turn_km * 180 > 90 + latitude
    if abs(ring[-1, 1] - ring[0, 1]) > 180:
        pole = 90.0 if holds_north else -90.0
        return [np.concatenate([ring, [[pole, ring[-1, 1]], [pole, ring[0, 1]]]])]
    if holds_north and holds_south:
        west = (ring[:, 1].min() + ring[:, 1].max()) / 2 - 180
        return [np.array([[90, west], [90, west + 360], [-90, west + 360], [-90, west]]), ring]
    return [ring]


def great_circle(
    a_latlon_deg: ArrayLike, b_latlon_deg: ArrayLike, num_points: int = 40
) -> NDArray[np.float64]:
    """Evenly spaced points on the shorter great-circle path from a to b, both included, (num_points, 2).

    For equal points and antipodes only the two ends are returned.
    """
    angle = float(haversine_km(a_latlon_deg, b_latlon_deg)) / EARTH_MEAN_RADIUS_KM
    if np.sin(angle) < 1e-7:  # within a metre; the distance of antipodes is not known better
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
