"""Retrieval of candidates: inside a model's chosen cells, or in whole databases for a model without cells.

Each source of each database is searched separately.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from geoloc.images.query import Merge
from geoloc.posterior.evidence import CellEvidence, Evidence
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import SOURCES, Source
from geoloc.search.candidates import NO_ROW, Candidates
from geoloc.search.cell_index import CellIndex, with_border_neighbours
from geoloc.search.structures import IndexCache, Structure, check_searches_cells
from quadtree import Quadtree, build_quadtree
from quadtree.sphere import latlon_to_unit, unit_to_latlon

# Majority voting of the VG benchmark: a row that is c times among the best n of the views gains 0.01 c / n.
VOTES_OF_BEST = (1, 5, 10)
VOTE = 0.01

Views = Sequence[NDArray[np.float32]]  # query embeddings of one tower, (Q, D) for each view


class Retriever:
    """Search of databases inside the cells of a quadtree, each with the query embedding of its own tower.

    Args:
        databases: one or several, in their present state; after a change make a new retriever.
        quadtree: of the classifier's cells; None searches everywhere.
        towers: for each database the index of its query embedding; None is 0 for all.
        kernel_km: for each database the distance between a photo and its reference that is expected until a reranker
            is fitted; None leaves it to the pipeline.
        names: of the databases, in candidates; None takes their folders' names.
        is_fitted: whether the model's fitted reranker may be used, if it is for so many databases.
        structure: see `CellIndex`.
        device: see `CellIndex`.

    Attributes:
        databases, quadtree, towers, kernel_km, is_fitted: as given.
        sources: (database, source) of all kinds of references that there are, by index and name.

    Raises:
        FingerprintMismatchError: a database is bound to another quadtree.
        ConfigError: there is no such structure, or it searches whole databases only and there are cells.
    """

    def __init__(
        self,
        databases: Sequence[ReferenceDatabase],
        quadtree: Quadtree | None,
        towers: Sequence[int] | None = None,
        kernel_km: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
        *,
        is_fitted: bool = True,
        structure: Structure = "exact",
        device: str = "cpu",
    ) -> None:
        if quadtree is not None:
            check_searches_cells(structure)
            for database in databases:
                database.check_fingerprints(quadtree=quadtree.fingerprint)
        self.databases, self.quadtree, self.kernel_km = tuple(databases), quadtree, kernel_km
        self.is_fitted = is_fitted
        self._names = names or [database.folder.name for database in self.databases]
        self.towers = tuple(towers) if towers is not None else (0,) * len(self.databases)
        tree = quadtree or build_quadtree([[0.0, 0.0]], max_points_per_cell=2)  # one cell, the Earth
        self._indexes = [
            CellIndex(
                tree,
                database.segments,
                structure=structure,
                device=device,
                cache=IndexCache(database.folder, database.identity),
            )
            for database in self.databases
        ]
        kinds: tuple[Source, ...] = SOURCES
        self.sources = tuple(
            (number, name)
            for number, database in enumerate(self.databases)
            for name, num_rows in zip(kinds, _rows_by_source(database), strict=True)
            if num_rows
        )

    @property
    def identity(self) -> str:
        """Digest of the databases; of a single one its own."""
        identities = [database.identity for database in self.databases]
        return identities[0] if len(identities) == 1 else sha256("\n".join(identities).encode()).hexdigest()

    @property
    def folders(self) -> str:
        """The databases' folders, for messages."""
        return ", ".join(str(database.folder) for database in self.databases)

    @cached_property
    def cell_unit(self) -> NDArray[np.float64]:
        """(C, 3) representative points of the quadtree's cells."""
        return np.zeros((0, 3)) if self.quadtree is None else latlon_to_unit(self.quadtree.center_latlon_deg)

    def in_cells(
        self, queries: Sequence[Views], cells: CellEvidence, k: int, merge: Merge = "mean"
    ) -> tuple[Candidates, NDArray[np.int64]]:
        """The best k references of each database and source in each query's cells, and their database.

        Neighbours of the best cell are searched, too, where its point lies within its kernel's width of them.

        Args:
            queries: of each tower V views, each (Q, D) unit vectors: one, unless views are merged after the search.
            cells: the chosen cells.
            k: per database and source.
            merge: of several views: "nearest" keeps each reference's best similarity, "vote" adds a bonus for
                references that many views find.

        Returns:
            (Q, K) candidates with K up to k for each of `sources`, and (Q, K) the index of the database.
        """
        assert self.quadtree is not None  # without one, `everywhere` searches
        asked = [
            with_border_neighbours(self.quadtree, ids[ids >= 0], unit_to_latlon(unit[0]), float(scale[0]))
            for ids, unit, scale in zip(cells.cell_id, cells.unit, cells.scale_km, strict=True)
        ]
        return self._found(
            lambda index, query, source: index.search(query, asked, k, [source]), queries, k, merge
        )

    def everywhere(
        self, queries: Sequence[Views], k: int, merge: Merge = "mean"
    ) -> tuple[Candidates, NDArray[np.int64]]:
        """The best k references of each database and source on the planet; see `in_cells`."""
        return self._found(
            lambda index, query, source: index.search_everywhere(query, k, [source]), queries, k, merge
        )

    def _found(
        self,
        search: Callable[[CellIndex, NDArray[np.float32], Source], Candidates],
        queries: Sequence[Views],
        k: int,
        merge: Merge,
    ) -> tuple[Candidates, NDArray[np.int64]]:
        parts, owners = [], []
        for number, source in self.sources:
            views = [search(self._indexes[number], query, source) for query in queries[self.towers[number]]]
            part = views[0] if len(views) == 1 else merge_views(views, k, merge)
            parts.append(part)
            owners.append(np.full(part.row_id.shape, number, np.int64))
        if not parts:
            return Candidates.nothing(0, 0), np.zeros((0, 0), np.int64)
        names = ("row_id", "similarity", "latlon_deg", "source")
        together = Candidates(*(np.concatenate([getattr(part, name) for part in parts], 1) for name in names))
        return together, np.concatenate(owners, 1)

    def evidence(
        self,
        queries: Sequence[Views],
        cells: CellEvidence,
        probs: NDArray[np.float64],
        k: int,
        merge: Merge = "mean",
    ) -> Evidence:
        """Cells and the candidates in them; arguments as for `in_cells`, and all cells' probabilities (Q, all).

        Without a quadtree the whole databases are searched, and candidates have no cell.
        """
        if not self.sources:
            return Evidence.nothing(cells)
        if self.quadtree is None:
            found, owner = self.everywhere(queries, k, merge)
            return Evidence.of_candidates(cells, found, owner, np.zeros(found.row_id.shape))
        found, owner = self.in_cells(queries, cells, k, merge)
        there = found.row_id != NO_ROW
        cell_id = self.quadtree.assign(np.where(there[..., None], found.latlon_deg, 0.0).reshape(-1, 2))
        cell_id = cell_id.reshape(there.shape)
        log_prob = np.log(np.take_along_axis(probs, cell_id, 1) + 1e-9)
        return Evidence.of_candidates(cells, found, owner, log_prob, cell_id)

    def keys(
        self, row_id: NDArray[np.int64], latlon_deg: NDArray[np.float64], database: NDArray[np.int64]
    ) -> list[tuple[str, str]]:
        """The references' keys and the names of their databases, (m,), (m, 2), (m,) -> m."""
        found = [("", "")] * len(row_id)
        for number in np.unique(database).tolist():
            rows = np.flatnonzero(database == number)
            table = self.databases[number].rows(row_id[rows], latlon_deg[rows], ["key"])
            for row, key in zip(rows.tolist(), table.column("key").to_pylist(), strict=True):
                found[row] = (str(key), self._names[number])
        return found


