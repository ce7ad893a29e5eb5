"""The quadtree: leaf cells, their hierarchy, and the assignment of points to them.

The path of a box is a string of digits from the root: 0 south-west, 1 south-east, 2 north-west, 3 north-east.
Both axes are halved in degrees at every level. A leaf with training points is a *cell* (a class); a leaf
without them is *empty*. Empty leaves are not stored: they are the children of split boxes that have no cell
below them, because only boxes with points are split.

Cells are numbered depth first, the order of their Z-order ranges, so the cells below a box have consecutive
ids.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quadtree import storage
from quadtree.errors import InvalidTreeError, QuadtreeError
from quadtree.lookup import NO_CELL, CellLookup, nearest_cells
from quadtree.morton import (
    MAX_DEPTH,
    WORLD_BOUNDS_DEG,
    IntArray,
    cell_bounds_deg,
    check_depth,
    format_paths,
    parse_paths,
)
from quadtree.sphere import FloatArray, validate_latlon_deg


class Quadtree:
    """A partition of a root box into quadtree leaves, made by `build_quadtree` or read from a file.

    Attributes:
        root_deg: south, west, north, east of the root box.
        num_cells: number of cells, the classes.
        depths: (num_cells,) int64, 0 is the root.
        center_latlon_deg: (num_cells, 2) representative points, each inside its closed box: the spherical mean
            of the training points, or for OSV-5M's tree the arithmetic mean of degrees.
        num_points: (num_cells,) int64 numbers of training points, or None if unknown.

    Args:
        start_codes: (num_cells,) the first Z-order code of each cell at depth 24, ascending.
        depths: as the attribute.
        center_latlon_deg: as the attribute.
        num_points: as the attribute.
        root_deg: as the attribute; the whole Earth by default.

    Raises:
        InvalidTreeError: cells overlap or are out of order, or a representative point is outside its box.
    """

    def __init__(
        self,
        start_codes: IntArray,
        depths: IntArray,
        center_latlon_deg: FloatArray,
        num_points: IntArray | None = None,
        root_deg: tuple[float, float, float, float] = WORLD_BOUNDS_DEG,
    ) -> None:
        self.root_deg = _checked_root(root_deg)
        self._start_codes = _frozen(start_codes, np.int64)
        self.depths = _frozen(depths, np.int64)
        self.center_latlon_deg: FloatArray = _frozen(center_latlon_deg, np.float64)
        self.num_points = None if num_points is None else _frozen(num_points, np.int64)
        self.num_cells = len(self._start_codes)
        self._check_cells()

    def _check_cells(self) -> None:
        found = (self.depths.shape, self.center_latlon_deg.shape)
        if self.num_cells == 0 or found != ((self.num_cells,), (self.num_cells, 2)):
            raise InvalidTreeError(
                f"a tree of {self.num_cells} cells needs at least one, depths of shape ({self.num_cells},) "
                f"and centers of shape ({self.num_cells}, 2); found {found[0]} and {found[1]}"
            )
        if self.num_points is not None and (self.num_points.shape != found[0] or self.num_points.min() < 1):
            raise InvalidTreeError("num_points must be at least 1 for every cell")
        if self.depths.min() < 0 or self.depths.max() > MAX_DEPTH:
            raise InvalidTreeError(f"depths must be in [0, {MAX_DEPTH}]; found up to {self.depths.max()}")
        starts, stops = self.morton_ranges.T
        if starts[0] < 0 or stops[-1] > 4**MAX_DEPTH or np.any(starts % (stops - starts)):
            raise InvalidTreeError(
                "a cell's first code must be a multiple of the number of codes in the cell"
            )
        if np.any(starts[1:] < stops[:-1]):
            cell = int(np.flatnonzero(starts[1:] < stops[:-1])[0])
            raise InvalidTreeError(
                f"cells {cell} and {cell + 1} overlap or are out of order; they must be disjoint, depth first"
            )
        south, west, north, east = self.bounds_deg.T
        latitude, longitude = self.center_latlon_deg.T
        inside = (latitude >= south) & (latitude <= north) & (longitude >= west) & (longitude <= east)
        if not inside.all():
            cell = int(np.flatnonzero(~inside)[0])
            raise InvalidTreeError(
                f"the representative point of cell {cell}, {self.center_latlon_deg[cell].tolist()}, is "
                f"outside its box {self.bounds_deg[cell].tolist()} (south, west, north, east)"
            )

    def __repr__(self) -> str:
        """Size, depth, root and fingerprint in one line."""
        root = "world" if self.is_world else f"box {list(self.root_deg)}"
        return (
            f"Quadtree({self.num_cells} cells, depth {int(self.depths.min())}-{self.max_depth}, {root}, "
            f"sha256 {self.fingerprint[:8]})"
        )

    def __eq__(self, other: object) -> bool:
        """Whether the fingerprints are equal."""
        return isinstance(other, Quadtree) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        """Consistent with equality."""
        return hash(self.fingerprint)

    @property
    def is_world(self) -> bool:
        """Whether the root covers the whole Earth."""
        return self.root_deg == WORLD_BOUNDS_DEG

    @property
    def max_depth(self) -> int:
        """Depth of the deepest cell."""
        return int(self.depths.max())

    @cached_property
    def morton_ranges(self) -> IntArray:
        """(num_cells, 2) first code and one past the last code, at depth 24."""
        return _frozen(
            np.stack([self._start_codes, self._start_codes + _num_codes(self.depths)], axis=-1), np.int64
        )

    @cached_property
    def bounds_deg(self) -> FloatArray:
        """(num_cells, 4) south, west, north, east of each cell."""
        bounds = cell_bounds_deg(
            self._start_codes >> 2 * (MAX_DEPTH - self.depths), self.depths, self.root_deg
        )
        return _frozen(bounds, np.float64)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Path of each cell, such as "0312"; "" is the root."""
        return format_paths(self._start_codes, self.depths)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the canonical leaf table: root, codes, depths and representative points, little endian.

        It identifies the classes; `num_points` is not part of it.
        """
        return self._leaves.fingerprint

    # Points to cells

    @overload
    def assign(self, latlon_deg: ArrayLike, return_is_empty: Literal[False] = ...) -> IntArray: ...

    @overload
    def assign(
        self, latlon_deg: ArrayLike, return_is_empty: Literal[True]
    ) -> tuple[IntArray, NDArray[np.bool_]]: ...

    def assign(
        self, latlon_deg: ArrayLike, return_is_empty: bool = False
    ) -> IntArray | tuple[IntArray, NDArray[np.bool_]]:
        """Cell id of each point, (..., 2) -> (...) int64; every valid point has a cell.

        Leaves are half-open, [south, north) x [west, east); the root's last row and column include its end.
        A point in an empty leaf or outside the root gets the cell whose closed box is nearest on the sphere;
        ties go to the nearer representative point.

        Args:
            latlon_deg: points; longitudes are wrapped to [-180, 180) first.
            return_is_empty: also return (...) bool, True where no cell contains the point.

        Raises:
            InvalidCoordinateError: a latitude is outside [-90, 90] or a value is not finite.
        """
        latlon = validate_latlon_deg(latlon_deg)
        flat = latlon.reshape(-1, 2)
        cells = self._lookup.find(flat)
        is_empty = cells == NO_CELL
        holes = np.flatnonzero(is_empty)
        if len(holes):
            points = flat[holes]
            cells[holes] = nearest_cells(points, self.bounds_deg, self.center_latlon_deg)
        cells = cells.reshape(latlon.shape[:-1])
        return (cells, is_empty.reshape(cells.shape)) if return_is_empty else cells

    @cached_property
    def _lookup(self) -> CellLookup:
        return CellLookup(self.root_deg, self._start_codes, self.depths)

    # Hierarchy

    def prefix_ids(self, depth: int) -> IntArray:
        """Group of each cell when paths are cut to their first `depth` digits, (num_cells,) int64.

        Shorter paths are not cut (OSV-5M's rule). Groups are numbered from 0 in the order of the cells, so
        there are `prefix_ids(depth)[-1] + 1` groups.

        Raises:
            QuadtreeError: depth is outside [0, 24].
        """
        check_depth(depth)
        prefix = self._start_codes >> 2 * (MAX_DEPTH - depth)
        # Cells with a common prefix are adjacent in depth-first order.
        return np.cumsum(np.diff(prefix, prepend=prefix[0]) != 0)

    def morton_range(self, path: str) -> tuple[int, int]:
        """First code and one past the last code, at depth 24, of the box with this path.

        Rows sorted by `quadtree.morton.encode(latlon_deg, root_deg=tree.root_deg)` in the box form one slice.

        Raises:
            QuadtreeError: the path has other digits than 0-3 or more than 24 of them.
        """
        starts, depths = parse_paths([path])
        return int(starts[0]), int(starts[0] + _num_codes(depths)[0])

    def cells_below(self, path: str) -> range:
        """Ids of the cells in the box with this path; empty for an empty leaf and for a box inside a cell.

        Raises:
            QuadtreeError: as `morton_range`.
        """
        start, stop = self.morton_range(path)
        first, end = np.searchsorted(self._start_codes, [start, stop]).tolist()
        # A cell larger than the box may start at the same code.
        return range(first, first if first < end and self.morton_ranges[first, 1] > stop else end)

    def children(self, path: str) -> tuple[str, ...]:
        """Paths of the four children of a box; () for a leaf.

        Raises:
            QuadtreeError: as `morton_range`, or the box lies inside a leaf.
        """
        below = self.cells_below(path)
        if len(below) > 0 and self.depths[below[0]] > len(path):
            return tuple(path + digit for digit in "0123")
        if len(below) == 0 and path not in self.empty_paths:
            raise QuadtreeError(f"{path!r} lies inside a leaf; use a shorter path")
        return ()

    def neighbours(self, cell_id: int) -> IntArray:
        """Ids of the other cells that share an edge or a corner with this cell, (k,) ascending.

        Boxes that meet at the antimeridian are neighbours, and so are all boxes that touch the same pole.

        Raises:
            QuadtreeError: `cell_id` is out of range.
        """
        south, west, north, east = self.bounds_deg[self._checked_cell_id(cell_id)].tolist()
        souths, wests, norths, easts = self.bounds_deg.T
        # The edges of touching boxes are the same float64, since both come from the same midpoints.
        meets_latitude = (souths <= north) & (norths >= south)
        meets_longitude = (wests <= east) & (easts >= west)
        if west == -180.0:
            meets_longitude |= easts == 180.0
        if east == 180.0:
            meets_longitude |= wests == -180.0
        meets = meets_latitude & meets_longitude
        if north == 90.0:
            meets |= norths == 90.0
        if south == -90.0:
            meets |= souths == -90.0
        meets[cell_id] = False
        return np.flatnonzero(meets)

    def _checked_cell_id(self, cell_id: int) -> int:
        if not 0 <= cell_id < self.num_cells:
            raise QuadtreeError(f"cell_id must be in [0, {self.num_cells}); found {cell_id}")
        return cell_id

    @cached_property
    def empty_paths(self) -> tuple[str, ...]:
        """Paths of the empty leaves, depth first."""
        return format_paths(*self._empty_leaves)

    @cached_property
    def empty_bounds_deg(self) -> FloatArray:
        """(num_empty, 4) south, west, north, east of the empty leaves, depth first."""
        codes, depths = self._empty_leaves
        return _frozen(cell_bounds_deg(codes >> 2 * (MAX_DEPTH - depths), depths, self.root_deg), np.float64)

    @cached_property
    def _empty_leaves(self) -> tuple[IntArray, IntArray]:
        """First codes at depth 24, and depths, of the empty leaves."""
        codes, depths = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for depth in range(1, self.max_depth + 1):
            shift = 2 * (MAX_DEPTH - depth)
            occupied = np.unique(self._start_codes[self.depths >= depth] >> shift)
            siblings = (np.unique(occupied >> 2)[:, None] << 2 | np.arange(4)).ravel()
            empty = np.setdiff1d(siblings, occupied, assume_unique=True)
            codes.append(empty << shift)
            depths.append(np.full(len(empty), depth))
        order = np.argsort(np.concatenate(codes))
        return np.concatenate(codes)[order], np.concatenate(depths)[order]

    # Files

    def write(self, path: str | Path) -> None:
        """Write the tree as GeoParquet 1.1 (see `quadtree.storage`); an existing file is replaced atomically."""
        storage.write_parquet(self._leaves, path)

    @staticmethod
    def read(path: str | Path) -> "Quadtree":
        """Read a tree written by `write`.

        Raises:
            FileNotFoundError: the file does not exist.
            InvalidTreeError: the file holds no quadtree, or was changed after it was written.
        """
        leaves = storage.read_parquet(path)
        try:
            return Quadtree(*leaves)
        except InvalidTreeError as error:
            raise InvalidTreeError(f"{path} holds no valid quadtree: {error}") from error

    @staticmethod
    def read_osv5m_csv(path: str | Path) -> "Quadtree":
        """Read OSV-5M's cell table `quadtree_10_1000.csv`, which has no `num_points`.

        Raises:
            InvalidTreeError: the file is not such a table.
        """
        return Quadtree(*storage.read_osv5m_csv(path))

    def write_osv5m_csv(self, path: str | Path) -> None:
        """Write the tree in OSV-5M's format; only a tree with `root="data"` can be read back from it."""
        storage.write_osv5m_csv(self._leaves, path)

    def to_geojson(self) -> dict[str, Any]:
        """The cells as a GeoJSON FeatureCollection of polygons, see `quadtree.storage.to_geojson`."""
        return storage.to_geojson(self._leaves)

    @property
    def _leaves(self) -> storage.Leaves:
        return storage.Leaves(
            self._start_codes, self.depths, self.center_latlon_deg, self.num_points, self.root_deg
        )


def _num_codes(depth: IntArray) -> IntArray:
    """Number of depth-24 codes in a cell."""
    return np.int64(1) << 2 * (MAX_DEPTH - depth)


def _frozen(values: ArrayLike, dtype: type[np.generic]) -> NDArray[Any]:
    array = np.array(values, dtype=dtype)  # a copy: the caller's array stays writable
    array.flags.writeable = False
    return array


def _checked_root(root_deg: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    south, west, north, east = (float(value) + 0.0 for value in root_deg)
    if not (-90.0 <= south <= north <= 90.0 and -180.0 <= west <= east <= 180.0):
        raise InvalidTreeError(
            "the root box must be south <= north in [-90, 90] and west <= east in [-180, 180] degrees; found "
            f"south, west, north, east = {[south, west, north, east]}"
        )
    return south, west, north, east
