"""Layers of a WMTS, from documents as servers write them; patches against geodesics pixel by pixel."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from aerial_samples import CENTER, colour_at, encoded, expected_patch, tile_picture
from pyproj import Transformer
from tile_server import Server

from geoloc.errors import ConfigError, GeolocError, NotFoundError
from geoloc.reference.aerial import TileGrid, TileUrl, open_sources, open_wmts, read_patch

# Scale denominator of zoom 0 of GoogleMapsCompatible (OGC 07-057r7, table E.4), and its corner.
WEB_SCALE, WEB_CORNER = 559082264.0287178, "-20037508.3427892 20037508.3427892"
UTM_CORNER = (300000.0, 4800000.0)
UTM_SCALE = 2000.0  # a pixel of 0.56 m

DOCUMENT = """<?xml version="1.0"?>
<Capabilities xmlns="http://www.opengis.net/wmts/1.0" xmlns:ows="http://www.opengis.net/ows/1.1"
  xmlns:xlink="http://www.w3.org/1999/xlink" version="1.0.0">
  <ows:OperationsMetadata><ows:Operation name="GetTile"><ows:DCP><ows:HTTP>
    <ows:Get xlink:href="{root}kvp?map=a"><ows:Constraint name="GetEncoding"><ows:AllowedValues>
      <ows:Value>KVP</ows:Value></ows:AllowedValues></ows:Constraint></ows:Get>
  </ows:HTTP></ows:DCP></ows:Operation></ows:OperationsMetadata>
  <Contents>{layers}{sets}</Contents>
