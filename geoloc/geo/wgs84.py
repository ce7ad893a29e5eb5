"""Geodesics, meridian arcs and projections on the WGS84 ellipsoid, by pyproj."""

from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import CRSError

from geoloc.errors import ConfigError
from quadtree.sphere import validate_latlon_deg, wrap_longitude_deg

FloatArray = NDArray[np.float64]

_GEOD: Final = Geod(ellps="WGS84")
EQUATOR_RADIUS_M: Final = float(_GEOD.a)
_ECCENTRICITY_SQUARED: Final = float(_GEOD.es)
QUARTER_MERIDIAN_M: Final = float(_GEOD.inv(0.0, 0.0, 0.0, 90.0)[2])  # equator to pole, 10,001,965.7 m


def offset_latlon_deg(center_latlon_deg: ArrayLike, east_m: ArrayLike, north_m: ArrayLike) -> FloatArray:
    """End points of geodesics from a centre (2,), by offsets of any shape (...) -> (..., 2) degrees.

    (east, north) are coordinates of the azimuthal equidistant projection around the centre.
    """
    lat, lon = validate_latlon_deg(center_latlon_deg).tolist()
    east, north = np.broadcast_arrays(np.asarray(east_m, np.float64), np.asarray(north_m, np.float64))
    azimuth_deg = np.degrees(np.arctan2(east, north)).ravel()
    start = np.full_like(azimuth_deg, lat), np.full_like(azimuth_deg, lon)
    lons, lats, _ = _GEOD.fwd(start[1], start[0], azimuth_deg, np.hypot(east, north).ravel())
    return np.stack([lats, wrap_longitude_deg(lons)], -1).reshape(*east.shape, 2)


def meridian_latitude_deg(arc_m: ArrayLike) -> FloatArray:
    """Latitude at a distance along a meridian from the equator, north positive; NaN beyond a pole."""
    arc = np.asarray(arc_m, np.float64)
    flat = np.clip(arc.ravel(), -QUARTER_MERIDIAN_M, QUARTER_MERIDIAN_M)
    zeros = np.zeros_like(flat)
    _, lats, _ = _GEOD.fwd(zeros, zeros, zeros, flat)
    return np.where(np.abs(arc) <= QUARTER_MERIDIAN_M, np.reshape(lats, arc.shape), np.nan)


def meridian_arc_m(latitude_deg: ArrayLike) -> FloatArray:
    """Distance along a meridian from the equator to a latitude, north positive."""
    lat = np.asarray(latitude_deg, np.float64)
    zeros = np.zeros(lat.size)
    _, _, arcs = _GEOD.inv(zeros, zeros, zeros, lat.ravel())
    return np.asarray(np.copysign(np.reshape(arcs, lat.shape), lat))


def longitude_step_deg(latitude_deg: ArrayLike, spacing_m: float) -> FloatArray:
    """Difference of longitude between two points of a parallel whose geodesic distance is `spacing_m`.

    It is 360 if the parallel is too short. At right angles to the meridian the ellipsoid curves like a sphere of
    radius N = a / sqrt(1 - e² sin² φ), on which sin(s / 2N) = cos φ sin(Δλ / 2).
    """
    lat = np.radians(np.asarray(latitude_deg, np.float64))
    radius = EQUATOR_RADIUS_M / np.sqrt(1.0 - _ECCENTRICITY_SQUARED * np.sin(lat) ** 2)
    with np.errstate(divide="ignore"):
        sine = np.sin(spacing_m / (2.0 * radius)) / np.cos(lat)
    return np.where(sine < 1.0, np.degrees(2.0 * np.arcsin(np.minimum(sine, 1.0))), 360.0)


# --- Projections ------------------------------------------------------------------------------------------


def project(crs: str | int, latlon_deg: ArrayLike) -> FloatArray:
    """Coordinates in a CRS, (..., 2): x (east) first, in its units; inf outside its domain.

    Args:
        crs: an EPSG code, "EPSG:25832", WKT or a PROJ string.
        latlon_deg: (..., 2) WGS84 degrees.

    Raises:
        ConfigError: pyproj does not know the CRS.
    """
    latlon = np.asarray(latlon_deg, np.float64)
    x, y = _transformer(crs).transform(latlon[..., 1], latlon[..., 0])
    return np.stack([x, y], -1)


def unproject(crs: str | int, xy: ArrayLike) -> FloatArray:
    """The inverse of `project`: (..., 2) x, y in a CRS -> (..., 2) latitude, longitude."""
    xy = np.asarray(xy, np.float64)
    lon, lat = _transformer(crs).transform(xy[..., 0], xy[..., 1], direction="INVERSE")
    return np.stack([lat, wrap_longitude_deg(lon)], -1)


def plane_axes(crs: str | int) -> tuple[bool, float]:
    """Whether a projected CRS has the northing first, and its unit in metres.

    Raises:
        ConfigError: the CRS is not projected, or pyproj does not know it.
    """
    known = _crs(crs)  # the transformer's axes are x first
    if not known.is_projected:
        raise ConfigError(f"{known.name} is in degrees, where metres or feet are needed")
    first = known.axis_info[0]
    return first.direction in ("north", "south"), float(first.unit_conversion_factor)


@lru_cache(maxsize=256)
def _transformer(crs: str | int) -> Any:
    return Transformer.from_crs(4326, _crs(crs), always_xy=True)


def _crs(crs: str | int) -> Any:
    try:
        return CRS.from_user_input(crs)
    except CRSError as error:
        raise ConfigError(
            f"{str(crs)[:80]!r} is no coordinate reference system that pyproj knows ({str(error)[:80]}): give "
            "an EPSG code such as 'EPSG:25832', or WKT"
        ) from None
