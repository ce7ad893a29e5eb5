"""Scores of point predictions from distances in km."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

GEOSCORE_SCALE_KM = 1492.7  # GeoGuessr's world map, as OSV-5M (Astruc et al. 2024, section 3) uses it
RADII_KM = (1.0, 25.0, 200.0, 750.0, 2500.0)  # street to continent (Hays & Efros 2008 onwards)


def geoscore(distance_km: ArrayLike) -> NDArray[np.float64]:
    """GeoScore of each distance, 5000 exp(-d / 1492.7); that of a data set is the mean.

    >>> round(float(geoscore(28.328569)), 4)
    4906.0044
    """
    return np.asarray(5000.0 * np.exp(-np.asarray(distance_km, np.float64) / GEOSCORE_SCALE_KM))


def accuracy_within_km(distance_km: ArrayLike, radius_km: float) -> float:
    """Share of distances strictly below a radius (OSV-5M's rule).

    Raises:
        ValueError: there are no distances, or one is negative or NaN.
    """
    distances = _checked(distance_km)
    return float((distances < radius_km).mean())


def summarise(distance_km: ArrayLike, radii_km: Sequence[float] = RADII_KM) -> dict[str, Any]:
    """GeoScore, mean and median distance and shares within radii, with the keys of `metrics.json`.

    Raises:
        ValueError: as `accuracy_within_km`.
    """
    distances = _checked(distance_km)
    return {
        "num_images": len(distances),
        "geoscore": float(geoscore(distances).mean()),
        "mean_km": float(distances.mean()),
        "median_km": float(np.median(distances)),
        "accuracy_within_km": {f"{radius:g}": accuracy_within_km(distances, radius) for radius in radii_km},
    }


def _checked(distance_km: ArrayLike) -> NDArray[np.float64]:
    distances = np.asarray(distance_km, np.float64).ravel()
    if not len(distances):
        raise ValueError("no distances to score: the truth and the predictions share no image")
    # Comparisons with NaN are false, so a NaN would count as a distant prediction.
    if bad := int((~(distances >= 0)).sum()):
        raise ValueError(f"{bad} of {len(distances)} distances are negative or NaN: check the coordinates")
    return distances
