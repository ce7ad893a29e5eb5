"""Statewide's `layout.yaml`: projection, grid and file names of a folder of tiles (fferflo's tiledwebmaps).

crs: epsg:6347               any; with `preset: XYZ` instead it is the web's grid
tile_shape_px: [500, 500]
tile_shape_crs: [75.0, 75.0] side of a tile of zoom 0, in units of the crs
tile_axes: [east, north]     which way x and y count; [east, south] by default
origin_crs: [0.0, 0.0]       lower corner of the area
size_crs: [1e7, 1e7]         of the area; needed where y counts to the south
path: "{zoom}/{x}/{y}.jpg"
min_zoom: 0
max_zoom: 0
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geoloc.errors import ConfigError, MissingDependencyError
from geoloc.geo.wgs84 import project
from geoloc.reference.aerial.tiled import TileGrid, TilePath, XyzFolder

LAYOUT_NAME = "layout.yaml"

_GRID_KEYS = ("crs", "tile_shape_px", "tile_shape_crs", "tile_axes", "origin_crs", "size_crs")
_OTHER_KEYS = ("preset", "path", "min_zoom", "max_zoom")


def open_layout(folder: str | Path, *, name: str | None = None, licence: str = "") -> XyzFolder:
    """Open the folder of tiles that a `layout.yaml` in it describes.

    Raises:
        ConfigError: the file has an unknown key, lacks one, or has an impossible value.
        NotFoundError: there are no tiles.
        MissingDependencyError: PyYAML is missing.
    """
    values = _read(Path(folder) / LAYOUT_NAME)
    grid, path = _grid(values), TilePath(str(values.get("path", "{zoom}/{x}/{y}.jpg")))
    return XyzFolder(folder, grid, path, name=name, licence=licence)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise MissingDependencyError(f"{path} needs PyYAML: pip install 'geoloc-vision[aerial]'") from error
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values; found {type(values).__name__}")
    if "url" in values:
        raise ConfigError(f"{path} names a server: give its address itself, {values['url']!r}, as the source")
    if unknown := [key for key in values if key not in _GRID_KEYS + _OTHER_KEYS]:
        raise ConfigError(
            f"{path} has the unknown key {unknown[0]!r}; known are {', '.join(_GRID_KEYS + _OTHER_KEYS)}"
        )
    return values


def _grid(values: Mapping[str, Any]) -> TileGrid | None:
    """The grid of a layout; None is that of web maps."""
    given = [key for key in _GRID_KEYS if key in values]
    if (preset := values.get("preset")) is not None:
        if preset != "XYZ" or given:
            raise ConfigError(
                f"a layout.yaml with a preset says `preset: XYZ` and nothing of {', '.join(_GRID_KEYS)}; found "
                f"{preset!r} {given}"
            )
        return None
    if "crs" not in values:
        raise ConfigError("a layout.yaml needs `crs`, such as epsg:25832, or `preset: XYZ`")
    crs = str(values["crs"])
    project(crs, (0.0, 0.0))  # refuses an unknown CRS
    side_px, side = _square(values, "tile_shape_px", [256, 256]), _square(values, "tile_shape_crs", [1, 1])
    x, y = _pair(values, "origin_crs", [0, 0])
    axes = values.get("tile_axes", ["east", "south"])
    if axes not in (["east", "south"], ["east", "north"]):
        raise ConfigError(f"tile_axes of a layout.yaml is [east, south] or [east, north]; found {axes}")
    if axes[1] == "south":  # then y counts from the upper corner
        if "size_crs" not in values:
            raise ConfigError("a layout.yaml whose tile_axes are [east, south] needs size_crs")
        y += _pair(values, "size_crs", [0, 0])[1]
    return TileGrid(crs, int(side_px), side, (x, y), axes[1], wraps=False)


def _pair(values: Mapping[str, Any], key: str, default: list[float]) -> tuple[float, float]:
    pair = values.get(key, default)
    if isinstance(pair, list) and len(pair) == 2:
        try:
            return float(pair[0]), float(pair[1])  # YAML reads 1e7 as text
        except (TypeError, ValueError):
            pass
    raise ConfigError(f"{key} of a layout.yaml must be two numbers, such as {default}; found {pair!r}")


def _square(values: Mapping[str, Any], key: str, default: list[float]) -> float:
    first, second = _pair(values, key, default)
    if first != second or not first > 0:
        raise ConfigError(f"{key} of a layout.yaml must be square and positive; found {[first, second]}")
    return first
