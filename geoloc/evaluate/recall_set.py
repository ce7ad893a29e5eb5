"""Recall of place recognition: every query against every photo of the database.

    found = open_recall_set("pitts30k")                                        # images/test/{database,queries}
    found = open_recall_set("datasets/Pittsburgh", "pitts30k_test", images="photos/Pittsburgh")
    report = score_recall_set(found, database_vectors, query_vectors, RecallRules())

Positives of a query are the photos within a radius (the Deep VG benchmark and SF-XL) or are listed by the set
(GSV-Cities' files of Pitts, MSLS, Nordland, SPED).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from geoloc import __version__
from geoloc.data.layouts import open_layout
from geoloc.data.layouts.retrieval_set import read_retrieval_set
from geoloc.errors import ConfigError, NotFoundError
from geoloc.files import replace_folder, write_manifest
from geoloc.geo.near import rows_within_m
from geoloc.metrics.recall import WithoutPositive, positive_ranks, recall_at_k
from geoloc.reference.rows import SOURCES
from geoloc.search.cell_index import CellIndex
from geoloc.search.structures import Structure
from quadtree import build_quadtree
from quadtree.morton import encode

IntArray = NDArray[np.int64]
_UNREADABLE: Final = {"database": "never found", "queries": "misses"}


@dataclass(frozen=True)
class RecallSet:
    """Database, queries and positives.

    Attributes:
        name: of the set.
        database: (m,) paths.
        queries: (n,) paths.
        positives: per query, rows of the database.
        rule: description of the positives.
    """

    name: str
    database: tuple[str, ...]
    queries: tuple[str, ...]
    positives: tuple[IntArray, ...]
    rule: str


@dataclass(frozen=True)
class RecallRules:
    """Rules of the recall.

    Attributes:
        at: values of k.
        without_positive: a query without a positive is "left_out" (Deep VG benchmark) or a "miss" (CosPlace).
    """

    at: tuple[int, ...] = (1, 5, 10, 20)
    without_positive: WithoutPositive = "left_out"

    def __post_init__(self) -> None:
        if not self.at or min(self.at) < 1:
            raise ConfigError(f"recall@{self.at}: each k is at least 1")


@dataclass(frozen=True)
class RecallReport:
    """Recall of a set.

    Attributes:
        metrics: content of metrics.json.
        ranks: (n,) numbers of wrong photos before the first positive; the largest int64 without one.
        best: (n,) most similar rows of the database, -1 for an unreadable query.
    """

    metrics: Mapping[str, Any]
    ranks: IntArray
    best: IntArray


def open_recall_set(
    folder: str | Path,
    name: str | None = None,
    *,
    images: str | Path | None = None,
    split: str = "test/queries",
    radius_m: float = 25.0,
    utm_epsg: int | None = None,
) -> RecallSet:
    """Find a set on the disk.

    Args:
        folder: photos in the Deep VG layout; or, with a name, GSV-Cities' .npy files.
        name: of one of GSV-Cities' sets, such as "pitts30k_test".
        images: folder of the photos of a named set; None is `folder`.
        split: without a name, folder of the queries, a sibling of `database`.
        radius_m: without a name, radius of the positives on the ellipsoid.
        utm_epsg: without a name, EPSG code for images whose names have no zone.

    Raises:
        NotFoundError, BadTableError, ConfigError: the set does not exist or is malformed.
    """
    folder = Path(folder)
    if name is not None:
        found = read_retrieval_set(folder, name, images)
        database, queries = (tuple(p.path for p in part) for part in (found.database, found.queries))
        return RecallSet(name, database, queries, found.positives, f"the positives listed by {name}")
    if images is not None:
        raise ConfigError(
            "images is the folder of a named set: without a name the photos are in the data folder"
        )
    if not radius_m > 0:
        raise ConfigError(f"radius_m is {radius_m}; it must be positive")
    beside = "/".join([*split.split("/")[:-1], "database"])
    tables = [open_layout("vg", folder, part, utm_epsg=utm_epsg) for part in (beside, split)]
    positives = rows_within_m(tables[1].latlon_deg, tables[0].latlon_deg, radius_m)
    database, queries = (tuple(table.encoded(row).path for row in range(len(table))) for table in tables)
    called, rule = f"{folder.resolve().name} {split}", f"within {radius_m:g} m, on the ellipsoid"
    return RecallSet(called, database, queries, tuple(positives), rule)


def score_recall_set(
    found: RecallSet,
    database: NDArray[np.float32],
    queries: NDArray[np.float32],
    rules: RecallRules | None = None,
    structure: Structure = "exact",
) -> RecallReport:
    """Recall of a set.

    Unreadable photos have NaN vectors: such a query is a miss, such a photo of the database is never found.

    Args:
        found: the set.
        database: (m, D) unit vectors.
        queries: (n, D) unit vectors.
        rules: None is the Deep VG benchmark's.
        structure: "exact" ranks all photos, and ties count against the model. FAISS's structures, see `CellIndex`, find
            the best of them, as many as the largest k of `rules`; a query whose positives are not among them never has
            one.

    Raises:
        ConfigError: no query has a positive.
        NotFoundError: no photo of the database is readable.
    """
    rules = rules or RecallRules()
    has_positive = np.array([len(rows) > 0 for rows in found.positives], bool)
    if not has_positive.any():  # before the search
        recall_at_k(np.zeros(len(queries), np.int64), has_positive)
    is_lost, is_unreadable = (np.isnan(part[:, 0]) for part in (database, queries))
    rows_left = np.flatnonzero(~is_lost)
    if not len(rows_left):
        raise NotFoundError(f"no photo of the database of {found.name} could be read")
    new_row = np.cumsum(~is_lost) - 1
    positives = [new_row[rows[~is_lost[rows]]] for rows in found.positives]
    known, asked = database[rows_left], np.nan_to_num(queries)
    if structure == "exact":
        ranks, best = positive_ranks(asked, known, positives)
    else:
        ranks, best = _found_ranks(asked, known, positives, max(rules.at), structure)
    best = rows_left[best]
    ranks[is_unreadable], best[is_unreadable] = np.iinfo(np.int64).max, -1
    counted = recall_at_k(ranks, has_positive, rules.at, rules.without_positive)
    return RecallReport(
        {
            "set": found.name,
            "num_database": len(database),
            "num_queries": int(counted["num_queries"]),
            "num_without_positive": int(counted["num_without_positive"]),
            "recall_at": {str(k): counted[f"recall_at_{k}"] for k in rules.at},
            "rules": {
                "right": found.rule,
                "query without a right photo": rules.without_positive.replace("_", " "),
                "search": "exact, by cosine; ties count against"
                if structure == "exact"
                else f"FAISS {structure}, by cosine",
            },
            "unreadable": {"database": int(is_lost.sum()), "queries": int(is_unreadable.sum())},
        },
        ranks,
        best,
    )


@dataclass(frozen=True)
class _Photos:
    """A database in memory, for `CellIndex`: all photos at one place, for the whole of it is searched."""

    vectors: NDArray[np.float32]

    @property
    def row_id(self) -> NDArray[np.int64]:
        return np.arange(len(self.vectors))

    @property
    def latlon_deg(self) -> NDArray[np.float64]:
        return np.zeros((len(self.vectors), 2))

    @property
    def morton(self) -> NDArray[np.uint64]:
        return encode(self.latlon_deg).astype(np.uint64)

    @property
    def source(self) -> NDArray[np.uint8]:
        return np.full(len(self.vectors), SOURCES.index("street"), np.uint8)

    @property
    def deleted(self) -> NDArray[np.bool_]:
        return np.zeros(len(self.vectors), np.bool_)

    @property
    def scales(self) -> None:
        return None


def _found_ranks(
    queries: NDArray[np.float32],
    database: NDArray[np.float32],
    positives: Sequence[NDArray[np.int64]],
    k: int,
    structure: Structure,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As `positive_ranks`, among the k photos that FAISS finds: wrong ones before the first positive, and the best."""
    tree = build_quadtree([[0.0, 0.0]], max_points_per_cell=2)
    photos = _Photos(np.ascontiguousarray(database))
    found = CellIndex(tree, [photos], structure=structure).search_everywhere(queries, k, ["street"]).row_id
    ranks = np.full(len(queries), np.iinfo(np.int64).max)
    for q, rows in enumerate(positives):
        hits = np.flatnonzero(np.isin(found[q], rows))
        if len(hits):
            ranks[q] = hits[0]
    return ranks, np.maximum(found[:, 0], 0)


