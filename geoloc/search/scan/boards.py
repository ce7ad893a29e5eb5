"""Boards: arrays that collect the scores of many queries until the best are taken."""

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np

from geoloc.search.scan.best import LEAST_SCORE, NO_SCORE, floor_of_best
from geoloc.search.scan.rows import BoolArray, FloatArray, IntArray, Rows, Slice, widened_blocks

_BOARD_SCORES: Final = 1 << 24  # 64 MB, however many queries and rows
_GEMM_QUERIES: Final = 9  # from here on OpenBLAS's matrix product beats a dot product for each row and query


class Board(Protocol):
    """Float32 scores of Q queries, each with its own rows from the left, `NO_SCORE` where there is none."""

    width: int

    def write(self, piece: Slice, columns: Sequence[int], hidden: BoolArray | None) -> None:
        """Score the rows of a slice for each of its queries, from its column on; `hidden` rows get no score."""

    def contenders(self, k: int, floor: FloatArray, filled: Sequence[int]) -> tuple[IntArray, IntArray]:
        """Query and column of all scores that may be among the best k or reach the floor; clears the board.

        Args:
            k: number of rows wanted.
            floor: (Q,) least score that counts.
            filled: Q numbers of written columns.
        """


def board_width(num_queries: int, most_rows: int) -> int:
    """Columns that a board of this many queries needs, at most `_BOARD_SCORES` scores in all."""
    return max(1, min(most_rows, _BOARD_SCORES // num_queries))


def rounding_band(query: FloatArray) -> FloatArray:
    """(Q,) how far below the k-th best score a row may be and still belong to the best k similarities.

    Scores and similarities are sums of D products in different orders, and each errs by at most
    e = D 2^-24 |query| |row| (N. Higham, Accuracy and Stability of Numerical Algorithms, 3.1), so the two
    differ by 2e. The k-th best similarity is at least the k-th best score less 2e, and the score of
    what reaches it at least another 2e less. The bound is generous: real errors grow with the root of D.
    """
    band: FloatArray = np.sqrt(np.vecdot(query, query)) * np.float32(4 * query.shape[1] * 2.0**-24)
    return band


class HostBoard:
    """Scores computed by NumPy straight from (memory-mapped) rows.

    Args:
        rows: that slices refer to.
        query: (Q, D) float32.
        width: columns.
    """

    def __init__(self, rows: Rows, query: FloatArray, width: int) -> None:
        self.width = width
        self._rows, self._query = rows, query
        self._band = rounding_band(query)
        self._scores = np.full((len(query), width), NO_SCORE)

    def write(self, piece: Slice, columns: Sequence[int], hidden: BoolArray | None) -> None:
        """As `Board.write`."""
        segment, start, stop, queries = piece
        num_rows = stop - start
        scores = [
            self._scores[query, column : column + num_rows]
            for query, column in zip(queries, columns, strict=True)
        ]
        if len(scores) == 1:
            self._rows.write_similarity(segment, start, stop, self._query[queries[0]], scores[0])
        else:
            self._multiply(piece, scores)
        if hidden is not None:
            for score in scores:
                score[hidden] = NO_SCORE

    def _multiply(self, piece: Slice, scores: list[FloatArray]) -> None:
        segment, start, stop, queries = piece
        vectors = self._rows.vectors[segment][start:stop]
        if vectors.dtype == np.float32:
            self._multiply_float32(vectors, queries, scores)
            return
        for block, wide in widened_blocks(vectors):
            self._multiply_float32(wide, queries, [score[block] for score in scores])
        scales = self._rows.scales[segment]
        if scales is not None:
            for score in scores:
                score *= scales[start:stop]

    def _multiply_float32(
        self, vectors: FloatArray, queries: Sequence[int], scores: list[FloatArray]
    ) -> None:
        if len(queries) < _GEMM_QUERIES:
            # Not as a matrix-vector product: OpenBLAS's reads at half the speed of its dot product.
            for query, score in zip(queries, scores, strict=True):
                np.vecdot(vectors, self._query[query], out=score)
        else:
            # The rows first: the other way round the small products take up to twice as long.
            for score, product in zip(scores, (vectors @ self._query[queries].T).T, strict=True):
                score[:] = product

    def contenders(self, k: int, floor: FloatArray, filled: Sequence[int]) -> tuple[IntArray, IntArray]:
        """As `Board.contenders`."""
        columns = []
        for query, num_columns in enumerate(filled):
            scores = self._scores[query, :num_columns]
            least = max(floor[query], floor_of_best(scores, k))
            columns.append((scores >= max(least - self._band[query], LEAST_SCORE)).nonzero()[0])
            scores.fill(NO_SCORE)
        return np.repeat(np.arange(len(columns)), [len(found) for found in columns]), np.concatenate(columns)
