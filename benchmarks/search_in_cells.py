"""Search in chosen cells: how far from the byte floor, against FAISS, and with ten million rows on disk.

    export OMP_NUM_THREADS=1
    python benchmarks/search_in_cells.py
    python benchmarks/search_in_cells.py --rows 100000                   # a quick look
    python benchmarks/search_in_cells.py --ten-million FOLDER            # makes its 6 GB there, once
    python benchmarks/search_in_cells.py --ten-million FOLDER --rows 200000

Rows are random unit vectors at photo-like places, the cells of a query those of random rows, so large cells are
asked for more often. The floor is the time to read the rows of the distinct cells once at the memory bandwidth,
which is measured beside every round, as that of the fastest of several plain reads of all rows. Methods take
turns round by round, because a shared machine makes times alone worthless; a ratio compares times of one
round, and medians are over rounds.

Goals: one query in 5 cells within 1.2 times the floor; a batch of 1,000 faster than plain `search_preassigned`;
int8 rows with recall@10 >= 0.99 at <= 0.55 GB for 1 M x 512. 10 M x 512 int8 rows: open within 1 s, resident
memory bounded by what queries touch, median <= 10 ms with 20 cells.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import ReferenceRows
from geoloc.reference.segments import VectorFormat
from geoloc.search.candidates import Candidates
from geoloc.search.cell_index import CellIndex
from quadtree import Quadtree, build_quadtree
from quadtree.morton import encode

sys.path.insert(0, str(Path(__file__).parent))
from quadtree_build import photo_like_latlon_deg

NUM_ROUNDS = 5
K = 10
CHUNK = 1 << 16  # rows


@dataclass
class Arrays:
    """A segment in memory."""

    latlon_deg: NDArray[np.float64]
    morton: NDArray[np.uint64]
    source: NDArray[np.uint8]
    row_id: NDArray[np.int64]
    deleted: NDArray[np.bool_]
    vectors: NDArray[Any]
    scales: NDArray[np.float32] | None = None

    @property
    def num_bytes(self) -> int:
        """Of all arrays."""
        arrays = (value for value in vars(self).values() if value is not None)
        return sum(array.nbytes for array in arrays)


def unit_vectors(num: int, dim: int, rng: np.random.Generator) -> NDArray[np.float32]:
    vectors = rng.standard_normal((num, dim), dtype=np.float32)
    vectors /= np.sqrt(np.vecdot(vectors, vectors))[:, None]
    return vectors


def sorted_places(num: int) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
    latlon_deg = photo_like_latlon_deg(num)
    codes = encode(latlon_deg)
    order = np.argsort(codes)
    return latlon_deg[order], codes[order].astype(np.uint64)


def make_rows(num: int, dim: int) -> Arrays:
    latlon_deg, morton = sorted_places(num)
    rng = np.random.default_rng(0)
    vectors = np.empty((num, dim), dtype=np.float32)
    for start in range(0, num, CHUNK):
        vectors[start : start + CHUNK] = unit_vectors(min(num - start, CHUNK), dim, rng)
    zeros = np.zeros(num, dtype=np.uint8)
    return Arrays(latlon_deg, morton, zeros, np.arange(num), zeros.astype(np.bool_), vectors)


def narrowed(rows: Arrays, dtype: str) -> Arrays:
    """As `ReferenceDatabase` stores them."""
    vector_format = VectorFormat(rows.vectors.shape[1], dtype)  # type: ignore[arg-type]
    vectors = np.empty(rows.vectors.shape, dtype=dtype)
    scales = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), CHUNK):
        block = slice(start, start + CHUNK)
        vectors[block], found = vector_format.encode(rows.vectors[block])
        if dtype == "int8":
            scales[block] = found
    return replace(rows, vectors=vectors, scales=scales if dtype == "int8" else None)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def read_rates(vectors: NDArray[np.float32]) -> dict[str, float]:
    """Bytes a second of plain reads of all rows: the median over pieces of 8 MB, one after the other.

    A median forgives what else happens on the machine, as do the medians over queries.
    """
    query = vectors[0].copy()
    reads: dict[str, Callable[[NDArray[np.float32]], object]] = {
        "max": np.max,
        "sum": np.sum,
        "sgemv": lambda piece: np.dot(piece, query),
        "sdot": lambda piece: np.vecdot(piece, query),
    }
    pieces = np.array_split(vectors, max(1, vectors.nbytes // (8 << 20)))
    return {
        name: median(piece.nbytes / seconds(lambda piece=piece, read=read: read(piece)) for piece in pieces)
        for name, read in reads.items()
    }


def bandwidth(vectors: NDArray[np.float32]) -> float:
    """Of the fastest read."""
    return max(read_rates(vectors).values())


def resident_mb(kind: str = "VmRSS") -> float:
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) / 1024
    return float("nan")


def recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    return float((exact[:, :, None] == found[:, None]).any(axis=2).mean())


class Peers:
    """What FAISS offers for the same question, with nothing around it."""

    def __init__(self, rows: Arrays, owner: NDArray[np.int64], num_cells: int, width: int) -> None:
        num, dim = rows.vectors.shape
        self.quantizer = faiss.IndexFlatIP(dim)
        self.lists = faiss.IndexIVFFlat(self.quantizer, dim, num_cells, faiss.METRIC_INNER_PRODUCT)
        self.lists.is_trained = True
        self.lists.nprobe = width
        self.flat = faiss.IndexFlatIP(dim)
        ids = np.arange(num)  # a name: FAISS gets a raw pointer
        for start in range(0, num, CHUNK):
            block = slice(start, start + CHUNK)
            vectors, numbers, lists = rows.vectors[block], ids[block], owner[block]
            self.lists.add_core(
                len(vectors), faiss.swig_ptr(vectors), faiss.swig_ptr(numbers), faiss.swig_ptr(lists)
            )
            self.flat.add(vectors)
        order = np.argsort(owner, kind="stable")
        edges = np.searchsorted(owner[order], np.arange(num_cells + 1))
        self.members = [order[first:end] for first, end in pairwise(edges.tolist())]

    def search_preassigned(self, query: NDArray[np.float32], cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Best row numbers of each query in its cells, (Q, K)."""
        found: NDArray[np.int64] = self.lists.search_preassigned(query, K, cells, None)[1]
        return found

    def selector(self, query: NDArray[np.float32], cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same for one query, by leaving out all other rows."""
        chosen = np.concatenate([self.members[cell] for cell in cells[0]])
        selector = faiss.IDSelectorArray(chosen)
        found: NDArray[np.int64] = self.flat.search(query, K, params=faiss.SearchParameters(sel=selector))[1]
        return found


def distinct_cells(
    owner: NDArray[np.int64], num_queries: int, width: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Cells of random rows, different ones for each query, (num_queries, width)."""
    cells = np.empty((num_queries, width), dtype=np.int64)
    for chosen in cells:
        seen: dict[int, None] = {}
        while len(seen) < width:
            seen[int(owner[rng.integers(len(owner))])] = None
        chosen[:] = list(seen)
    return cells


def one_query(
    rows: Arrays, index: CellIndex, peers: Peers, cells: NDArray[np.int64], query: NDArray[np.float32]
) -> None:
    num_queries, width = cells.shape
    methods: dict[str, Callable[[int], object]] = {
        "CellIndex, exact": lambda i: index.search(query[i : i + 1], cells[i : i + 1], K),
        "search_preassigned": lambda i: peers.search_preassigned(query[i : i + 1], cells[i : i + 1]),
        "Flat + IDSelectorArray": lambda i: peers.selector(query[i : i + 1], cells[i : i + 1]),
    }
    check(index.search(query, cells, K), peers.search_preassigned(query, cells))
    row_bytes = rows.vectors[0].nbytes
    counts = np.array([index.num_rows_in(chosen).sum() for chosen in cells])
    ratios: dict[str, list[float]] = {name: [] for name in methods}
    times: dict[str, list[float]] = {name: [] for name in methods}
    floors = []
    for _ in range(NUM_ROUNDS):
        floor = counts * row_bytes / bandwidth(rows.vectors)
        floors.append(float(np.median(floor)))
        for name, method in methods.items():
            taken = np.array([seconds(lambda i=i, method=method: method(i)) for i in range(num_queries)])
            ratios[name].append(float(np.median(taken / floor)))
            times[name].append(float(np.median(taken)))
    print(
        f"\none query in {width} of {index.num_cells:,} cells, {int(np.median(counts)):,} rows; "
        f"floor {median(floors) * 1e6:.0f} us"
    )
    for name in methods:
        print(f"  {name:<24}{median(times[name]) * 1e6:>8.0f} us  {median(ratios[name]):>5.2f} x floor")


def batch(
    rows: Arrays, index: CellIndex, peers: Peers, cells: NDArray[np.int64], query: NDArray[np.float32]
) -> None:
    num_queries, width = cells.shape
    methods: dict[str, Callable[[], object]] = {
        "CellIndex, exact": lambda: index.search(query, cells, K),
        "search_preassigned": lambda: peers.search_preassigned(query, cells),
        "CellIndex, one by one": lambda: [
            index.search(query[i : i + 1], cells[i : i + 1], K) for i in range(num_queries)
        ],
    }
    num_bytes = int(index.num_rows_in(np.unique(cells)).sum()) * rows.vectors[0].nbytes
    times: dict[str, list[float]] = {name: [] for name in methods}
    floors = []
    for _ in range(NUM_ROUNDS):
        floors.append(num_bytes / bandwidth(rows.vectors))
        for name, method in methods.items():
            times[name].append(seconds(method))
    print(
        f"\n{num_queries:,} queries in {width} of {index.num_cells:,} cells each; "
        f"floor {median(floors) * 1e3:.0f} ms (every distinct cell once)"
    )
    for name in methods:
        against = median(a / b for a, b in zip(times[name], times["search_preassigned"], strict=True))
        print(f"  {name:<24}{median(times[name]) * 1e3:>8.0f} ms  {against:>5.2f} x search_preassigned")


def stored_types(
    rows: Arrays, tree: Quadtree, cells: NDArray[np.int64], query: NDArray[np.float32], lists: Sequence[str]
) -> None:
    exact = CellIndex(tree, [rows]).search(query, cells, K).row_id
    print(f"  {'stored':<9}{'lists':<8}{'one query':>10}{'batch':>9}{'recall':>8}{'rows':>10}{'lists':>10}")
    for stored in ("float32", "float16", "int8"):
        segment = rows if stored == "float32" else narrowed(rows, stored)
        for structure in ("exact", *lists) if stored == "float32" else ("exact",):
            index = CellIndex(tree, [segment], structure=structure)  # type: ignore[arg-type]
            copy = index._faiss and index._faiss._index  # what FAISS holds, with an id for each row
            copy_gb = (copy.code_size + 8) * copy.ntotal / 1e9 if copy else 0.0
            found = index.search(query, cells, K).row_id
            together = median(seconds(lambda i=index: i.search(query, cells, K)) for _ in range(3))
            alone = median(
                seconds(lambda i=i, index=index: index.search(query[i : i + 1], cells[i : i + 1], K))
                for i in range(min(len(query), 300))
            )
            print(
                f"  {stored:<9}{structure:<8}{alone * 1e6:>7.0f} us{together * 1e3:>6.0f} ms"
                f"{recall(found, exact):>8.4f}{segment.num_bytes / 1e9:>7.3f} GB{copy_gb:>7.3f} GB"
            )


def everywhere(rows: Arrays, index: CellIndex, query: NDArray[np.float32]) -> None:
    floor = rows.vectors.nbytes / bandwidth(rows.vectors)
    taken = median(seconds(lambda i=i: index.search_everywhere(query[i : i + 1], K)) for i in range(3))
    print(f"\nthe whole planet, one query: {taken * 1e3:.0f} ms, {taken / floor:.2f} x floor")


def check(ours: Candidates, theirs: NDArray[np.int64]) -> None:
    agreement = recall(ours.row_id, theirs)
    assert agreement > 0.999, f"ours and FAISS agree on {agreement:.4f} of the best {K} only"


def in_memory(num_rows: int, dim: int, width: int, num_queries: int) -> None:
    rows = make_rows(num_rows, dim)
    rates = ", ".join(f"{name} {rate / 1e9:.1f}" for name, rate in read_rates(rows.vectors).items())
    print(
        f"{num_rows:,} x {dim} float32, {rows.vectors.nbytes / 1e9:.2f} GB, read at {rates} GB/s; "
        f"medians of {NUM_ROUNDS} rounds"
    )
    query = unit_vectors(num_queries, dim, np.random.default_rng(2))
    for max_points_per_cell in (400, 1000):  # about the 8,229 cells of earlier measurements; the default
        tree = build_quadtree(rows.latlon_deg, max_points_per_cell, max_depth=20)
        owner = tree.assign(rows.latlon_deg)
        cells = distinct_cells(owner, num_queries, width, np.random.default_rng(1))
        index, peers = CellIndex(tree, [rows]), Peers(rows, owner, tree.num_cells, width)
        one_query(rows, index, peers, cells[:300], query[:300])
        batch(rows, index, peers, cells, query)
        del peers
    everywhere(rows, index, query)
    print(f"\nrecall@{K} against float32 in {width} of {tree.num_cells:,} cells")
    stored_types(rows, tree, cells, query, ("fp16", "sq8", "pq"))
    print("the same, where principal directions have variances like 1 / rank, as learnt embeddings do")
    for vectors in (rows.vectors, query):
        bend(vectors)
    stored_types(rows, tree, cells, query, ())


def bend(vectors: NDArray[np.float32]) -> None:
    """Give unit vectors, in place, directions of unequal variance: 1, 1/2, 1/3, … along a random basis."""
    dim = vectors.shape[1]
    basis = np.linalg.qr(np.random.default_rng(6).standard_normal((dim, dim)))[0]
    bent = (basis.T @ (basis / np.sqrt(np.arange(1, dim + 1))[:, None])).astype(np.float32)
    for start in range(0, len(vectors), CHUNK):
        block = vectors[start : start + CHUNK] @ bent
        block /= np.sqrt(np.vecdot(block, block))[:, None]
        vectors[start : start + CHUNK] = block


# Ten million rows on disk


def batches(latlon_deg: NDArray[np.float64], dim: int) -> Iterator[tuple[ReferenceRows, NDArray[np.float32]]]:
    rng = np.random.default_rng(0)
    for start in range(0, len(latlon_deg), CHUNK):
        places = latlon_deg[start : start + CHUNK]
        keys = [f"row {start + i}" for i in range(len(places))]
        yield ReferenceRows(places, source="aerial", key=keys), unit_vectors(len(places), dim, rng)


def on_disk(folder: Path, num_rows: int, dim: int, width: int, num_queries: int) -> None:
    latlon_deg, _ = sorted_places(num_rows)
    tree = build_quadtree(latlon_deg, max(50, num_rows // 2500), max_depth=20)  # about 8,000 cells
    owner = tree.assign(latlon_deg)
    folder = folder / f"{num_rows}x{dim}-int8"
    if not folder.exists():
        ReferenceDatabase.create(folder, dim=dim, dtype="int8", model_fingerprint="random")
    database = ReferenceDatabase.open(folder)
    if not len(database):  # new, or left by a run that was stopped
        start = time.perf_counter()
        database.append_batches(batches(latlon_deg, dim))
        print(f"made {database!r} in {time.perf_counter() - start:.0f} s")
    del database
    del latlon_deg
    rng = np.random.default_rng(5)
    query = unit_vectors(num_queries, dim, rng)
    cells = distinct_cells(owner, num_queries, width, rng)
    del owner
    before, file_before = resident_mb(), resident_mb("RssFile")
    start = time.perf_counter()
    database = ReferenceDatabase.open(folder)
    opened = time.perf_counter()
    index = CellIndex(tree, database.segments)
    ready = time.perf_counter()
    print(
        f"{num_rows:,} x {dim} int8: opened in {opened - start:.3f} s, index of {tree.num_cells:,} cells in "
        f"{ready - opened:.3f} s, resident +{resident_mb() - before:.0f} MB"
    )
    taken = np.array(
        [seconds(lambda i=i: index.search(query[i : i + 1], cells[i : i + 1], K)) for i in range(num_queries)]
    )
    touched = int(index.num_rows_in(np.unique(cells)).sum()) * dim / 1e6
    counts = np.array([index.num_rows_in(chosen).sum() for chosen in cells])
    p50, p90, p99 = np.percentile(taken * 1e3, [50, 90, 99])
    print(
        f"one query in {width} cells, {int(np.median(counts)):,} rows: p50 {p50:.2f}, p90 {p90:.2f}, "
        f"p99 {p99:.2f} ms, first {taken[0] * 1e3:.1f} ms\n"
        f"after {num_queries:,} queries resident +{resident_mb() - before:.0f} MB, of it mapped files "
        f"+{resident_mb('RssFile') - file_before:.0f} MB; the vectors of their cells are {touched:.0f} MB, "
        f"those of all rows {num_rows * dim / 1e6:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, help="default 1,000,000, with --ten-million 10,000,000")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--cells", type=int, help="cells of a query, default 5, with --ten-million 20")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument(
        "--ten-million", type=Path, metavar="FOLDER", help="int8 rows mapped from this folder"
    )
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("ratios need one thread on both sides: set OMP_NUM_THREADS=1")
    faiss.omp_set_num_threads(1)
    if options.ten_million:
        on_disk(
            options.ten_million, options.rows or 10_000_000, options.dim, options.cells or 20, options.queries
        )
    else:
        in_memory(options.rows or 1_000_000, options.dim, options.cells or 5, options.queries)


if __name__ == "__main__":
    main()
