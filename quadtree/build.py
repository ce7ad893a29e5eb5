"""Build a quadtree from points by counting them on grids.

A pass counts the points on the finest grid that fits in memory, sums 2 x 2 blocks upwards and splits boxes from
the top down. Another pass refines the cells of the finest level that still hold too many points. Memory depends
on the grid, not on the number of points.
"""

from collections.abc import Iterable, Iterator
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quadtree.errors import QuadtreeError
from quadtree.morton import (
    MAX_DEPTH,
    WORLD_BOUNDS_DEG,
    Axis,
    IntArray,
    cell_bounds_deg,
    check_depth,
    interleave,
)
from quadtree.sphere import (
    FloatArray,
    unit_components,
    unit_to_latlon,
    validate_latlon_deg,
    wrap_longitude_deg,
)
from quadtree.tree import Quadtree

Root = Literal["world", "data"]

_MAX_SLOTS: Final = 4**11  # per pass; a counter and three sums each take 134 MB
# Points per block: larger temporaries do not fit in the cache.
_BLOCK: Final = 1 << 12


def build_quadtree(
    latlon_deg: ArrayLike, max_points_per_cell: int = 1000, max_depth: int = 10, root: Root = "world"
) -> Quadtree:
    """Quadtree whose cells hold about equally many points.

    A box with `max_points_per_cell` points or more is split in four, down to `max_depth` (OSV-5M's rule).

    Args:
        latlon_deg: (n, 2) training points, n >= 1.
        max_points_per_cell: at least 1.
        max_depth: 0 to 24.
        root: "world" covers the Earth; representative points are spherical means clipped to their cell.
            "data" is OSV-5M's tree: the root is the box of the points, representative points are arithmetic
            means of degrees.

    Raises:
        InvalidCoordinateError: a latitude is outside [-90, 90] or a value is not finite.
        QuadtreeError: no points, or a parameter is out of range.

    >>> tree = build_quadtree([[48.8, 2.3], [48.9, 2.4], [-33.9, 151.2]], max_points_per_cell=2, max_depth=2)
    >>> tree.paths, tree.num_points.tolist()
    (('1', '32'), [1, 2])
    """
    latlon = np.asarray(latlon_deg, dtype=np.float64)
    # For few points a coarse grid and a second pass are faster than a fine grid.
    num_slots = min(max(latlon.size, 4), _MAX_SLOTS)
    return _build(_Passes([latlon]), max_points_per_cell, max_depth, root, num_slots)


def build_quadtree_from_batches(
    batches: Iterable[ArrayLike], max_points_per_cell: int = 1000, max_depth: int = 10, root: Root = "world"
) -> Quadtree:
    """Quadtree as by `build_quadtree`, from batches of points, in memory that does not grow with their number.

    A tree over the Earth of depth 11 or less needs one pass over the points. `root="data"` and deeper trees need
    further passes, so `batches` must then be re-iterable (a list or `quadtree.points.PointTable`).

    Args:
        batches: arrays of shape (n, 2).
        max_points_per_cell: as for `build_quadtree`.
        max_depth: as for `build_quadtree`.
        root: as for `build_quadtree`.

    Raises:
        InvalidCoordinateError: as `build_quadtree`.
        QuadtreeError: as `build_quadtree`, or more than one pass over a generator is needed.
    """
    return _build(_Passes(batches), max_points_per_cell, max_depth, root, _MAX_SLOTS)


