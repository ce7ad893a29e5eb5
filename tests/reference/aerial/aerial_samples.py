"""Imagery whose every pixel is known: a smooth colour of the place on Earth, in any projection and file.

colour_at(latlon)        what a photo from above shows at a place, (..., 2) -> (..., 3) of 0 to 255
write_geotiff(…)         the same as a GeoTIFF in some CRS
write_tiles(…)           the same as tiles of the web's grid
"""

import io
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image
from pyproj import Geod, Transformer

GEOD = Geod(ellps="WGS84")
CENTER = (42.36, -71.06)  # Boston
WAVES_M = np.array([61.0, 83.0, 127.0])  # how far it is from one bright spot to the next


def colour_at(latlon_deg: Any) -> Any:
    """Waves to the north and the east of different lengths for the three colours."""
    latlon = np.asarray(latlon_deg, np.float64)
    north = np.radians(latlon[..., 0]) * 6_371_000
    east = np.radians(latlon[..., 1]) * 6_371_000 * np.cos(np.radians(CENTER[0]))
    phase = 2 * np.pi / WAVES_M
    return 127.5 + 60 * np.sin(north[..., None] * phase) + 60 * np.cos(east[..., None] * phase * 1.3)


def expected_patch(center: Any, heading_deg: float, gsd_m: float, size_px: int) -> Any:
    """The patch by the geodesic of every pixel, one by one: slow and independent."""
    image = np.zeros((size_px, size_px, 3))
    for row in range(size_px):
        for column in range(size_px):
            right, up = (column + 0.5 - size_px / 2) * gsd_m, (size_px / 2 - row - 0.5) * gsd_m
            azimuth = heading_deg + np.degrees(np.arctan2(right, up))
            lon, lat, _ = GEOD.fwd(center[1], center[0], azimuth, np.hypot(right, up))
            image[row, column] = colour_at((lat, lon))
    return image


def write_geotiff(
    path: Path,
    crs: str,
    *,
    center: Any = CENTER,
    side_px: int = 512,
    pixel: float = 0.5,
    edit: Callable[[Any], None] | None = None,
    **options: Any,
) -> Path:
    """A GeoTIFF around a place, with pixels of so many units of the CRS; `edit` may change its bands first."""
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(center[1], center[0])
    transform = rasterio.Affine(pixel, 0, x - side_px / 2 * pixel, 0, -pixel, y + side_px / 2 * pixel)
    along = (np.arange(side_px) + 0.5) * pixel
    xs, ys = np.meshgrid(transform.c + along, transform.f - along)
    lon, lat = Transformer.from_crs(crs, 4326, always_xy=True).transform(xs, ys)
    bands = colour_at(np.stack([lat, lon], -1)).round().astype(np.uint8).transpose(2, 0, 1)
    if edit is not None:
        edit(bands)
    profile = {"driver": "GTiff", "width": side_px, "height": side_px, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", crs=crs, transform=transform, **profile, **options) as file:
        file.write(bands)
    return path


def tile_picture(zoom: int, x: int, y: int, side_px: int = 256) -> Any:
    """The picture of a tile of the web's grid."""
    world = 2 * np.pi * 6378137.0
    scale = world / (2**zoom * side_px)
    along = np.arange(side_px) + 0.5
    xs, ys = np.meshgrid((x * side_px + along) * scale - world / 2, world / 2 - (y * side_px + along) * scale)
    lon, lat = Transformer.from_crs(3857, 4326, always_xy=True).transform(xs, ys)
    return colour_at(np.stack([lat, lon], -1)).round().astype(np.uint8)


def tiles_around(center: Any, zoom: int, reach: int) -> list[tuple[int, int]]:
    """Columns and rows of the tile that holds a place and of those around it."""
    x = int((center[1] + 180) / 360 * 2**zoom)
    y = int((1 - np.arcsinh(np.tan(np.radians(center[0]))) / np.pi) / 2 * 2**zoom)
    return [(x + dx, y + dy) for dx in range(-reach, reach + 1) for dy in range(-reach, reach + 1)]


def encoded(picture: Any, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, kind)
    return data.getvalue()


def write_tiles(folder: Path, zooms: list[int], *, center: Any = CENTER, reach: int = 2) -> Path:
    """A folder of PNG tiles {zoom}/{x}/{y}.png around a place."""
    for zoom in zooms:
        for x, y in tiles_around(center, zoom, reach):
            path = folder / str(zoom) / str(x) / f"{y}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(tile_picture(zoom, x, y)))
    return folder


def write_mbtiles(path: Path, zooms: list[int], *, center: Any = CENTER, reach: int = 2) -> Path:
    file = sqlite3.connect(path)
    file.execute("CREATE TABLE metadata (name text, value text)")
    file.execute(
        "CREATE TABLE tiles (zoom_level integer, tile_column integer, tile_row integer, tile_data blob)"
    )
    file.executemany("INSERT INTO metadata VALUES (?, ?)", [("name", "test"), ("format", "png")])
    for zoom in zooms:
        for x, y in tiles_around(center, zoom, reach):
            data = encoded(tile_picture(zoom, x, y))
            file.execute("INSERT INTO tiles VALUES (?, ?, ?, ?)", (zoom, x, 2**zoom - 1 - y, data))
    file.commit()
    file.close()
    return path
