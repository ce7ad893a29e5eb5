"""Metric cells: squares of a fixed side that cover the Earth in rows, equally large at every latitude.

Rows follow each other along the meridians and cells along their parallel, each exactly one side apart on the WGS84
ellipsoid. Statewide (Fervers et al. 2024) does the same on the sphere. Row 0 has its southern edge on the equator,
column 0 its western edge on the prime meridian. Each row has its own step of longitude, so cells of neighbouring
rows are shifted against each other, and at the antimeridian each row has a gap that is narrower than a cell.

The Mercator variant has cells of a fixed side in Web Mercator instead: a grid without shifts, whose cells shrink
on the ground with the cosine of the latitude.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import ConfigError
from geoloc.geo.regions import Region
from geoloc.geo.tiles import MERCATOR_RADIUS_M, WORLD_SIDE_M, mercator_latlon_deg, mercator_xy_m
from geoloc.geo.wgs84 import QUARTER_MERIDIAN_M, longitude_step_deg, meridian_arc_m, meridian_latitude_deg
from geoloc.reference.aerial.region import wrapped
from geoloc.reference.aerial.source import Bounds, FloatArray

IntArray = NDArray[np.int64]

MIN_CELL_M: Final = 0.1
_MAX_DEPTH: Final = 24


@dataclass(frozen=True)
class CellGrid:
    """Grid of cells of one size.

    Attributes:
        cell_size_m: side of a cell.
        mercator: the side is measured in Web Mercator instead of on the ground.

    Raises:
        ConfigError: a size that is not between 0.1 m and a thousand km.

    >>> grid = CellGrid(30)
    >>> grid.center_latlon_deg(grid.cell_of([[42.36, -71.06]])).round(3).tolist()
    [[42.36, -71.06]]
    """

    cell_size_m: float = 30.0
    mercator: bool = False

    def __post_init__(self) -> None:
        if not MIN_CELL_M <= self.cell_size_m <= 1e6:
            raise ConfigError(f"cell_size_m is {self.cell_size_m}; it must be {MIN_CELL_M} to 1,000,000 m")

    def center_latlon_deg(self, cells: IntArray) -> FloatArray:
        """Centres of cells (n, 2) row, column -> (n, 2)."""
        return self.points_latlon_deg(cells, 0.5, 0.5)

    def points_latlon_deg(self, cells: IntArray, north: float, east: float) -> FloatArray:
        """Points in cells, at shares of their side from the south-western corner: (n, 2) -> (n, 2).

        A row's step of longitude is that of its middle, at its edges too. So the cells of a row have straight borders,
        and no two of them overlap.
        """
        rows, columns = cells[:, 0], cells[:, 1]
        if self.mercator:
            return mercator_latlon_deg(np.stack([columns + east, rows + north], -1) * self.cell_size_m)
        latitude = meridian_latitude_deg(
            np.clip(rows + north, -self._end_row, self._end_row) * self.cell_size_m
        )
        return np.stack([latitude, (columns + east) * self._step_deg(rows)], -1)

    def cell_of(self, latlon_deg: FloatArray) -> IntArray:
        """The cells (n, 2) row, column that hold points (n, 2); the inverse of `points_latlon_deg`."""
        latlon_deg = np.asarray(latlon_deg, np.float64)
        if self.mercator:
            return np.floor(mercator_xy_m(latlon_deg) / self.cell_size_m).astype(np.int64)[:, ::-1]
        rows = np.floor(meridian_arc_m(latlon_deg[:, 0]) / self.cell_size_m).astype(np.int64)
        columns = np.floor(latlon_deg[:, 1] / self._step_deg(rows)).astype(np.int64)
        return np.stack([rows, columns], -1)

    def metres_in_cell(self, cells: IntArray) -> FloatArray:
        """Metres on the ground of one metre of the grid at each cell: 1, or the cosine of the latitude in Mercator."""
        if not self.mercator:
            return np.ones(len(cells))
        return np.cos(np.radians(self.center_latlon_deg(cells)[:, 0]))

    def cells_with_center_in(self, box: Bounds) -> IntArray:
        """The cells whose centre lies in a half-open box, (n, 2) row, column, row by row."""
        south, west, north, east = box
        if self.mercator:
            low, high = mercator_xy_m([[south, west], [north, east]]) / self.cell_size_m - 0.5
            rows = np.arange(np.ceil(max(low[1], -self._end_row)), np.ceil(min(high[1], self._end_row - 1)))
            first, last = np.full(len(rows), np.ceil(low[0])), np.full(len(rows), np.ceil(high[0]))
        else:
            low_row, high_row = meridian_arc_m([south, north]) / self.cell_size_m - 0.5
            end = self._end_row if north >= 90.0 else np.ceil(high_row)  # the pole itself belongs to its row
            rows = np.arange(max(np.ceil(low_row), -self._end_row), end)
            step = self._step_deg(rows)
            first, last = np.ceil(west / step - 0.5), np.ceil(east / step - 0.5)
            # A cell lies within one turn of its row: the gap at the antimeridian is not a cell.
            half_turn = np.floor(180.0 / step)
            first, last = np.maximum(first, -half_turn), np.minimum(last, np.maximum(half_turn, 1))
        num = np.maximum(last - first, 0).astype(np.int64)
        row_of_each = np.repeat(rows.astype(np.int64), num)
        place = np.arange(num.sum()) - np.repeat(np.cumsum(num) - num, num)
        return np.stack([row_of_each, np.repeat(first.astype(np.int64), num) + place], -1)

    def in_region(self, cells: IntArray, region: Region) -> IntArray:
        """The given cells that have a corner, or their centre, in a region."""
        touches = np.zeros(len(cells), np.bool_)
        for north, east in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5)):
            touches |= region.contains(wrapped(self.points_latlon_deg(cells, north, east)))
        return cells[touches]

    def keys(self, cells: IntArray) -> list[str]:
        """Keys of cells, such as "30m/157123/-195044" (size, row, column)."""
        unit = f"{self.cell_size_m:g}m{'-mercator' if self.mercator else ''}"
        return [f"{unit}/{row}/{column}" for row, column in cells.tolist()]

    def facts(self) -> dict[str, Any]:
        """Plain JSON values that identify the grid."""
        return asdict(self)

    @property
    def _end_row(self) -> int:
        """Rows go from -this to this - 1."""
        quarter = WORLD_SIDE_M / 2.0 if self.mercator else QUARTER_MERIDIAN_M
        return int(np.ceil(quarter / self.cell_size_m))

    def _step_deg(self, rows: NDArray[Any]) -> FloatArray:
        middle = np.clip((rows + 0.5) * self.cell_size_m, -QUARTER_MERIDIAN_M, QUARTER_MERIDIAN_M)
        return longitude_step_deg(meridian_latitude_deg(middle), self.cell_size_m)


@dataclass(frozen=True)
class Block:
    """A quadtree cell, and the metric cells whose centre lies in it.

    Attributes:
        path: of the quadtree cell, in the tree over the whole Earth.
        cells: (n, 2) row, column.
    """

    path: str
    cells: IntArray


def blocks(grid: CellGrid, region: Region, cells_per_block: int) -> Iterator[Block]:
    """All cells with a corner or their centre in a region, in blocks of limited size, in Z-order of the blocks.

    The blocks are quadtree cells of one level, so that each reads imagery of one area; blocks without a metric cell are
    left out.
    """
    reach_deg = np.degrees(
        2.0 * grid.cell_size_m / MERCATOR_RADIUS_M
    )  # only a corner of a cell may lie there
    depth = _depth(grid, region, cells_per_block)
    for path, box in _quadtree_cells(region, depth, reach_deg):
        cells = grid.in_region(grid.cells_with_center_in(box), region)
        if len(cells):
            yield Block(path, cells)


def _depth(grid: CellGrid, region: Region, cells_per_block: int) -> int:
    """The quadtree level whose cells hold at most so many metric cells, at the region's lowest absolute latitude."""
    south, north = min(box[0] for box in region.boxes), max(box[2] for box in region.boxes)
    latitude = 0.0 if south <= 0.0 <= north else min(abs(south), abs(north))
    scale = np.cos(np.radians(latitude)) if not grid.mercator else 1.0
    for depth in range(_MAX_DEPTH + 1):
        side_m = np.radians(180.0 / 2**depth) * MERCATOR_RADIUS_M
        if side_m * 2 * side_m * scale / grid.cell_size_m**2 <= cells_per_block:
            return depth
    return _MAX_DEPTH


def _quadtree_cells(region: Region, depth: int, reach_deg: float) -> Iterator[tuple[str, Bounds]]:
    """Paths and boxes of the quadtree cells of a level that may touch a region, in Z-order."""

    def descend(path: str, box: Bounds) -> Iterator[tuple[str, Bounds]]:
        south, west, north, east = box
        # Towards the poles a cell's width is more and more degrees.
        wide = reach_deg / max(np.cos(np.radians(min(89.99, max(abs(south), abs(north))))), 1e-6)
        if not any(
            south - reach_deg <= b[2]
            and b[0] <= north + reach_deg
            and west - wide <= b[3]
            and b[1] <= east + wide
            for b in region.boxes
        ):
            return
        if len(path) == depth:
            yield path, box
            return
        lat, lon = (south + north) / 2, (west + east) / 2
        quadrants = (
            (south, west, lat, lon),
            (south, lon, lat, east),
            (lat, west, north, lon),
            (lat, lon, north, east),
        )
        for digit, quadrant in enumerate(quadrants):
            yield from descend(f"{path}{digit}", quadrant)

    return descend("", (-90.0, -180.0, 90.0, 180.0))
