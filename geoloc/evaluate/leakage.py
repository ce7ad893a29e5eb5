"""Leakage check: test images near an image of the training set or the gallery.

OSV-5M keeps 1 km between its splits; MP-16 and YFCC4k come from one pool.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quadtree.sphere import EARTH_MEAN_RADIUS_KM, latlon_to_unit, validate_latlon_deg

RADII_M: Final = (1.0, 25.0, 1000.0)


def nearest_known_km(test_latlon_deg: ArrayLike, known_latlon_deg: ArrayLike) -> NDArray[np.float64]:
    """Great-circle distance of each test point to the nearest known point, (n, 2) and (m, 2) -> (n,) km.

    Raises:
        InvalidCoordinateError: a coordinate is invalid.
        ValueError: there is no known point.
    """
    from scipy.spatial import cKDTree

    known = validate_latlon_deg(known_latlon_deg).reshape(-1, 2)
    if not len(known):
        raise ValueError("the gallery has no points: leakage cannot be measured")
    tree = cKDTree(latlon_to_unit(known))
    chord, _ = tree.query(latlon_to_unit(validate_latlon_deg(test_latlon_deg).reshape(-1, 2)))
    return np.asarray(2 * EARTH_MEAN_RADIUS_KM * np.arcsin(np.minimum(chord / 2, 1.0)))


def leakage_warnings(
    test_latlon_deg: ArrayLike, known_latlon_deg: ArrayLike, name: str, radii_m: Sequence[float] = RADII_M
) -> list[str]:
    """One sentence per radius within which test images have a known point, and one for invalid known points.

    Args:
        test_latlon_deg: (n, 2) test images.
        known_latlon_deg: (m, 2) images of the training set or gallery.
        name: of the known points, such as "gallery.csv".
        radii_m: metres.
    """
    known = np.asarray(known_latlon_deg, np.float64)
    usable = np.isfinite(known).all(axis=1) & (np.abs(known[:, 0]) <= 90)
    warnings = []
    if num := int((~usable).sum()):
        warnings.append(f"Leakage: {num:,} of {len(known):,} points of {name} have no usable position.")
    distance_m = 1000 * nearest_known_km(test_latlon_deg, known[usable])
    for radius in radii_m:
        if num := int((distance_m <= radius).sum()):
            warnings.append(
                f"Leakage: {num:,} of {len(distance_m):,} images ({num / len(distance_m):.1%}) have a point of {name} "
                f"within {radius:g} m."
            )
    return warnings
