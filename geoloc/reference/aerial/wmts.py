"""Layers of a Web Map Tile Service, from its capabilities document (OGC 07-057r7, WMTS 1.0.0).

    open_wmts("https://maps.example/1.0.0/WMTSCapabilities.xml", cache="cache/", layer="ortho")
    open_sources("WMTS:https://maps.example/1.0.0/WMTSCapabilities.xml,layer=ortho", cache="cache/")  # as GDAL has it

The document describes the tiles of each zoom and their addresses (a template or key-value pairs), and becomes a
`TileUrl`. It is untrusted: no entities, and a bounded size.
"""

import re
from itertools import pairwise
from math import dist, isclose, log2
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode
from xml.etree import ElementTree
from xml.etree.ElementTree import Element
from xml.parsers import expat

from geoloc.errors import ConfigError, NotFoundError
from geoloc.geo.wgs84 import plane_axes
from geoloc.reference.aerial.fetch import Fetcher
from geoloc.reference.aerial.source import Bounds
from geoloc.reference.aerial.tile_url import TileMatrix, TileUrl
from geoloc.reference.aerial.tiled import WEB_MERCATOR, TileGrid

PREFIX: Final = "WMTS:"

_PIXEL_M: Final = 0.00028  # on the screen, by which the standard turns scales into sizes of pixels (6.1)
_FORMATS: Final = ("image/jpeg", "image/png", "image/webp", "image/jpg")
_OPTION: Final = re.compile(r",(layer|tilematrixset)=", re.IGNORECASE)


def open_wmts_name(name: str, cache: str | Path, zooms: tuple[int, int] | None, licence: str) -> TileUrl:
    """Open a layer by GDAL's name "WMTS:URL,layer=…,tilematrixset=…"; both options may be missing."""
    url, *options = _OPTION.split(name.removeprefix(PREFIX))
    given = dict(zip([key.lower() for key in options[::2]], options[1::2], strict=True))
    return open_wmts(
        url,
        cache,
        layer=given.get("layer"),
        matrix_set=given.get("tilematrixset"),
        zooms=zooms,
        licence=licence,
    )


def open_wmts(
    url: str,
    cache: str | Path,
    *,
    layer: str | None = None,
    matrix_set: str | None = None,
    zooms: tuple[int, int] | None = None,
    max_per_s: float = 5.0,
    licence: str = "",
) -> TileUrl:
    """Open a layer of a service.

    Args:
        url: of the capabilities document.
        cache: folder for the tiles.
        layer: None takes the only one.
        matrix_set: None takes one in Web Mercator, else the first one that can be used: metric, each zoom twice as
            fine as the one before, from one corner.
        zooms: coarsest and finest; None takes all. In Web Mercator they are those of web maps, elsewhere 0 is the
            coarsest of the set.
        max_per_s: requests in a second.
        licence: of the imagery.

    Raises:
        NotFoundError: the server refuses or does not answer, or has no such layer or set.
        ConfigError: the document is invalid, or describes nothing usable.
    """
    root = _parsed(Fetcher(max_per_s).get(url), url)
    chosen = _named(root.findall("{*}Contents/{*}Layer"), layer, "layer", url)
    identifier = _text(chosen, "Identifier")
    links = {_text(link, "TileMatrixSet"): link for link in chosen.findall("{*}TileMatrixSetLink")}
    sets = [one for one in root.findall("{*}Contents/{*}TileMatrixSet") if _text(one, "Identifier") in links]
    if matrix_set is not None:
        sets = [_named(sets, matrix_set, f"tile matrix set of {identifier}", url)]
    grids, reasons = [], [f"layer {identifier} has none"]
    for number, one in enumerate(sets):
        try:
            grid, first_zoom = _grid(one)
        except ConfigError as error:
            reasons.append(f"{_text(one, 'Identifier')}: {error}")
        else:
            grids.append((grid.crs != WEB_MERCATOR, number, grid, first_zoom))
    if not grids:
        raise ConfigError(f"{url} has no tile matrix set that can be used ({'; '.join(reasons[-3:])})")
    _, number, grid, first_zoom = min(grids, key=lambda found: found[:2])
    name = _text(sets[number], "Identifier")
    matrices = {first_zoom + i: m for i, m in enumerate(_matrices(sets[number], links[name]))}
    low, high = zooms or (min(matrices), max(matrices))
    if not min(matrices) <= low <= high <= max(matrices):
        raise ConfigError(
            f"{name} of {url} has the zooms {min(matrices)} to {max(matrices)}, and {low} to {high} were asked for"
        )
    return TileUrl(
        _address(root, chosen, name, url),
        cache,
        (low, high),
        grid=grid,
        matrices=matrices,
        bounds_deg=_bounds_deg(chosen),
        max_per_s=max_per_s,
        name=identifier,
        licence=licence,
    )


