"""Geometry on the sphere: coordinates, unit vectors, distances, means.

`latlon_deg` is latitude first, WGS84 degrees, last axis of length 2. Distances are great circles on the mean
sphere, except `geodesic_km` on the ellipsoid.
"""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quadtree.errors import InvalidCoordinateError, QuadtreeError

FloatArray = NDArray[np.float64]

EARTH_MEAN_RADIUS_KM: Final = 6371.0088  # mean radius of the WGS84 ellipsoid, (2a + b) / 3

# Points per block: larger temporaries do not fit in the cache.
_BLOCK: Final = 1 << 12


def validate_latlon_deg(latlon_deg: ArrayLike, *, first_row: int = 0) -> FloatArray:
    """Coordinates as float64 (..., 2) with latitude in [-90, 90] and longitude wrapped to [-180, 180).

    Wrapping is exact. The result is the input itself if nothing had to change: do not write into it.

    Args:
        latlon_deg: the points.
        first_row: number of the first point in error messages, for batches.

    Raises:
        InvalidCoordinateError: the last axis is not 2, a latitude is outside [-90, 90], or a value is not
            finite.

    >>> validate_latlon_deg([[48.8566, 362.3522], [-90, 180]])
    array([[  48.8566,    2.3522],
           [ -90.    , -180.    ]])
    """
    latlon = np.asarray(latlon_deg, dtype=np.float64)
    if latlon.ndim == 0 or latlon.shape[-1] != 2:
        raise InvalidCoordinateError(
            f"latlon_deg must have shape (..., 2), latitude first; found {latlon.shape}; "
            "stack two columns with np.stack([latitude, longitude], axis=-1)"
        )
    if latlon.size == 0:
        return latlon
    latitude, longitude = latlon[..., 0], latlon[..., 1]
    # Comparisons with NaN are false, so NaN enters the error branch.
    if not (latitude.min() >= -90.0 and latitude.max() <= 90.0):
        bad = ~((latitude >= -90.0) & (latitude <= 90.0))
        remedy = "latitude comes first and lies in [-90, 90]; are the columns swapped?"
        raise _invalid(latlon, bad, first_row, "latitude", remedy)
    west, east = longitude.min(), longitude.max()
    if west >= -180.0 and east < 180.0:
        return latlon
    if not (np.isfinite(west) and np.isfinite(east)):
        raise _invalid(latlon, ~np.isfinite(longitude), first_row, "longitude", "drop or repair that row")
    return np.stack([latitude, wrap_longitude_deg(longitude)], axis=-1)


def _invalid(
    latlon_deg: FloatArray, bad: NDArray[np.bool_], first_row: int, axis: str, remedy: str
) -> InvalidCoordinateError:
    first = int(np.flatnonzero(bad.ravel())[0])
    latitude, longitude = latlon_deg.reshape(-1, 2)[first].tolist()
    return InvalidCoordinateError(
        f"{axis} of point {first_row + first} is not valid: ({latitude}, {longitude}); "
        f"{int(bad.sum())} of these {bad.size} points are invalid; {remedy}"
    )


def wrap_longitude_deg(longitude_deg: ArrayLike) -> FloatArray:
    """Longitudes wrapped to [-180, 180), any shape.

    >>> wrap_longitude_deg([-180.0, 180.0, 540.5])
    array([-180. , -180. , -179.5])
    """
    # fmod and the two shifts are exact (operands within a factor of two), so a value below 180 stays below.
    turn = np.fmod(np.asarray(longitude_deg, dtype=np.float64), 360.0)
    return np.asarray(turn - 360.0 * (turn >= 180.0) + 360.0 * (turn < -180.0))


def latlon_to_unit(latlon_deg: ArrayLike) -> FloatArray:
    """Unit vectors of points, (..., 2) -> (..., 3): x to (0, 0), y to (0, 90 E), z to the north pole."""
    latlon = np.asarray(latlon_deg, dtype=np.float64)
    return np.stack(unit_components(latlon[..., 0], latlon[..., 1]), axis=-1)


