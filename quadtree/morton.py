"""Z-order (Morton) codes of grid cells.

At depth d the root box has 2^d x 2^d grid cells. Rows count from the south, columns from the west. The code
interleaves their bits, row first; its base-4 digits are the path from the root (0 SW, 1 SE, 2 NW, 3 NE), so the
descendants of a cell form one contiguous range of codes.

Edges are the float64 midpoints (low + high) / 2, level by level. Cells are half-open, [low, high); the last row
and column include the end of the root. For the whole Earth every edge down to depth 24 is exact.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quadtree.errors import QuadtreeError
from quadtree.sphere import FloatArray, validate_latlon_deg

IntArray = NDArray[np.int64]

MAX_DEPTH: Final = 24  # 48 bits; a cell of 1.2 m x 2.4 m at the equator

WORLD_BOUNDS_DEG: Final = (-90.0, -180.0, 90.0, 180.0)  # south, west, north, east


class Axis:
    """Repeatedly halved side of a root box.

    Args:
        low_deg: the southern or western end.
        high_deg: the northern or eastern end; not below `low_deg`.
        depth: number of halvings, 0 to 24.
    """

    def __init__(self, low_deg: float, high_deg: float, depth: int) -> None:
        self._low, self._high, self._depth = low_deg, high_deg, depth
        width = high_deg - low_deg
        # In units of cells: the error of a scaled position is at most four roundings of its size, that of an
        # edge one rounding per level. Within `doubt` (at least twice that bound) of an edge, `_descend` decides.
        self._scale = 2.0**depth / width if width > 1e-300 else np.inf
        largest = max(abs(low_deg), abs(high_deg))
        self._doubt = 2.0**-50 * (2.0**depth + (depth + 1) * largest * self._scale)

    def index(self, values_deg: FloatArray) -> IntArray:
        """Grid row or column of each value, (n,) -> (n,), clipped to the first and last cell."""
        if not self._doubt < 0.5:
            return self._descend(values_deg)
        position = (values_deg - self._low) * self._scale
        np.clip(position, 0.0, 2.0**self._depth - 0.5, out=position)
        floor = np.floor(position)
        index = floor.astype(np.int64)
        position -= floor
        position -= 0.5
        np.abs(position, out=position)
        is_doubtful = position > 0.5 - self._doubt
        if is_doubtful.any():
            index[is_doubtful] = self._descend(values_deg[is_doubtful])
        return index

    def _descend(self, values_deg: FloatArray) -> IntArray:
        """Exact `index`: compare with the midpoint, level by level."""
        index = np.zeros(len(values_deg), dtype=np.int64)
        low, high = np.full(len(values_deg), self._low), np.full(len(values_deg), self._high)
        for _ in range(self._depth):
            middle = (low + high) / 2
            is_upper = values_deg >= middle
            np.copyto(low, middle, where=is_upper)
            np.copyto(high, middle, where=~is_upper)
            index = 2 * index + is_upper
        return index

    def ends_deg(self, index: IntArray, depth: NDArray[np.integer]) -> tuple[FloatArray, FloatArray]:
        """Low and high end of cells from their row or column at their own depth, each (n,)."""
        low, high = np.full(len(index), self._low), np.full(len(index), self._high)
        for level in range(int(depth.max(initial=0))):
            middle = (low + high) / 2
            is_upper = (index >> np.maximum(depth - 1 - level, 0)) & 1 == 1
            np.copyto(low, middle, where=is_upper & (level < depth))
            np.copyto(high, middle, where=~is_upper & (level < depth))
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

    A point outside the root box gets the nearest row and column.

    Raises:
        InvalidCoordinateError: a coordinate is invalid.
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


def parse_paths(paths: Sequence[str]) -> tuple[IntArray, IntArray]:
    """First codes at depth 24, and depths, of boxes given by their paths.

    Raises:
        QuadtreeError: a path has other digits than 0-3 or more than 24 of them.
    """
    for path in paths:
        if len(path) > MAX_DEPTH or not set(path) <= set("0123"):
            raise QuadtreeError(f"a path has at most {MAX_DEPTH} digits 0-3; found {path!r}")
    depths = np.array([len(path) for path in paths], dtype=np.int64)
    codes = np.array([int(path or "0", 4) for path in paths], dtype=np.int64)
    return codes << 2 * (MAX_DEPTH - depths), depths


def format_paths(start_codes: IntArray, depths: IntArray) -> tuple[str, ...]:
    """Paths such as "0312" of boxes, the inverse of `parse_paths`; "" is the root."""
    return tuple(
        "".join(str(code >> 2 * (MAX_DEPTH - level) & 3) for level in range(1, depth + 1))
        for code, depth in zip(start_codes.tolist(), depths.tolist(), strict=True)
    )


def check_depth(depth: int) -> None:
    """Raise QuadtreeError unless depth is in [0, 24]."""
    if not 0 <= depth <= MAX_DEPTH:
        raise QuadtreeError(f"depth must be in [0, {MAX_DEPTH}]; found {depth}")


# Each step halves the distance between groups of bits (H. S. Warren, Hacker's Delight, "Shuffling Bits").
_STEPS: Final = (
    (1, 0x3333333333333333),
    (2, 0x0F0F0F0F0F0F0F0F),
    (4, 0x00FF00FF00FF00FF),
    (8, 0x0000FFFF0000FFFF),
    (16, 0x00000000FFFFFFFF),
)


def _squeeze(codes: IntArray) -> IntArray:
    bits = codes & 0x5555555555555555
    for shift, mask in _STEPS:
        bits = (bits | bits >> shift) & mask
    return bits


# Spreading is the hot path: a table of 12 bits (32 kB, fits in L1) is faster than the steps.
_SPREAD: Final = np.sum([(np.arange(1 << 12) >> bit & 1) << 2 * bit for bit in range(12)], axis=0)


def _spread(bits: IntArray) -> IntArray:
    spread: IntArray = _SPREAD.take(bits & 0xFFF)
    if bits.max(initial=0) > 0xFFF:
        spread |= _SPREAD.take(bits >> 12) << 24
    return spread
