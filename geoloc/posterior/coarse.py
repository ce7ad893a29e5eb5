"""Limit the precision of a prediction: every location in it is moved to a coarse grid.

The grid is the same for all predictions: rows of equal height, each cut into boxes of equal width; a location is
replaced by the centre of its box. Any two centres lie at least the cell size apart, also at the poles and across the
antimeridian. Two locations on different sides of a border would reveal that they lie near it, so locations of one
prediction that are nearer to each other than the cell size share the centre of the most important one.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError
from geoloc.posterior.prediction import Atom, Candidate, Prediction
from quadtree import Quadtree
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, haversine_km, validate_latlon_deg

FloatArray = NDArray[np.float64]

LEAST_KM, MOST_KM = 0.001, 20_000.0
_KM_PER_DEG = math.radians(EARTH_MEAN_RADIUS_KM)


class CoarseGrid:
    """Boxes on the Earth and their centres.

    Args:
        cell_km: least distance of two centres, in [0.001, 20000] km. Rows are that high or a little higher, and boxes
            that wide in the middle of their row.

    Raises:
        ConfigError: the size is out of range.
    """

    def __init__(self, cell_km: float) -> None:
        if not LEAST_KM <= cell_km <= MOST_KM:  # a NaN is not
            raise ConfigError(
                f"max_precision_km is {cell_km}; expected {LEAST_KM} to {MOST_KM:.0f} km, the finest "
                "location in an answer"
            )
        self.cell_km = cell_km
        self._num_rows = max(1, math.floor(180.0 * _KM_PER_DEG / cell_km))
        self._height_deg = 180.0 / self._num_rows

    def snap(self, latlon_deg: ArrayLike) -> FloatArray:
        """Centres of the boxes that hold points, (..., 2) -> (..., 2) degrees; a centre stays.

        Raises:
            InvalidCoordinateError: a point is not on Earth.
        """
        points = np.asarray(latlon_deg, np.float64)
        lat, lon = validate_latlon_deg(points.reshape(-1, 2)).T
        row = np.clip(np.floor((lat + 90.0) / self._height_deg), 0, self._num_rows - 1)
        middle_lat = -90.0 + (row + 0.5) * self._height_deg
        width_deg = 360.0 / self._num_columns(middle_lat)
        column = np.clip(np.floor((lon + 180.0) / width_deg), 0, 360.0 / width_deg - 1)
        return np.stack([middle_lat, -180.0 + (column + 0.5) * width_deg], -1).reshape(points.shape)

    def reach_km(self, middle_lat_deg: float) -> float:
        """Distance from a centre to the farthest point of its box, a corner on the equator's side."""
        width_deg = 360.0 / float(self._num_columns(np.float64(middle_lat_deg)))
        corner_lat = abs(middle_lat_deg) - self._height_deg / 2
        return float(haversine_km([abs(middle_lat_deg), 0.0], [corner_lat, width_deg / 2]))

    def _num_columns(self, middle_lat_deg: FloatArray | np.float64) -> FloatArray:
        """Number of boxes of a row: the most whose centres are far enough apart; two around a pole."""
        half = math.sin(self.cell_km / (2 * EARTH_MEAN_RADIUS_KM))
        sine = np.minimum(1.0, half / np.cos(np.radians(middle_lat_deg)))
        return np.asarray(np.maximum(2.0, np.floor(np.pi / np.arcsin(sine))))


