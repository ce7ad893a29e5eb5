"""Area that aerial references cover: a box, the polygons of a GeoJSON, or all imagery."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import ConfigError, MissingDependencyError, NotFoundError
from geoloc.reference.aerial.source import AerialSource, Bounds, FloatArray, Mask
from quadtree.sphere import wrap_longitude_deg

RegionLike = Any  # a path of a GeoJSON, a geometry or feature as a mapping, or four numbers of a box

_KINDS: Final = ("Polygon", "MultiPolygon")


class Region(ABC):
    """A set of points on the Earth.

    Attributes:
        boxes: south, west, north, east of boxes with west <= east that hold all of it.
    """

    boxes: tuple[Bounds, ...]

    @abstractmethod
    def contains(self, latlon_deg: FloatArray) -> Mask:
        """Whether points lie in it, (n, 2) -> (n,)."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Plain JSON values that identify it."""


class Box(Region):
    """South, west, north, east; half-open, as cells are. West > east crosses the antimeridian.

    Raises:
        ConfigError: the numbers are not a box.
    """

    def __init__(self, bounds_deg: Sequence[float]) -> None:
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
        self.bounds_deg = (south, west, north, east)
        self.boxes = _split(self.bounds_deg)

    def contains(self, latlon_deg: FloatArray) -> Mask:  # noqa: D102  as in the base class
        lat, lon = latlon_deg[:, 0], latlon_deg[:, 1]
        inside = np.zeros(len(latlon_deg), np.bool_)
        for south, west, north, east in self.boxes:
            inside |= (lat >= south) & (lat < north) & (lon >= west) & (lon < east)
        return inside

    def facts(self) -> dict[str, Any]:  # noqa: D102
        return {"bounds_deg": list(self.bounds_deg)}


class Polygons(Region):
    """The polygons of a GeoJSON (RFC 7946): a geometry, a feature or a collection of them.

    Raises:
        ConfigError: there is no polygon, or an invalid one.
        MissingDependencyError: shapely is missing.
    """

    def __init__(self, geojson: Mapping[str, Any]) -> None:
        try:
            import shapely
            from shapely.geometry import shape
        except ImportError as error:
            raise MissingDependencyError(
                "GeoJSON regions need shapely: pip install 'geoloc-vision[aerial]'"
            ) from error
        geometries = [g for g in _geometries(geojson) if g.get("type") in _KINDS]
        if not geometries:
            raise ConfigError("this GeoJSON holds no Polygon and no MultiPolygon, so it covers nothing")
        try:
            self._area = shapely.union_all([shapely.make_valid(shape(geometry)) for geometry in geometries])
        except (
            shapely.errors.ShapelyError,
            ValueError,
            TypeError,
            IndexError,
            KeyError,
            AttributeError,
        ) as error:
            raise ConfigError(f"this GeoJSON holds an invalid polygon ({error})") from None
        west, south, east, north = self._area.bounds
        if self._area.is_empty or not (-90 <= south <= north <= 90 and -180 <= west <= east <= 180):
            raise ConfigError(
                "a GeoJSON region has longitudes from -180 to 180 and latitudes from -90 to 90, in this order "
                f"(RFC 7946 cuts at the antimeridian); found {self._area.bounds}"
            )
        shapely.prepare(self._area)
        self._contains_xy = shapely.contains_xy
        self._wkb = shapely.to_wkb(shapely.normalize(self._area), hex=True)
        self.boxes = ((south, west, north, east),)

    def contains(self, latlon_deg: FloatArray) -> Mask:  # noqa: D102
        return np.asarray(self._contains_xy(self._area, latlon_deg[:, 1], latlon_deg[:, 0]), np.bool_)

    def facts(self) -> dict[str, Any]:  # noqa: D102
        import hashlib

        return {"polygons_sha256": hashlib.sha256(self._wkb.encode()).hexdigest()}


class Imagery(Region):
    """The area in which one of the sources has imagery in its finest level.

    Raises:
        ConfigError: a source does not state its bounds.
    """

    def __init__(self, sources: Sequence[AerialSource]) -> None:
        boxes: list[Bounds] = []
        for source in sources:
            if source.bounds_deg is None:
                raise ConfigError(
                    f"it is unknown where {source.name} has imagery: "
                    "give a region, as south, west, north, east or as GeoJSON"
                )
            boxes += _split(source.bounds_deg)
        self.boxes = tuple(boxes)
        self._sources = sources

    def contains(self, latlon_deg: FloatArray) -> Mask:  # noqa: D102
        inside: Mask = np.zeros(len(latlon_deg), np.bool_)
        for source in self._sources:
            inside |= source.covers(latlon_deg)
        return inside

    def facts(self) -> dict[str, Any]:  # noqa: D102
        return {"imagery": True}


def open_region(region: RegionLike | None, sources: Sequence[AerialSource]) -> Region:
    """Open a region: four numbers, a GeoJSON or its path, or None for all imagery.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it is not a region.
    """
    if region is None:
        return Imagery(sources)
    if isinstance(region, Region):
        return region
    if isinstance(region, Mapping):
        return Polygons(region)
    if isinstance(region, str | Path):
        return Polygons(_read_geojson(Path(region)))
    return Box(region)


def wrapped(latlon_deg: FloatArray) -> NDArray[np.float64]:
    """Points with longitudes in [-180, 180)."""
    return np.stack([latlon_deg[:, 0], wrap_longitude_deg(latlon_deg[:, 1])], -1)


def _read_geojson(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise NotFoundError(f"there is no GeoJSON {path}: check the path")
    try:
        values = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is not JSON: give a GeoJSON with polygons") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not GeoJSON: it holds {type(values).__name__}, and an object is needed")
    return values


def _geometries(geojson: Any, depth: int = 0) -> list[Mapping[str, Any]]:
    """All simple geometries in a GeoJSON object."""
    if not isinstance(geojson, Mapping) or depth > 8:
        return []
    inner = geojson.get("features") or geojson.get("geometries") or geojson.get("geometry")
    if inner is None:
        return [geojson]
    parts = inner if isinstance(inner, list) else [inner]
    return [geometry for part in parts for geometry in _geometries(part, depth + 1)]


def _split(bounds: Bounds) -> tuple[Bounds, ...]:
    south, west, north, east = bounds
    if west <= east:
        return (bounds,)
    return (south, west, north, 180.0), (south, -180.0, north, east)
