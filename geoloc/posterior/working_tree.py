"""Cells for classifiers without cells: a quadtree over the references, and a posterior's mass in its cells.

A regression, a gallery or a model that samples locations gives a posterior over the Earth. Its mass in the cells of a
tree over the references decides where to search, as the probabilities of a cell head do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import ConfigError
from geoloc.posterior.cells import choose_cells
from geoloc.posterior.distribution import POINTS_PER_ATOM, Posterior
from geoloc.posterior.evidence import CellEvidence, chord_km
from geoloc.reference.database import ReferenceDatabase
from quadtree import Quadtree, build_quadtree_from_batches
from quadtree.sphere import unit_to_latlon

FloatArray = NDArray[np.float64]

ROWS_PER_CELL = 500
MAX_DEPTH = 20  # cells of about 38 m
LEAST_SCALE_KM = 0.005


def working_tree(databases: Sequence[ReferenceDatabase]) -> Quadtree:
    """A quadtree over the whole Earth whose cells hold about 500 references each.

    Raises:
        ConfigError: there are no references.
    """

    class Rows:
        """Positions of all rows, batch by batch, as often as they are asked for."""

        def __iter__(self) -> Iterator[FloatArray]:
            for database in databases:
                for segment in database.segments:
                    yield np.asarray(segment.latlon_deg)[~np.asarray(segment.deleted)]

    if not any(len(batch) for batch in Rows()):
        raise ConfigError("the databases have no references, so there is nothing to search")
    return build_quadtree_from_batches(Rows(), ROWS_PER_CELL, MAX_DEPTH)


def cells_of_posteriors(
    posteriors: Sequence[Posterior], tree: Quadtree, mass: float, most: int
) -> tuple[FloatArray, CellEvidence]:
    """Mass of posteriors in the cells of a tree, and the chosen cells of each.

    Mass where the tree has no cell goes to the nearest one. The point of a cell is the mean of the posterior in it,
    and its kernel is as wide as the posterior is there.

    Args:
        posteriors: of Q images.
        tree: with C cells.
        mass: the chosen cells hold so much …
        most: … or are so many, see `choose_cells`.

    Returns:
        (Q, C) probabilities, and the chosen cells.
    """
    probs = np.zeros((len(posteriors), tree.num_cells))
    chosen, units, scales = [], [], []
    for row, posterior in zip(probs, posteriors, strict=True):
        unit, weight = posterior.cloud_unit, posterior.cloud_weight
        cell = tree.assign(unit_to_latlon(unit))
        row += np.bincount(cell, weight, tree.num_cells)
        best = choose_cells(row, mass, most)
        # A point of the cloud stands for the part of its kernel around it.
        width_km = np.zeros(len(unit))
        of_atoms = np.repeat(posterior.scale_km, POINTS_PER_ATOM) / np.sqrt(POINTS_PER_ATOM)
        width_km[: len(of_atoms)] = of_atoms
        points, spreads = [], []
        for number in best.tolist():
            mine = cell == number
            mean = weight[mine] @ unit[mine]
            mean /= max(float(np.linalg.norm(mean)), 1e-300)
            squared_km = chord_km(unit[mine][None], mean[None, None])[0, :, 0] ** 2 / 2 + width_km[mine] ** 2
            points.append(mean)
            spreads.append(float(np.sqrt(np.average(squared_km, weights=weight[mine]))))
        chosen.append(best)
        units.append(np.array(points).reshape(-1, 3))
        scales.append(np.maximum(spreads, LEAST_SCALE_KM))
    return probs, CellEvidence.of_rows(
        chosen, units, [row[ids] for row, ids in zip(probs, chosen, strict=True)], scales
    )
