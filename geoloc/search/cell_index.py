"""Search inside chosen cells: the cells of a quadtree are the inverted lists.

    index = CellIndex(quadtree, database.segments)
    candidates = index.search(embedding, [chosen_cells], k=20, sources=["aerial"])

The rows of a cell are slices of the segments (`CellSlices`); nothing is copied. A row belongs
to the cell that `Quadtree.assign` gives it, so a row in an empty leaf is found in the nearest cell, as a photo taken
there is labelled. The only module that imports FAISS.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from geoloc.errors import ConfigError
from geoloc.reference.rows import SOURCES, Source
from geoloc.search.candidates import Candidates
from geoloc.search.cell_slices import CellSlices
from geoloc.search.scan import (
    Best,
    Board,
    BoolArray,
    DeviceBoard,
    DeviceRows,
    FloatArray,
    HostBoard,
    IntArray,
    Rows,
    SegmentRows,
    Slice,
    blocks_of,
    board_width,
    scan,
    search_one,
)
from geoloc.search.structures import (
    EVERYWHERE,
    IN_CELLS,
    CellLists,
    IndexCache,
    Structure,
    WholeIndex,
    check_searches_cells,
    check_structure,
)
from quadtree import Quadtree
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, box_distance_km, validate_latlon_deg

_QUERIES_AT_ONCE: Final = 4096  # larger batches read a cell once for each so many queries
_ALL_LISTS_ENTRIES: Final = 1 << 22  # list numbers handed to FAISS at once when it searches everywhere


class _View(NamedTuple):
    """Rows of some sources."""

    sees_all: bool  # whether every segment has rows of these sources
    offered: list[bool]  # for each segment whether it has rows of these sources
    hidden: list[BoolArray | None]  # for each segment which rows are deleted or of another source, if any


class CellIndex:
    """The rows of a reference database, to be searched cell by cell.

    It reads the segments as they are now: after an append, a delete or a compaction make a new index, which for "exact"
    takes milliseconds. Any number of threads may search at the same time.

    Args:
        quadtree: of the cells, with any root; a row in no cell is found in the nearest one.
        segments: of a `ReferenceDatabase`, or arrays with the names of `SegmentRows`.
        structure: "exact" multiplies the stored vectors themselves. "flat", "fp16", "sq8" and "pq" are
            FAISS's inverted lists with that code for a vector, a copy in memory (4D, 2D, D or about D / 8
            bytes a row) that is built here from the segments. "hnsw" (4D + 512 bytes a row) and "ivfpq" (about D / 8)
            search the whole database only. What FAISS proposes is scored again from the stored vectors.
        device: "cpu", or a torch device such as "cuda", to which "exact" then copies the vectors. FAISS's structures
            but "hnsw" go there if FAISS is built for GPUs, and else stay on the CPU.
        cache: where "hnsw" and "ivfpq" are kept, which take long to build; None keeps them in memory only.

    Raises:
        ConfigError: segments differ in width, or there is no such structure.
    """

    def __init__(
        self,
        quadtree: Quadtree,
        segments: Sequence[SegmentRows],
        *,
        structure: Structure = "exact",
        device: str = "cpu",
        cache: IndexCache | None = None,
    ) -> None:
        self.structure = check_structure(structure)
        is_host = structure != "exact" or device.partition(":")[0] == "cpu"
        self.num_cells = quadtree.num_cells
        filled = [segment for segment in segments if len(segment.row_id)]
        widths = sorted({segment.vectors.shape[1] for segment in filled})
        if len(widths) > 1:
            raise ConfigError(f"all segments must have vectors of one width; found {widths}")
        self._dim = widths[0] if widths else None
        self._rows = Rows(filled)
        self._lists = CellSlices(quadtree, filled)
        self._sources_in = [_sources_in(segment) for segment in filled]
        self._views: dict[frozenset[int], _View] = {}
        self._device_rows = None if is_host or not filled else DeviceRows(self._rows, device)
        self._faiss: CellLists | WholeIndex | None = None
        if filled and structure in IN_CELLS[1:]:
            self._faiss = CellLists(structure, self._rows, self._lists, device)
        elif filled and structure in EVERYWHERE:
            self._faiss = WholeIndex(structure, self._rows, device, cache)

    def num_rows_in(self, cell_ids: ArrayLike) -> IntArray:
        """Number of rows of cells, deleted rows and all sources included, (...) -> (...) int64."""
        counts: IntArray = self._lists.num_rows[np.asarray(cell_ids, dtype=np.int64)]
        return counts

    def search(
        self,
        query: ArrayLike,
        cells: Sequence[ArrayLike],
        k: int,
        sources: Collection[Source] = SOURCES,
    ) -> Candidates:
        """The best k rows of each query among the rows of its cells.

        "exact" returns exactly them, the other structures those that FAISS found. Similarities are always computed from
        the stored vectors, the same bit for bit for every structure, device and batch.

        Args:
            query: (Q, D) float32 embeddings of unit length.
            cells: Q sequences of cell ids of any length; repeated ids count once.
            k: at least 1; a query whose cells hold fewer rows has its candidates padded.
            sources: kinds of references that are searched.

        Raises:
            ConfigError: shapes do not match, a query is not finite, k < 1, no such cell or source exists, or the
                structure searches the whole database only.
        """
        check_searches_cells(self.structure)
        queries, codes = self._checked_query(query, k), _source_codes(tuple(sources))
        if len(cells) != len(queries):
            raise ConfigError(
                f"there are {len(queries)} queries but {len(cells)} sets of cells; "
                "give one (perhaps empty) for each query"
            )
        wanted = [sorted(set(np.asarray(ids, dtype=np.int64).ravel().tolist())) for ids in cells]
        for ids in wanted:
            if ids and not 0 <= ids[0] <= ids[-1] < self.num_cells:
                raise ConfigError(
                    f"cell ids must be in [0, {self.num_cells}); found {ids[0]} to {ids[-1]}; are they of "
                    "another quadtree?"
                )
        if len(queries) <= _QUERIES_AT_ONCE:
            return self._search(queries, wanted, k, codes)
        return _joined(
            self._search(queries[block], wanted[block], k, codes)
            for block in blocks_of(len(queries), _QUERIES_AT_ONCE)
        )

    def search_everywhere(
        self, query: ArrayLike, k: int, sources: Collection[Source] = SOURCES
    ) -> Candidates:
        """The best k rows of each query in the whole database; arguments, result and errors as for `search`."""
        queries, codes = self._checked_query(query, k), _source_codes(tuple(sources))
        step = _QUERIES_AT_ONCE
        if isinstance(self._faiss, CellLists):
            step = max(1, _ALL_LISTS_ENTRIES // (self.num_cells * len(SOURCES)))
        return _joined(
            self._search(queries[block], None, k, codes) for block in blocks_of(max(1, len(queries)), step)
        )

    def _search(
        self, query: FloatArray, cells: list[list[int]] | None, k: int, codes: frozenset[int]
    ) -> Candidates:
        """One block of checked queries and sorted cells; None stands for all cells."""
        if self._dim is None or len(query) == 0:
            return Candidates.nothing(len(query), k)
        if self._faiss is not None:
            best = Best(self._rows, query, k)
            best.offer(*self._faiss.contenders(query, cells, k, sorted(codes)))
            return best.candidates()
        view = self._view(codes)
        if len(query) == 1 and self._device_rows is None:
            pieces = self._lists.everything if cells is None else self._lists.of_cells(cells[0])
            pieces = pieces if view.sees_all else [piece for piece in pieces if view.offered[piece[0]]]
            if not pieces:
                return Candidates.nothing(1, k)
            return search_one(self._rows, query[0], pieces, view.hidden, k)
        if cells is None:
            slices = [Slice(*piece, range(len(query))) for piece in self._lists.everything]
            most_rows = self._rows.num_rows
        else:
            slices, most_rows = self._lists.grouped(cells)
        slices = [piece for piece in slices if view.offered[piece.segment]]
        width = board_width(len(query), most_rows)
        board: Board = (
            HostBoard(self._rows, query, width)
            if self._device_rows is None
            else DeviceBoard(self._device_rows, query, width)
        )
        best = Best(self._rows, query, k)
        scan(board, best, slices, view.hidden, self._rows.first, len(query), k)
        return best.candidates()

    def _view(self, codes: frozenset[int]) -> _View:
        view = self._views.get(codes)
        if view is None:
            offered, hidden = [], []
            for segment, present in zip(self._rows.segments, self._sources_in, strict=True):
                mask = np.asarray(segment.deleted)
                if not present <= codes:
                    mask = mask | ~np.isin(segment.source, sorted(codes))
                offered.append(not present.isdisjoint(codes))
                hidden.append(mask if mask.any() else None)
            # Two threads may both do this, with the same result.
            view = self._views[codes] = _View(all(offered), offered, hidden)
        return view

    def _checked_query(self, query: ArrayLike, k: int) -> FloatArray:
        queries = np.ascontiguousarray(query, dtype=np.float32)
        if queries.ndim != 2 or self._dim not in (None, queries.shape[1]):
            raise ConfigError(
                f"queries must have shape (Q, {'D' if self._dim is None else self._dim}), as the stored "
                f"vectors have; found {queries.shape}"
            )
        if not math.isfinite(np.vdot(queries, queries)):  # one product instead of two passes
            raise ConfigError("a query has values that are not finite; look at the image it was made from")
        if k < 1:
            raise ConfigError(f"k must be at least 1; found {k}")
        return queries


def _sources_in(segment: SegmentRows) -> frozenset[int]:
    return frozenset(code for code in range(len(SOURCES)) if (segment.source == code).any())


@lru_cache
def _source_codes(sources: tuple[Source, ...]) -> frozenset[int]:
    if not sources or not set(sources) <= set(SOURCES):
        raise ConfigError(f"sources must be some of {', '.join(SOURCES)}, in a list; found {sources!r}")
    return frozenset(SOURCES.index(source) for source in sources)


def _joined(found: Iterable[Candidates]) -> Candidates:
    parts = list(found)
    return Candidates(
        np.concatenate([part.row_id for part in parts]),
        np.concatenate([part.similarity for part in parts]),
        np.concatenate([part.latlon_deg for part in parts]),
        np.concatenate([part.source for part in parts]),
    )


def with_border_neighbours(
    quadtree: Quadtree, cell_ids: ArrayLike, point_latlon_deg: ArrayLike, reach_km: float
) -> IntArray:
    """Chosen cells, and their neighbours within reach of the most probable point.

    Args:
        quadtree: of the cells.
        cell_ids: (m,) the chosen cells.
        point_latlon_deg: (2,) the most probable point, in or near one of them.
        reach_km: a neighbour joins when its box is at most this far from the point on the sphere.

    Returns:
        The chosen cells in their order, then the others by distance, ties by id.

    Raises:
        InvalidCoordinateError: the point is not on Earth.
        QuadtreeError: there is no such cell.
    """
    chosen: IntArray = np.asarray(cell_ids, dtype=np.int64)
    point = validate_latlon_deg(point_latlon_deg)
    # A degree of latitude is a degree of great circle, so all cells within reach lie in this band.
    reach_deg = np.degrees(reach_km / EARTH_MEAN_RADIUS_KM) + 1e-9
    is_near = (quadtree.bounds_deg[:, 0] <= point[0] + reach_deg) & (
        quadtree.bounds_deg[:, 2] >= point[0] - reach_deg
    )
    is_near[chosen] = False
    near = np.flatnonzero(is_near)
    distance_km = box_distance_km(point, quadtree.bounds_deg[near])
    near, distance_km = near[distance_km <= reach_km], distance_km[distance_km <= reach_km]
    near = near[np.argsort(distance_km, kind="stable")]
    touches = [bool(np.isin(quadtree.neighbours(cell), chosen).any()) for cell in near.tolist()]
    return np.concatenate([chosen, near[np.array(touches, dtype=np.bool_)]])
