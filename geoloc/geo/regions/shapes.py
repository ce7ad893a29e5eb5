"""Boxes and circles."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from geoloc.errors import ConfigError
from geoloc.geo.regions.base import FloatArray, Mask, Region
from geoloc.geo.regions.boxes import Bounds, box_area_km2, split_at_antimeridian
from quadtree.errors import InvalidCoordinateError
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, destination_latlon_deg, haversine_km, validate_latlon_deg

_GOLDEN_ANGLE_DEG: Final = 180 * (3 - np.sqrt(5))


class Box(Region):
    """South, west, north, east; half-open, as cells are. West > east crosses the antimeridian.

    The pole belongs to a box whose northern edge it is. `area_km2` is exact.

    Args:
        bounds_deg: four numbers in degrees.
        name: for messages; None is the numbers.

    Raises:
        ConfigError: the numbers are not a box.
    """

    def __init__(self, bounds_deg: Sequence[float], name: str | None = None) -> None:
        try:
            south, west, north, east = (float(value) for value in bounds_deg)
        except (TypeError, ValueError):
            raise ConfigError(
                f"a box needs four numbers, south, west, north and east; found {bounds_deg!r}"
            ) from None
        if not (-90 <= south < north <= 90 and -180 <= west <= 180 and -180 <= east <= 180 and west != east):
            raise ConfigError(
                f"a box is south, west, north, east in degrees, with south < north; found {(south, west, north, east)}"
            )
        if (west, east) == (180.0, -180.0):
            raise ConfigError("a box from longitude 180 to -180 has no width; the whole turn is -180 to 180")
        self.bounds_deg = (south, west, north, east)
        self.boxes = split_at_antimeridian(self.bounds_deg)
        self.name = name or f"{south:g},{west:g},{north:g},{east:g}"

    def contains(self, latlon_deg: ArrayLike) -> Mask:  # noqa: D102  as in the base class
        points = validate_latlon_deg(latlon_deg).reshape(-1, 2)
        lat, lon = points[:, 0], points[:, 1]
        inside = np.zeros(len(points), np.bool_)
        for south, west, north, east in self.boxes:
            is_below = (lat < north) | ((lat == 90.0) & (north == 90.0))
            inside |= (lat >= south) & is_below & (lon >= west) & (lon < east)
        return inside

    def facts(self) -> dict[str, Any]:  # noqa: D102
        return {"bounds_deg": list(self.bounds_deg)}

    @cached_property
    def area_km2(self) -> float:  # noqa: D102
        return float(box_area_km2(np.array(self.boxes)).sum())

    def cover(self, num_boxes: int, limit: int) -> FloatArray:  # noqa: D102
        south, west, north, east = self.bounds_deg
        return np.array([(south, west, north, east if east > west else east + 360)])


class Circle(Region):
    """All points within a great-circle distance of a centre, the edge included. `area_km2` is exact.

    Args:
        latlon_deg: the centre.
        radius_km: more than 0; half the circumference (20,015 km) and more is the whole Earth.
        name: for messages; None is the numbers.

    Raises:
        ConfigError: the centre is not on Earth, or the radius is not a positive number.
    """

    def __init__(self, latlon_deg: Sequence[float], radius_km: float, name: str | None = None) -> None:
        try:
            center, radius = validate_latlon_deg(np.asarray(latlon_deg, np.float64)), float(radius_km)
        except (InvalidCoordinateError, TypeError, ValueError):
            raise ConfigError(
                f"a circle is latitude, longitude and a radius in km; found {(*latlon_deg, radius_km)}"
            ) from None
        if not 0 < radius < np.inf:
            raise ConfigError(f"the radius of a circle is a positive number of km; found {radius_km}")
        self.latlon_deg = (float(center[0]), float(center[1]))
        self.radius_km = radius
        self.boxes = split_at_antimeridian(_bounds_of_circle(self.latlon_deg, radius))
        self.name = name or f"{self.latlon_deg[0]:g},{self.latlon_deg[1]:g},{radius:g}"

    def contains(self, latlon_deg: ArrayLike) -> Mask:  # noqa: D102
        points = validate_latlon_deg(latlon_deg).reshape(-1, 2)
        # Trigonometry only near it: most points are farther in latitude alone.
        near = np.flatnonzero(
            np.abs(points[:, 0] - self.latlon_deg[0]) <= _angle_deg(self.radius_km) * (1 + 1e-9) + 1e-9
        )
        center = np.broadcast_to(self.latlon_deg, (len(near), 2))
        inside = np.zeros(len(points), np.bool_)
        inside[near] = haversine_km(points[near], center) <= self.radius_km
        return inside

    def facts(self) -> dict[str, Any]:  # noqa: D102
        return {"center_deg": list(self.latlon_deg), "radius_km": self.radius_km}

    @cached_property
    def area_km2(self) -> float:  # noqa: D102
        return float(4 * np.pi * EARTH_MEAN_RADIUS_KM**2 * self._height)

    def sample(self, n: int) -> FloatArray:
        """As in the base class: a Fibonacci spiral from the centre outwards."""
        if n < 1:
            raise ConfigError(f"n is {n}; a sample has at least 1 point")
        number = np.arange(n)
        angle = 2 * np.arcsin(np.sqrt(self._height * (number + 0.5) / n))
        points = destination_latlon_deg(
            self.latlon_deg, number * _GOLDEN_ANGLE_DEG % 360, EARTH_MEAN_RADIUS_KM * angle
        )
        inside = self._inside(points)
        return inside if len(inside) else np.array([self.latlon_deg])

    @property
    def _height(self) -> float:
        """Share of the Earth that it has: sin²(r / 2)."""
        return float(np.sin(min(self.radius_km / EARTH_MEAN_RADIUS_KM, np.pi) / 2) ** 2)


def _angle_deg(distance_km: float) -> float:
    return float(np.degrees(distance_km / EARTH_MEAN_RADIUS_KM))


def _bounds_of_circle(latlon_deg: tuple[float, float], radius_km: float) -> Bounds:
    """A box around a circle; west > east crosses the antimeridian."""
    latitude, longitude = latlon_deg
    angle = _angle_deg(radius_km) * (1 + 1e-9) + 1e-9  # rounding leaves nothing outside
    south, north = max(latitude - angle, -90.0), min(latitude + angle, 90.0)
    if south == -90.0 or north == 90.0:
        return south, -180.0, north, 180.0
    # The tangent meridian: sin(dlon) = sin(r) / cos(latitude).
    sine = np.sin(np.radians(angle)) / np.cos(np.radians(latitude))
    reach = float(np.degrees(np.arcsin(min(sine, 1.0)))) * (1 + 1e-9) + 1e-9
    west, east = longitude - reach, longitude + reach
    if east - west >= 360:
        return south, -180.0, north, 180.0
    return south, west + 360 * (west < -180), north, east - 360 * (east > 180)
