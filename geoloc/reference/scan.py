"""Exact search in slices of rows: every slice is read once for all queries that ask for it.

The similarity of a query and a row is one call of BLAS's sdot, so it is the same bit for bit in whatever
company it is computed. A batch is multiplied with a slice by faster products, which are off in the last bits,
each shape of them differently; whatever may belong to the best k in spite of that gets its similarity before
the best are chosen. So results do not depend on batches, slices or devices.

Knows segments as arrays and slices of them; knows nothing about cells, files or FAISS.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from geoloc.reference.candidates import NO_ROW, Candidates

if TYPE_CHECKING:
    import torch

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_BOARD_SCORES: Final = 1 << 24  # 64 MB, however many queries and rows
_SLICE_ROWS: Final = 2048  # read at once; several queries find them in the cache again
_WIDENED_ROWS: Final = 128  # float16 and int8 rows at a time: their float32 copies stay in the L2 cache
_GEMM_QUERIES: Final = 9  # from here on OpenBLAS's matrix product beats a dot product for each row and query
_FLOOR_OF: Final = 16  # scores that are looked at together for a first floor
_GATHERED_ROWS: Final = 128  # at a time, in cache
_COPIED_ROWS: Final = 1 << 16  # to a device at a time
_NO_SCORE: Final = np.float32(-np.inf)
_LEAST_SCORE: Final = float(np.finfo(np.float32).min)  # the least that is a score


class SegmentRows(Protocol):
    """What a search reads of a segment of n rows with D dimensions; arrays may be memory-mapped."""

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
    """Rows [start, stop) of a segment, and the queries (their numbers) that want them."""

    segment: int
    start: int
    stop: int
    queries: Sequence[int]


class Rows:
    """All rows of all segments under one numbering: the *position* counts through the segments.

    Args:
        segments: all with the same D; at least one, to take values from.
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
        """Of all segments together."""
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
        buffer = np.empty((min(len(vectors), _WIDENED_ROWS), vectors.shape[1]), dtype=np.float32)
        for begin in range(0, len(vectors), _WIDENED_ROWS):
            narrow = vectors[begin : begin + _WIDENED_ROWS]
            wide = widen(narrow, buffer)
            np.vecdot(wide, query, out=similarity[begin : begin + _WIDENED_ROWS])
        if (scales := self.scales[segment]) is not None:
            similarity *= scales[start:stop]

    def _by_segment(self, position: IntArray) -> Iterable[tuple[int, IntArray, IntArray]]:
        """Segments that hold positions: number, which of the positions, their rows in it."""
        owner = np.searchsorted(self.first, position, side="right") - 1
        for segment in np.unique(owner).tolist():
            chosen = np.flatnonzero(owner == segment)
            yield segment, chosen, position[chosen] - self.first[segment]


class Best:
    """The best k rows of each query among those offered so far, by similarity, ties by row id.

    Args:
        rows: where positions point to.
        query: (Q, D) float32.
        k: how many to keep.
    """

    def __init__(self, rows: Rows, query: FloatArray, k: int) -> None:
        self._rows, self._query, self._k = rows, query, k
        self._position = np.full((len(query), k), -1)
        self._row_id = np.full((len(query), k), NO_ROW)
        self._similarity = np.full((len(query), k), _NO_SCORE)
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


def search_one(
    rows: Rows,
    query: FloatArray,
    slices: Sequence[tuple[int, int, int]],
    hidden: Sequence[BoolArray | None],
    k: int,
) -> Candidates:
    """What `scan` finds for a single query (D,), without the bookkeeping for many.

    The products with a few cells take a few hundred microseconds, which that bookkeeping would double.

    Args:
        rows: what slices refer to.
        query: float32.
        slices: segment, start, stop; disjoint.
        hidden: for each segment (n,) True for rows to leave out, or None.
        k: how many are wanted.
    """
    scores = np.empty(sum([stop - start for _, start, stop in slices]), dtype=np.float32)
    ends, origins, end = [], [], 0
    for segment, start, stop in slices:
        score = scores[end : end + stop - start]
        rows.write_similarity(segment, start, stop, query, score)
        if (mask := hidden[segment]) is not None:
            score[mask[start:stop]] = _NO_SCORE
        origins.append(rows.first[segment] + start - end)
        end += stop - start
        ends.append(end)
    (column,) = (scores >= max(_LEAST_SCORE, _floor_of_best(scores, k))).nonzero()
    similarity = scores[column]
    position = np.array([origins[bisect_right(ends, place)] + place for place in column.tolist()], np.int64)
    row_id = rows.take("row_id", position)
    order = np.lexsort((row_id, -similarity))[:k]
    position = position[order]
    latlon_deg, source = rows.take("latlon_deg", position), rows.take("source", position)
    found = Candidates(row_id[None, order], similarity[None, order], latlon_deg[None], source[None])
    return found if len(order) == k else found.padded(k)


