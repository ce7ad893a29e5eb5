"""Cells on the ground, in NumPy: the most probable ones, points inside them by their offsets, and their size.

`geoloc.models.heads.OffsetHead` is trained with the same decoding of offsets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from geoloc.models.config import OffsetHeadConfig
from quadtree import Quadtree
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, wrap_longitude_deg

FloatArray = NDArray[np.float64]


def points_in_cells(
    quadtree: Quadtree,
    chosen: Sequence[NDArray[np.int64]],
    config: OffsetHeadConfig | None,
    offsets: NDArray[np.float32] | None,
) -> list[FloatArray]:
    """The point inside each chosen cell: by its offset, or its representative point without an offset head.

    An offset r moves from the cell's origin towards the edge on the side of its sign: 1 is the edge, 0 the origin.
    Beyond a pole the latitude is clipped to it; beyond the antimeridian the longitude continues from -180.

    Args:
        chosen: per image (k,) cell ids.
        config: of the offset head.
        offsets: (B, C or 1, 2), latitude first.

    Returns:
        Per image (k, 2) degrees.
    """
    center, bounds = quadtree.center_latlon_deg, quadtree.bounds_deg
    if config is None or offsets is None:
        return [center[cells] for cells in chosen]
    points = []
    for row, cells in zip(offsets, chosen, strict=True):
        south_west, north_east = bounds[cells, :2], bounds[cells, 2:]
        origin = center[cells] if config.origin == "representative" else (south_west + north_east) / 2
        r = np.float64(row[np.zeros_like(cells) if config.shared else cells])
        latlon = origin + r * np.where(r > 0, north_east - origin, origin - south_west)
        latitude, longitude = np.clip(latlon[:, 0], -90.0, 90.0), wrap_longitude_deg(latlon[:, 1])
        points.append(np.stack([latitude, longitude], -1))
    return points


def cell_radius_km(bounds_deg: FloatArray) -> FloatArray:
    """Radius of the disc with each cell's area, (C, 4) -> (C,); at least a metre, for cells without area."""
    south, west, north, east = np.radians(bounds_deg).T
    area = EARTH_MEAN_RADIUS_KM**2 * (east - west) * (np.sin(north) - np.sin(south))
    return np.asarray(np.maximum(np.sqrt(area / np.pi), 1e-3))


def choose_cells(probs: FloatArray, mass: float = 0.95, most: int = 32) -> NDArray[np.int64]:
    """The fewest cells that hold `mass`, at most `most`, best first, (C,) -> (k,) cell ids.

    Of equally probable cells the lower id comes first.
    """
    most = min(most, len(probs))
    candidates = np.flatnonzero(probs >= np.partition(probs, -most)[-most])
    top = candidates[np.argsort(-probs[candidates], kind="stable")][:most]
    enough = int(np.searchsorted(probs[top].cumsum(), mass)) + 1
    return top[:enough].astype(np.int64)