def unit_components(
    latitude_deg: FloatArray, longitude_deg: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The x, y, z of `latlon_to_unit` as separate arrays."""
    # One tangent of the half angle is twice as fast as a sine and a cosine, with the same absolute precision.
    u, v = np.tan(latitude_deg * (np.pi / 360)), np.tan(longitude_deg * (np.pi / 360))
    uu, vv = u * u, v * v
    cos_over = (1.0 - uu) / ((1.0 + uu) * (1.0 + vv))
    return cos_over * (1.0 - vv), cos_over * (2.0 * v), 2.0 * u / (1.0 + uu)


def unit_to_latlon(unit: ArrayLike) -> FloatArray:
    """Coordinates in the direction of non-zero vectors, (..., 3) -> (..., 2) degrees.

    >>> unit_to_latlon([0.0, -2.0, 0.0])
    array([  0., -90.])
    """
    x, y, z = np.moveaxis(np.asarray(unit, dtype=np.float64), -1, 0)
    latitude = np.degrees(np.arctan2(z, np.hypot(x, y)))
    # arctan2 returns +180 for y = +0; it is wrapped to -180.
    return np.stack([latitude, wrap_longitude_deg(np.degrees(np.arctan2(y, x)))], axis=-1)


def haversine_km(a_latlon_deg: ArrayLike, b_latlon_deg: ArrayLike) -> FloatArray:
    """Great-circle distance on the mean sphere, (..., 2) and (..., 2) -> (...); leading axes broadcast.

    Precise for points metres apart and for antipodes. Coordinates are not validated: a NaN gives a NaN. The
    ellipsoid's distances (`geodesic_km`) differ by up to 0.56 %.

    >>> paris, london = np.array([48.8566, 2.3522]), np.array([51.5074, -0.1278])
    >>> round(float(haversine_km(paris, london)), 1)
    343.6
    """
    a, b = np.asarray(a_latlon_deg, dtype=np.float64), np.asarray(b_latlon_deg, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape or len(a) <= _BLOCK:
        return _haversine_km(a, b)
    distance_km = np.empty(len(a))
    for start in range(0, len(a), _BLOCK):
        block = slice(start, start + _BLOCK)
        distance_km[block] = _haversine_km(a[block], b[block])
    return distance_km


def _haversine_km(a_latlon_deg: FloatArray, b_latlon_deg: FloatArray) -> FloatArray:
    latitude_a, longitude_a = _radians(a_latlon_deg)
    latitude_b, longitude_b = _radians(b_latlon_deg)
    h = np.sin((latitude_b - latitude_a) / 2) ** 2
    h = h + np.cos(latitude_a) * np.cos(latitude_b) * np.sin((longitude_b - longitude_a) / 2) ** 2
    # h rounds to just above 1 for some antipodal pairs, e.g. (19.2, 166.835) and (-19.2, -13.165).
    h = np.minimum(h, 1.0)
    distance_km: FloatArray = 2 * EARTH_MEAN_RADIUS_KM * np.arctan2(np.sqrt(h), np.sqrt(1.0 - h))
    return distance_km


def geodesic_km(a_latlon_deg: ArrayLike, b_latlon_deg: ArrayLike) -> FloatArray:
    """Shortest distance on the WGS84 ellipsoid (Karney's algorithm, by pyproj); leading axes broadcast.

    >>> round(float(geodesic_km([48.8566, 2.3522], [51.5074, -0.1278])), 1)
    343.9
    """
    from pyproj import Geod

    a, b = np.broadcast_arrays(
        np.asarray(a_latlon_deg, dtype=np.float64), np.asarray(b_latlon_deg, dtype=np.float64)
    )
    _, _, distance_m = Geod(ellps="WGS84").inv(
        a[..., 1].ravel(), a[..., 0].ravel(), b[..., 1].ravel(), b[..., 0].ravel()
    )
    return np.asarray(distance_m, dtype=np.float64).reshape(a.shape[:-1]) / 1000.0


def initial_bearing_deg(from_latlon_deg: ArrayLike, to_latlon_deg: ArrayLike) -> FloatArray:
    """Initial bearing of the great circle from `from` to `to`, clockwise from north in [0, 360).

    It is 0 for two equal points. At a pole it counts from the meridian of the pole's given longitude.

    >>> initial_bearing_deg([0.0, 0.0], [0.0, 10.0])
    array(90.)
    """
    latitude_a, longitude_a = _radians(from_latlon_deg)
    latitude_b, longitude_b = _radians(to_latlon_deg)
    dlon = longitude_b - longitude_a
    east = np.sin(dlon) * np.cos(latitude_b)
    north = np.cos(latitude_a) * np.sin(latitude_b) - np.sin(latitude_a) * np.cos(latitude_b) * np.cos(dlon)
    bearing = np.degrees(np.arctan2(east, north)) % 360.0
    # The modulo of a tiny negative angle rounds to 360.
    return np.asarray(np.where(bearing == 360.0, 0.0, bearing))


def destination_latlon_deg(
    from_latlon_deg: ArrayLike, bearing_deg: ArrayLike, distance_km: ArrayLike
) -> FloatArray:
    """End point of a great-circle path, (..., 2), (...), (...) -> (..., 2); leading axes broadcast.

    >>> destination_latlon_deg([0.0, 0.0], 90.0, EARTH_MEAN_RADIUS_KM * np.pi / 2).round(9) + 0.0
    array([ 0., 90.])
    """
    latitude, longitude = _radians(from_latlon_deg)
    bearing = np.radians(np.asarray(bearing_deg, dtype=np.float64))
    angle = np.asarray(distance_km, dtype=np.float64) / EARTH_MEAN_RADIUS_KM
    # Orthonormal frame at the start: up, north, east. The path turns from up towards the bearing.
    up = latlon_to_unit(from_latlon_deg)
    north = np.stack(
        [-np.sin(latitude) * np.cos(longitude), -np.sin(latitude) * np.sin(longitude), np.cos(latitude)],
        axis=-1,
    )
    east = np.stack([-np.sin(longitude), np.cos(longitude), np.zeros_like(longitude)], axis=-1)
    heading = np.cos(bearing)[..., None] * north + np.sin(bearing)[..., None] * east
    return unit_to_latlon(np.cos(angle)[..., None] * up + np.sin(angle)[..., None] * heading)


def spherical_mean_latlon_deg(latlon_deg: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Direction of the mean unit vector of points, (..., n, 2) -> (..., 2).

    Args:
        latlon_deg: the points.
        weights: (..., n) non-negative weights; None weights all equally.

    Raises:
        QuadtreeError: there is no point, or the points cancel out (two antipodes).

    >>> spherical_mean_latlon_deg([[0.0, 179.0], [0.0, -179.0]]).round(9)
    array([   0., -180.])
    """
    unit = latlon_to_unit(latlon_deg)
    if unit.ndim < 2 or unit.shape[-2] == 0:
        raise QuadtreeError(
            f"a mean needs points of shape (..., n, 2) with n >= 1; found {np.shape(latlon_deg)}"
        )
    weight = np.ones(unit.shape[-2]) if weights is None else np.asarray(weights, dtype=np.float64)
    resultant = (unit * weight[..., None]).sum(axis=-2)
    length = np.linalg.norm(resultant, axis=-1)
    if not np.all(length > 1e-12 * weight.sum(axis=-1)):
        raise QuadtreeError(
            "points cancel out on the sphere, or weights are zero or not finite, so no mean exists; "
            "leave out one point or change the weights"
        )
    return unit_to_latlon(resultant)


def box_distance_km(latlon_deg: ArrayLike, bounds_deg: ArrayLike) -> FloatArray:
    """Great-circle distance from points to closed latitude-longitude boxes, 0 inside; leading axes broadcast.

    Args:
        latlon_deg: (..., 2) points, longitudes in [-180, 180].
        bounds_deg: (..., 4) south, west, north, east with -180 <= west <= east <= 180.

    The nearest point of a box has the point's longitude if the box contains that longitude. Otherwise it lies on
    the nearer meridian side: along a meridian at angle dlon the cosine of the distance is proportional to
    cos(latitude' - peak) with tan(peak) = tan(latitude) / cos(dlon), so it is the peak or an end of the side.

    >>> round(float(box_distance_km([0.0, 0.0], [10.0, -5.0, 20.0, 5.0])), 2)  # straight north
    1111.95
    """
    point, bounds = np.asarray(latlon_deg, dtype=np.float64), np.asarray(bounds_deg, dtype=np.float64)
    latitude, longitude = point[..., 0], point[..., 1]
    south, west, north, east = np.moveaxis(bounds, -1, 0)
    to_west, to_east = west - longitude, longitude - east
    to_west, to_east = to_west + 360.0 * (to_west < 0.0), to_east + 360.0 * (to_east < 0.0)
    # A pole has every longitude.
    straight = (
        (longitude >= west) & (longitude <= east)
        | (to_west == 0.0)
        | (to_east == 0.0)
        | (np.abs(latitude) == 90.0)
    )
    dlon = np.radians(np.where(straight, 0.0, np.minimum(to_west, to_east)))
    phi = np.radians(latitude)
    cos_phi = np.cos(phi)
    # Straight north or south the peak is the latitude itself, exactly.
    peak = np.where(straight, latitude, np.degrees(np.arctan2(np.sin(phi), cos_phi * np.cos(dlon))))
    to_south, to_north = np.abs(peak - south), np.abs(peak - north)
    # A peak beyond a pole (dlon > 90 degrees) may be nearer to the other end.
    end = np.where(
        np.minimum(to_south, 360.0 - to_south) < np.minimum(to_north, 360.0 - to_north), south, north
    )
    near = np.where((peak >= south) & (peak <= north), peak, end)
    h = np.sin(np.radians(near - latitude) / 2) ** 2
    h = np.minimum(h + cos_phi * np.cos(np.radians(near)) * np.sin(dlon / 2) ** 2, 1.0)
    distance_km: FloatArray = 2 * EARTH_MEAN_RADIUS_KM * np.arctan2(np.sqrt(h), np.sqrt(1.0 - h))
    return distance_km


def _radians(latlon_deg: ArrayLike) -> tuple[FloatArray, FloatArray]:
    latlon = np.radians(np.asarray(latlon_deg, dtype=np.float64))
    return latlon[..., 0], latlon[..., 1]