# --- The document -----------------------------------------------------------------------------------------


def _parsed(data: bytes, url: str) -> Element:
    if not data:
        raise NotFoundError(f"there is no {url}: check the address of the capabilities document")

    def refuse(*_: object) -> None:
        raise ConfigError(f"{url} declares a document type, which can hide entities: do not trust its server")

    try:
        first_look = expat.ParserCreate()
        first_look.StartDoctypeDeclHandler = refuse
        first_look.Parse(data, True)
        root = ElementTree.fromstring(data)  # it holds elements and texts only
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise ConfigError(
            f"{url} is no XML ({error}): give the address of a WMTS capabilities document"
        ) from None
    if root.tag.rpartition("}")[2] != "Capabilities" or root.find("{*}Contents") is None:
        raise ConfigError(
            f"{url} is not a WMTS capabilities document, but <{root.tag.rpartition('}')[2]}>: it mostly ends in "
            "WMTSCapabilities.xml or ?SERVICE=WMTS&REQUEST=GetCapabilities"
        )
    return root


def _text(element: Element, path: str) -> str:
    """Text of the element at a path of names, in any namespace; "" where there is none."""
    found = element.findtext("/".join(f"{{*}}{name}" for name in path.split("/")))
    return (found or "").strip()


def _number(element: Element, name: str) -> float:
    try:
        return float(_text(element, name))
    except ValueError:
        raise ConfigError(f"its {name} is {_text(element, name)!r}, no number") from None


def _named(elements: list[Element], name: str | None, noun: str, url: str) -> Element:
    """The element with that identifier, or the only one."""
    names = [_text(element, "Identifier") for element in elements]
    if name is None and len(names) == 1:
        return elements[0]
    if name not in names:
        known = ", ".join(names[:20]) + (" …" if len(names) > 20 else "") or "none"
        asked = "several" if name is None else f"no {noun} {name!r}"
        raise NotFoundError(f"{url} has {asked}: give one {noun} of {known}")
    return elements[names.index(name)]


def _bounds_deg(layer: Element) -> Bounds | None:
    low, high = (
        _text(layer, f"WGS84BoundingBox/{corner}").split() for corner in ("LowerCorner", "UpperCorner")
    )
    try:
        (west, south), (east, north) = (tuple(map(float, corner)) for corner in (low, high))
    except ValueError:
        return None  # it may leave the box out
    return max(south, -90.0), max(west, -180.0), min(north, 90.0), min(east, 180.0)


# --- Grids --------------------------------------------------------------------------------------


def _grid(matrix_set: Element) -> tuple[TileGrid, int]:
    """The grid of a set, and the zoom of its coarsest matrix.

    Raises:
        ConfigError: the tiles are not square, metric, from one corner and halved from zoom to zoom.
    """
    named = _text(matrix_set, "SupportedCRS")
    code = re.search(r"EPSG.*?(\d+)$", named)
    crs = f"EPSG:{code[1]}".replace("EPSG:900913", WEB_MERCATOR) if code else named
    is_north_first, metres_per_unit = plane_axes(crs)
    matrices = _coarsest_first(matrix_set)
    shapes = {(_number(one, "TileWidth"), _number(one, "TileHeight")) for one in matrices}
    sides = {side for shape in shapes for side in shape}
    if len(sides) != 1:
        raise ConfigError("its tiles are not of one square size")
    side_px = int(sides.pop())
    pixels = [_number(one, "ScaleDenominator") * _PIXEL_M / metres_per_unit for one in matrices]
    if any(not isclose(coarse, 2 * fine, rel_tol=1e-4) for coarse, fine in pairwise(pixels)):
        raise ConfigError("its scales do not halve from one zoom to the next")
    corners = [_corner_xy(one, is_north_first) for one in matrices]
    if any(dist(corner, corners[0]) > pixels[-1] for corner in corners):
        raise ConfigError("its zooms do not begin in one corner")
    web = TileGrid(tile_px=side_px)
    zoom = log2(web.tile_side / (side_px * pixels[0]))
    if crs == web.crs and dist(corners[0], web.origin_xy) < 1.0 and isclose(zoom, round(zoom), abs_tol=1e-4):
        return web, round(zoom)  # exactly, and not rounded as the document has it
    return TileGrid(crs, side_px, side_px * pixels[0], corners[0], "south", wraps=False), 0


