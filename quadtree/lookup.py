"""From points to cells: a table for the upper levels, a binary search below it, the nearest cell for holes.

Knows leaves as ranges of Z-order codes; knows nothing about files or about how the leaves came to be.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from quadtree.morton import MAX_DEPTH, Axis, IntArray, interleave
from quadtree.sphere import FloatArray, box_distance_km, haversine_km

NO_CELL: Final = -1  # a hole: an empty leaf, or no leaf at all

_BELOW_TABLE: Final = -2
_TABLE_DEPTH: Final = 10  # 4^10 int32 entries are 4 MB, which stay in cache
_BLOCK: Final = 1 << 14  # points whose temporaries stay in a core's L2 cache
_FEW: Final = 8  # points or candidates from which on another split no longer pays
_ROUNDING_KM: Final = 1e-6  # generous bound on the rounding of a distance on Earth


class CellLookup:
    """Finds the leaf that contains a point.

    Args:
        root_deg: south, west, north, east of the root box.
        start_codes: (n,) first code of each cell at depth 24, ascending; the cells do not overlap.
        depths: (n,) depth of each cell.
    """

    def __init__(
        self, root_deg: tuple[float, float, float, float], start_codes: IntArray, depths: IntArray
    ) -> None:
        self._root_deg = root_deg
        self._depth = int(depths.max())
        south, west, north, east = root_deg
        self._latitude_axis = Axis(south, north, self._depth)
        self._longitude_axis = Axis(west, east, self._depth)
        shift = 2 * (MAX_DEPTH - self._depth)
        self._starts = start_codes >> shift
        self._stops = self._starts + (1 << 2 * (self._depth - depths))
        # The table holds the cell of every grid cell at its depth, or says that the answer lies below or is a hole.
        table_depth = min(self._depth, _TABLE_DEPTH)
        self._table_shift = 2 * (self._depth - table_depth)
        first, last = self._starts >> self._table_shift, (self._stops - 1) >> self._table_shift
        self._table = np.full(4**table_depth, NO_CELL, dtype=np.int32)
        whole = np.flatnonzero(depths <= table_depth)
        lengths = (last - first + 1)[whole]
        offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        self._table[np.repeat(first[whole], lengths) + offsets] = np.repeat(whole, lengths)
        self._table[first[depths > table_depth]] = _BELOW_TABLE

    def find(self, latlon_deg: FloatArray) -> IntArray:
        """Cell of each validated point, (n, 2) -> (n,), or NO_CELL in a hole and outside of the root box."""
        cells = np.empty(len(latlon_deg), dtype=np.int64)
        for start in range(0, len(latlon_deg), _BLOCK):
            block = slice(start, start + _BLOCK)
            cells[block] = self._find_block(latlon_deg[block])
        return cells

    def _find_block(self, latlon_deg: FloatArray) -> IntArray:
        latitude, longitude = np.ascontiguousarray(latlon_deg[:, 0]), np.ascontiguousarray(latlon_deg[:, 1])
        code = interleave(self._latitude_axis.index(latitude), self._longitude_axis.index(longitude))
        cell = self._table[code >> self._table_shift].astype(np.int64)
        below = np.flatnonzero(cell == _BELOW_TABLE)
        if len(below):
            deep = code[below]
            found = np.searchsorted(self._starts, deep, side="right") - 1
            # A hole can come before the first cell, where `found` is -1 and the last cell's stop lies above any code.
            in_hole = (found < 0) | (deep >= self._stops[found])
            cell[below] = np.where(in_hole, NO_CELL, found)
        south, west, north, east = self._root_deg
        if (
            latitude.min() < south
            or latitude.max() > north
            or longitude.min() < west
            or longitude.max() > east
        ):
            outside = (latitude < south) | (latitude > north) | (longitude < west) | (longitude > east)
            cell[outside] = NO_CELL
        return cell


def nearest_cells(
    latlon_deg: FloatArray, codes: IntArray, bounds_deg: FloatArray, center_latlon_deg: FloatArray
) -> IntArray:
    """The cell whose closed box is nearest on the sphere to each point, (n, 2) -> (n,).

    Ties go to the nearer representative point, then to the lower id.

    Args:
        latlon_deg: (n, 2) points.
        codes: (n,) their Z-order codes; only the order matters, it keeps neighbours together.
        bounds_deg: (num_cells, 4) boxes.
        center_latlon_deg: (num_cells, 2) representative points.
    """
    order = np.argsort(codes, kind="stable")
    nearest = np.empty(len(order), dtype=np.int64)
    pending = [(order, np.arange(len(bounds_deg)))]
    while pending:
        group, candidates = pending.pop()
        if len(group) > _FEW and len(candidates) > _FEW:
            # Triangle inequality: within r of the middle point no cell can win that is farther from it than the
            # nearest cell by more than 2r.
            middle = latlon_deg[group[len(group) // 2]]
            radius_km = haversine_km(middle, latlon_deg[group]).max()
            distance_km = box_distance_km(middle, bounds_deg[candidates])
            candidates = candidates[distance_km <= distance_km.min() + 2 * radius_km + _ROUNDING_KM]
        if len(group) > _FEW and len(candidates) > _FEW:
            half = len(group) // 2
            pending += [(group[:half], candidates), (group[half:], candidates)]
        else:
            nearest[group] = _nearest_of(candidates, latlon_deg[group], bounds_deg, center_latlon_deg)
    return nearest


def _nearest_of(
    candidates: IntArray, latlon_deg: FloatArray, bounds_deg: FloatArray, center_latlon_deg: FloatArray
) -> IntArray:
    nearest = np.empty(len(latlon_deg), dtype=np.int64)
    step = max(1, _BLOCK // len(candidates))
    for start in range(0, len(latlon_deg), step):
        points = latlon_deg[start : start + step, None]
        distance_km = box_distance_km(points, bounds_deg[candidates])
        tied: NDArray[np.bool_] = distance_km == distance_km.min(axis=1, keepdims=True)
        to_center_km = np.full(distance_km.shape, np.inf)
        rows, columns = np.nonzero(tied)
        to_center_km[rows, columns] = haversine_km(points[rows, 0], center_latlon_deg[candidates[columns]])
        nearest[start : start + step] = candidates[to_center_km.argmin(axis=1)]
    return nearest
