"""Regions of the Earth: boxes, circles, polygons, countries and their divisions, and the surroundings of points.

`parse_region` reads what users give: "SE/Skane", "Sweden", "55,12,57,15", "55.6,13.0,50" or "area.geojson".
"""

from geoloc.geo.regions.base import Region
from geoloc.geo.regions.boxes import Bounds
from geoloc.geo.regions.parse import RegionLike, parse_region
from geoloc.geo.regions.places import PlaceRegion
from geoloc.geo.regions.points import PointsRegion, near_points
from geoloc.geo.regions.polygons import Polygons
from geoloc.geo.regions.shapes import Box, Circle

__all__ = [
    "Bounds",
    "Box",
    "Circle",
    "PlaceRegion",
    "PointsRegion",
    "Polygons",
    "Region",
    "RegionLike",
    "near_points",
    "parse_region",
]
