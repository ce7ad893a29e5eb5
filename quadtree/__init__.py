"""Quadtree cells on the Earth: build them from points, find the cell of a point, store them as GeoParquet.

    >>> import numpy as np
    >>> from quadtree import build_quadtree
    >>> latlon_deg = np.array([[48.85, 2.35], [48.86, 2.36], [-33.87, 151.21]])
    >>> tree = build_quadtree(latlon_deg, max_points_per_cell=2, max_depth=3)
    >>> tree.paths
    ('1', '320')
    >>> tree.assign([[48.0, 3.0], [-40.0, 140.0]])
    array([1, 0])

A public name loads its module, and NumPy, on first access. PyArrow and pyproj are loaded by the functions
that use them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quadtree.build import build_quadtree, build_quadtree_from_batches
    from quadtree.errors import (
        InvalidCoordinateError,
        InvalidPointTableError,
        InvalidTreeError,
        QuadtreeError,
    )
    from quadtree.sphere import (
        EARTH_MEAN_RADIUS_KM,
        box_distance_km,
        destination_latlon_deg,
        geodesic_km,
        haversine_km,
        initial_bearing_deg,
        latlon_to_unit,
        spherical_mean_latlon_deg,
        unit_to_latlon,
        validate_latlon_deg,
    )
    from quadtree.tree import Quadtree

__all__ = [
    "EARTH_MEAN_RADIUS_KM",
    "InvalidCoordinateError",
    "InvalidPointTableError",
    "InvalidTreeError",
    "Quadtree",
    "QuadtreeError",
    "box_distance_km",
    "build_quadtree",
    "build_quadtree_from_batches",
    "destination_latlon_deg",
    "geodesic_km",
    "haversine_km",
    "initial_bearing_deg",
    "latlon_to_unit",
    "spherical_mean_latlon_deg",
    "unit_to_latlon",
    "validate_latlon_deg",
]

_MODULES = {
    "Quadtree": "tree",
    "build_quadtree": "build",
    "build_quadtree_from_batches": "build",
} | dict.fromkeys([name for name in __all__ if name.endswith("Error")], "errors")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'quadtree' has no attribute {name!r}")
    value = getattr(import_module(f"quadtree.{_MODULES.get(name, 'sphere')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