def write_recall_report(
    report: RecallReport, found: RecallSet, folder: str | Path, facts: Mapping[str, str] | None = None
) -> None:
    """Write metrics.json, metrics.md and queries.parquet; an earlier report is replaced atomically.

    Args:
        report: of the set.
        found: the set.
        folder: of the report.
        facts: how the vectors were made.

    Raises:
        OutputMismatchError: the folder holds other files.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    metrics = {**report.metrics, "facts": {**(facts or {}), "geoloc": __version__}}
    never = report.ranks == np.iinfo(np.int64).max
    table = pa.table(
        {
            "query": pa.array(found.queries, pa.string()),
            "num_positives": pa.array([len(rows) for rows in found.positives], pa.int32()),
            "wrong_before": pa.array(report.ranks, pa.int64(), mask=never),
            "best": pa.array([None if row < 0 else found.database[row] for row in report.best], pa.string()),
        }
    )
    with replace_folder(folder) as filling:
        (filling / "metrics.json").write_text(
            json.dumps(metrics, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (filling / "metrics.md").write_text(_markdown(metrics), encoding="utf-8")
        pq.write_table(table, filling / "queries.parquet", compression="zstd")
        write_manifest(filling, kind="recall")


def _markdown(metrics: Mapping[str, Any]) -> str:
    shares = [f"{100 * share:.1f}" for share in metrics["recall_at"].values()]
    lines = [
        f"# {metrics['set']}",
        "",
        "| "
        + " | ".join(f"R@{k}" for k in metrics["recall_at"])
        + " | queries | without a right photo | database |",
        "|" + "--:|" * (len(shares) + 3),
        f"| {' | '.join(shares)} | {metrics['num_queries']:,} | {metrics['num_without_positive']:,} | "
        f"{metrics['num_database']:,} |",
        "",
        *[f"- {name}: {value}" for name, value in {**metrics["rules"], **metrics["facts"]}.items()],
        *[
            f"- of the {part}, {count:,} could not be read: {_UNREADABLE[part]}"
            for part, count in metrics["unreadable"].items()
            if count
        ],
    ]
    return "\n".join(lines) + "\n"
