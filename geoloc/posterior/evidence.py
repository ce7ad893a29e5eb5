"""Inputs of the reranker: cell probabilities, in-cell offsets and retrieved candidates.

Arrays over Q queries, padded to C cells and K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from geoloc.search.candidates import Candidates
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, latlon_to_unit

FloatArray = NDArray[np.float64]

EARTH_AREA_KM2 = 4 * np.pi * EARTH_MEAN_RADIUS_KM**2
NOWHERE = (
    1e-3 / EARTH_AREA_KM2
)  # density per square km everywhere: a thousandth of the mass, spread over the Earth
SOURCES = 3  # aerial, street, location: as the reference database numbers them


@dataclass(frozen=True)
class CellEvidence:
    """The chosen cells of each query.

    Attributes:
        cell_id: (Q, C) int64, -1 in padding.
        unit: (Q, C, 3) the point inside each cell; the north pole in padding.
        probability: (Q, C) of each cell; 0 in padding. A row sums to at most 1: the rest lies in cells not chosen.
        scale_km: (Q, C) kernel width; 1 in padding.
    """

    cell_id: NDArray[np.int64]
    unit: FloatArray
    probability: FloatArray
    scale_km: FloatArray

    @staticmethod
    def of_rows(
        cells: Sequence[NDArray[np.int64]],
        units: Sequence[FloatArray],
        probability: Sequence[FloatArray],
        scale_km: Sequence[FloatArray],
    ) -> CellEvidence:
        """Pad the rows of each query: cells (k,), points (k, 3), probabilities (k,) and kernel widths (k,)."""
        q, c = len(cells), max(1, *(len(row) for row in cells))
        padded = CellEvidence(
            np.full((q, c), -1, np.int64), np.zeros((q, c, 3)), np.zeros((q, c)), np.ones((q, c))
        )
        padded.unit[..., 2] = 1.0
        for i, row in enumerate(cells):
            padded.cell_id[i, : len(row)] = row
            padded.unit[i, : len(row)] = units[i]
            padded.probability[i, : len(row)] = probability[i]
            padded.scale_km[i, : len(row)] = scale_km[i]
        return padded

    @staticmethod
    def padded(
        cells: list[NDArray[np.int64]], units: list[FloatArray], probs: FloatArray, scale_km: FloatArray
    ) -> CellEvidence:
        """Pad rows: cells and points per query, probabilities of all cells (Q, all), scales (all,)."""
        of_cells = [row[ids] for row, ids in zip(probs, cells, strict=True)]
        return CellEvidence.of_rows(cells, units, of_cells, [scale_km[ids] for ids in cells])

    @staticmethod
    def none(num_queries: int) -> CellEvidence:
        """No chosen cells for any of Q queries."""
        nothing = [np.zeros(0)] * num_queries
        ids = [np.zeros(0, np.int64)] * num_queries
        return CellEvidence.of_rows(ids, [np.zeros((0, 3))] * num_queries, nothing, nothing)

    def density(self, unit: FloatArray) -> FloatArray:
        """Density of the classifier per square km at points, (Q, K, 3) -> (Q, K); at least `NOWHERE`."""
        return np.asarray(NOWHERE + (self.kernels(unit) * self.probability[:, None]).sum(-1))

    def kernels(self, unit: FloatArray) -> FloatArray:
        """Density of each cell's kernel per square km at points, (Q, K, 3) -> (Q, K, C)."""
        d, scale = chord_km(unit, self.unit), self.scale_km[:, None]
        return np.asarray(np.exp(-0.5 * (d / scale) ** 2) / (2 * np.pi * scale**2))


