"""Read a region from what users give."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from geoloc.errors import ConfigError
from geoloc.geo.regions.base import Region
from geoloc.geo.regions.places import PlaceRegion, find_division
from geoloc.geo.regions.polygons import Polygons
from geoloc.geo.regions.shapes import Box, Circle

RegionLike = Any  # a `Region`, text, the path of a GeoJSON, a GeoJSON as a mapping, or three or four numbers

_NUMBERS: Final = re.compile(r"\s*[-+.\d][-+.\deE\s]*(,[-+.\deE\s]*)*")


def parse_region(value: RegionLike) -> Region:
    """Read a region.

    Args:
        value: one of

            - south, west, north, east, as four numbers or "S,W,N,E"; west > east crosses the antimeridian
            - a circle: latitude, longitude and km, as three numbers or "LAT,LON,KM"
            - a GeoJSON with polygons: a path, text that ends in .geojson or .json, or a mapping
            - a country: an ISO 3166-1 alpha-2 code ("SE") or an English name ("Sweden")
            - an administrative region: "Bavaria", "SE/Skåne", "Skåne, SE"; see `find_division`
            - a `Region`

    Raises:
        ConfigError: it is not a region, or a name with several meanings, which the message lists.
        NotFoundError: there is no such file, or no such name; the message has similar names.
        MissingDependencyError: a GeoJSON without shapely.
    """
    if isinstance(value, Region):
        return value
    if isinstance(value, Mapping):
        return Polygons(value)
    if isinstance(value, Path):
        return Polygons.read(value)
    if isinstance(value, str):
        return _parse_text(value.strip())
    return _of_numbers(value, None)


def _parse_text(text: str) -> Region:
    if _NUMBERS.fullmatch(text):
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            raise ConfigError(
                f"the region {text!r} looks like numbers, but is not: give S,W,N,E or LAT,LON,KM with commas"
            ) from None
        return _of_numbers(numbers, text)
    if Path(text).suffix.lower() in (".geojson", ".json"):
        return Polygons.read(Path(text))
    return PlaceRegion(find_division(text), text)


def _of_numbers(numbers: Any, name: str | None) -> Region:
    try:
        count = len(numbers)
    except TypeError:
        count = 0
    if count == 3 and not isinstance(numbers, bytes):
        return Circle(numbers[:2], numbers[2], name)
    if count == 4 or name is None:
        return Box(numbers, name)
    raise ConfigError(
        f"the region {name!r} has {count} numbers; a box has four, S,W,N,E, and a circle three, LAT,LON,KM"
    )