def coarsened(prediction: Prediction, grid: CoarseGrid, quadtree: Quadtree | None) -> Prediction:
    """A prediction no finer than the grid.

    The point, candidates and kernels of the posterior move to centres of the grid; those that meet there are merged.
    Cells become those that hold the centres, cut to boxes no smaller than the grid's. References lose their keys, which
    name one location. Radii grow by the largest move of the point and are rounded up to a multiple of the cell size, so
    they hold the truth at least as often as before.

    Args:
        prediction: without `place`, which is looked up for the new point. `abstained` is kept.
        grid: of the answer.
        quadtree: of the model, for the paths of cells; None for a model without.
    """
    anchors = _Anchors(grid)
    lat, lon = anchors.middle(prediction.lat, prediction.lon)
    cell_path = ""
    if quadtree is not None and prediction.cell_path:
        best = quadtree.center_latlon_deg[quadtree.cells_below(prediction.cell_path)[0]]
        cell_path = coarse_path(quadtree, anchors.middle(*best.tolist()), grid.cell_km)
    return replace(
        prediction,
        lat=lat,
        lon=lon,
        cell_path=cell_path,
        candidates=_candidates(prediction.candidates, anchors, quadtree),
        radius_km={
            percent: grid.cell_km * math.ceil((radius + grid.reach_km(lat)) / grid.cell_km)
            for percent, radius in prediction.radius_km.items()
        },
        posterior=_atoms(prediction.posterior, anchors),
    )


def coarse_path(quadtree: Quadtree, latlon_deg: tuple[float, float], least_km: float) -> str:
    """The smallest node of the tree at a point that is at least so high and wide.

    Its width is taken at the point's latitude. "" is the root, whatever its size.
    """
    cell = int(quadtree.assign([latlon_deg])[0])
    path = quadtree.paths[cell]
    south, west, north, east = quadtree.bounds_deg[cell].tolist()
    sides_km = (
        (north - south) * _KM_PER_DEG,
        (east - west) * _KM_PER_DEG * math.cos(math.radians(latlon_deg[0])),
    )
    return path[: max(0, len(path) - max(0, math.ceil(math.log2(least_km / min(sides_km)))))]


class _Anchors:
    """Moves the locations of one prediction: to the centre of an earlier location nearby, or else to their own."""

    def __init__(self, grid: CoarseGrid) -> None:
        self.grid = grid
        self._fine: list[tuple[float, float]] = []
        self._middles: list[tuple[float, float]] = []

    def middle(self, lat: float, lon: float) -> tuple[float, float]:
        if self._fine:
            near = haversine_km([[lat, lon]], self._fine) < self.grid.cell_km
            if near.any():
                return self._middles[int(near.argmax())]
        middle_lat, middle_lon = self.grid.snap([lat, lon]).tolist()
        self._fine.append((lat, lon))
        self._middles.append((middle_lat, middle_lon))
        return middle_lat, middle_lon


def _candidates(
    candidates: tuple[Candidate, ...], anchors: _Anchors, quadtree: Quadtree | None
) -> tuple[Candidate, ...]:
    merged: dict[tuple[float, float, str], Candidate] = {}
    for candidate in candidates:
        lat, lon = anchors.middle(candidate.lat, candidate.lon)
        key = ""
        if candidate.source == "cell" and quadtree is not None:
            key = coarse_path(quadtree, (lat, lon), anchors.grid.cell_km)
        known = merged.get((lat, lon, candidate.source))
        probability, similarity = candidate.probability, candidate.similarity
        if known is not None:
            probability += known.probability
            if similarity is not None and known.similarity is not None:
                similarity = max(similarity, known.similarity)
        merged[lat, lon, candidate.source] = Candidate(
            lat, lon, probability, candidate.source, similarity, key
        )
    return tuple(sorted(merged.values(), key=lambda candidate: -candidate.probability))


def _atoms(atoms: tuple[Atom, ...], anchors: _Anchors) -> tuple[Atom, ...]:
    merged: dict[tuple[float, float], Atom] = {}
    for atom in atoms:
        lat, lon = anchors.middle(atom.lat, atom.lon)
        known = merged.get((lat, lon), Atom(lat, lon, 0.0, anchors.grid.cell_km))
        merged[lat, lon] = Atom(
            lat, lon, known.weight + atom.weight, max(known.scale_km, atom.scale_km, anchors.grid.cell_km)
        )
    return tuple(sorted(merged.values(), key=lambda atom: -atom.weight))