def _build(
    passes: "_Passes", max_points_per_cell: int, max_depth: int, root: Root, num_slots: int
) -> Quadtree:
    check_depth(max_depth)
    if max_points_per_cell < 1:
        raise QuadtreeError(f"max_points_per_cell must be at least 1; found {max_points_per_cell}")
    if root not in ("world", "data"):
        raise QuadtreeError(f'root must be "world" or "data"; found {root!r}')
    root_deg = WORLD_BOUNDS_DEG if root == "world" else _bounding_box(passes)
    leaf_codes, leaf_depths, leaf_totals = [], [], []
    pending, depth = np.zeros(1, dtype=np.int64), 0  # codes of the boxes to split, and their depth
    while len(pending):
        levels = 1
        while depth + levels < max_depth and len(pending) * 4 ** (levels + 1) <= num_slots:
            levels += 1
        levels = min(levels, max_depth - depth)
        grid = _Grid(root_deg, pending, depth, levels, spherical=root == "world")
        for block in passes.blocks():
            grid.add(block)
        starts, level, split = _cut(grid.totals[:, 0], levels, max_points_per_cell)
        codes = grid.codes(starts) >> 2 * (levels - level)
        split &= depth + level < max_depth
        totals = np.add.reduceat(grid.totals, starts, axis=0)
        leaf = ~split & (totals[:, 0] > 0)
        leaf_codes.append(codes[leaf] << 2 * (MAX_DEPTH - depth - level[leaf]))
        leaf_depths.append(depth + level[leaf])
        leaf_totals.append(totals[leaf])
        pending, depth = codes[split], depth + levels
    order = np.argsort(np.concatenate(leaf_codes))
    codes, depths = np.concatenate(leaf_codes)[order], np.concatenate(leaf_depths)[order]
    totals = np.concatenate(leaf_totals)[order]
    counts, sums = totals[:, 0], totals[:, 1:]
    if len(codes) == 0:
        raise QuadtreeError("a quadtree needs at least one point; found none")
    bounds_deg = cell_bounds_deg(codes >> 2 * (MAX_DEPTH - depths), depths, root_deg)
    centers = _spherical_centers(sums, bounds_deg) if root == "world" else sums / counts[:, None]
    centers = np.clip(centers, bounds_deg[:, :2], bounds_deg[:, 2:])
    return Quadtree(codes, depths, centers, counts.astype(np.int64), root_deg)


class _Passes:
    """Validated blocks of points; several passes if the batches are re-iterable."""

    def __init__(self, batches: Iterable[ArrayLike]) -> None:
        self._batches = batches
        self._is_spent = False

    def blocks(self) -> Iterator[FloatArray]:
        if self._is_spent and iter(self._batches) is self._batches:
            raise QuadtreeError(
                "the points must be read more than once (root='data' or a depth over 11), but a generator "
                "can be read only once; pass a list of arrays or a PointTable"
            )
        self._is_spent = True
        first_row = 0
        for batch in self._batches:
            latlon = np.asarray(batch, dtype=np.float64)
            if latlon.ndim != 2:
                raise QuadtreeError(f"points must come in arrays of shape (n, 2); found {latlon.shape}")
            for start in range(0, len(latlon), _BLOCK):
                yield validate_latlon_deg(latlon[start : start + _BLOCK], first_row=first_row + start)
            first_row += len(latlon)


def _bounding_box(passes: _Passes) -> tuple[float, float, float, float]:
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for block in passes.blocks():
        # One column at a time: the minimum over the long axis of (n, 2) is fifty times slower in NumPy.
        for axis in (0, 1):
            low[axis] = min(low[axis], block[:, axis].min())
            high[axis] = max(high[axis], block[:, axis].max())
    if not np.all(low <= high):
        raise QuadtreeError("a quadtree needs at least one point; found none")
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


