"""The field's scores of point predictions, from distances in km."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

GEOSCORE_SCALE_KM = 1492.7  # GeoGuessr's world map, as OSV-5M (Astruc et al. 2024, section 3) uses it
RADII_KM = (1.0, 25.0, 200.0, 750.0, 2500.0)  # street to continent (Hays & Efros 2008 onwards)


def geoscore(distance_km: ArrayLike) -> NDArray[np.float64]:
    """5000 exp(-d / 1492.7) of each distance; a data set's GeoScore is the mean of these.

    >>> round(float(geoscore(28.328569)), 4)
    4906.0044
    """
    return np.asarray(5000.0 * np.exp(-np.asarray(distance_km, np.float64) / GEOSCORE_SCALE_KM))


def accuracy_within_km(distance_km: ArrayLike, radius_km: float) -> float:
    """Share of distances strictly below a radius, as OSV-5M counts.

    Raises:
        ValueError: there are no distances, or one is no distance (negative or not a number).
    """
    distances = _some(distance_km)
    return float((distances < radius_km).mean())


def summarise(distance_km: ArrayLike, radii_km: Sequence[float] = RADII_KM) -> dict[str, Any]:
    """GeoScore, mean and median distance, and shares within radii, under the names of `metrics.json`.

    Raises:
        ValueError: as `accuracy_within_km`.
    """
    distances = _some(distance_km)
    return {
        "num_images": len(distances),
        "geoscore": float(geoscore(distances).mean()),
        "mean_km": float(distances.mean()),
        "median_km": float(np.median(distances)),
        "accuracy_within_km": {f"{radius:g}": accuracy_within_km(distances, radius) for radius in radii_km},
    }


def _some(distance_km: ArrayLike) -> NDArray[np.float64]:
    distances = np.asarray(distance_km, np.float64).ravel()
    if not len(distances):
        raise ValueError("no distances to score: the truth and the predictions share no image")
    # A comparison with NaN is false, so a NaN would silently count as a distant prediction.
    if bad := int((~(distances >= 0)).sum()):
        raise ValueError(f"{bad} of {len(distances)} distances are negative or NaN: check the coordinates")
    return distances
