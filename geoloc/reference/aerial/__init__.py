"""Aerial references: imagery in tiles and rasters, metric cells, and the views of each cell that a model embeds."""

from geoloc.geo.regions import Box, Polygons, Region
from geoloc.reference.aerial.cells import CellGrid
from geoloc.reference.aerial.geotiff import GeoTiff
from geoloc.reference.aerial.layout import open_layout
from geoloc.reference.aerial.mbtiles import MBTiles
from geoloc.reference.aerial.open import open_sources
from geoloc.reference.aerial.region import Imagery, open_region
from geoloc.reference.aerial.source import AerialSource, Patch, read_patch
from geoloc.reference.aerial.tile_url import TileUrl
from geoloc.reference.aerial.tiled import TileGrid, TilePath, XyzFolder
from geoloc.reference.aerial.wmts import open_wmts

__all__ = [
    "AerialSource",
    "Box",
    "CellGrid",
    "GeoTiff",
    "Imagery",
    "MBTiles",
    "Patch",
    "Polygons",
    "Region",
    "TileGrid",
    "TilePath",
    "TileUrl",
    "XyzFolder",
    "open_layout",
    "open_region",
    "open_sources",
    "open_wmts",
    "read_patch",
]
