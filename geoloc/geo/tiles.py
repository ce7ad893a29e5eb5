"""Web Mercator (EPSG:3857) and its XYZ tiles.

Pixel coordinates run right and down from the corner at 180 W; the centre of the first pixel is (0.5, 0.5).
Formulas: EPSG Guidance Note 7-2, 1024 (Popular Visualisation Pseudo Mercator).
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quadtree.sphere import wrap_longitude_deg

FloatArray = NDArray[np.float64]

MERCATOR_RADIUS_M: Final = 6378137.0  # the equator of WGS84
WORLD_SIDE_M: Final = 2.0 * np.pi * MERCATOR_RADIUS_M


class Tile(NamedTuple):
    """Column x from 180 W and row y from the north, of 2^zoom each."""

    zoom: int
    x: int
    y: int


def mercator_xy_m(latlon_deg: ArrayLike) -> FloatArray:
    """EPSG:3857 coordinates, (..., 2) degrees -> (..., 2) metres, x first.

    Longitudes are not wrapped. Beyond 85.05 degrees y is outside the tiles, and infinite at a pole.
    """
    latlon = np.asarray(latlon_deg, np.float64)
    with np.errstate(divide="ignore"):
        y = MERCATOR_RADIUS_M * np.arctanh(np.sin(np.radians(latlon[..., 0])))
    return np.stack([MERCATOR_RADIUS_M * np.radians(latlon[..., 1]), y], -1)


def mercator_latlon_deg(xy_m: ArrayLike) -> FloatArray:
    """The inverse of `mercator_xy_m`; longitudes are wrapped to [-180, 180)."""
    xy = np.asarray(xy_m, np.float64) / MERCATOR_RADIUS_M
    lat = np.degrees(2.0 * np.arctan(np.exp(xy[..., 1])) - np.pi / 2.0)
    return np.stack([lat, wrap_longitude_deg(np.degrees(xy[..., 0]))], -1)


def pixel_xy(latlon_deg: ArrayLike, zoom: int, tile_px: int = 256) -> FloatArray:
    """Pixel coordinates of points in the mosaic of all tiles of a zoom, (..., 2) -> (..., 2)."""
    latlon = np.asarray(latlon_deg, np.float64)
    across = latlon[..., 1] / 360.0 + 0.5  # not via metres, so that tile edges are exact
    down = 0.5 - mercator_xy_m(latlon)[..., 1] / WORLD_SIDE_M
    return np.stack([across, down], -1) * (tile_px * 2.0**zoom)


def tile_bounds_deg(tile: Tile) -> tuple[float, float, float, float]:
    """South, west, north, east of a tile; the east of the last column is 180."""
    side = WORLD_SIDE_M / 2.0**tile.zoom
    west, east = (360.0 * x / 2.0**tile.zoom - 180.0 for x in (tile.x, tile.x + 1))
    north, south = (
        float(mercator_latlon_deg((0.0, WORLD_SIDE_M / 2.0 - y * side))[0]) for y in (tile.y, tile.y + 1)
    )
    return south, west, north, east
