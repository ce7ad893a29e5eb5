"""FAISS's structures over all rows: HNSW graphs and inverted files with product quantisation."""

from typing import Any, Final

import numpy as np

from geoloc.search.scan import FloatArray, IntArray, Rows, blocks_of
from geoloc.search.structures.cache import IndexCache
from geoloc.search.structures.gpu import MAX_GPU_ASKED, GpuIndex, on_device
from geoloc.search.structures.training import pq_bytes, sample_of

# Malkov & Yashunin 2018, "Efficient and robust approximate nearest neighbor search using HNSW graphs": edges of a node,
# and lengths of the lists of candidates while building and searching.
HNSW_M: Final = 64
HNSW_EF_CONSTRUCTION: Final = 40
HNSW_EF_SEARCH: Final = 512

IVF_PROBES: Final = 64  # inverted lists read for a query, or a sixteenth of them if that is more

# Rows that FAISS proposes for each one that is wanted; they are scored again from the stored vectors.
_OVERSAMPLING: Final = {"hnsw": 2, "ivfpq": 32}
_ROWS_PER_LIST: Final = 64  # to train a centroid with
_ADDED_ROWS: Final = 1 << 14  # at a time, as float32


class WholeIndex:
    """One index over the rows of each source. Deleted rows are not in them.

    Args:
        structure: "hnsw" or "ivfpq".
        rows: of the database.
        device: "cpu", or a torch device: "ivfpq" goes there, see `on_device`; "hnsw" stays on the CPU.
        cache: of built indexes; None builds them here.
    """

    def __init__(
        self, structure: str, rows: Rows, device: str = "cpu", cache: IndexCache | None = None
    ) -> None:
        self._structure = structure
        self._oversampling = _OVERSAMPLING[structure]
        self._position: dict[int, IntArray] = {}  # of each entry of an index
        self._index: dict[int, Any] = {}  # FAISS's type hints lack half of what is used here
        self._gpu: dict[int, GpuIndex | None] = {}
        alive = np.concatenate([~np.asarray(segment.deleted) for segment in rows.segments])
        source = np.concatenate([np.asarray(segment.source) for segment in rows.segments])
        dim = rows.vectors[0].shape[1]
        for code in np.unique(source[alive]).tolist():
            position = np.flatnonzero(alive & (source == code))
            facts = {**_FACTS[structure], "structure": structure, "source": code}
            index = None if cache is None else cache.load(facts, len(position), dim)
            if index is None:
                index = _built(structure, rows, position)
                if cache is not None:
                    cache.save(index, facts)
            self._position[code], self._index[code] = position, index
            self._gpu[code] = None if structure == "hnsw" else on_device(index, device)

    def contenders(
        self, query: FloatArray, cells: object, k: int, codes: list[int]
    ) -> tuple[IntArray, IntArray]:
        """Query and position of the rows that FAISS proposes for each of some sources; `cells` is None."""
        found = [self._of_source(query, k, code) for code in codes if code in self._index]
        empty = np.zeros(0, np.int64)
        return (
            np.concatenate([empty, *(queries for queries, _ in found)]),
            np.concatenate([empty, *(positions for _, positions in found)]),
        )

    def _of_source(self, query: FloatArray, k: int, code: int) -> tuple[IntArray, IntArray]:
        import faiss

        binding: Any = faiss
        index, gpu = self._index[code], self._gpu[code]
        num_asked = min(k * self._oversampling, len(self._position[code]))
        parameters: Any
        if self._structure == "hnsw":
            parameters = binding.SearchParametersHNSW()
            parameters.efSearch = max(HNSW_EF_SEARCH, num_asked)
        else:
            parameters = faiss.SearchParametersIVF()
            parameters.nprobe = min(max(IVF_PROBES, index.nlist // 16), index.nlist)
        if gpu is None:
            _, entry = index.search(query, num_asked, params=parameters)
        else:
            with gpu as moved:
                _, entry = moved.search(query, min(num_asked, MAX_GPU_ASKED), params=parameters)
        query_idx, rank = np.nonzero(entry >= 0)
        return query_idx, self._position[code][entry[query_idx, rank]]


_FACTS: Final = {
    "hnsw": {"M": HNSW_M, "efConstruction": HNSW_EF_CONSTRUCTION},
    "ivfpq": {"rows_per_list": _ROWS_PER_LIST},
}


def _built(structure: str, rows: Rows, position: IntArray) -> Any:
    """A FAISS index of the rows at positions; an entry's number is its place among them."""
    import faiss

    dim = rows.vectors[0].shape[1]
    index: Any
    if structure == "hnsw":
        index = faiss.IndexHNSWFlat(dim, HNSW_M, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_EF_CONSTRUCTION
    else:
        num_lists = max(1, min(int(4 * np.sqrt(len(position))), len(position) // _ROWS_PER_LIST))
        quantizer: Any = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFPQ(quantizer, dim, num_lists, pq_bytes(dim), 8, faiss.METRIC_INNER_PRODUCT)
        index.own_fields = True
        quantizer.this.disown()
        index.pq.cp.min_points_per_centroid = index.cp.min_points_per_centroid = 1
        # k-means of a byte needs 256 points; a smaller database repeats its rows.
        sample = sample_of(rows, max(1 << 16, num_lists * _ROWS_PER_LIST))
        index.train(np.resize(sample, (max(len(sample), 256), dim)))
    for segment, first in enumerate(rows.first[:-1]):
        mine = position[(position >= first) & (position < rows.first[segment + 1])] - first
        for block in blocks_of(len(mine), _ADDED_ROWS):
            index.add(rows.widened(segment, mine[block]))
    return index
