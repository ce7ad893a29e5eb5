"""Tiles from a server, by the pattern of their addresses; each is fetched once and kept on the disk.

    TileUrl("https://tiles.example/{z}/{x}/{y}.jpg", cache="cache/", zooms=(10, 19), bounds_deg=(…))

The user must check that a server's terms allow copying its tiles. A tile that the server does not have is a hole, and
is remembered as one. A server that refuses, or does not answer, is an error, so that no database has silent holes.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from geoloc.errors import ConfigError
from geoloc.files import atomic_write
from geoloc.reference.aerial.fetch import Fetcher
from geoloc.reference.aerial.source import Bounds
from geoloc.reference.aerial.tiled import TiledSource, TileGrid

_PLACES: Final = {  # placeholder -> number; the long ones are those of WMTS
    "z": "zoom", "zoom": "zoom", "TileMatrix": "zoom",
    "x": "column", "TileCol": "column",
    "y": "row", "TileRow": "row", "-y": "row from the south",
}  # fmt: skip


@dataclass(frozen=True)
class TileMatrix:
    """Tiles of one zoom.

    Attributes:
        name: of the zoom in an address.
        columns: number of columns.
        rows: number of rows.
    """

    name: str
    columns: range
    rows: range


class TileUrl(TiledSource):
    """Tile server.

    Args:
        url: http or https, with {z}, {x} and {y}, or {-y} for rows from the south, or WMTS's {TileMatrix},
            {TileCol} and {TileRow}.
        cache: folder for the tiles; it may be shared by servers.
        zooms: coarsest and finest zoom.
        grid: of the tiles; None is that of web maps.
        matrices: of the zooms; None numbers them, with 2^zoom tiles a side.
        bounds_deg: where the server has imagery, if that is known.
        max_per_s: requests per second.
        num_tries: attempts for each tile.
        timeout_s: of one request.
        name: provenance of the rows; None takes the server's name.
        licence: of the imagery.

    Raises:
        ConfigError: an impossible address or number.
    """

    def __init__(
        self,
        url: str,
        cache: str | Path,
        zooms: tuple[int, int],
        *,
        grid: TileGrid | None = None,
        matrices: Mapping[int, TileMatrix] | None = None,
        bounds_deg: Bounds | None = None,
        max_per_s: float = 5.0,
        num_tries: int = 5,
        timeout_s: float = 30.0,
        name: str | None = None,
        licence: str = "",
    ) -> None:
        found = re.findall(r"\{([^{}]*)\}", url)
        asked = {_PLACES.get(place, place) for place in found}
        rows = asked & {"row", "row from the south"}
        if (
            urlsplit(url).scheme not in ("http", "https")
            or asked - rows != {"zoom", "column"}
            or len(rows) != 1
        ):
            raise ConfigError(
                "the address of tiles must be http or https with {z}, {x} and {y} (or {-y}, "
                f"or WMTS's {{TileMatrix}}, {{TileCol}}, {{TileRow}}); found {url!r}"
            )
        super().__init__(name or str(urlsplit(url).hostname), grid or TileGrid(), zooms, licence)
        self.url, self.bounds_deg = url, bounds_deg
        self._matrices = dict(matrices or {})
        self._fetcher = Fetcher(max_per_s, num_tries, timeout_s)
        # The address decides the tiles, so another address (another year, another layer) has another folder.
        self._folder = Path(cache) / hashlib.sha256(url.encode()).hexdigest()[:16]

    def has_tile(self, column: int, row: int) -> bool:  # noqa: D102  only asking the server would tell
        matrix = self._matrix(self.max_zoom)
        return column in matrix.columns and row in matrix.rows

    def tile_bytes(self, zoom: int, column: int, row: int) -> bytes | None:
        """The tile from the cache, else from the server.

        Raises:
            NotFoundError: the server refuses, or does not answer.
        """
        matrix = self._matrix(zoom)
        if column not in matrix.columns or row not in matrix.rows:
            return None
        path = self._folder / str(zoom) / str(column) / str(row)
        try:
            return path.read_bytes() or None  # an empty file: the server has no such tile
        except FileNotFoundError:
            pass
        texts = {"zoom": matrix.name, "column": column, "row": row, "row from the south": 2**zoom - 1 - row}
        data = self._fetcher.get(
            re.sub(r"\{([^{}]*)\}", lambda match: str(texts[_PLACES[match[1]]]), self.url)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            file.write(data)
        return data or None

    def _matrix(self, zoom: int) -> TileMatrix:
        return self._matrices.get(zoom) or TileMatrix(str(zoom), range(2**zoom), range(2**zoom))

    def facts(self) -> dict[str, Any]:  # noqa: D102
        return {**super().facts(), "url": self.url}
