"""Z-order (Morton) codes: the place of a grid cell on a curve that visits a quadtree depth first.

At depth d a root box is cut into 2^d x 2^d grid cells by halving both axes d times. Row r counts from the south, column c
from the west, and the code interleaves their bits, row first: its base-4 digits are the path from the root, 0 SW, 1 SE,
2 NW, 3 NE. All descendants of a cell therefore form one contiguous range of codes.

The edges are the midpoints (low + high) / 2 as float64 computes them, level by level; cells are half-open, [low, high), and
the last row and column own the end of the root. For the whole Earth every edge down to depth 24 is exact in float64.
"""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quadtree.errors import QuadtreeError
from quadtree.sphere import FloatArray, validate_latlon_deg

IntArray = NDArray[np.int64]

MAX_DEPTH: Final = 24  # 48 bits; a cell of 1.2 m x 2.4 m at the equator

WORLD_BOUNDS_DEG: Final = (-90.0, -180.0, 90.0, 180.0)  # south, west, north, east

_TABLE_DEPTH: Final = 12  # levels whose edges are tabulated: 4097 float64 fit a core's L1 cache


class Axis:
    """One side of a root box, halved again and again.

    Args:
        low: the southern or western end, degrees.
        high: the northern or eastern end, degrees; not below `low`.
        depth: how often the side is halved, 0 to 24.
    """

    def __init__(self, low: float, high: float, depth: int) -> None:
        self.depth = depth
        self._table_depth = min(depth, _TABLE_DEPTH)
        edges = np.array([low, high])
        for _ in range(self._table_depth):
            finer = np.empty(2 * len(edges) - 1)
            finer[::2] = edges
            finer[1::2] = (edges[:-1] + edges[1:]) / 2
            edges = finer
        self._edges = edges
        width = (high - low) / (len(edges) - 1)
        # An affine guess is at most one edge off unless a table cell is only a few roundings wide.
        self._scale = 1.0 / width if width > 1e-9 else None

    def index(self, values_deg: FloatArray) -> IntArray:
        """Grid row or column of each value, (n,) -> (n,); values beyond an end belong to the first or last cell."""
        last = len(self._edges) - 2
        if self._scale is None:
            index = np.searchsorted(self._edges[1:-1], values_deg, side="right").astype(np.int64)
        else:
            index = np.clip((values_deg - self._edges[0]) * self._scale, 0, last).astype(np.int64)
            index -= values_deg < self._edges[index]
            np.maximum(index, 0, out=index)
            index += (values_deg >= self._edges[index + 1]) & (index < last)
        if self.depth > self._table_depth:
            low, high = self._edges[index], self._edges[index + 1]
            for _ in range(self._table_depth, self.depth):
                middle = (low + high) / 2
                upper = values_deg >= middle
                np.copyto(low, middle, where=upper)
                np.copyto(high, middle, where=~upper)
                index = 2 * index + upper
        return index

    def ends_deg(self, index: IntArray, depth: NDArray[np.integer]) -> tuple[FloatArray, FloatArray]:
        """Low and high end of cells, given their row or column at their own depth, each (n,)."""
        low = np.full(len(index), self._edges[0])
        high = np.full(len(index), self._edges[-1])
        for level in range(int(depth.max(initial=0))):
            open_ = level < depth
            middle = (low + high) / 2
            upper = (index >> np.maximum(depth - 1 - level, 0)) & 1 == 1
            np.copyto(low, middle, where=open_ & upper)
            np.copyto(high, middle, where=open_ & ~upper)
        return low, high


def interleave(row: ArrayLike, column: ArrayLike) -> IntArray:
    """Codes of grid cells: bit i of the row becomes bit 2i + 1, bit i of the column bit 2i.

    >>> int(interleave(0b10, 0b11))
    13
    """
    return _spread(np.asarray(row, dtype=np.int64)) << 1 | _spread(np.asarray(column, dtype=np.int64))


def deinterleave(code: ArrayLike) -> tuple[IntArray, IntArray]:
    """Row and column of codes, the inverse of `interleave`."""
    codes = np.asarray(code, dtype=np.int64)
    return _squeeze(codes >> 1), _squeeze(codes)


def encode(
    latlon_deg: ArrayLike,
    depth: int = MAX_DEPTH,
    root_deg: tuple[float, float, float, float] = WORLD_BOUNDS_DEG,
) -> IntArray:
    """Z-order codes of points, (..., 2) -> (...), each in [0, 4^depth).

    A point outside of the root box gets the code of the nearest row and column.

    Raises:
        InvalidCoordinateError: a coordinate is no place on Earth.
        QuadtreeError: depth is outside [0, 24].

    >>> [np.base_repr(int(code), 4) for code in encode([[48.8566, 2.3522], [-33.87, 151.21]], depth=6)]
    ['320002', '131032']
    """
    check_depth(depth)
    latlon = validate_latlon_deg(latlon_deg)
    south, west, north, east = root_deg
    row = Axis(south, north, depth).index(np.ascontiguousarray(latlon[..., 0]).ravel())
    column = Axis(west, east, depth).index(np.ascontiguousarray(latlon[..., 1]).ravel())
    return interleave(row, column).reshape(latlon.shape[:-1])


def cell_bounds_deg(
    code: ArrayLike,
    depth: ArrayLike,
    root_deg: tuple[float, float, float, float] = WORLD_BOUNDS_DEG,
) -> FloatArray:
    """South, west, north, east of grid cells, (n,) codes at their own (n,) or () depths -> (n, 4).

    >>> cell_bounds_deg([0b1101], 2)
    array([[  0.,  90.,  45., 180.]])
    """
    row, column = deinterleave(code)
    depths = np.broadcast_to(np.asarray(depth, dtype=np.int64), row.shape)
    south, west, north, east = root_deg
    deepest = int(depths.max(initial=0))
    check_depth(deepest)
    low_latitude, high_latitude = Axis(south, north, 0).ends_deg(row, depths)
    low_longitude, high_longitude = Axis(west, east, 0).ends_deg(column, depths)
    return np.stack([low_latitude, low_longitude, high_latitude, high_longitude], axis=-1)


def check_depth(depth: int) -> None:
    """Raise QuadtreeError unless depth is in [0, 24]."""
    if not 0 <= depth <= MAX_DEPTH:
        raise QuadtreeError(f"depth must be in [0, {MAX_DEPTH}]; found {depth}")


# Each step doubles the distance between groups of bits (H. S. Warren, Hacker's Delight, "Shuffling Bits").
_STEPS: Final = (
    (16, 0x0000FFFF0000FFFF),
    (8, 0x00FF00FF00FF00FF),
    (4, 0x0F0F0F0F0F0F0F0F),
    (2, 0x3333333333333333),
    (1, 0x5555555555555555),
)


def _spread(bits: IntArray) -> IntArray:
    for shift, mask in _STEPS:
        bits = (bits | bits << shift) & mask
    return bits


def _squeeze(bits: IntArray) -> IntArray:
    bits = bits & 0x5555555555555555
    for (shift, _), (_, mask) in zip(reversed(_STEPS), reversed(_STEPS[:-1])):
        bits = (bits | bits >> shift) & mask
    return (bits | bits >> 16) & 0x00000000FFFFFFFF