def _corner_xy(matrix: Element, is_north_first: bool) -> tuple[float, float]:
    try:
        first, second = map(float, _text(matrix, "TopLeftCorner").split())
    except ValueError:
        raise ConfigError(
            f"its TopLeftCorner is {_text(matrix, 'TopLeftCorner')!r}, no two numbers"
        ) from None
    return (second, first) if is_north_first else (first, second)


def _coarsest_first(matrix_set: Element) -> list[Element]:
    return sorted(
        matrix_set.findall("{*}TileMatrix"), key=lambda matrix: -_number(matrix, "ScaleDenominator")
    )


def _matrices(matrix_set: Element, link: Element) -> list[TileMatrix]:
    """The matrices of a set, coarsest first, with the tiles that the layer has of each."""
    limits = {
        _text(one, "TileMatrix"): one for one in link.iterfind("{*}TileMatrixSetLimits/{*}TileMatrixLimits")
    }
    matrices = []
    for matrix in _coarsest_first(matrix_set):
        name = _text(matrix, "Identifier")
        ranges = []
        for axis, size in (("Col", "MatrixWidth"), ("Row", "MatrixHeight")):
            first, last = 0, int(_number(matrix, size)) - 1
            if (limit := limits.get(name)) is not None:
                first, last = (int(_number(limit, f"{end}Tile{axis}")) for end in ("Min", "Max"))
            ranges.append(range(first, last + 1))
        matrices.append(TileMatrix(quote(name, safe=":"), *ranges))
    return matrices


# --- Addresses ------------------------------------------------------------------------------


def _address(root: Element, layer: Element, matrix_set: str, url: str) -> str:
    """An address with the placeholders of `TileUrl`."""
    styles = layer.findall("{*}Style")
    style = next((s for s in styles if s.get("isDefault") == "true"), styles[0] if styles else None)
    values = {
        "Layer": _text(layer, "Identifier"),
        "Style": "" if style is None else _text(style, "Identifier"),
        "TileMatrixSet": matrix_set,
        **{_text(one, "Identifier"): _text(one, "Default") for one in layer.findall("{*}Dimension")},
    }
    for resource in layer.findall("{*}ResourceURL"):
        if resource.get("resourceType") == "tile" and resource.get("format", "") in _FORMATS:
            address = resource.get("template", "")
            for name, value in values.items():
                place = re.compile(
                    re.escape(f"{{{name}}}"), re.IGNORECASE
                )  # servers write {style} and {Style}
                address = place.sub(lambda _, value=value: quote(value, safe=":"), address)  # type: ignore[misc]
            return address
    forms = [form for one in layer.findall("{*}Format") if (form := (one.text or "").strip()) in _FORMATS]
    for operation in root.iterfind("{*}OperationsMetadata/{*}Operation[@name='GetTile']"):
        for get in operation.iterfind("{*}DCP/{*}HTTP/{*}Get"):
            encodings = [value.text for value in get.iterfind("{*}Constraint/{*}AllowedValues/{*}Value")]
            if forms and (not encodings or "KVP" in encodings):
                base = get.get("{http://www.w3.org/1999/xlink}href", "")
                asked = {
                    "SERVICE": "WMTS",
                    "REQUEST": "GetTile",
                    "VERSION": "1.0.0",
                    "FORMAT": forms[0],
                    **values,
                }
                base += "" if base.endswith(("?", "&")) else "&" if "?" in base else "?"
                return f"{base}{urlencode(asked)}&TileMatrix={{TileMatrix}}&TileRow={{TileRow}}&TileCol={{TileCol}}"
    raise ConfigError(
        f"{url} says no way to ask for tiles of {values['Layer']} as pictures ({', '.join(_FORMATS[:3])})"
    )
