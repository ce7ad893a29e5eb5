"""Rows of all segments under one numbering, their slices, and their similarity to a query."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_WIDENED_ROWS: Final = 128  # float16 and int8 rows at a time: their float32 copies stay in the L2 cache


class SegmentRows(Protocol):
    """Arrays of a segment that a search reads: n rows of D dimensions; they may be memory-mapped."""

    @property
    def latlon_deg(self) -> NDArray[np.float64]:
        """(n, 2) positions."""

    @property
    def morton(self) -> NDArray[np.uint64]:
        """(n,) Z-order codes of depth 24 in the world root, ascending."""

    @property
    def source(self) -> NDArray[np.uint8]:
        """(n,) 0 aerial, 1 street, 2 location."""

    @property
    def row_id(self) -> NDArray[np.int64]:
        """(n,) non-negative, unique in the database."""

    @property
    def deleted(self) -> BoolArray:
        """(n,) True where a tombstone hides the row."""

    @property
    def vectors(self) -> NDArray[Any]:
        """(n, D) float32, float16 or int8, C-contiguous, finite, of unit length up to rounding."""

    @property
    def scales(self) -> FloatArray | None:
        """(n,) factors of int8 rows, None for other types."""


class Slice(NamedTuple):
    """Rows [start, stop) of a segment, and the numbers of the queries that ask for them."""

    segment: int
    start: int
    stop: int
    queries: Sequence[int]


class Rows:
    """All rows of all segments under one numbering: the *position* counts through the segments.

    Args:
        segments: at least one, all of the same D.
    """

    def __init__(self, segments: Sequence[SegmentRows]) -> None:
        self.segments = segments
        self.first: list[int] = np.cumsum([0, *(len(segment.row_id) for segment in segments)]).tolist()
        # Plain arrays: a slice of np.memmap costs microseconds more, and one query reads many slices.
        self.vectors = [np.asarray(segment.vectors) for segment in segments]
        self.scales = [None if segment.scales is None else np.asarray(segment.scales) for segment in segments]
        self._columns = {
            name: [np.asarray(getattr(segment, name)) for segment in segments]
            for name in ("row_id", "latlon_deg", "source")
        }

    @property
    def num_rows(self) -> int:
        """Total over all segments."""
        return self.first[-1]

    def take(self, name: str, position: IntArray) -> NDArray[Any]:
        """`row_id`, `latlon_deg` or `source` at positions, (m,) -> (m, ...)."""
        columns = self._columns[name]
        if len(columns) == 1:
            taken: NDArray[Any] = columns[0].take(position, axis=0)
            return taken
        values = np.empty((len(position), *columns[0].shape[1:]), dtype=columns[0].dtype)
        for segment, chosen, row in self._by_segment(position):
            values[chosen] = columns[segment][row]
        return values

    def widened(self, segment: int, row: IntArray) -> FloatArray:
        """Vectors of rows of a segment as float32, (m,) -> (m, D)."""
        wide: FloatArray = self.vectors[segment][row].astype(np.float32)
        scales = self.scales[segment]
        return wide if scales is None else wide * scales[row, None]

    def similarity(self, query: FloatArray, position: IntArray) -> FloatArray:
        """Similarity of m queries to a row each, (m, D), (m,) -> (m,)."""
        if len(self.segments) == 1:
            return self._similarity(query, 0, position)
        similarity = np.empty(len(position), dtype=np.float32)
        for segment, chosen, row in self._by_segment(position):
            similarity[chosen] = self._similarity(query[chosen], segment, row)
        return similarity

    def _similarity(self, query: FloatArray, segment: int, row: IntArray) -> FloatArray:
        similarity: FloatArray = np.vecdot(self.vectors[segment][row].astype(np.float32, copy=False), query)
        scales = self.scales[segment]
        return similarity if scales is None else similarity * scales[row]

    def write_similarity(
        self, segment: int, start: int, stop: int, query: FloatArray, similarity: FloatArray
    ) -> None:
        """Similarity of one query (D,) to rows [start, stop) of a segment, into (stop - start,)."""
        vectors = self.vectors[segment][start:stop]
        if vectors.dtype == np.float32:
            np.vecdot(vectors, query, out=similarity)
            return
        for block, wide in widened_blocks(vectors):
            np.vecdot(wide, query, out=similarity[block])
        if (scales := self.scales[segment]) is not None:
            similarity *= scales[start:stop]

    def _by_segment(self, position: IntArray) -> Iterable[tuple[int, IntArray, IntArray]]:
        """Segments that hold positions: number of the segment, which of the positions, their rows in it."""
        owner = np.searchsorted(self.first, position, side="right") - 1
        for segment in np.unique(owner).tolist():
            chosen = np.flatnonzero(owner == segment)
            yield segment, chosen, position[chosen] - self.first[segment]


def blocks_of(length: int, step: int) -> Iterator[slice]:
    """Slices of at most `step` that cover [0, length)."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def widened_blocks(narrow: NDArray[Any]) -> Iterator[tuple[slice, FloatArray]]:
    """Rows of each block and their float32 copies, which the next block overwrites."""
    buffer = np.empty((min(len(narrow), _WIDENED_ROWS), narrow.shape[1]), dtype=np.float32)
    for start in range(0, len(narrow), _WIDENED_ROWS):
        block = slice(start, start + _WIDENED_ROWS)
        yield block, widen(narrow[block], buffer)


def widen(narrow: NDArray[Any], buffer: FloatArray) -> FloatArray:
    """Float16 or int8 rows as float32, (n, D) -> (n, D), at the beginning of a buffer (n or more, D)."""
    wide = buffer[: len(narrow)]
    if narrow.dtype != np.float16:
        np.copyto(wide, narrow)
        return wide
    # NumPy's own conversion takes ten times as long. Moved to their places in a float32, the bits of a finite
    # half mean its value times 2^(15 - 127), subnormal or not.
    bits = wide.view(np.int32)
    np.copyto(bits, narrow.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70002000), out=bits)  # sign, five bits of exponent, ten of mantissa
    np.multiply(wide, np.float32(2.0**112), out=wide)
    return wide
