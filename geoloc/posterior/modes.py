"""Modes of a posterior: clusters of its atoms, by great-circle distance."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from geoloc.errors import ConfigError
from quadtree.errors import QuadtreeError
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, spherical_mean_latlon_deg

MODE_EPS_KM: Final = 200.0  # the field's radius of a region (Hays & Efros 2008)


class Mode(NamedTuple):
    """Cluster of a posterior.

    Attributes:
        lat: WGS84 degrees in [-90, 90], of the weighted spherical mean of the atoms.
        lon: WGS84 degrees in [-180, 180).
        probability: sum of the weights of the atoms, in [0, 1].
    """

    lat: float
    lon: float
    probability: float


def modes_of(
    atoms: Sequence[tuple[float, float, float, float]], eps_km: float = MODE_EPS_KM
) -> tuple[Mode, ...]:
    """Modes of a posterior, most probable first.

    Two atoms belong to one mode if a chain of atoms, each at most `eps_km` from the next, connects them (DBSCAN
    with one sample per core point). Atoms without weight are ignored.

    Args:
        atoms: latitude, longitude, weight and scale of each, as `Prediction.posterior`.
        eps_km: great-circle distance.

    Raises:
        ConfigError: `eps_km` is not positive.
    """
    if not eps_km > 0:
        raise ConfigError(f"eps_km is {eps_km}; it must be positive")
    values = np.array([atom for atom in atoms if atom[2] > 0], np.float64)
    if not len(values):
        return ()
    from sklearn.cluster import DBSCAN

    latlon_deg, weights = values[:, :2], values[:, 2]
    clustering = DBSCAN(
        eps_km / EARTH_MEAN_RADIUS_KM, min_samples=1, metric="haversine", algorithm="ball_tree"
    )
    labels = clustering.fit_predict(np.radians(latlon_deg))
    modes = []
    for label in range(labels.max() + 1):
        rows = np.flatnonzero(labels == label)
        try:
            lat, lon = spherical_mean_latlon_deg(latlon_deg[rows], weights[rows]).tolist()
        except QuadtreeError:  # the atoms cancel out
            lat, lon = latlon_deg[rows[weights[rows].argmax()]].tolist()
        modes.append(Mode(lat, lon, float(weights[rows].sum())))
    return tuple(sorted(modes, key=lambda mode: -mode.probability))
