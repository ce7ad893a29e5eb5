"""The posterior of a query from its cells, candidates and mixture weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from geoloc.posterior.distribution import Posterior
from geoloc.posterior.evidence import Evidence
from geoloc.posterior.prediction import COORDINATE_DIGITS, Atom, Candidate, rounded_latlon_deg
from geoloc.posterior.reranker import MixtureWeights
from geoloc.reference.rows import SOURCES
from quadtree.sphere import unit_to_latlon

FloatArray = NDArray[np.float64]

NEGLIGIBLE_PROBABILITY = 1e-7  # cells not chosen with less are left out of the posterior
NEGLIGIBLE_SHARE = 2e-3  # candidates with less, relative to the query's heaviest, are left out
MAX_ATOMS = 40  # of a prediction


def posterior_of(
    evidence: Evidence, weighed: MixtureWeights, q: int, cell_probs: FloatArray, cell_unit: FloatArray
) -> Posterior:
    """The posterior of one query.

    Args:
        q: index of the query.
        cell_probs: (C,) of all cells.
        cell_unit: (C, 3) their representative points, for the mass in cells that were not chosen.
    """
    cells = evidence.cells
    chosen = cells.cell_id[q] >= 0
    others = cell_probs.copy()
    others[cells.cell_id[q, chosen]] = 0.0
    background = np.flatnonzero(others > NEGLIGIBLE_PROBABILITY)
    weight = weighed.weight[q]
    kept = weight > NEGLIGIBLE_SHARE * weight.max(initial=0.0)
    return Posterior(
        np.concatenate([evidence.unit[q, kept], cells.unit[q, chosen]]),
        np.concatenate([weight[kept], weighed.cell_weight[q, chosen]]),
        np.concatenate([weighed.scale_km[q, kept], cells.scale_km[q, chosen]]),
        cell_unit[background],
        others[background],
    )


def atoms_of(posterior: Posterior, limit: int = MAX_ATOMS) -> tuple[Atom, ...]:
    """The heaviest atoms of a posterior, heaviest first, rounded for storage.

    Positions are rounded to about a hundredth of the kernel's width, weight and width to three significant digits. The
    mass in cells that were not chosen has no kernel, and is left out.

    Args:
        limit: largest number of atoms.
    """
    best = np.argsort(-posterior.weight, kind="stable")[:limit]
    columns = (unit_to_latlon(posterior.unit[best]), posterior.weight[best], posterior.scale_km[best])
    return tuple(
        Atom(
            *rounded_latlon_deg(lat, lon, _digits_for(scale_km)),
            _three_digits(weight),
            _three_digits(scale_km),
        )
        for (lat, lon), weight, scale_km in zip(*(column.tolist() for column in columns), strict=True)
        if weight > 0
    )


def _digits_for(scale_km: float) -> int:
    """Decimals of a degree (111 km) for about a hundredth of this width."""
    if scale_km <= 0:
        return COORDINATE_DIGITS
    return min(COORDINATE_DIGITS, max(0, 4 - math.floor(math.log10(scale_km))))


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def candidates_of(
    evidence: Evidence,
    weighed: MixtureWeights,
    q: int,
    top_k: int,
    paths: tuple[str, ...],
    keys: Callable[[NDArray[np.int64], FloatArray, NDArray[np.int64]], list[tuple[str, str]]] | None,
) -> list[Candidate]:
    """The most probable cells and references of one query, best first.

    Args:
        top_k: largest number of candidates.
        paths: of all cells.
        keys: looks up references' keys and the names of their databases, see `Retriever.keys`; needed where there are
            references.
    """
    cells = evidence.cells
    chosen = np.flatnonzero(cells.cell_id[q] >= 0)
    found = np.flatnonzero(weighed.weight[q] > 0)
    probability = np.concatenate([weighed.cell_weight[q, chosen], weighed.weight[q, found]])
    best = np.argsort(-probability, kind="stable")[:top_k]
    latlon = unit_to_latlon(np.concatenate([cells.unit[q, chosen], evidence.unit[q, found]])[best])
    of_reference = found[best[best >= len(chosen)] - len(chosen)]
    names: list[tuple[str, str]] = []
    if len(of_reference) and keys is not None:
        names = keys(
            evidence.row_id[q, of_reference],
            evidence.latlon_deg[q, of_reference],
            evidence.database[q, of_reference],
        )
    name = iter(names)
    result = []
    for place, (lat, lon) in zip(best.tolist(), latlon.tolist(), strict=True):
        share = float(probability[place])
        if place < len(chosen):
            cell = int(cells.cell_id[q, chosen[place]])
            result.append(Candidate(lat, lon, share, "cell", None, paths[cell]))
        else:
            column = found[place - len(chosen)]
            source = SOURCES[evidence.source[q, column]]
            similarity = float(evidence.similarity[q, column])
            result.append(Candidate(lat, lon, share, source, similarity, *next(name)))
    return result
