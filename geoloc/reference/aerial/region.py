"""Area that aerial references cover: a region of the Earth, or all imagery."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError
from geoloc.geo.regions import Region, RegionLike, parse_region
from geoloc.geo.regions.boxes import split_at_antimeridian
from geoloc.reference.aerial.source import AerialSource, Bounds, FloatArray, Mask
from quadtree.sphere import validate_latlon_deg, wrap_longitude_deg


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
            boxes += split_at_antimeridian(source.bounds_deg)
        self.boxes = tuple(boxes)
        self.name = "all imagery"
        self._sources = sources

    def contains(self, latlon_deg: ArrayLike) -> Mask:  # noqa: D102  as in the base class
        points = validate_latlon_deg(latlon_deg).reshape(-1, 2)
        inside: Mask = np.zeros(len(points), np.bool_)
        for source in self._sources:
            inside |= source.covers(points)
        return inside

    def facts(self) -> dict[str, Any]:  # noqa: D102
        return {"imagery": True}


def open_region(region: RegionLike | None, sources: Sequence[AerialSource]) -> Region:
    """Open a region as `geoloc.geo.regions.parse_region` does; None is all imagery.

    Raises:
        NotFoundError: there is no such file or name.
        ConfigError: it is not a region.
    """
    return Imagery(sources) if region is None else parse_region(region)


def wrapped(latlon_deg: FloatArray) -> NDArray[np.float64]:
    """Points with longitudes in [-180, 180)."""
    return np.stack([latlon_deg[:, 0], wrap_longitude_deg(latlon_deg[:, 1])], -1)
