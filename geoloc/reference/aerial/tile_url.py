"""Tiles from a server: XYZ and RESTful WMTS addresses, politely, each fetched once and kept on the disk.

    TileUrl("https://tiles.example/{z}/{x}/{y}.jpg", cache="cache/", zooms=(10, 19), bounds_deg=(…))

Whether a server's terms allow to copy its tiles is for the user to find out. An answer that means "there is
no such tile" (204, 404, 410) makes a hole, and is remembered; one that means "not now" (429, 5xx, a broken
connection) is repeated with growing pauses; any other, and patience that has run out, is an error: a database
with silent holes would be worse than a job that continues tomorrow.
"""

import email.utils
import hashlib
import re
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from geoloc import __version__
from geoloc.errors import ConfigError, NotFoundError
from geoloc.files import atomic_write
from geoloc.reference.aerial.source import Bounds
from geoloc.reference.aerial.tiled import TiledSource, TileGrid

_PLACES: Final = {  # placeholder -> which number; the long ones are WMTS's
    "z": "zoom", "zoom": "zoom", "TileMatrix": "zoom",
    "x": "column", "TileCol": "column",
    "y": "row", "TileRow": "row", "-y": "row from the south",
}  # fmt: skip
_NO_TILE: Final = (204, 404, 410)
_NOT_NOW: Final = (408, 425, 429, 500, 502, 503, 504)
_MAX_BYTES: Final = 2**24
_MAX_PAUSE_S: Final = 60.0


class TileUrl(TiledSource):
    """A server of tiles in the web's grid.

    Args:
        url: http or https, with {z}, {x} and {y}, or {-y} for rows from the south, or WMTS's {TileMatrix},
            {TileCol} and {TileRow} of the matrix set GoogleMapsCompatible.
        cache: folder for the tiles; it may be shared by servers.
        zooms: coarsest and finest zoom.
        bounds_deg: where the server has imagery, if that is known.
        tile_px: side of a tile.
        max_per_s: requests in a second.
        num_tries: how often a tile is asked for before giving up.
        timeout_s: of one request.
        name: what rows say they come from; None takes the server's.
        licence: of the imagery.

    Raises:
        ConfigError: an address or a number that is impossible.
    """

    def __init__(
        self,
        url: str,
        cache: str | Path,
        zooms: tuple[int, int],
        *,
        bounds_deg: Bounds | None = None,
        tile_px: int = 256,
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
                f"the address of tiles must be http or https with {{z}}, {{x}} and {{y}} (or {{-y}}, or WMTS's "
                f"{{TileMatrix}}, {{TileCol}}, {{TileRow}}); found {url!r}"
            )
        if not max_per_s > 0 or num_tries < 1 or not timeout_s > 0:
            raise ConfigError(
                "max_per_s, num_tries and timeout_s must be positive; found "
                f"{max_per_s}, {num_tries} and {timeout_s}"
            )
        super().__init__(name or str(urlsplit(url).hostname), TileGrid(tile_px=tile_px), zooms, licence)
        self.url, self.bounds_deg = url, bounds_deg
        self.num_tries, self.timeout_s = num_tries, timeout_s
        self._pause_s = 1.0 / max_per_s
        self._next_s = 0.0
        self._lock = threading.Lock()
        # The address decides the tiles, so another address (another year, another layer) has another folder.
        self._folder = Path(cache) / hashlib.sha256(url.encode()).hexdigest()[:16]

    def has_tile(self, column: int, row: int) -> bool:  # noqa: D102  only asking the server would tell
        return True

    def tile_bytes(self, zoom: int, column: int, row: int) -> bytes | None:
        """The tile from the cache, else from the server.

        Raises:
            NotFoundError: the server refuses, or does not answer.
        """
        if not 0 <= row < 2**zoom:
            return None
        path = self._folder / str(zoom) / str(column) / str(row)
        try:
            return path.read_bytes() or None  # an empty file: the server has no such tile
        except FileNotFoundError:
            pass
        numbers = {"zoom": zoom, "column": column, "row": row, "row from the south": 2**zoom - 1 - row}
        url = re.sub(r"\{([^{}]*)\}", lambda match: str(numbers[_PLACES[match[1]]]), self.url)
        data = self._fetch(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            file.write(data)
        return data or None

    def facts(self) -> dict[str, Any]:  # noqa: D102
        return {**super().facts(), "url": self.url}

    def _fetch(self, url: str) -> bytes:
        request = urllib.request.Request(url, headers={"User-Agent": f"geoloc-vision/{__version__}"})
        for number in range(1, self.num_tries + 1):
            self._wait_for_turn()
            pause_s = min(_MAX_PAUSE_S, self._pause_s * 2.0**number)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                    if answer.status in _NO_TILE:
                        return b""
                    data: bytes = answer.read(_MAX_BYTES + 1)
                if len(data) > _MAX_BYTES:
                    raise NotFoundError(f"{url} sends more than {_MAX_BYTES:,} bytes: that is no tile")
                return data
            except urllib.error.HTTPError as error:
                error.close()
                if error.code in _NO_TILE:
                    return b""
                if error.code not in _NOT_NOW:
                    raise NotFoundError(
                        f"{url} answers {error.code} ({error.reason}): check the address, and whether it needs a key"
                    ) from None
                reason = f"it answers {error.code}"
                pause_s = max(pause_s, _retry_after_s(error.headers.get("Retry-After")))
            except (OSError, HTTPException) as error:
                reason = str(error) or type(error).__name__
            if number < self.num_tries:
                time.sleep(min(pause_s, _MAX_PAUSE_S))
        raise NotFoundError(
            f"{url} could not be fetched in {self.num_tries} tries ({reason}): what is fetched stays in the cache, so "
            "start the job again later"
        )

    def _wait_for_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            wait_s = max(0.0, self._next_s - now)
            self._next_s = max(now, self._next_s) + self._pause_s
        time.sleep(wait_s)


def _retry_after_s(value: str | None) -> float:
    """Seconds that a server asks to wait: a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return 0.0
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
