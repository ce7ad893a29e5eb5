"""Sources made of square tiles, in any projection: the grid, the mosaic, and a folder of tile files.

Subclasses read the tiles: from a folder (here), from MBTiles, from a server.
"""

import os
import re
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from geoloc.errors import BadImageError, ConfigError, NotFoundError
from geoloc.geo.tiles import WORLD_SIDE_M, mercator_xy_m
from geoloc.geo.wgs84 import project, unproject
from geoloc.images import ImageLimits, decode_image
from geoloc.images.decode import open_header
from geoloc.reference.aerial.source import AerialSource, Bounds, FloatArray, Mask, Rgb

WEB_MERCATOR: Final = "EPSG:3857"
_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")
_LIMITS: Final = ImageLimits(max_bytes=2**24, max_pixels=4096 * 4096)
_CACHED_PX: Final = 512 * 256 * 256  # bytes of decoded tiles that a source caches: 128 MiB


@dataclass(frozen=True)
class TileGrid:
    """Grid of square tiles of one size, from an origin to the east and to the south or north.

    Attributes:
        crs: a name that pyproj knows.
        tile_px: side of a tile in pixels.
        tile_side: side of a tile of zoom 0 in units of the CRS; every zoom halves it, negative ones double it.
        origin_xy: corner from which columns count to the east, and rows to the south or north.
        rows_go: "south" or "north".
        wraps: the columns of zoom 0 to 180 E are followed by those from 180 W.
    """

    crs: str = WEB_MERCATOR
    tile_px: int = 256
    tile_side: float = WORLD_SIDE_M
    origin_xy: tuple[float, float] = (-WORLD_SIDE_M / 2, WORLD_SIDE_M / 2)
    rows_go: str = "south"
    wraps: bool = True

    def __post_init__(self) -> None:
        if self.tile_px < 1 or not self.tile_side > 0 or self.rows_go not in ("south", "north"):
            raise ConfigError(
                f"tiles need a positive size and rows that go south or north; found {self.tile_px} px, side "
                f"{self.tile_side} and rows to the {self.rows_go}"
            )

    def pixel_xy(self, latlon_deg: FloatArray, zoom: int) -> FloatArray:
        """Pixels right of and below the origin: rows that go north have negative ones."""
        xy = mercator_xy_m(latlon_deg) if self.crs == WEB_MERCATOR else project(self.crs, latlon_deg)
        scale = self.tile_px * 2.0**zoom / self.tile_side
        return np.stack([xy[..., 0] - self.origin_xy[0], self.origin_xy[1] - xy[..., 1]], -1) * scale

    def latlon_deg(self, pixel_xy: FloatArray, zoom: int) -> FloatArray:
        """The inverse of `pixel_xy`."""
        units = pixel_xy * (self.tile_side / (self.tile_px * 2.0**zoom))
        return unproject(
            self.crs, np.stack([self.origin_xy[0] + units[..., 0], self.origin_xy[1] - units[..., 1]], -1)
        )

    def column_row(self, right: int, down: int, zoom: int) -> tuple[int, int]:
        """Number of the tile at an offset in tiles, right of and below the origin."""
        column = right % 2**zoom if self.wraps and zoom >= 0 else right
        return column, down if self.rows_go == "south" else -1 - down

    def down(self, row: int) -> int:
        """Tiles from the origin down to a row."""
        return row if self.rows_go == "south" else -1 - row