class _Grid:
    """Counts and coordinate sums of points on the fine grid below some boxes.

    Args:
        root_deg: the root box.
        boxes: (n,) ascending codes of the boxes at `depth`; points elsewhere are ignored.
        depth: depth of the boxes.
        levels: number of levels of the grid below the boxes.
        spherical: whether to sum unit vectors instead of degrees.
    """

    def __init__(
        self,
        root_deg: tuple[float, float, float, float],
        boxes: IntArray,
        depth: int,
        levels: int,
        spherical: bool,
    ) -> None:
        south, west, north, east = root_deg
        self._latitude_axis = Axis(south, north, depth + levels)
        self._longitude_axis = Axis(west, east, depth + levels)
        self._boxes, self._levels, self._spherical = boxes, levels, spherical
        self._is_root = depth == 0
        # A slot's count and sums are adjacent (one cache miss per point); float64 counts to 2^53.
        self.totals = np.zeros((len(boxes) * 4**levels, 4 if spherical else 3))

    def add(self, latlon_deg: FloatArray) -> None:
        """Count a block of points."""
        latitude, longitude = np.ascontiguousarray(latlon_deg[:, 0]), np.ascontiguousarray(latlon_deg[:, 1])
        slot = interleave(self._latitude_axis.index(latitude), self._longitude_axis.index(longitude))
        if not self._is_root:
            box_code = slot >> 2 * self._levels
            box = np.minimum(np.searchsorted(self._boxes, box_code), len(self._boxes) - 1)
            is_inside = self._boxes[box] == box_code
            slot = (box << 2 * self._levels | slot & (4**self._levels - 1))[is_inside]
            latitude, longitude = latitude[is_inside], longitude[is_inside]
        values = unit_components(latitude, longitude) if self._spherical else (latitude, longitude)
        for total, value in zip(self.totals.T, (1.0, *values), strict=True):
            np.add.at(total, slot, value)

    def codes(self, slots: IntArray) -> IntArray:
        """Codes of slots at the depth of the grid."""
        codes: IntArray = self._boxes[slots >> 2 * self._levels] << 2 * self._levels
        codes |= slots & (4**self._levels - 1)
        return codes


def _cut(
    counts: FloatArray, levels: int, max_points_per_cell: int
) -> tuple[IntArray, IntArray, NDArray[np.bool_]]:
    """Split boxes with too many points from the top down.

    Returns:
        First slot of each resulting box in grid order, its level (0 is the boxes, `levels` the grid), and whether
        it still holds too many points.
    """
    pyramid = [counts]
    for _ in range(levels):
        pyramid.append(pyramid[-1].reshape(-1, 4).sum(axis=1))
    starts, depths, splits = [], [], []
    reached: NDArray[np.bool_] = np.ones(len(pyramid[-1]), dtype=np.bool_)
    for level in range(levels + 1):
        is_full = reached & (pyramid[levels - level] >= max_points_per_cell)
        final = np.flatnonzero(reached if level == levels else reached & ~is_full)
        starts.append(final << 2 * (levels - level))
        depths.append(np.full(len(final), level))
        splits.append(is_full[final])
        reached = np.repeat(is_full, 4)
    order = np.argsort(np.concatenate(starts))
    is_split: NDArray[np.bool_] = np.concatenate(splits)[order]
    return np.concatenate(starts)[order], np.concatenate(depths)[order], is_split


def _spherical_centers(unit_sums: FloatArray, bounds_deg: FloatArray) -> FloatArray:
    """Mean directions, clipped to their half-open boxes.

    The mean of points along a parallel lies poleward of it and can leave a wide cell.
    """
    south, west, north, east = bounds_deg.T
    latitude, longitude = unit_to_latlon(unit_sums).T
    middle = (west + east) / 2
    # Points that cancel out (antipodes in a cell of hemisphere size) have no mean direction.
    is_undefined = np.linalg.norm(unit_sums, axis=-1) < 1e-9
    latitude = np.where(is_undefined, (south + north) / 2, latitude)
    longitude = np.where(is_undefined, middle, longitude)
    # Relative to the middle, so that a mean that rounds to +180 stays at its end of the box.
    longitude = middle + wrap_longitude_deg(longitude - middle)
    last_latitude = np.where(north == 90.0, 90.0, np.nextafter(north, south))
    return np.stack(
        [np.clip(latitude, south, last_latitude), np.clip(longitude, west, np.nextafter(east, west))], axis=-1
    )
