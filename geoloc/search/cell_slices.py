"""Slices of segments that make up each cell of any quadtree.

A row belongs to the cell that `Quadtree.assign` gives it: the cell that contains it, else the nearest one. Rows are
sorted by Morton codes of the whole Earth. In a tree over the whole Earth a cell is one range of codes; in a tree with
another root, such as OSV-5M's, its rows form several runs, which are found by assigning every row.
"""

from collections.abc import Sequence

import numpy as np

from geoloc.search.scan import IntArray, SegmentRows, Slice
from quadtree import Quadtree

_ASSIGNED_ROWS = 1 << 20  # at a time, to bound the memory


class CellSlices:
    """The slices of segments that make up each cell, in the order of cells, then segments, then rows.

    Args:
        quadtree: of the cells, with any root.
        segments: with the rows.

    Attributes:
        cell: (m,) of each slice, ascending.
        segment: (m,) index of its segment.
        start: (m,) its first row there.
        stop: (m,) the row after its last one.
        num_rows: (num_cells,) number of rows of each cell.
        everything: segment, start, stop of slices that hold all rows.
    """

    def __init__(self, quadtree: Quadtree, segments: Sequence[SegmentRows]) -> None:
        pieces = [_cell_slices(quadtree, segment) for segment in segments]
        cell = np.concatenate([np.zeros(0, dtype=np.int64), *(piece[0] for piece in pieces)])
        owner = np.repeat(np.arange(len(pieces)), [len(piece[0]) for piece in pieces])
        start = np.concatenate([cell[:0], *(piece[1] for piece in pieces)])
        stop = np.concatenate([cell[:0], *(piece[2] for piece in pieces)])
        order = np.lexsort((start, owner, cell))
        self.cell, self.segment, self.start, self.stop = cell[order], owner[order], start[order], stop[order]
        self.num_rows = np.bincount(cell, weights=stop - start, minlength=quadtree.num_cells).astype(np.int64)
        # Python's own integers: a query reads them one by one.
        self._first = np.searchsorted(self.cell, np.arange(quadtree.num_cells + 1)).tolist()
        self._pieces = list(zip(self.segment.tolist(), self.start.tolist(), self.stop.tolist(), strict=True))
        self.everything = [(i, 0, len(segment.row_id)) for i, segment in enumerate(segments)]

    def of_cells(self, cells: list[int]) -> list[tuple[int, int, int]]:
        """Segment, start, stop of the slices of some cells."""
        pieces, first = self._pieces, self._first
        return [piece for cell in cells for piece in pieces[first[cell] : first[cell + 1]]]

    def grouped(self, cells: list[list[int]]) -> tuple[list[Slice], int]:
        """Slices with the queries that ask for them, and the largest number of rows of one query."""
        asking: dict[int, list[int]] = {}
        for query, ids in enumerate(cells):
            for cell in ids:
                asking.setdefault(cell, []).append(query)
        slices = [
            Slice(segment, start, stop, asking[cell])
            for cell in sorted(asking)
            for segment, start, stop in self._pieces[self._first[cell] : self._first[cell + 1]]
        ]
        counts = self.num_rows.tolist()
        return slices, max((sum(counts[cell] for cell in ids) for ids in cells), default=0)


def _cell_slices(quadtree: Quadtree, segment: SegmentRows) -> tuple[IntArray, IntArray, IntArray]:
    """Cell, start and stop of slices that hold every row of a segment once, by ascending start."""
    if not quadtree.is_world:
        return _runs(quadtree, segment)
    # As uint64: a search with signed integers would convert, and so read, the whole column.
    bounds = np.searchsorted(segment.morton, quadtree.morton_ranges.astype(np.uint64))
    cell, (start, stop) = np.arange(quadtree.num_cells), bounds.T
    # Between the ranges lie the rows in empty leaves; neighbours on the curve mostly share a nearest cell.
    gaps = np.stack([np.append(0, stop), np.append(start, len(segment.morton))], axis=1)
    gaps = gaps[gaps[:, 0] < gaps[:, 1]]
    if len(gaps):
        rows = np.concatenate([np.arange(first, end) for first, end in gaps.tolist()])
        nearest = quadtree.assign(np.asarray(segment.latlon_deg)[rows])
        is_first = (np.diff(nearest, prepend=-1) != 0) | (np.diff(rows, prepend=-1) != 1)
        first = np.flatnonzero(is_first)
        length = np.diff(np.append(first, len(rows)))
        cell = np.concatenate([cell, nearest[first]])
        start, stop = np.concatenate([start, rows[first]]), np.concatenate([stop, rows[first] + length])
    order = np.argsort(start, kind="stable")
    order = order[start[order] < stop[order]]
    cell, start, stop = cell[order], start[order], stop[order]
    # Slices of one cell that follow each other without a gap become one.
    is_first = np.diff(cell, prepend=-1) != 0
    return cell[is_first], start[is_first], np.append(start[is_first][1:], len(segment.morton))


def _runs(quadtree: Quadtree, segment: SegmentRows) -> tuple[IntArray, IntArray, IntArray]:
    """As `_cell_slices`, by assigning every row; neighbours on the Z-order curve mostly share a cell."""
    num_rows = len(segment.row_id)
    latlon_deg = np.asarray(segment.latlon_deg)
    parts = [
        quadtree.assign(latlon_deg[start : start + _ASSIGNED_ROWS])
        for start in range(0, num_rows, _ASSIGNED_ROWS)
    ]
    cell = np.concatenate([np.zeros(0, np.int64), *parts])
    start = np.flatnonzero(np.diff(cell, prepend=-1) != 0)
    return cell[start], start, np.append(start[1:], num_rows)[: len(start)]
