"""Latitude-longitude boxes as arrays (m, 4) of south, west, north, east: area, halving, points spread in them."""

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from quadtree.morton import WORLD_BOUNDS_DEG
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, wrap_longitude_deg

FloatArray = NDArray[np.float64]
Bounds: TypeAlias = tuple[float, float, float, float]  # south, west, north, east

WORLD: Final[Bounds] = WORLD_BOUNDS_DEG

_GOLDEN: Final = (np.sqrt(5) - 1) / 2  # multiples of it modulo 1 are spread most evenly
_BLOCK: Final = 1 << 16


def split_at_antimeridian(bounds: Bounds) -> tuple[Bounds, ...]:
    """Boxes with west <= east of a box that may have west > east."""
    south, west, north, east = bounds
    if west <= east:
        return (bounds,)
    return (south, west, north, 180.0), (south, -180.0, north, east)


def box_area_km2(boxes: FloatArray) -> FloatArray:
    """Areas on the mean sphere, (m, 4) -> (m,); west <= east."""
    south, west, north, east = np.radians(boxes).T
    # sin(n) - sin(s) without cancellation
    height = 2 * np.cos((north + south) / 2) * np.sin((north - south) / 2)
    return np.asarray(EARTH_MEAN_RADIUS_KM**2 * (east - west) * height)


def halves_of(boxes: FloatArray) -> FloatArray:
    """The quadrants of boxes, (m, 4) -> (4m, 4): SW, SE, NW, NE of each, which keeps Z-order."""
    south, west, north, east = boxes.T
    middle_lat, middle_lon = (south + north) / 2, (west + east) / 2
    quadrants = (
        (south, west, middle_lat, middle_lon),
        (south, middle_lon, middle_lat, east),
        (middle_lat, west, north, middle_lon),
        (middle_lat, middle_lon, north, east),
    )
    return np.stack([np.stack(quadrant, -1) for quadrant in quadrants], 1).reshape(-1, 4)


def points_in_boxes(boxes: FloatArray, n: int) -> FloatArray:
    """Exactly n points spread evenly over the area of boxes, (n, 2) degrees, in the boxes' order; always the same.

    The points of a box are a Fibonacci lattice in the cylindrical equal-area projection, where areas are as on the
    sphere: evenly along its longer side, by multiples of the golden ratio along the other.

    Args:
        boxes: (m, 4) with west <= east, east at most 540; m >= 1.
        n: at least 1.
    """
    area = box_area_km2(boxes)
    ends = np.cumsum(area)
    if not ends[-1] > 0:
        area = np.ones(len(boxes))
        ends = np.cumsum(area)
    found = [
        _some_points(boxes, area, ends, np.arange(start, min(start + _BLOCK, n)), n)
        for start in range(0, n, _BLOCK)
    ]
    return np.concatenate(found)


def _some_points(
    boxes: FloatArray, area: FloatArray, ends: FloatArray, number: NDArray[np.int64], n: int
) -> FloatArray:
    """The points of these numbers, (k,) -> (k, 2)."""
    place = (number + 0.5) / n * ends[-1]
    index = np.minimum(np.searchsorted(ends, place, side="right"), len(boxes) - 1)
    size = np.where(area[index] > 0, area[index], 1.0)
    along = np.clip(1 - (ends[index] - place) / size, 0.0, 1.0)
    across = (number + 0.5) * _GOLDEN % 1.0
    south, west, north, east = boxes[index].T
    middle = np.radians((south + north) / 2)
    is_wide = (east - west) * np.cos(middle) > north - south
    x, y = np.where(is_wide, along, across), np.where(is_wide, across, along)
    latitude = np.clip(_latitude_deg(south, north, y), south, north)
    longitude = np.clip(west + (east - west) * x, west, east)
    return np.stack([latitude, wrap_longitude_deg(longitude)], -1)


def _latitude_deg(south: FloatArray, north: FloatArray, share: FloatArray) -> FloatArray:
    """The latitude below which a share of the area between two parallels lies.

    With sin²(c / 2) of the distance c to the nearer pole, which is (1 - sin(latitude)) / 2 without cancellation.
    """
    sign = np.where(south + north >= 0, 1.0, -1.0)
    low, high = np.where(sign > 0, south, -south), np.where(sign > 0, north, -north)
    h_low, h_high = (np.square(np.sin(np.radians(90.0 - latitude) / 2)) for latitude in (low, high))
    h = np.clip(h_low + (h_high - h_low) * share, 0.0, 1.0)
    return np.asarray(sign * (90.0 - 2 * np.degrees(np.arcsin(np.sqrt(h)))))
