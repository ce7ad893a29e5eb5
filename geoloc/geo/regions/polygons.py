"""Polygons of a GeoJSON. The only module that imports shapely."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from geoloc.errors import ConfigError, MissingDependencyError, NotFoundError
from geoloc.geo.regions.base import MAX_BOXES, FloatArray, Mask, Region
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, validate_latlon_deg

_KINDS: Final = ("Polygon", "MultiPolygon")
_CRS_NAMES: Final = ("CRS84", "EPSG:4326", "EPSG::4326")  # endings of the names of degrees on WGS84


class Polygons(Region):
    """The polygons of a GeoJSON (RFC 7946): a geometry, a feature or a collection of them.

    Edges are straight in longitude and latitude, as RFC 7946 says. A point on an edge lies outside, but where the cut
    at the antimeridian goes through a polygon, and at a pole. `area_km2` is exact.

    Args:
        geojson: the object.
        name: for messages; None is "the GeoJSON".

    Raises:
        ConfigError: there is no polygon, an invalid one, one that crosses the antimeridian without being cut there, or
            coordinates of another reference system.
        MissingDependencyError: shapely is missing.
    """

    def __init__(self, geojson: Mapping[str, Any], name: str | None = None) -> None:
        try:
            import shapely
            from shapely.geometry import shape
        except ImportError as error:
            raise MissingDependencyError(
                "GeoJSON regions need shapely: pip install 'geoloc-vision[aerial]'"
            ) from error
        self.name = name or "the GeoJSON"
        _check_crs(geojson)
        geometries = [g for g in _geometries(geojson) if g.get("type") in _KINDS]
        if not geometries:
            raise ConfigError("this GeoJSON holds no Polygon and no MultiPolygon, so it covers nothing")
        try:
            shapes = [shape(geometry) for geometry in geometries]
            self._area = shapely.union_all([shapely.make_valid(geometry) for geometry in shapes])
        except (
            shapely.errors.ShapelyError,
            ValueError,
            TypeError,
            IndexError,
            KeyError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            reason = str(error).partition("\n")[0][:200]
            raise ConfigError(f"this GeoJSON holds an invalid polygon ({reason})") from None
        west, south, east, north = self._area.bounds
        if self._area.is_empty or not (-90 <= south <= north <= 90 and -180 <= west <= east <= 180):
            raise ConfigError(
                "a GeoJSON region has longitudes from -180 to 180 and latitudes from -90 to 90, in this order "
                f"(RFC 7946 cuts at the antimeridian); found {self._area.bounds}"
            )
        if not self._area.area > 0:
            raise ConfigError("the polygons of this GeoJSON have no area, so they cover nothing")
        rings = shapely.get_rings(shapes)
        _check_edges(*shapely.get_coordinates(rings, return_index=True))
        shapely.prepare(self._area)
        self._shapely = shapely
        self._wkb = shapely.to_wkb(shapely.normalize(self._area), hex=True)
        parts = shapely.get_parts(self._area)
        self._parts = parts[shapely.area(parts) > 0]
        if len(self._parts) <= MAX_BOXES:
            bounds = shapely.bounds(self._parts)[:, [1, 0, 3, 2]].tolist()
            self.boxes = tuple((s, w, n, e) for s, w, n, e in bounds)

    @classmethod
    def read(cls, path: Path) -> "Polygons":
        """Read a GeoJSON file.

        Raises:
            NotFoundError: there is no such file.
            ConfigError: as the class, or it is not a GeoJSON.
        """
        return cls(_read_geojson(path), str(path))

    def contains(self, latlon_deg: ArrayLike) -> Mask:  # noqa: D102  as in the base class
        points = validate_latlon_deg(latlon_deg).reshape(-1, 2)
        lat, lon = points[:, 0], points[:, 1]
        inside: Mask = np.asarray(self._shapely.contains_xy(self._area, lon, lat), np.bool_)
        seam = np.flatnonzero((lon == -180.0) | (np.abs(lat) == 90.0))
        if len(seam):
            other = np.where(lon[seam] == -180.0, 180.0, lon[seam])
            inside[seam] = self._shapely.intersects_xy(self._area, lon[seam], lat[seam])
            inside[seam] &= self._shapely.intersects_xy(self._area, other, lat[seam])
        return inside

    def facts(self) -> dict[str, Any]:  # noqa: D102
        import hashlib

        return {"polygons_sha256": hashlib.sha256(self._wkb.encode()).hexdigest()}

    @cached_property
    def area_km2(self) -> float:
        """Area on the mean sphere in km², exact.

        The area between an edge and the equator is the integral of sin(latitude) over longitude. On an edge that is
        straight in degrees it is the difference of longitudes times (cos(a) - cos(b)) / (b - a).
        """
        total = 0.0
        for part in self._parts:
            total += _ring_area(self._shapely.get_coordinates(part.exterior))
            total -= sum(_ring_area(self._shapely.get_coordinates(ring)) for ring in part.interiors)
        return total * EARTH_MEAN_RADIUS_KM**2

    def _may_touch(self, boxes: FloatArray) -> Mask:
        south, west, north, east = boxes.T
        found = self._shapely.intersects(self._area, self._shapely.box(west, south, east, north))
        return np.asarray(found, np.bool_)

    def _anchors(self) -> FloatArray:
        points = self._shapely.point_on_surface(self._parts)
        return np.asarray(self._shapely.get_coordinates(points)[:, ::-1], np.float64)


def _ring_area(lonlat_deg: FloatArray) -> float:
    """Area of a closed ring (n, 2) on the unit sphere."""
    lon, lat = np.radians(lonlat_deg).T
    middle, half = (lat[1:] + lat[:-1]) / 2, np.diff(lat) / 2
    # (cos(a) - cos(b)) / (b - a) without cancellation; sinc(x) is sin(pi x) / (pi x)
    return abs(float((np.diff(lon) * np.sin(middle) * np.sinc(half / np.pi)).sum()))


def _check_edges(lonlat_deg: FloatArray, ring: FloatArray) -> None:
    """Refuse an edge of more than 180 degrees of longitude; a whole turn, from -180 to 180, is clear."""
    step = np.abs(np.diff(lonlat_deg[:, 0]))
    bad = np.flatnonzero((step > 180) & (step < 360) & (np.diff(ring) == 0))
    if len(bad):
        west, east = lonlat_deg[bad[0], 0], lonlat_deg[bad[0] + 1, 0]
        raise ConfigError(
            f"an edge of this GeoJSON goes from longitude {west:g} to {east:g}, more than 180 degrees; if the polygon "
            "crosses the antimeridian, cut it there into two polygons of a MultiPolygon (RFC 7946), or give a box with "
            "west > east; if it does not, add a point on that edge"
        )


def _check_crs(geojson: Mapping[str, Any]) -> None:
    """Refuse coordinates that are not degrees on WGS84: RFC 7946 dropped the member that says so."""
    crs = geojson.get("crs")
    if crs is None:
        return
    properties = crs.get("properties") if isinstance(crs, Mapping) else None
    name = properties.get("name") if isinstance(properties, Mapping) else None
    if not (isinstance(name, str) and name.endswith(_CRS_NAMES)):
        raise ConfigError(
            f"this GeoJSON has coordinates of {name or crs!r}, and WGS84 degrees are needed: convert it, "
            "with ogr2ogr -t_srs EPSG:4326 for example"
        )


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