class TiledSource(AerialSource):
    """Mosaic of tiles; a missing or unreadable tile is a hole.

    Args:
        name: provenance of the rows.
        grid: of the tiles.
        zooms: coarsest and finest zoom.
        licence: of the imagery.
    """

    def __init__(self, name: str, grid: TileGrid, zooms: tuple[int, int], licence: str = "") -> None:
        super().__init__()
        if zooms[0] > zooms[1]:
            raise ConfigError(
                f"{name}: the zooms go from {zooms[0]} to {zooms[1]}; give the coarser one first"
            )
        self.name, self.grid, self.licence = name, grid, licence
        self.min_zoom, self.max_zoom = zooms
        self.num_levels = self.max_zoom - self.min_zoom + 1
        bottom = grid.tile_px * 2.0**self.max_zoom
        self.pixel_bounds = (
            (-np.inf, 0.0, np.inf, bottom) if grid.wraps else (-np.inf, -np.inf, np.inf, np.inf)
        )
        self._cache: OrderedDict[tuple[int, int, int], tuple[Rgb, Mask] | None] = OrderedDict()

    @abstractmethod
    def tile_bytes(self, zoom: int, column: int, row: int) -> bytes | None:
        """Encoded image of a tile; None where there is none."""

    @abstractmethod
    def has_tile(self, column: int, row: int) -> bool:
        """Whether the finest zoom has a tile there; true where that is unknown."""

    def pixel_xy(self, latlon_deg: FloatArray) -> FloatArray:  # noqa: D102  as in the base class
        return self.grid.pixel_xy(latlon_deg, self.max_zoom)

    def read(self, level: int, left: int, top: int, right: int, bottom: int) -> tuple[Rgb, Mask]:  # noqa: D102
        zoom, side = self.max_zoom - level, self.grid.tile_px
        rgb = np.zeros((bottom - top, right - left, 3), np.uint8)
        valid = np.zeros(rgb.shape[:2], np.bool_)
        for down in range(top // side, (bottom - 1) // side + 1):
            for over in range(left // side, (right - 1) // side + 1):
                tile = self._tile(zoom, *self.grid.column_row(over, down, zoom))
                if tile is None:
                    continue
                y0, x0 = down * side - top, over * side - left
                ys, xs = (slice(max(0, -start), side) for start in (y0, x0))
                ours = rgb[max(0, y0) : y0 + side, max(0, x0) : x0 + side]
                height, width = ours.shape[:2]
                ours[:] = tile[0][ys, xs][:height, :width]
                valid[max(0, y0) : y0 + side, max(0, x0) : x0 + side] = tile[1][ys, xs][:height, :width]
        return rgb, valid

    def covers(self, latlon_deg: FloatArray) -> Mask:  # noqa: D102
        pixels = self.pixel_xy(latlon_deg)
        known = np.asarray(np.isfinite(pixels).all(-1))
        tiles = np.floor(np.where(known[:, None], pixels, 0.0) / self.grid.tile_px).astype(np.int64)
        places, back = np.unique(tiles, axis=0, return_inverse=True)
        there = [self.has_tile(*self.grid.column_row(x, y, self.max_zoom)) for x, y in places.tolist()]
        return np.array(there, np.bool_)[back.reshape(-1)] & known

    def _tile(self, zoom: int, column: int, row: int) -> tuple[Rgb, Mask] | None:
        place = (zoom, column, row)
        if place in self._cache:
            self._cache.move_to_end(place)
            return self._cache[place]
        data = self.tile_bytes(zoom, column, row)
        tile = None
        if data is not None:
            try:
                tile = decode_tile(data, self.grid.tile_px)
            except BadImageError as error:
                self.bad_tiles[f"{zoom}/{column}/{row}"] = error.reason
        self._cache[place] = tile
        while len(self._cache) * self.grid.tile_px**2 > _CACHED_PX and len(self._cache) > 4:
            self._cache.popitem(last=False)
        return tile

    def facts(self) -> dict[str, Any]:  # noqa: D102
        return {"name": self.name, "zooms": [self.min_zoom, self.max_zoom], **asdict(self.grid)}


def decode_tile(data: bytes, side_px: int) -> tuple[Rgb, Mask]:
    """Colours of a tile (S, S, 3), and its opaque pixels (S, S).

    Raises:
        BadImageError: the image is unusable, or of another size.
    """
    rgb = decode_image(data, limits=_LIMITS)
    if rgb.shape[:2] != (side_px, side_px):
        raise BadImageError(
            f"a tile of {rgb.shape[1]} x {rgb.shape[0]} px, where {side_px} x {side_px} was expected"
        )
    header = open_header(data)
    if "A" not in header.mode and "transparency" not in header.info:
        return rgb, np.ones(rgb.shape[:2], np.bool_)
    alpha: Image.Image = header.convert("RGBA").getchannel("A")
    return rgb, np.asarray(alpha) == 255


# --- A folder of files ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TilePath:
    """Pattern of tile file names below a folder, such as "{zoom}/{x}/{y}.jpg".

    The placeholders are {zoom} or {z}, {x} and {y}. Without a suffix, or with `.*`, any of .jpg, .jpeg, .png
    and .webp is accepted.
    """

    pattern: str = "{zoom}/{x}/{y}.*"
    _regex: re.Pattern[str] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        pattern = self.pattern.replace("{z}", "{zoom}")
        parts = Path(pattern).parts
        if (
            any(pattern.count(p) != 1 for p in ("{zoom}", "{x}", "{y}"))
            or pattern[:1] == "/"
            or ".." in parts
        ):
            raise ConfigError(
                f"the path of tiles {self.pattern!r} must stay in its folder and name {{zoom}}, {{x}} and {{y}} "
                "once each, as '{zoom}/{x}/{y}.jpg' does"
            )
        text = re.escape(pattern.removesuffix(".*"))
        for name in ("zoom", "x", "y"):
            text = text.replace(re.escape(f"{{{name}}}"), rf"(?P<{name}>-?\d{{1,9}})")
        ends = "|".join(re.escape(suffix) for suffix in _SUFFIXES) if self._is_open else ""
        object.__setattr__(self, "_regex", re.compile(text + (f"(?:{ends})" if ends else ""), re.IGNORECASE))

    @property
    def _is_open(self) -> bool:
        return self.pattern.endswith(".*") or not Path(self.pattern).suffix

    def parse(self, relative: str) -> tuple[int, int, int] | None:
        """Zoom, x, y of a file's name relative to the folder."""
        match = self._regex.fullmatch(relative)
        return None if match is None else (int(match["zoom"]), int(match["x"]), int(match["y"]))


class XyzFolder(TiledSource):
    """Folder of tile files, which are listed once, when it is opened.

    Args:
        folder: that holds them.
        grid: None takes that of web maps, with the tiles' own size.
        path: pattern of the file names.
        name: None takes the folder's.
        licence: of the imagery.

    Raises:
        NotFoundError: there is no such folder, or no tile in it.
    """

    def __init__(
        self,
        folder: str | Path,
        grid: TileGrid | None = None,
        path: TilePath | None = None,
        *,
        name: str | None = None,
        licence: str = "",
    ) -> None:
        self.folder = Path(folder)
        path = path or TilePath()
        if not self.folder.is_dir():
            raise NotFoundError(f"there is no folder of tiles {self.folder}: check the path")
        self._files: dict[tuple[int, int, int], str] = {}
        for relative in sorted(_files_below(self.folder)):
            place = path.parse(relative)
            if place is not None:
                self._files.setdefault(place, relative)
        if not self._files:
            raise NotFoundError(
                f"{self.folder} holds no tile called {path.pattern}: give the folder above the zooms, or a "
                "layout.yaml there that says how they are called"
            )
        zooms = [zoom for zoom, _, _ in self._files]
        super().__init__(
            name or self.folder.resolve().name, grid or self._web_grid(), (min(zooms), max(zooms)), licence
        )
        self.bounds_deg = self._bounds_deg()

    def tile_bytes(self, zoom: int, column: int, row: int) -> bytes | None:  # noqa: D102
        relative = self._files.get((zoom, column, row))
        if relative is None:
            return None
        try:
            return (self.folder / relative).read_bytes()
        except OSError as error:
            self.bad_tiles[f"{zoom}/{column}/{row}"] = error.strerror or "cannot be read"
            return None

    def has_tile(self, column: int, row: int) -> bool:  # noqa: D102
        return (self.max_zoom, column, row) in self._files

    def facts(self) -> dict[str, Any]:  # noqa: D102
        return {**super().facts(), "num_tiles": len(self._files)}

    def _web_grid(self) -> TileGrid:
        """Grid of web maps with the tile size of one readable tile."""
        for relative in self._files.values():
            try:
                width = open_header((self.folder / relative).read_bytes()).width
            except (BadImageError, OSError):
                continue
            return TileGrid(tile_px=width)
        return TileGrid()

    def _bounds_deg(self) -> Bounds:
        """A box around the finest tiles, computed from points along the edges of their box in the grid."""
        places = np.array([(x, self.grid.down(y)) for zoom, x, y in self._files if zoom == self.max_zoom])
        if self.grid.wraps:
            # The columns behind the widest gap are the western ones, even if they count higher.
            columns, num = np.unique(places[:, 0]), 2**self.max_zoom
            behind = int(np.diff(np.append(columns, columns[0] + num)).argmax()) + 1
            if behind < len(columns):
                places[places[:, 0] >= columns[behind], 0] -= num
        low, high = places.min(0), places.max(0) + 1
        share = np.linspace(0, 1, 33)
        x, y = (low[axis] + share * (high[axis] - low[axis]) for axis in (0, 1))
        edge = np.concatenate(
            [np.stack([x, np.full_like(x, end)], -1) for end in (low[1], high[1])]
            + [np.stack([np.full_like(y, end), y], -1) for end in (low[0], high[0])]
        )
        latlon = self.grid.latlon_deg(edge * self.grid.tile_px, self.max_zoom)
        return box_around(latlon)


def box_around(latlon_deg: FloatArray) -> Bounds:
    """South, west, north, east of points (n, 2) along the edge of an area; the shorter way around the Earth.

    It is -180 to 180 where the points go all around.
    """
    lat, lon = latlon_deg[:, 0], np.sort(latlon_deg[:, 1])
    gaps = np.diff(np.append(lon, lon[0] + 360.0))
    widest = int(gaps.argmax())
    west, east = float(lon[(widest + 1) % len(lon)]), float(lon[widest])
    if gaps[widest] < 30.0:
        west, east = -180.0, 180.0
    return float(lat.min()), west, float(lat.max()), east


def _files_below(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        below = Path(parent).relative_to(folder)
        yield from ((below / name).as_posix() for name in names)
