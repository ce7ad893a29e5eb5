"""The best rows so far, and the least score that belongs to them."""

from typing import Final

import numpy as np

from geoloc.search.candidates import NO_ROW, Candidates
from geoloc.search.scan.rows import FloatArray, IntArray, Rows

NO_SCORE: Final = np.float32(-np.inf)
LEAST_SCORE: Final = float(np.finfo(np.float32).min)  # the least score

_FLOOR_OF: Final = 16  # scores that are looked at together for a first floor
_GATHERED_ROWS: Final = 128  # at a time, in cache


class Best:
    """The best k rows of each query among those offered so far, by similarity, ties by row id.

    Args:
        rows: that positions refer to.
        query: (Q, D) float32.
        k: number of rows to keep.
    """

    def __init__(self, rows: Rows, query: FloatArray, k: int) -> None:
        self._rows, self._query, self._k = rows, query, k
        self._position = np.full((len(query), k), -1)
        self._row_id = np.full((len(query), k), NO_ROW)
        self._similarity = np.full((len(query), k), NO_SCORE)
        self._is_empty = True

    @property
    def floor(self) -> FloatArray:
        """(Q,) the similarity that a further row has to reach; -inf while there are fewer than k."""
        return self._similarity[:, -1]

    def offer(self, query_idx: IntArray, position: IntArray) -> None:
        """Consider rows for queries, (m,) and (m,); no pair may be offered twice."""
        similarity = np.empty(len(position), dtype=np.float32)
        for start in range(0, len(position), _GATHERED_ROWS):
            block = slice(start, start + _GATHERED_ROWS)
            similarity[block] = self._rows.similarity(self._query[query_idx[block]], position[block])
        row_id = self._rows.take("row_id", position)
        if not self._is_empty:
            held, rank = np.nonzero(self._position >= 0)
            query_idx = np.concatenate((query_idx, held))
            position = np.concatenate((position, self._position[held, rank]))
            similarity = np.concatenate((similarity, self._similarity[held, rank]))
            row_id = np.concatenate((row_id, self._row_id[held, rank]))
        self._is_empty = False
        order = np.lexsort((row_id, -similarity, query_idx))
        query_idx = query_idx[order]
        rank = np.arange(len(order)) - np.searchsorted(query_idx, np.arange(len(self._query)))[query_idx]
        is_best = rank < self._k
        order, place = order[is_best], (query_idx[is_best], rank[is_best])
        self._position[place] = position[order]
        self._similarity[place] = similarity[order]
        self._row_id[place] = row_id[order]

    def candidates(self) -> Candidates:
        """The result."""
        found = Candidates.nothing(*self._position.shape)
        is_present = self._position >= 0
        position = self._position[is_present]
        found.latlon_deg[is_present] = self._rows.take("latlon_deg", position)
        found.source[is_present] = self._rows.take("source", position)
        return Candidates(self._row_id, self._similarity, found.latlon_deg, found.source)


def floor_of_best(scores: FloatArray, k: int) -> float:
    """A score that at least k of the scores reach, and not many more; -inf where there are no more than k."""
    if len(scores) <= k:
        return -np.inf
    width = len(scores) // _FLOOR_OF
    if width < k:
        return float(np.partition(scores, -k)[-k])
    # The k-th best of the best of each sixteen: to partition them all takes longer than all the rest.
    best = scores[: width * _FLOOR_OF].reshape(_FLOOR_OF, width).max(axis=0)
    best.partition(width - k)
    return float(best[width - k])
