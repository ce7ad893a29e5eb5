"""FAISS's inverted lists with the cells of a quadtree as lists."""

from typing import Any, Final

import numpy as np

from geoloc.reference.rows import SOURCES
from geoloc.search.cell_slices import CellSlices
from geoloc.search.scan import FloatArray, IntArray, Rows, blocks_of
from geoloc.search.structures.gpu import MAX_GPU_ASKED, MAX_GPU_LISTS, on_device
from geoloc.search.structures.training import pq_bytes, sample_of

# Rows that FAISS proposes for each one that is wanted; they are scored again from the stored vectors.
_OVERSAMPLING: Final = {"flat": 2, "fp16": 2, "sq8": 4, "pq": 32}
_TRAINING_ROWS: Final = 1 << 16
_ADDED_ROWS: Final = 1 << 14  # at a time, as float32


class CellLists:
    """FAISS's inverted lists, one for each source and cell: number source * num_cells + cell.

    Deleted rows are not in them. Ids are positions in `Rows`.

    Args:
        structure: "flat", "fp16", "sq8" or "pq".
        rows: of the database.
        lists: which of them are in which cell.
        device: "cpu", or a torch device, see `on_device`.
    """

    def __init__(self, structure: str, rows: Rows, lists: CellSlices, device: str = "cpu") -> None:
        import faiss

        dim = rows.vectors[0].shape[1]
        self._num_cells = len(lists.num_rows)
        self._oversampling = _OVERSAMPLING[structure]
        num_lists = self._num_cells * len(SOURCES)
        self._quantizer = faiss.IndexFlatIP(dim)  # stays empty: the lists are given
        arguments = (self._quantizer, dim, num_lists)
        self._index: Any  # FAISS's type hints lack half of what is used here
        if structure == "flat":
            self._index = faiss.IndexIVFFlat(*arguments, faiss.METRIC_INNER_PRODUCT)
        elif structure == "pq":
            num_bytes = pq_bytes(dim)
            self._index = faiss.IndexIVFPQ(*arguments, num_bytes, 8, faiss.METRIC_INNER_PRODUCT)
            self._index.by_residual = False
            self._index.pq.cp.min_points_per_centroid = 1
            # k-means needs 256 points; a smaller database repeats its rows.
            sample = sample_of(rows, _TRAINING_ROWS)
            self._index.pq.train(np.resize(sample, (max(len(sample), 256), dim)))
        else:
            code = faiss.ScalarQuantizer.QT_fp16 if structure == "fp16" else faiss.ScalarQuantizer.QT_8bit
            self._index = faiss.IndexIVFScalarQuantizer(*arguments, code, faiss.METRIC_INNER_PRODUCT, False)
            self._index.sq.train(sample_of(rows, _TRAINING_ROWS))
        self._index.is_trained = True
        for segment in range(len(rows.segments)):
            self._add(rows, lists, segment)
        self._gpu = on_device(self._index, device)

    def _add(self, rows: Rows, lists: CellSlices, segment: int) -> None:
        import faiss

        columns = rows.segments[segment]
        mine = np.flatnonzero(lists.segment == segment)
        mine = mine[np.argsort(lists.start[mine])]  # they cover the segment
        cell = np.repeat(lists.cell[mine], lists.stop[mine] - lists.start[mine])
        for block in blocks_of(len(cell), _ADDED_ROWS):
            alive = np.flatnonzero(~columns.deleted[block]) + block.start
            if len(alive) == 0:
                continue
            # Raw pointers keep no array alive: each needs a name until the call is over.
            list_ids = columns.source[alive].astype(np.int64) * self._num_cells + cell[alive]
            positions = alive + rows.first[segment]
            vectors = rows.widened(segment, alive)
            self._index.add_core(
                len(alive), faiss.swig_ptr(vectors), faiss.swig_ptr(positions), faiss.swig_ptr(list_ids)
            )

    def contenders(
        self, query: FloatArray, cells: list[list[int]] | None, k: int, codes: list[int]
    ) -> tuple[IntArray, IntArray]:
        """Query and position of the rows that FAISS proposes in the cells; None searches all cells."""
        if cells is None:
            every = np.concatenate([np.arange(self._num_cells) + code * self._num_cells for code in codes])
            list_ids = np.tile(every, (len(query), 1))
        else:
            width = max(len(ids) for ids in cells)
            list_ids = np.full((len(query), len(codes), width), -1)
            for chosen, ids in zip(list_ids, cells, strict=True):
                chosen[:, : len(ids)] = ids
            list_ids += np.where(list_ids >= 0, np.array(codes)[:, None] * self._num_cells, 0)
            list_ids = list_ids.reshape(len(query), -1)
        num_asked = min(k * self._oversampling, int(self._index.ntotal))
        if list_ids.shape[1] == 0 or num_asked == 0:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        if self._gpu is None:
            positions = self._search(self._index, query, list_ids, num_asked)
        else:
            with self._gpu as index:
                parts = [
                    self._search(
                        index, query, np.ascontiguousarray(list_ids[:, block]), min(num_asked, MAX_GPU_ASKED)
                    )
                    for block in blocks_of(list_ids.shape[1], MAX_GPU_LISTS)
                ]
            positions = np.concatenate(parts, axis=1)
        query_idx, rank = np.nonzero(positions >= 0)
        return query_idx, positions[query_idx, rank]

    def _search(self, index: Any, query: FloatArray, list_ids: IntArray, num_asked: int) -> IntArray:
        """Positions (Q, num_asked) of the best rows in the given lists, (Q, m); -1 is padding."""
        import faiss

        # The method of the same name reads the width from the index, which threads share; this one takes it as a
        # parameter.
        centroid_scores = np.zeros(list_ids.shape, dtype=np.float32)
        scores = np.empty((len(query), num_asked), dtype=np.float32)
        positions = np.empty((len(query), num_asked), dtype=np.int64)
        parameters: Any = faiss.SearchParametersIVF()
        parameters.nprobe = list_ids.shape[1]
        index.search_preassigned_c(
            len(query),
            faiss.swig_ptr(query),
            num_asked,
            faiss.swig_ptr(list_ids),
            faiss.swig_ptr(centroid_scores),
            faiss.swig_ptr(scores),
            faiss.swig_ptr(positions),
            False,
            parameters,
        )
        return positions