def _rows_by_source(database: ReferenceDatabase) -> NDArray[np.int64]:
    """Number of rows of each source that are not deleted, (3,)."""
    present = np.zeros(len(SOURCES), np.int64)
    for segment in database.segments:
        present += np.bincount(segment.source[~segment.deleted], minlength=len(SOURCES))
    return present


def merge_views(views: Sequence[Candidates], k: int, merge: Merge) -> Candidates:
    """Merge the candidates of several views of the same query: each reference once, the best k.

    Args:
        views: each (Q, K), of the same queries.
        k: columns of the result.
        merge: see `Retriever.in_cells`.
    """
    merged = Candidates.nothing(len(views[0]), k)
    for q in range(len(merged)):
        rows = np.concatenate([view.row_id[q] for view in views])
        similarity = np.concatenate([view.similarity[q] for view in views]).astype(np.float64)
        if merge == "vote":
            for n in VOTES_OF_BEST:
                best = np.concatenate([view.row_id[q, :n] for view in views])
                ids, counts = np.unique(best[best != NO_ROW], return_counts=True)
                bonus = dict(zip(ids.tolist(), (VOTE * counts / n).tolist(), strict=True))
                similarity += [bonus.get(row, 0.0) for row in rows.tolist()]
        order = np.lexsort((rows, -similarity))
        order = order[rows[order] != NO_ROW]
        _, first = np.unique(rows[order], return_index=True)
        order = order[np.sort(first)][:k]
        merged.row_id[q, : len(order)] = rows[order]
        merged.similarity[q, : len(order)] = similarity[order]
        merged.latlon_deg[q, : len(order)] = np.concatenate([view.latlon_deg[q] for view in views])[order]
        merged.source[q, : len(order)] = np.concatenate([view.source[q] for view in views])[order]
    return merged
