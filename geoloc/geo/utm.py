"""UTM coordinates of arrays of points in any mix of zones.

    utm = to_utm(latlon_deg)                                        # each point in its own zone
    from_utm(utm.east_m, utm.north_m, utm.zone, utm.is_north)       # (n, 2) degrees

Do not subtract coordinates of different zones or sides of the equator; see `quadtree.sphere` for distances.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError
from geoloc.geo.wgs84 import project, unproject
from quadtree.sphere import validate_latlon_deg

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

NUM_ZONES: Final = 60
BANDS: Final = (
    "CDEFGHJKLMNPQRSTUVWX"  # 8 degrees of latitude each from 80 S, the last 12; N starts at the equator
)
_NORTH_EPSG: Final = 32600  # plus the zone
_SOUTH_EPSG: Final = 32700


@dataclass(frozen=True)
class UtmCoordinates:
    """Points in UTM; every array is (n,).

    Attributes:
        east_m: easting; 500 km is the zone's middle.
        north_m: northing from the equator (north), or from 10,000 km south of it (south).
        zone: 1 to 60.
        is_north: whether northings count from the equator.
    """

    east_m: FloatArray
    north_m: FloatArray
    zone: IntArray
    is_north: BoolArray


def utm_zone(latlon_deg: ArrayLike) -> IntArray:
    """Zone of each point, with the exceptions of Norway and Svalbard, (..., 2) -> (...).

    Raises:
        ConfigError: a point is beyond 84 N or 80 S.
        InvalidCoordinateError: a coordinate is invalid.
    """
    latlon = validate_latlon_deg(latlon_deg)
    lat, lon = latlon[..., 0], latlon[..., 1]
    outside = ~((lat >= -80.0) & (lat <= 84.0))
    if outside.any():
        first = tuple(latlon[outside][0].tolist())
        raise ConfigError(f"UTM ends at 80 S and 84 N; the point is {first}")
    zone = (np.floor(lon + 180.0) // 6.0).astype(np.int64) + 1
    in_norway = (lat >= 56.0) & (lat < 64.0) & (lon >= 3.0) & (lon < 12.0)
    in_svalbard = (lat >= 72.0) & (lon >= 0.0) & (lon < 42.0)
    zone = np.where(in_norway, 32, zone)
    return np.where(in_svalbard, 31 + 2 * ((lon + 3.0) // 12.0).astype(np.int64), zone)


def utm_epsg(latlon_deg: ArrayLike) -> int:
    """EPSG code of the zone of a point, (2,).

    Raises:
        ConfigError, InvalidCoordinateError: as `utm_zone`.
    """
    latlon = validate_latlon_deg(latlon_deg)
    return (_NORTH_EPSG if latlon[0] >= 0.0 else _SOUTH_EPSG) + int(utm_zone(latlon))


def zone_of_epsg(epsg: int) -> tuple[int, bool]:
    """Zone and whether it is northern, of an EPSG code of WGS 84 / UTM.

    Raises:
        ConfigError: the code is of another CRS.
    """
    for base, is_north in ((_NORTH_EPSG, True), (_SOUTH_EPSG, False)):
        if 1 <= epsg - base <= NUM_ZONES:
            return epsg - base, is_north
    raise ConfigError(
        f"EPSG:{epsg} is no zone of WGS 84 / UTM: north of the equator they are 32601 to 32660, south of it 32701 to "
        "32760, the last two digits being the zone"
    )


def utm_band(latitude_deg: ArrayLike) -> NDArray[np.str_]:
    """Band letter of each latitude in [-80, 84], C to X without I and O, (...) -> (...)."""
    steps = np.floor((np.asarray(latitude_deg, np.float64) + 80.0) / 8.0).astype(np.int64)
    return np.array(list(BANDS))[np.clip(steps, 0, len(BANDS) - 1)]


def to_utm(
    latlon_deg: ArrayLike, zone: ArrayLike | None = None, is_north: ArrayLike | None = None
) -> UtmCoordinates:
    """UTM coordinates of points.

    Args:
        latlon_deg: (n, 2).
        zone: (n,) or scalar zones of the result, perhaps neighbours of the points' own; None is their own.
        is_north: (n,) or scalar sides of the equator; None is the points' own.

    Raises:
        ConfigError: a zone is invalid, or a point beyond 84 N or 80 S has no given zone.
        InvalidCoordinateError: a coordinate is invalid.
    """
    latlon = validate_latlon_deg(latlon_deg)
    num = len(latlon)
    zones = utm_zone(latlon) if zone is None else _zones(zone, num)
    north = latlon[:, 0] >= 0.0 if is_north is None else np.broadcast_to(np.asarray(is_north, np.bool_), num)
    metres = np.empty((num, 2))
    for epsg, rows in _by_epsg(zones, north):
        metres[rows] = project(epsg, latlon[rows])
    return UtmCoordinates(metres[:, 0], metres[:, 1], zones, north.copy())


def from_utm(east_m: ArrayLike, north_m: ArrayLike, zone: ArrayLike, is_north: ArrayLike) -> FloatArray:
    """Degrees of UTM coordinates, (n,) each -> (n, 2); NaN for coordinates outside UTM's range.

    Eastings up to 500 km on either side of the zone's middle are valid, because data sets keep a town in one zone.

    Raises:
        ConfigError: a zone is invalid.
    """
    east, north = np.asarray(east_m, np.float64), np.asarray(north_m, np.float64)
    num = len(east)
    zones, sides = _zones(zone, num), np.broadcast_to(np.asarray(is_north, np.bool_), num)
    with np.errstate(invalid="ignore"):
        is_possible = (east >= 0.0) & (east <= 1e6) & (north >= 0.0) & (north <= 1e7)
    found = np.full((num, 2), np.nan)
    for epsg, rows in _by_epsg(zones, sides):
        rows = rows[is_possible[rows]]
        found[rows] = unproject(epsg, np.stack([east[rows], north[rows]], -1))
    return np.where(np.isfinite(found).all(-1, keepdims=True), found, np.nan)


def _zones(zone: ArrayLike, num: int) -> IntArray:
    given = np.asarray(zone)
    bad = ~((given >= 1) & (given <= NUM_ZONES) & (given == np.floor(given)))
    if bad.any():
        raise ConfigError(f"there is no UTM zone {given[bad].flat[0]}: they are 1 to {NUM_ZONES}")
    return np.broadcast_to(given.astype(np.int64), num).copy()


def _by_epsg(zones: IntArray, is_north: BoolArray) -> list[tuple[int, IntArray]]:
    """Rows of each EPSG code among the points."""
    codes = np.where(is_north, _NORTH_EPSG, _SOUTH_EPSG) + zones
    order = np.argsort(codes, kind="stable")
    present, starts = np.unique(codes[order], return_index=True)
    return list(zip(present.tolist(), np.split(order, starts[1:]), strict=True)) if len(codes) else []
