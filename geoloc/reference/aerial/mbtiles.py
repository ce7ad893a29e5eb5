"""MBTiles: the tiles of a web map in one SQLite file (github.com/mapbox/mbtiles-spec, version 1.3)."""

import sqlite3
from pathlib import Path
from typing import Any

from geoloc.errors import BadImageError, ConfigError, NotFoundError
from geoloc.geo.tiles import Tile, tile_bounds_deg
from geoloc.images.decode import open_header
from geoloc.reference.aerial.source import Bounds
from geoloc.reference.aerial.tiled import TiledSource, TileGrid

_PICTURES = ("jpg", "jpeg", "png", "webp")


class MBTiles(TiledSource):
    """Tiles of an MBTiles file, opened read-only.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it is not an MBTiles file, is empty, or holds vector tiles.
    """

    def __init__(self, path: str | Path, *, name: str | None = None, licence: str = "") -> None:
        path = Path(path)
        if not path.is_file():
            raise NotFoundError(f"there are no MBTiles at {path}: check the path")
        # Any thread may read, one at a time: a build reads ahead of the network.
        self._file = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )
        try:
            metadata = dict(self._file.execute("SELECT name, value FROM metadata").fetchall())
            low, high = self._file.execute("SELECT MIN(zoom_level), MAX(zoom_level) FROM tiles").fetchone()
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{path} is not an MBTiles file ({error})") from None
        if low is None:
            raise ConfigError(f"{path} holds no tiles")
        if (form := str(metadata.get("format", "png")).lower()) not in _PICTURES:
            raise ConfigError(
                f"{path} holds {form}, no pictures; rendered tiles of {', '.join(_PICTURES)} are needed"
            )
        (data,) = self._file.execute(
            "SELECT tile_data FROM tiles WHERE zoom_level = ? LIMIT 1", (high,)
        ).fetchone()
        try:
            side = open_header(bytes(data)).width
        except BadImageError:
            side = 256
        super().__init__(name or path.name, TileGrid(tile_px=side), (int(low), int(high)), licence)
        self._num_bytes = path.stat().st_size
        self.bounds_deg = self._bounds_deg()

    def __del__(self) -> None:
        if file := getattr(self, "_file", None):
            file.close()

    def tile_bytes(self, zoom: int, column: int, row: int) -> bytes | None:  # noqa: D102
        found = self._file.execute(
            "SELECT tile_data FROM tiles WHERE zoom_level = ? AND tile_column = ? AND tile_row = ?",
            (zoom, column, 2**zoom - 1 - row),  # MBTiles count rows from the south
        ).fetchone()
        return None if found is None or found[0] is None else bytes(found[0])

    def has_tile(self, column: int, row: int) -> bool:  # noqa: D102
        found = self._file.execute(
            "SELECT 1 FROM tiles WHERE zoom_level = ? AND tile_column = ? AND tile_row = ?",
            (self.max_zoom, column, 2**self.max_zoom - 1 - row),
        ).fetchone()
        return found is not None

    def facts(self) -> dict[str, Any]:  # noqa: D102
        return {**super().facts(), "num_bytes": self._num_bytes}

    def _bounds_deg(self) -> Bounds:
        zoom = self.max_zoom
        west, east, south, north = self._file.execute(
            "SELECT MIN(tile_column), MAX(tile_column), MIN(tile_row), MAX(tile_row) FROM tiles "
            "WHERE zoom_level = ?",
            (zoom,),
        ).fetchone()
        low = tile_bounds_deg(Tile(zoom, west, 2**zoom - 1 - south))
        high = tile_bounds_deg(Tile(zoom, east, 2**zoom - 1 - north))
        return low[0], low[1], high[2], high[3]