def _floor_of_best(scores: FloatArray, k: int) -> float:
    """A score that at least k of them reach, and not many more; -inf where there are no more than k."""
    if len(scores) <= k:
        return -np.inf
    width = len(scores) // _FLOOR_OF
    if width < k:
        return float(np.partition(scores, -k)[-k])
    # The k-th best of the best of each sixteen: to partition them all takes longer than all the rest.
    best = scores[: width * _FLOOR_OF].reshape(_FLOOR_OF, width).max(axis=0)
    best.partition(width - k)
    return float(best[width - k])


class Board(Protocol):
    """Float32 scores of Q queries, each with its own rows from the left, `_NO_SCORE` where there is none."""

    width: int

    def write(
        self,
        segment: int,
        start: int,
        stop: int,
        queries: Sequence[int],
        columns: Sequence[int],
        hidden: BoolArray | None,
    ) -> None:
        """Score rows [start, stop) of a segment for queries, from a column on; `hidden` rows get no score."""

    def contenders(self, k: int, floor: FloatArray, filled: Sequence[int]) -> tuple[IntArray, IntArray]:
        """Query and column of all that may be among the best k or reach the floor; wipes the board.

        Args:
            k: how many are wanted.
            floor: (Q,) below which nothing counts.
            filled: Q numbers of columns that were written.
        """


