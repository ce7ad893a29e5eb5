"""Retrieval of candidates: inside a model's chosen cells, or in the whole database for a model without cells.

Each source is searched separately.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from geoloc.images.query import Merge
from geoloc.posterior.evidence import CellEvidence, Evidence
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import SOURCES, Source
from geoloc.search.candidates import NO_ROW, Candidates
from geoloc.search.cell_index import CellIndex, Structure, with_border_neighbours
from quadtree import Quadtree, build_quadtree
from quadtree.sphere import unit_to_latlon

# Majority voting of the VG benchmark: a row that is c times among the best n of the views gains 0.01 c / n.
VOTES_OF_BEST = (1, 5, 10)
VOTE = 0.01


class Retriever:
    """Search of a database inside the cells of a quadtree.

    Args:
        database: in its present state; after a change make a new retriever.
        quadtree: of the model, over the whole Earth; None for a model without cells.
        structure: see `CellIndex`.
        device: see `CellIndex`.

    Raises:
        FingerprintMismatchError: the database is bound to another quadtree.
        ConfigError: the quadtree does not cover the Earth.
    """

    def __init__(
        self,
        database: ReferenceDatabase,
        quadtree: Quadtree | None,
        *,
        structure: Structure = "exact",
        device: str = "cpu",
    ) -> None:
        if quadtree is not None:
            database.check_fingerprints(quadtree=quadtree.fingerprint)
        self.database, self.quadtree = database, quadtree
        tree = quadtree or build_quadtree([[0.0, 0.0]], max_points_per_cell=2)  # one cell, the Earth
        self._index = CellIndex(tree, database.segments, structure=structure, device=device)
        present = np.zeros(len(SOURCES), np.int64)
        for segment in database.segments:
            present += np.bincount(segment.source[~segment.deleted], minlength=len(SOURCES))
        names: tuple[Source, ...] = SOURCES
        self.sources = tuple(name for name, n in zip(names, present, strict=True) if n)

    def in_cells(
        self, queries: Sequence[NDArray[np.float32]], cells: CellEvidence, k: int, merge: Merge = "mean"
    ) -> Candidates:
        """The best k references of each source in each query's cells, (Q, K) with K up to k times the sources.

        Neighbours of the best cell are searched, too, where its point lies within its kernel's width of them.

        Args:
            queries: V views, each (Q, D) unit vectors: one, unless views are merged after the search.
            cells: the chosen cells.
            k: per source.
            merge: of several views: "nearest" keeps each reference's best similarity, "vote" adds a bonus for
                references that many views find.
        """
        assert self.quadtree is not None  # without one, `everywhere` searches
        asked = [
            with_border_neighbours(self.quadtree, ids[ids >= 0], unit_to_latlon(unit[0]), float(scale[0]))
            for ids, unit, scale in zip(cells.cell_id, cells.unit, cells.scale_km, strict=True)
        ]
        return self._of_sources(
            [[self._index.search(query, asked, k, [source]) for query in queries] for source in self.sources],
            k,
            merge,
        )

    def everywhere(self, queries: Sequence[NDArray[np.float32]], k: int, merge: Merge = "mean") -> Candidates:
        """The best k references of each source in the whole database."""
        return self._of_sources(
            [
                [self._index.search_everywhere(query, k, [source]) for query in queries]
                for source in self.sources
            ],
            k,
            merge,
        )

    def _of_sources(self, found: list[list[Candidates]], k: int, merge: Merge) -> Candidates:
        parts = [views[0] if len(views) == 1 else merge_views(views, k, merge) for views in found]
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return Candidates.nothing(0, 0)
        return Candidates(
            *(
                np.concatenate([getattr(part, name) for part in parts], 1)
                for name in ("row_id", "similarity", "latlon_deg", "source")
            )
        )

    def evidence(
        self,
        queries: Sequence[NDArray[np.float32]],
        cells: CellEvidence,
        probs: NDArray[np.float64],
        k: int,
        merge: Merge = "mean",
    ) -> Evidence:
        """Cells and the candidates in them; arguments as for `in_cells`, and all cells' probabilities (Q, all).

        Without a quadtree the whole database is searched, and candidates have no cell.
        """
        if not self.sources:
            return Evidence.nothing(cells)
        if self.quadtree is None:
            found = self.everywhere(queries, k, merge)
            no_preference = np.zeros(found.row_id.shape)
            return Evidence.of_candidates(
                cells, found.row_id, found.similarity, found.latlon_deg, found.source, no_preference
            )
        found = self.in_cells(queries, cells, k, merge)
        there = found.row_id != NO_ROW
        cell_id = self.quadtree.assign(np.where(there[..., None], found.latlon_deg, 0.0).reshape(-1, 2))
        cell_id = cell_id.reshape(there.shape)
        log_prob = np.log(np.take_along_axis(probs, cell_id, 1) + 1e-9)
        return Evidence.of_candidates(
            cells, found.row_id, found.similarity, found.latlon_deg, found.source, log_prob, cell_id
        )

    def keys(self, row_id: NDArray[np.int64], latlon_deg: NDArray[np.float64]) -> list[str]:
        """The references' keys, (m,), (m, 2) -> m."""
        column = self.database.rows(row_id, latlon_deg, ["key"]).column("key")
        return [str(key) for key in column.to_pylist()]


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
