"""Open aerial imagery by path, address or WMTS name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from geoloc.errors import ConfigError, NotFoundError
from geoloc.reference.aerial.geotiff import GeoTiff
from geoloc.reference.aerial.layout import LAYOUT_NAME, open_layout
from geoloc.reference.aerial.mbtiles import MBTiles
from geoloc.reference.aerial.source import AerialSource
from geoloc.reference.aerial.tile_url import TileUrl
from geoloc.reference.aerial.tiled import XyzFolder
from geoloc.reference.aerial.wmts import PREFIX, open_wmts_name

SourceLike = str | Path | AerialSource

_TIFF = (".tif", ".tiff")


def open_sources(
    source: SourceLike | Sequence[SourceLike],
    *,
    licence: str = "",
    cache: str | Path | None = None,
    zooms: tuple[int, int] | None = None,
    value_range: Sequence[float] | None = None,
) -> list[AerialSource]:
    """Open imagery; each source fills the gaps of those before it.

    - A folder is one of tiles, with a `layout.yaml` or as {zoom}/{x}/{y}; or one of GeoTIFFs, by name.
    - A file is a GeoTIFF (.tif, .tiff) or MBTiles (.mbtiles).
    - An http(s) address with {z}, {x} and {y} is a tile server; one without is a GeoTIFF.
    - "WMTS:" and the address of a capabilities document, optionally with ",layer=…,tilematrixset=…", is a WMTS layer.

    Args:
        source: one or several.
        licence: of the imagery.
        cache: folder for the tiles of servers.
        zooms: coarsest and finest zoom of servers.
        value_range: of GeoTIFFs, values of black and white; see `GeoTiff`.

    Raises:
        NotFoundError: there is nothing of that name.
        ConfigError: it is not a source of imagery.
        MissingDependencyError: an optional package is needed.
    """
    if isinstance(source, AerialSource):
        return [source]
    if not isinstance(source, str | Path):
        given: Any = {"licence": licence, "cache": cache, "zooms": zooms, "value_range": value_range}
        opened = [one for part in source for one in open_sources(part, **given)]
        if not opened:
            raise ConfigError("the list of aerial sources is empty: give at least one")
        return opened
    if str(source).startswith(PREFIX):
        if cache is None:
            raise ConfigError(
                f"{source} needs a folder for its tiles: give cache, --cache on the command line"
            )
        return [open_wmts_name(str(source), cache, zooms, licence)]
    if urlsplit(str(source)).scheme in ("http", "https"):
        if "{" not in str(source):
            return [GeoTiff(source, value_range=value_range, licence=licence)]
        if cache is None or zooms is None:
            raise ConfigError(
                f"the server {source} needs a folder for its tiles and its coarsest and finest zoom: give cache and "
                "zooms, --cache and --zooms on the command line"
            )
        return [TileUrl(str(source), cache, zooms, licence=licence)]
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, licence, value_range)
    if not path.exists():
        raise NotFoundError(f"there is no aerial imagery at {path}: check the path")
    if path.suffix.lower() in _TIFF:
        return [GeoTiff(path, value_range=value_range, licence=licence)]
    if path.suffix.lower() == ".mbtiles":
        return [MBTiles(path, licence=licence)]
    raise ConfigError(
        f"{path} is not aerial imagery: give a folder of tiles, a .tif, an .mbtiles, or the address of a server"
    )


def _open_folder(folder: Path, licence: str, value_range: Sequence[float] | None) -> list[AerialSource]:
    if (folder / LAYOUT_NAME).is_file():
        return [open_layout(folder, licence=licence)]
    rasters = sorted(path for path in folder.iterdir() if path.suffix.lower() in _TIFF)
    if rasters:
        return [GeoTiff(path, value_range=value_range, licence=licence) for path in rasters]
    return [XyzFolder(folder, licence=licence)]
