"""Exact search of one query or of many."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from geoloc.search.candidates import Candidates
from geoloc.search.scan.best import LEAST_SCORE, NO_SCORE, Best, floor_of_best
from geoloc.search.scan.boards import Board
from geoloc.search.scan.rows import BoolArray, FloatArray, Rows, Slice

_SLICE_ROWS: Final = 2048  # read at once; several queries find them in the cache again


def search_one(
    rows: Rows,
    query: FloatArray,
    slices: Sequence[tuple[int, int, int]],
    hidden: Sequence[BoolArray | None],
    k: int,
) -> Candidates:
    """The result of `scan` for a single query (D,), without the bookkeeping for many.

    The products with a few cells take a few hundred microseconds, which that bookkeeping would double.

    Args:
        rows: that slices refer to.
        query: float32.
        slices: segment, start, stop; disjoint.
        hidden: for each segment (n,) True for rows to leave out, or None.
        k: number of rows wanted.
    """
    scores = np.empty(sum([stop - start for _, start, stop in slices]), dtype=np.float32)
    ends, origins, end = [], [], 0
    for segment, start, stop in slices:
        score = scores[end : end + stop - start]
        rows.write_similarity(segment, start, stop, query, score)
        if (mask := hidden[segment]) is not None:
            score[mask[start:stop]] = NO_SCORE
        origins.append(rows.first[segment] + start - end)
        end += stop - start
        ends.append(end)
    (column,) = (scores >= max(LEAST_SCORE, floor_of_best(scores, k))).nonzero()
    similarity = scores[column]
    position = np.array([origins[bisect_right(ends, place)] + place for place in column.tolist()], np.int64)
    row_id = rows.take("row_id", position)
    order = np.lexsort((row_id, -similarity))[:k]
    position = position[order]
    latlon_deg, source = rows.take("latlon_deg", position), rows.take("source", position)
    found = Candidates(row_id[None, order], similarity[None, order], latlon_deg[None], source[None])
    return found if len(order) == k else found.padded(k)


def scan(
    board: Board,
    best: Best,
    slices: Iterable[Slice],
    hidden: Sequence[BoolArray | None],
    first: Sequence[int],
    num_queries: int,
    k: int,
) -> None:
    """Offer to `best` the rows of the slices that may be among the best k.

    Args:
        board: collects scores; when it is full, its contenders are offered and it is cleared.
        best: receives positions.
        slices: disjoint.
        hidden: for each segment (n,) True for rows to leave out, or None.
        first: position of each segment's first row.
        num_queries: Q.
        k: number of rows wanted.
    """
    width = board.width
    step = min(width, _SLICE_ROWS)
    filled = [0] * num_queries
    places: list[int] = []  # query * width + column, where a piece of a slice begins on the board
    positions: list[int] = []  # and the position of its first row

    def offer() -> None:
        query_idx, column = board.contenders(k, best.floor, filled)
        starts, origins = np.array(places), np.array(positions)
        order = np.argsort(starts)
        starts, origins = starts[order], origins[order]
        place = query_idx * width + column
        written = np.searchsorted(starts, place, side="right") - 1
        best.offer(query_idx, origins[written] + place - starts[written])

    for segment, slice_start, slice_stop, queries in slices:
        mask = hidden[segment]
        for start in range(slice_start, slice_stop, step):
            stop = min(start + step, slice_stop)
            if mask is not None and mask[start:stop].all():
                continue
            columns = [filled[query] for query in queries]
            if max(columns) + stop - start > width:
                offer()
                filled, places, positions = [0] * num_queries, [], []
                columns = [0] * len(queries)
            piece = Slice(segment, start, stop, queries)
            board.write(piece, columns, None if mask is None else mask[start:stop])
            for query, column in zip(queries, columns, strict=True):
                filled[query] = column + stop - start
                places.append(query * width + column)
                positions.append(first[segment] + start)
    if places:
        offer()
