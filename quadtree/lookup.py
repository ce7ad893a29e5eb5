"""Cell lookup: a table for the upper levels, binary search below, and the nearest cell for holes."""

from typing import Final

import numpy as np

from quadtree.morton import MAX_DEPTH, Axis, IntArray, cell_bounds_deg, encode, interleave
from quadtree.sphere import FloatArray, box_distance_km, haversine_km

NO_CELL: Final = -1  # the point is in an empty leaf or outside all leaves

_BELOW_TABLE: Final = -2
_TABLE_DEPTH: Final = 10  # 4^10 int32 entries are 4 MB, which stay in cache
# Points per block: larger temporaries do not fit in the cache.
_BLOCK: Final = 1 << 12
_BATCH: Final = 1 << 16  # points in holes per batch, so that the pairs fit in memory
_FEW: Final = 4  # at most this many points or candidates are compared in pairs
_ROUNDING_KM: Final = 1e-6  # upper bound on the rounding error of a distance


class CellLookup:
    """Lookup table from points to leaves.

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
        # The table maps each grid cell at its depth to a cell, _BELOW_TABLE or NO_CELL.
        table_depth = min(self._depth, _TABLE_DEPTH)
        self._table_shift = 2 * (self._depth - table_depth)
        first, end = self._starts >> self._table_shift, self._stops >> self._table_shift
        in_table = depths <= table_depth
        self._table = np.full(4**table_depth, NO_CELL, dtype=np.int32)
        entries = np.arange(len(self._table))
        cell, entry = _lists(entries, first[in_table], (end - first)[in_table])
        self._table[entry] = np.flatnonzero(in_table)[cell]
        self._table[first[~in_table]] = _BELOW_TABLE

    def find(self, latlon_deg: FloatArray) -> IntArray:
        """Cell of each validated point, (n, 2) -> (n,), or NO_CELL in a hole and outside the root box."""
        cells = np.empty(len(latlon_deg), dtype=np.int64)
        for start in range(0, len(latlon_deg), _BLOCK):
            block = slice(start, start + _BLOCK)
            cells[block] = self._find_block(latlon_deg[block])
        return cells

    def _find_block(self, latlon_deg: FloatArray) -> IntArray:
        latitude, longitude = np.ascontiguousarray(latlon_deg[:, 0]), np.ascontiguousarray(latlon_deg[:, 1])
        code = interleave(self._latitude_axis.index(latitude), self._longitude_axis.index(longitude))
        cell: IntArray = self._table[code >> self._table_shift].astype(np.int64)
        below = np.flatnonzero(cell == _BELOW_TABLE)
        if len(below):
            deep = code[below]
            found = np.searchsorted(self._starts, deep, side="right") - 1
            # In a hole before the first cell `found` is -1.
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


def nearest_cells(latlon_deg: FloatArray, bounds_deg: FloatArray, center_latlon_deg: FloatArray) -> IntArray:
    """Cell with the nearest closed box on the sphere for each point, (n, 2) -> (n,).

    Ties go to the nearer representative point, then to the lower id. Points are grouped by quadtree boxes of the
    Earth; the candidate cells of a box are a subset of those of its parent box.

    Args:
        latlon_deg: (n, 2) validated points.
        bounds_deg: (num_cells, 4) boxes.
        center_latlon_deg: (num_cells, 2) representative points.
    """
    codes = encode(latlon_deg)
    order = np.argsort(codes)
    nearest = np.empty(len(order), dtype=np.int64)
    for start in range(0, len(order), _BATCH):  # neighbours, because sorted along the curve
        batch = order[start : start + _BATCH]
        winners = _nearest_in_batch(codes[batch], latlon_deg[batch], bounds_deg, center_latlon_deg)
        nearest[batch] = winners
    return nearest


def _nearest_in_batch(
    codes: IntArray, latlon_deg: FloatArray, bounds_deg: FloatArray, center_latlon_deg: FloatArray
) -> IntArray:
    nearest = np.empty(len(codes), dtype=np.int64)
    points = np.arange(len(codes))  # unsettled points, in the order of their codes
    group = np.zeros(len(codes), dtype=np.int64)  # index of the candidate list
    candidates, first, count = np.arange(len(bounds_deg)), np.array([0]), np.array([len(bounds_deg)])
    for depth in range(1, MAX_DEPTH + 2):
        # Compare all pairs of small groups and at the deepest level.
        size = np.bincount(group, minlength=len(count))
        is_settled = ((size <= _FEW) | (count <= _FEW) | (depth > MAX_DEPTH))[group]
        settled = points[is_settled]
        pair, chosen = _lists(candidates, first[group[is_settled]], count[group[is_settled]])
        nearest[settled] = _best_pairs(latlon_deg[settled], pair, chosen, bounds_deg, center_latlon_deg)
        points, group = points[~is_settled], group[~is_settled]
        if len(points) == 0:
            break
        # Child boxes start with the candidates of their parent.
        prefix = codes[points] >> 2 * (MAX_DEPTH - depth)
        is_first = np.diff(prefix, prepend=-1) != 0
        parent = group[is_first]
        box, candidates = _lists(candidates, first[parent], count[parent])
        middle, radius_km = _enclosing_circles(prefix[is_first], depth)
        distance_km = _pair_distance_km(middle, bounds_deg, box, candidates)
        # Triangle inequality: the nearest cell of a point within r of the middle is at most 2r farther from the
        # middle than the nearest cell of the middle.
        least_km = np.minimum.reduceat(distance_km, np.flatnonzero(np.diff(box, prepend=-1)))
        is_candidate = distance_km <= (least_km + 2 * radius_km + _ROUNDING_KM)[box]
        box, candidates = box[is_candidate], candidates[is_candidate]
        count = np.bincount(box)
        first = np.cumsum(count) - count
        group = np.cumsum(is_first) - 1
    return nearest


def _lists(values: IntArray, first: IntArray, count: IntArray) -> tuple[IntArray, IntArray]:
    """Index i and values of the concatenated slices values[first[i] : first[i] + count[i]]."""
    owner = np.repeat(np.arange(len(first)), count)
    return owner, values[np.arange(len(owner)) + np.repeat(first - np.cumsum(count) + count, count)]


def _enclosing_circles(codes: IntArray, depth: int) -> tuple[FloatArray, FloatArray]:
    """Middle and radius in km of circles around boxes of the Earth at depth >= 1.

    In a box at most 180 degrees wide, a corner is the point farthest from the middle.
    """
    south, west, north, east = cell_bounds_deg(codes, depth).T
    middle = np.stack([(south + north) / 2, (west + east) / 2], axis=-1)
    to_south = haversine_km(middle, np.stack([south, east], axis=-1))
    to_north = haversine_km(middle, np.stack([north, east], axis=-1))
    return middle, np.maximum(to_south, to_north)


def _pair_distance_km(
    latlon_deg: FloatArray, bounds_deg: FloatArray, point: IntArray, box: IntArray
) -> FloatArray:
    distance_km = np.empty(len(point))
    for start in range(0, len(point), _BLOCK):
        block = slice(start, start + _BLOCK)
        distance_km[block] = box_distance_km(latlon_deg[point[block]], bounds_deg[box[block]])
    return distance_km


def _best_pairs(
    latlon_deg: FloatArray,
    point: IntArray,
    cell: IntArray,
    bounds_deg: FloatArray,
    center_latlon_deg: FloatArray,
) -> IntArray:
    """The best cell of each point among (point, cell) pairs, which are sorted by point and then by cell."""
    if len(latlon_deg) == 0:
        return np.zeros(0, dtype=np.int64)
    distance_km = _pair_distance_km(latlon_deg, bounds_deg, point, cell)
    least_km = np.minimum.reduceat(distance_km, np.flatnonzero(np.diff(point, prepend=-1)))
    is_tied = distance_km == least_km[point]
    point, cell = point[is_tied], cell[is_tied]
    to_center_km = haversine_km(latlon_deg[point], center_latlon_deg[cell])
    best = np.lexsort((cell, to_center_km, point))
    winners: IntArray = cell[best[np.diff(point[best], prepend=-1) != 0]]
    return winners
