"""Nearest neighbours among a million embeddings: exact, and the FAISS variants of the VG benchmark's slides.

    OMP_NUM_THREADS=1 python benchmarks/knn_variants.py
    OMP_NUM_THREADS=1 python benchmarks/knn_variants.py --places 25000 --queries 200      # a quick look
    OMP_NUM_THREADS=1 python benchmarks/knn_variants.py --variants flat ivf ivfpq

Made as a street database is: every place has four views and one query, unit vectors of 512 dimensions whose principal
directions have variances like 1 / rank, as learnt embeddings do. R@N is the share of queries with a view of their place
among the N best, by squared distance (the multi-index has no other), which orders unit vectors as cosines do.
Memory is that of the index as FAISS writes it; a query is one at a time on one thread, the median of all.

The slides' claims: IVFPQ saves up to 98.5 % of memory and time for a small loss, the inverted multi-index 80 % of the
time for 0.9 % of recall.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

DIM = 512
VIEWS = 4
TRAINING_ROWS = 65_536
RECALL_AT = (1, 5, 10, 20)
CHUNK = 50_000


@dataclass(frozen=True)
class Variant:
    """An index: how it is made, and the setting that trades time for recall."""

    name: str
    make: Callable[[int], Any]
    setting: str = ""


def with_probes(index: Any, nprobe: int) -> Any:
    """An inverted file that looks into so many lists."""
    index.nprobe = nprobe
    return index


def hnsw(num: int) -> Any:
    """Its graph: 16 links a row, 64 candidates when building and 256 when searching."""
    index = faiss.IndexHNSWFlat(DIM, 16, faiss.METRIC_L2)
    index.hnsw.efConstruction, index.hnsw.efSearch = 64, 256
    return index


def num_lists(num: int) -> int:
    """About the root of the number of rows, a power of two."""
    return int(2 ** round(np.log2(np.sqrt(num))))


def factory(description: Callable[[int], str], nprobe: int | None = None) -> Callable[[int], Any]:
    """An index by FAISS's own description."""

    def make(num: int) -> Any:
        index = faiss.index_factory(DIM, description(num), faiss.METRIC_L2)
        return index if nprobe is None else with_probes(index, nprobe)

    return make


VARIANTS = {
    "flat": Variant("exact", factory(lambda num: "Flat")),
    "ivf": Variant("IVF", factory(lambda num: f"IVF{num_lists(num)},Flat", 128), "128 lists looked into"),
    "pq": Variant("PQ", factory(lambda num: "PQ64"), "64 bytes a row"),
    "ivfpq": Variant(
        "IVFPQ",
        factory(lambda num: f"IVF{num_lists(num)},PQ64", 128),
        "64 bytes a row, 128 lists looked into",
    ),
    "ivfpq32": Variant(
        "IVFPQ",
        factory(lambda num: f"IVF{num_lists(num)},PQ32", 128),
        "32 bytes a row, 128 lists looked into",
    ),
    "imi": Variant(
        "inverted multi-index", factory(lambda num: "IMI2x8,Flat", 8192), "65,536 lists, 8,192 looked into"
    ),
    "hnsw": Variant("HNSW", hnsw, "16 links a row, 256 candidates"),
}


def spectrum() -> NDArray[np.float32]:
    """Standard deviations along the principal directions, for vectors of about unit length."""
    variances = 1 / np.arange(1, DIM + 1)
    return np.sqrt(variances / variances.sum()).astype(np.float32)


def views_of(places: NDArray[np.float32], spread: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """One view of each place, (n, DIM) unit vectors."""
    noise = rng.standard_normal(places.shape, dtype=np.float32) * (spread * spectrum())
    views = places + noise
    return np.asarray(views / np.linalg.norm(views, axis=1, keepdims=True), np.float32)


def recalls(found_rows: NDArray[np.int64], truth: NDArray[np.int64], num_places: int) -> dict[int, float]:
    """R@N; row r shows place r modulo the number of places."""
    right = (found_rows % num_places == truth[:, None]) & (found_rows >= 0)
    return {n: float(right[:, :n].any(1).mean()) for n in RECALL_AT}


def main() -> None:
    """Build each index, search, print one Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--places", type=int, default=250_000, help="with four rows each")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--spread", type=float, default=0.8, help="of views about their place")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    places = rng.standard_normal((options.places, DIM), dtype=np.float32) * spectrum()
    truth = rng.choice(options.places, options.queries, replace=False)
    queries = views_of(places[truth], options.spread, rng)
    rows = np.concatenate([views_of(places, options.spread, rng) for _ in range(VIEWS)])
    del places
    training = rows[rng.choice(len(rows), min(len(rows), TRAINING_ROWS), replace=False)]

    recall_titles = " | ".join(f"R@{n}" for n in RECALL_AT)
    print(f"{len(rows):,} x {DIM}, {options.queries} queries, one thread, faiss {faiss.__version__}\n")
    print(f"| index | setting | memory | of exact | a query | of exact | {recall_titles} | build |")
    print("|---|---|--:|--:|--:|--:|" + "--:|" * len(RECALL_AT) + "--:|")
    exact_bytes, exact_s = rows.nbytes, float("nan")
    for key in options.variants:
        variant = VARIANTS[key]
        start = time.perf_counter()
        index = variant.make(len(rows))
        if not index.is_trained:
            index.train(training)
        for first in range(0, len(rows), CHUNK):
            index.add(rows[first : first + CHUNK])
        build_s = time.perf_counter() - start
        num_bytes = len(faiss.serialize_index(index))
        found, taken = [], []
        for query in queries:
            start = time.perf_counter()
            found.append(index.search(query[None], max(RECALL_AT))[1][0])
            taken.append(time.perf_counter() - start)
        query_s = median(taken)
        if key == "flat":
            exact_bytes, exact_s = num_bytes, query_s
        shares = " | ".join(
            f"{share:.1%}" for share in recalls(np.stack(found), truth, options.places).values()
        )
        print(
            f"| {variant.name} | {variant.setting} | {num_bytes / 1e6:,.0f} MB | {num_bytes / exact_bytes:.1%} "
            f"| {1000 * query_s:.2f} ms | {query_s / exact_s:.1%} | {shares} | {build_s:.0f} s |",
            flush=True,
        )
        del index


if __name__ == "__main__":
    main()