def scan(
    board: Board,
    best: Best,
    slices: Iterable[Slice],
    hidden: Sequence[BoolArray | None],
    first: Sequence[int],
    num_queries: int,
    k: int,
) -> None:
    """Offer to `best` what may be among the best k rows of the slices.

    Args:
        board: where scores are collected; when it is full, its contenders are offered and it is wiped.
        best: receives positions.
        slices: disjoint.
        hidden: for each segment (n,) True for rows to leave out, or None.
        first: position of each segment's first row.
        num_queries: Q.
        k: how many are wanted.
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
        piece = np.searchsorted(starts, place, side="right") - 1
        best.offer(query_idx, origins[piece] + place - starts[piece])

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
            board.write(segment, start, stop, queries, columns, None if mask is None else mask[start:stop])
            for query, column in zip(queries, columns, strict=True):
                filled[query] = column + stop - start
                places.append(query * width + column)
                positions.append(first[segment] + start)
    if places:
        offer()


def board_width(num_queries: int, most_rows: int) -> int:
    """Columns that a board of this many queries needs, at most `_BOARD_SCORES` scores in all."""
    return max(1, min(most_rows, _BOARD_SCORES // num_queries))


def _rounding_band(query: FloatArray) -> FloatArray:
    """(Q,) by how much a score may miss the k-th best score and still belong to the best k similarities.

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
        rows: what slices refer to.
        query: (Q, D) float32.
        width: columns.
    """

    def __init__(self, rows: Rows, query: FloatArray, width: int) -> None:
        self.width = width
        self._rows, self._query = rows, query
        self._band = _rounding_band(query)
        self._scores = np.full((len(query), width), _NO_SCORE)

    def write(
        self,
        segment: int,
        start: int,
        stop: int,
        queries: Sequence[int],
        columns: Sequence[int],
        hidden: BoolArray | None,
    ) -> None:
        """As `Board.write`."""
        num_rows = stop - start
        scores = [
            self._scores[query, column : column + num_rows]
            for query, column in zip(queries, columns, strict=True)
        ]
        if len(scores) == 1:
            self._rows.write_similarity(segment, start, stop, self._query[queries[0]], scores[0])
        else:
            self._multiply(segment, start, stop, queries, scores)
        if hidden is not None:
            for score in scores:
                score[hidden] = _NO_SCORE

    def _multiply(
        self, segment: int, start: int, stop: int, queries: Sequence[int], scores: list[FloatArray]
    ) -> None:
        vectors = self._rows.vectors[segment][start:stop]
        if vectors.dtype == np.float32:
            self._multiply_float32(vectors, queries, scores)
            return
        buffer = np.empty((min(len(vectors), _WIDENED_ROWS), vectors.shape[1]), dtype=np.float32)
        for begin in range(0, len(vectors), _WIDENED_ROWS):
            wide = widen(vectors[begin : begin + _WIDENED_ROWS], buffer)
            self._multiply_float32(wide, queries, [score[begin : begin + len(wide)] for score in scores])
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
            least = max(floor[query], _floor_of_best(scores, k))
            columns.append((scores >= max(least - self._band[query], _LEAST_SCORE)).nonzero()[0])
            scores.fill(_NO_SCORE)
        return np.repeat(np.arange(len(columns)), [len(found) for found in columns]), np.concatenate(columns)


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


class DeviceRows:
    """The vectors of all rows, copied to a torch device once.

    Args:
        rows: what to copy.
        device: such as "cuda".
    """

    def __init__(self, rows: Rows, device: str) -> None:
        import torch

        self.device = torch.device(device)
        self.vectors = [self._copied(vectors) for vectors in rows.vectors]
        self.scales = [None if scales is None else self._copied(scales) for scales in rows.scales]

    def _copied(self, values: NDArray[Any]) -> "torch.Tensor":
        import torch

        # Block by block, each copied first: torch cannot express that a memory map is read-only.
        dtype = torch.from_numpy(values[:0].copy()).dtype
        copied = torch.empty(values.shape, dtype=dtype, device=self.device)
        for start in range(0, len(values), _COPIED_ROWS):
            block = slice(start, start + _COPIED_ROWS)
            copied[block] = torch.from_numpy(values[block].copy())
        return copied


class DeviceBoard:
    """Scores computed by torch on the device that holds the rows.

    float32 products must be float32 there: `torch.set_float32_matmul_precision("highest")`, the default.

    Args:
        rows: what slices refer to.
        query: (Q, D) float32.
        width: columns.
    """

    def __init__(self, rows: DeviceRows, query: FloatArray, width: int) -> None:
        import torch

        self.width = width
        self._rows = rows
        self._query = torch.from_numpy(query.copy()).to(rows.device)
        self._band = torch.from_numpy(_rounding_band(query)).to(rows.device)
        self._scores = torch.full((len(query), width), float("-inf"), device=rows.device)

    def write(
        self,
        segment: int,
        start: int,
        stop: int,
        queries: Sequence[int],
        columns: Sequence[int],
        hidden: BoolArray | None,
    ) -> None:
        """As `Board.write`."""
        import torch

        vectors, scales = self._rows.vectors[segment][start:stop], self._rows.scales[segment]
        product = self._query[list(queries)] @ vectors.to(torch.float32).T
        if scales is not None:
            product *= scales[start:stop]
        if hidden is not None:
            product[:, torch.from_numpy(hidden.copy()).to(product.device)] = float("-inf")
        for query, column, scores in zip(queries, columns, product, strict=True):
            self._scores[query, column : column + stop - start] = scores

    def contenders(self, k: int, floor: FloatArray, filled: Sequence[int]) -> tuple[IntArray, IntArray]:
        """As `Board.contenders`."""
        import torch

        num_columns = max(filled)
        scores = self._scores[:, :num_columns]
        least = torch.from_numpy(floor.copy()).to(scores.device)
        if num_columns > k:
            least = torch.maximum(least, torch.topk(scores, k, dim=1, sorted=True).values[:, -1])
        least = (least - self._band).clamp(min=torch.finfo(torch.float32).min)
        query_idx, column = (scores >= least[:, None]).nonzero(as_tuple=True)
        scores.fill_(float("-inf"))
        return query_idx.cpu().numpy(), column.cpu().numpy()
