"""The surroundings of given points, such as the references of a database."""

import hashlib
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError
from geoloc.geo.regions.base import MAX_BOXES, FloatArray, Mask, Region
from geoloc.geo.regions.boxes import box_area_km2
from quadtree.morton import cell_bounds_deg, deinterleave, encode, interleave
from quadtree.sphere import validate_latlon_deg

MAX_DEPTH: Final = 15  # boxes of 611 m x 1.2 km at the equator
MAX_POINT_BOXES: Final = 4096  # before their neighbours are added


class PointsRegion(Region):
    """A union of quadtree boxes of one depth over the whole Earth. `area_km2` is exact.

    Attributes:
        depth: of the boxes.
        codes: (m,) ascending Morton codes of the boxes at that depth.
    """

    def __init__(self, codes: NDArray[np.int64], depth: int, name: str) -> None:
        self.codes, self.depth, self.name = np.unique(codes), depth, name

    def contains(self, latlon_deg: ArrayLike) -> Mask:  # noqa: D102  as in the base class
        codes = encode(np.asarray(latlon_deg, np.float64).reshape(-1, 2), self.depth)
        place = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.asarray(self.codes[place] == codes)

    def facts(self) -> dict[str, Any]:  # noqa: D102
        return {
            "depth": self.depth,
            "boxes_sha256": hashlib.sha256(self.codes.astype("<i8").tobytes()).hexdigest(),
        }

    @cached_property
    def boxes(self) -> tuple[tuple[float, float, float, float], ...]:  # noqa: D102
        codes, depth = self.codes, self.depth
        while len(codes) > MAX_BOXES:
            codes, depth = np.unique(codes >> 2), depth - 1
        return tuple((s, w, n, e) for s, w, n, e in cell_bounds_deg(codes, depth).tolist())

    @cached_property
    def area_km2(self) -> float:  # noqa: D102
        return float(box_area_km2(self._cover).sum())

    def cover(self, num_boxes: int, limit: int) -> FloatArray:  # noqa: D102
        return cell_bounds_deg(self.codes, self.depth)


def near_points(latlon_deg: ArrayLike, name: str) -> PointsRegion:
    """The region around points: the quadtree boxes that hold them, and the neighbours of these.

    The boxes are as small as keeps at most 4096 of them, of depth 15 at most.

    Args:
        latlon_deg: (n, 2), at least one.
        name: for messages.

    Raises:
        ConfigError: there is no point.
        InvalidCoordinateError: a coordinate is not on Earth.
    """
    points = validate_latlon_deg(latlon_deg).reshape(-1, 2)
    if not len(points):
        raise ConfigError(f"there are no points for the region {name!r}: add some first")
    codes, depth = np.unique(encode(points, MAX_DEPTH)), MAX_DEPTH
    while len(codes) > MAX_POINT_BOXES:
        codes, depth = np.unique(codes >> 2), depth - 1
    row, column = deinterleave(codes)
    side = 1 << depth
    around = []
    for up in (-1, 0, 1):
        for right in (-1, 0, 1):
            rows, columns = row + up, column + right
            beyond = (rows < 0) | (rows >= side)  # across the pole: the same row on the opposite meridian
            columns = np.where(beyond, columns + side // 2, columns) % side
            around.append(interleave(np.clip(rows, 0, side - 1), columns))
    return PointsRegion(np.concatenate(around), depth, name)