@dataclass(frozen=True)
class Evidence:
    """Cells and candidates of Q queries.

    Attributes:
        cells: see `CellEvidence`.
        similarity: (Q, K) cosine of query and reference; 0 in padding.
        present: (Q, K) False in padding.
        source: (Q, K) 0 aerial, 1 street, 2 location; 0 in padding.
        database: (Q, K) index of the database; 0 in padding.
        unit: (Q, K, 3) positions of the references; the north pole in padding.
        cell_log_prob: (Q, K) of the cell that holds the reference.
        column: (Q, K) column of that cell in `cells`; -1 where it was not chosen.
        row_id: (Q, K) in the database; -1 in padding.
        latlon_deg: (Q, K, 2) as the database has it, by which a row is found again: converted back from `unit` it might
            lie in a neighbouring cell. Undefined in padding.
    """

    cells: CellEvidence
    similarity: FloatArray
    present: NDArray[np.bool_]
    source: NDArray[np.int64]
    database: NDArray[np.int64]
    unit: FloatArray
    cell_log_prob: FloatArray
    column: NDArray[np.int64]
    row_id: NDArray[np.int64]
    latlon_deg: FloatArray

    def __len__(self) -> int:
        return len(self.present)

    @property
    def group(self) -> NDArray[np.int64]:
        """(Q, K) number of the candidate's database and source: similarities of one group have one scale."""
        return self.database * SOURCES + self.source

    def __getitem__(self, rows: NDArray[np.int64]) -> Evidence:
        """The queries with these indices, (m,)."""
        cells = CellEvidence(**{f.name: getattr(self.cells, f.name)[rows] for f in fields(CellEvidence)})
        own = {f.name: getattr(self, f.name)[rows] for f in fields(Evidence) if f.name != "cells"}
        return Evidence(cells, **own)

    @staticmethod
    def nothing(cells: CellEvidence) -> Evidence:
        """The cells without candidates."""
        q = len(cells.cell_id)
        return Evidence(
            cells,
            np.zeros((q, 0)),
            np.zeros((q, 0), np.bool_),
            np.zeros((q, 0), np.int64),
            np.zeros((q, 0), np.int64),
            np.zeros((q, 0, 3)),
            np.zeros((q, 0)),
            np.zeros((q, 0), np.int64),
            np.zeros((q, 0), np.int64),
            np.zeros((q, 0, 2)),
        )

    @staticmethod
    def of_candidates(
        cells: CellEvidence,
        found: Candidates,
        database: NDArray[np.int64],
        cell_log_prob: FloatArray,
        cell_id: NDArray[np.int64] | None = None,
    ) -> Evidence:
        """From the result of a search.

        Args:
            cells: the chosen cells.
            found: (Q, K) candidates.
            database: (Q, K) index of their database.
            cell_log_prob: (Q, K) of the cells that hold them.
            cell_id: (Q, K) these cells; None without cells.
        """
        present = found.is_present
        column = np.full(present.shape, -1, np.int64)
        if cell_id is not None:
            same = (cell_id[..., None] == cells.cell_id[:, None]) & (cells.cell_id[:, None] >= 0)
            column = np.where(present & same.any(-1), same.argmax(-1), -1)
        latlon_deg = np.where(present[..., None], found.latlon_deg, (90.0, 0.0))
        return Evidence(
            cells,
            np.where(present, found.similarity, 0.0).astype(np.float64),
            present,
            np.where(present, found.source, 0).astype(np.int64),
            np.where(present, database, 0),
            latlon_to_unit(latlon_deg),
            np.where(present, cell_log_prob, 0.0),
            column,
            found.row_id,
            latlon_deg,
        )


FEATURES = (
    "similarity",  # log-odds on the scale of all sources
    "gap",  # similarity below the query's best candidate
    "rank",  # log2(1 + rank) by similarity
    "cell",  # log probability of its cell
    "prior",  # log density of the classifier there, relative to the best candidate's
    "off_point",  # log(1 + distance in km) to the offset point of the most probable cell
    "agreement",  # log share of the other candidates, weighted by similarity, that lies near
    "street",
    "location",
)
AGREE_KM = (30.0, 100.0)  # kernel widths of agreement, whose mean is taken


def features(evidence: Evidence, log_odds: FloatArray) -> FloatArray:
    """Features of every candidate, (Q, K, F), 0 in padding.

    Args:
        log_odds: (Q, K) similarities on the scale that all sources share.
    """
    present = evidence.present
    masked = np.where(present, log_odds, -np.inf)
    best = masked.max(-1, keepdims=True, initial=-1e9)
    order = np.argsort(-masked, axis=-1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[1])[None], -1)
    prior = np.log(evidence.cells.density(evidence.unit))
    best_prior = np.where(present, prior, -np.inf).max(-1, keepdims=True, initial=-1e9)
    first = evidence.cells.unit[np.arange(len(present)), evidence.cells.probability.argmax(-1)]
    off_point = chord_km(evidence.unit, first[:, None])[..., 0]
    share = np.exp(masked - np.maximum(best, -1e8))
    share /= np.maximum(share.sum(-1, keepdims=True), 1e-300)
    d = chord_km(evidence.unit, evidence.unit)
    near = np.mean([np.exp(-0.5 * (d / km) ** 2) for km in AGREE_KM], axis=0)
    near[:, np.arange(near.shape[1]), np.arange(near.shape[1])] = 0.0
    columns = (
        log_odds / 5,
        (log_odds - best) / 5,
        np.log2(1.0 + rank) / 5,
        evidence.cell_log_prob / 5,
        (prior - best_prior) / 5,
        np.log1p(off_point) / 5,
        np.log(1e-3 + (near * share[:, None]).sum(-1)) / 5,
        (evidence.source == 1).astype(np.float64),
        (evidence.source == 2).astype(np.float64),
    )
    return np.asarray(np.where(present[..., None], np.stack(columns, -1), 0.0))


def chord_km(a_unit: FloatArray, b_unit: FloatArray) -> FloatArray:
    """Chord distances of unit vectors per query, (Q, m, 3), (Q, n, 3) -> (Q, m, n).

    Within 0.1 % of the great-circle distance up to 1000 km.
    """
    squared = 2.0 - 2.0 * np.einsum("qmi,qni->qmn", a_unit, b_unit)
    return np.asarray(EARTH_MEAN_RADIUS_KM * np.sqrt(np.maximum(squared, 0.0)))