</Capabilities>"""


def layer(name: str, sets: str, resource: str = "", limits: str = "") -> str:
    links = "".join(
        f"<TileMatrixSetLink><TileMatrixSet>{one}</TileMatrixSet>{limits}</TileMatrixSetLink>"
        for one in sets.split()
    )
    return (
        f"<Layer><ows:Identifier>{name}</ows:Identifier>"
        "<ows:WGS84BoundingBox><ows:LowerCorner>-71.1 42.3</ows:LowerCorner>"
        "<ows:UpperCorner>-71.0 42.4</ows:UpperCorner></ows:WGS84BoundingBox>"
        "<Style><ows:Identifier>night</ows:Identifier></Style>"
        '<Style isDefault="true"><ows:Identifier>by day</ows:Identifier></Style>'
        "<Format>image/svg</Format><Format>image/png</Format>"
        "<Dimension><ows:Identifier>Time</ows:Identifier><Default>2024</Default></Dimension>"
        f"{links}{resource}</Layer>"
    )


def matrix(name: str, scale: float, corner: str, size: tuple[int, int], side: int | str = 256) -> str:
    return (
        f"<TileMatrix><ows:Identifier>{name}</ows:Identifier><ScaleDenominator>{scale!r}</ScaleDenominator>"
        f"<TopLeftCorner>{corner}</TopLeftCorner><TileWidth>{side}</TileWidth><TileHeight>256</TileHeight>"
        f"<MatrixWidth>{size[0]}</MatrixWidth><MatrixHeight>{size[1]}</MatrixHeight></TileMatrix>"
    )


def matrix_set(name: str, crs: str, matrices: list[str]) -> str:
    return (
        f"<TileMatrixSet><ows:Identifier>{name}</ows:Identifier><ows:SupportedCRS>{crs}</ows:SupportedCRS>"
        f"{''.join(matrices)}</TileMatrixSet>"
    )


def web_set(zooms: range = range(15, 18), name: str = "google") -> str:
    """The zooms in a mixed order, with names that are not their numbers."""
    matrices = [matrix(f"z:{z:02}", WEB_SCALE / 2**z, WEB_CORNER, (2**z, 2**z)) for z in zooms]
    return matrix_set(name, "urn:ogc:def:crs:EPSG:6.18:3:3857", matrices[::-1])


def utm_set() -> str:
    corner = f"{UTM_CORNER[0]} {UTM_CORNER[1]}"
    return matrix_set(
        "utm",
        "urn:ogc:def:crs:EPSG::32619",
        [matrix(f"{i:02}", UTM_SCALE / 2**i, corner, (2000, 2000)) for i in range(3)],
    )


def utm_picture(zoom: int, column: int, row: int) -> Any:
    pixel = UTM_SCALE * 0.00028 / 2**zoom
    along = np.arange(256) + 0.5
    xs, ys = np.meshgrid(
        UTM_CORNER[0] + (256 * column + along) * pixel, UTM_CORNER[1] - (256 * row + along) * pixel
    )
    lon, lat = Transformer.from_crs(32619, 4326, always_xy=True).transform(xs, ys)
    return colour_at(np.stack([lat, lon], -1)).round().astype(np.uint8)


Serve = Callable[..., Server]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start a server whose document is `document(layers, sets)`, and which answers tiles both ways."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running: list[Server] = []

    def start(layers: str = "", sets: str = "", document: str = DOCUMENT) -> Server:
        def content(path: str) -> bytes:
            parts = urlsplit(path)
            if parts.path == "/capabilities.xml":
                filled = document
                for name, text in {"layers": layers, "sets": sets, "root": server.root}.items():
                    filled = filled.replace(f"{{{name}}}", text)
                return filled.encode()
            if parts.path == "/kvp":
                asked = {key.upper(): value[0] for key, value in parse_qs(parts.query).items()}
                assert (asked["SERVICE"], asked["REQUEST"], asked["VERSION"]) == ("WMTS", "GetTile", "1.0.0")
                assert (asked["MAP"], asked["STYLE"], asked["TIME"]) == ("a", "by day", "2024")
                assert asked["FORMAT"] == "image/png"
                place = [asked[key] for key in ("TILEMATRIXSET", "TILEMATRIX", "TILEROW", "TILECOL")]
            else:
                _, layer, style, *place = parts.path.removesuffix(".png").split("/")
                assert (layer, style) == ("ortho", "by%20day")
            matrix_set, zoom, row, column = place
            draw = utm_picture if matrix_set == "utm" else tile_picture
            return encoded(draw(int(zoom.removeprefix("z:")), int(column), int(row)))

        server = Server(content)
        running.append(server)
        return server

    yield start
    for server in running:
        server.close()


REST = (
    '<ResourceURL format="application/json" resourceType="FeatureInfo" template="no"/>'
    '<ResourceURL format="image/png" resourceType="tile" '
    'template="{root}ortho/{style}/{TileMatrixSet}/{TileMatrix}/{TileRow}/{TileCol}.png"/>'
)


def opened(server: Server, cache: Path, **options: Any) -> TileUrl:
    return open_wmts(server.root + "capabilities.xml", cache, **({"max_per_s": 1000.0} | options))


@pytest.mark.parametrize("resource", [REST, ""], ids=["rest", "kvp"])
@pytest.mark.parametrize("name", ["google", "utm"])
def test_a_patch_shows_what_is_there(serve: Serve, tmp_path: Path, name: str, resource: str) -> None:
    source = opened(
        serve(layer("ortho", "google utm", resource), utm_set() + web_set()), tmp_path, matrix_set=name
    )
    assert source.name == "ortho"
    assert source.num_levels == 3
    assert source.bounds_deg == (42.3, -71.1, 42.4, -71.0)
    for gsd, heading_deg in ((0.9, 0.0), (2.2, 37.0)):
        patch = read_patch(source, CENTER, heading_deg=heading_deg, gsd_m_per_px=gsd, size_px=24)
        assert patch.valid.all()
        assert np.abs(patch.image - expected_patch(CENTER, heading_deg, gsd, 24)).mean() < 1.5


def test_the_web_grid_is_exact_and_preferred(serve: Serve, tmp_path: Path) -> None:
    server = serve(layer("ortho", "utm google"), utm_set() + web_set())
    source = opened(server, tmp_path)
    assert source.grid == TileGrid()
    assert (source.min_zoom, source.max_zoom) == (15, 17)
    source = opened(server, tmp_path, zooms=(16, 17))
    assert source.num_levels == 2
    with pytest.raises(ConfigError, match=r"google of .* has the zooms 15 to 17, and 3 to 17 were asked for"):
        opened(server, tmp_path, zooms=(3, 17))


def test_another_grid_by_hand(serve: Serve, tmp_path: Path) -> None:
    """2000 x 0.28 mm is a pixel of 0.56 m, and 256 of them a tile of 143.36 m."""
    grid = opened(serve(layer("ortho", "utm"), utm_set()), tmp_path).grid
    assert (grid.crs, grid.tile_px, grid.origin_xy, grid.wraps) == ("EPSG:32619", 256, UTM_CORNER, False)
    assert grid.tile_side == pytest.approx(143.36, rel=1e-12)


def test_a_corner_with_northing_first(serve: Serve, tmp_path: Path) -> None:
    """EPSG:31467, Gauss-Krueger zone 3, counts northings first, and so does the corner in the document."""
    sets = matrix_set("gk", "urn:ogc:def:crs:EPSG::31467", [matrix("0", 1e6, "6000000 3400000", (9, 9))])
    assert opened(serve(layer("ortho", "gk"), sets), tmp_path).grid.origin_xy == (3400000.0, 6000000.0)


def test_what_the_layer_does_not_have_is_not_asked_for(serve: Serve, tmp_path: Path) -> None:
    limits = (
        "<TileMatrixSetLimits><TileMatrixLimits><TileMatrix>z:17</TileMatrix><MinTileRow>48467</MinTileRow>"
        "<MaxTileRow>48468</MaxTileRow><MinTileCol>39662</MinTileCol><MaxTileCol>39663</MaxTileCol>"
        "</TileMatrixLimits></TileMatrixSetLimits>"
    )
    server = serve(layer("ortho", "google", limits=limits), web_set())
    source = opened(server, tmp_path)
    num_requests = len(server.requests)
    for column, row in ((39661, 48467), (39664, 48467), (39662, 48466), (39662, 48469)):
        assert source.tile_bytes(17, column, row) is None
        assert not source.has_tile(column, row)
    assert len(server.requests) == num_requests
    assert source.has_tile(39662, 48468)
    assert source.tile_bytes(17, 39662, 48468) == encoded(tile_picture(17, 39662, 48468))


def test_by_the_name_that_gdal_gives_it(serve: Serve, tmp_path: Path) -> None:
    server = serve(layer("ortho", "google utm") + layer("map", "utm"), utm_set() + web_set())
    name = f"WMTS:{server.root}capabilities.xml"
    (source,) = open_sources(f"{name},layer=ortho,tilematrixset=utm", cache=tmp_path, licence="CC0-1.0")
    assert (source.name, source.licence, source.num_levels) == ("ortho", "CC0-1.0", 3)
    with pytest.raises(NotFoundError, match="has several: give one layer of ortho, map"):
        open_sources(name, cache=tmp_path)
    with pytest.raises(NotFoundError, match="has no layer 'sea': give one layer of ortho, map"):
        open_sources(f"{name},layer=sea", cache=tmp_path)
    with pytest.raises(NotFoundError, match=r"has no tile matrix set of map 'google': give one .* of utm"):
        open_sources(f"{name},layer=map,tilematrixset=google", cache=tmp_path)
    with pytest.raises(ConfigError, match="needs a folder for its tiles: give cache"):
        open_sources(name)


@pytest.mark.parametrize(
    ("crs", "matrices", "reason"),
    [
        ("urn:ogc:def:crs:OGC:1.3:CRS84", [matrix("0", 1e8, "-180 90", (2, 1))], "WGS 84.* is in degrees"),
        ("EPSG:99999", [matrix("0", 1e8, "0 0", (2, 1))], "is no coordinate reference system"),
        ("EPSG:32619", [matrix(str(i), s, "0 0", (9, 9)) for i, s in enumerate((5e4, 1e4))], "do not halve"),
        ("EPSG:32619", [matrix(str(i), 4e4 / 2**i, f"{i}00 0", (9, 9)) for i in (0, 1)], "in one corner"),
        ("EPSG:32619", [matrix("0", 1e4, "0 0", (9, 9), side=512)], "not of one square size"),
        ("EPSG:32619", [matrix("0", 1e4, "north", (9, 9))], "TopLeftCorner is 'north', no two numbers"),
        ("EPSG:32619", [matrix("0", 1e4, "0 0", (9, 9), side="x")], "its TileWidth is 'x', no number"),
        ("EPSG:32619", [], "not of one square size"),
    ],
)
def test_sets_that_our_tiles_cannot_be(
    serve: Serve, tmp_path: Path, crs: str, matrices: list[str], reason: str
) -> None:
    server = serve(layer("ortho", "odd"), matrix_set("odd", crs, matrices))
    with pytest.raises(ConfigError, match=rf"no tile matrix set that can be used .*odd: .*{reason}"):
        opened(server, tmp_path)


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><Capabilities><Contents>&b;</Contents></Capabilities>'


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("not XML", "is no XML"),
        ("<html><body/></html>", "is not a WMTS capabilities document, but <html>"),
        ("<Capabilities/>", "is not a WMTS capabilities document, but <Capabilities>"),
        (BOMB, "declares a document type, which can hide entities"),
        ("<Capabilities><Contents/></Capabilities>", "has several: give one layer of none"),
        (DOCUMENT.replace("KVP", "SOAP"), "says no way to ask for tiles of ortho as pictures"),
    ],
)
def test_documents_that_are_none(serve: Serve, tmp_path: Path, document: str, reason: str) -> None:
    with pytest.raises(GeolocError, match=reason):
        opened(serve(layer("ortho", "google"), web_set(), document), tmp_path)


def test_a_service_that_is_not_there(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    server.missing = {"/capabilities.xml"}
    with pytest.raises(NotFoundError, match="check the address of the capabilities document"):
        opened(server, tmp_path)
