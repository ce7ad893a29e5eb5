"""What is known about where a photo was taken before it is weighed: its cells, and the references found in them.

Arrays over Q queries, padded to the widest: C cells and K candidates. Knows nothing about networks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from quadtree.sphere import EARTH_MEAN_RADIUS_KM, latlon_to_unit

FloatArray = NDArray[np.float64]

EARTH_AREA_KM2 = 4 * np.pi * EARTH_MEAN_RADIUS_KM**2
NOWHERE = (
    1e-3 / EARTH_AREA_KM2
)  # density per square km that every place keeps: a thousandth, spread over the Earth
SOURCES = 3  # aerial, street, location: as the reference database numbers them


@dataclass(frozen=True)
class CellEvidence:
    """The chosen cells of each query.

    Attributes:
        cell_id: (Q, C) int64, -1 in padding.
        unit: (Q, C, 3) the point inside each cell; the north pole in padding.
        probability: (Q, C) of each cell; 0 in padding. A row's sum is at most 1: the rest is in no chosen cell.
        scale_km: (Q, C) kernel width; 1 in padding.
    """

    cell_id: NDArray[np.int64]
    unit: FloatArray
    probability: FloatArray
    scale_km: FloatArray

    @staticmethod
    def padded(
        cells: list[NDArray[np.int64]], units: list[FloatArray], probs: FloatArray, scale_km: FloatArray
    ) -> CellEvidence:
        """From ragged rows: cells and points per query, all cells' probabilities (Q, all), scales (all,)."""
        q, c = len(cells), max(1, *(len(row) for row in cells))
        cell_id = np.full((q, c), -1, np.int64)
        unit = np.zeros((q, c, 3))
        unit[..., 2] = 1.0
        for i, (row, points) in enumerate(zip(cells, units, strict=True)):
            cell_id[i, : len(row)] = row
            unit[i, : len(row)] = points
        there = cell_id >= 0
        safe = np.where(there, cell_id, 0)
        probability = np.where(there, np.take_along_axis(probs, safe, 1), 0.0)
        return CellEvidence(cell_id, unit, probability, np.where(there, scale_km[safe], 1.0))

    def density(self, unit: FloatArray) -> FloatArray:
        """The classifier's own density per square km at points, (Q, K, 3) -> (Q, K); `NOWHERE` at least."""
        return np.asarray(NOWHERE + (self.kernels(unit) * self.probability[:, None]).sum(-1))

    def kernels(self, unit: FloatArray) -> FloatArray:
        """Each cell's own density per square km at points, (Q, K, 3) -> (Q, K, C)."""
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
        unit: (Q, K, 3) where the references are; the north pole in padding.
        cell_log_prob: (Q, K) of the cell that holds the reference.
        column: (Q, K) which of the chosen cells (a column of `cells`) that is; -1 where it is none of them.
        row_id: (Q, K) in the database; -1 in padding.
        latlon_deg: (Q, K, 2) as the database has it, by which a row is found again: what comes back from `unit` may
            lie on the other side of a line between cells; of no meaning in padding.
    """

    cells: CellEvidence
    similarity: FloatArray
    present: NDArray[np.bool_]
    source: NDArray[np.int64]
    unit: FloatArray
    cell_log_prob: FloatArray
    column: NDArray[np.int64]
    row_id: NDArray[np.int64]
    latlon_deg: FloatArray

    def __len__(self) -> int:
        return len(self.present)

    def __getitem__(self, rows: NDArray[np.int64]) -> Evidence:
        """Some of the queries, (m,) their numbers."""
        cells = CellEvidence(**{f.name: getattr(self.cells, f.name)[rows] for f in fields(CellEvidence)})
        own = {f.name: getattr(self, f.name)[rows] for f in fields(Evidence) if f.name != "cells"}
        return Evidence(cells, **own)

    @staticmethod
    def nothing(cells: CellEvidence) -> Evidence:
        """The cells alone: no candidate anywhere."""
        q = len(cells.cell_id)
        return Evidence(
            cells,
            np.zeros((q, 0)),
            np.zeros((q, 0), np.bool_),
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
        row_id: NDArray[np.int64],
        similarity: NDArray[np.float32],
        latlon_deg: FloatArray,
        source: NDArray[np.uint8],
        cell_log_prob: FloatArray,
        cell_id: NDArray[np.int64] | None = None,
    ) -> Evidence:
        """From what a search returns (`reference.candidates.Candidates`), padding and all.

        Args:
            cell_id: (Q, K) the cells that hold the candidates; None where cells do not matter.
        """
        present = row_id >= 0
        column = np.full(row_id.shape, -1, np.int64)
        if cell_id is not None:
            same = (cell_id[..., None] == cells.cell_id[:, None]) & (cells.cell_id[:, None] >= 0)
            column = np.where(present & same.any(-1), same.argmax(-1), -1)
        latlon_deg = np.where(present[..., None], latlon_deg, (90.0, 0.0))
        return Evidence(
            cells,
            np.where(present, similarity, 0.0).astype(np.float64),
            present,
            np.where(present, source, 0).astype(np.int64),
            latlon_to_unit(latlon_deg),
            np.where(present, cell_log_prob, 0.0),
            column,
            row_id,
            latlon_deg,
        )


FEATURES = (
    "similarity",  # of the source's own scale: log-odds against the other candidates
    "gap",  # to the best candidate of the query
    "rank",  # log2(1 + rank) by similarity
    "cell",  # log probability of its cell
    "prior",  # log of the classifier's density there, against the best candidate's
    "off_point",  # log(1 + distance in km) to the offset point of the most probable cell
    "agreement",  # log of the other candidates' share, each by its similarity, that lies near
    "street",
    "location",
)
AGREE_KM = (30.0, 100.0)  # "near" for agreement: two widths, the log of their mean


def features(evidence: Evidence, log_odds: FloatArray) -> FloatArray:
    """What the reranker sees of every candidate, (Q, K, F), 0 in padding.

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
    """Distances of unit vectors per query, (Q, m, 3), (Q, n, 3) -> (Q, m, n): straight through the ground.

    Within 0.1 % of the great circle up to 1000 km, and as good as it for kernels and features.
    """
    squared = 2.0 - 2.0 * np.einsum("qmi,qni->qmn", a_unit, b_unit)
    return np.asarray(EARTH_MEAN_RADIUS_KM * np.sqrt(np.maximum(squared, 0.0)))
