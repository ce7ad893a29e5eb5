import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aerial_samples import CENTER, write_geotiff, write_tiles

from geoloc.errors import ConfigError, NotFoundError
from geoloc.reference.aerial import Box, GeoTiff, Imagery, Polygons, TileUrl, XyzFolder, open_region

SQUARE = [[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0], [0.0, 0.0]]
HOLE = [[0.5, 0.4], [0.6, 0.4], [0.6, 0.6], [0.5, 0.6], [0.5, 0.4]]


def test_a_box_is_half_open() -> None:
    box = Box((10, 20, 11, 22))
    points = np.array([[10, 20], [10.5, 21], [11, 21], [10.5, 22], [9.99, 21]])
    assert box.contains(points).tolist() == [True, True, False, False, False]


def test_a_box_may_cross_the_antimeridian() -> None:
    box = Box((-20, 179, -10, -179))
    points = np.array([[-15, 179.5], [-15, -179.5], [-15, 0], [-15, 178]])
    assert box.contains(points).tolist() == [True, True, False, False]
    assert box.boxes == ((-20, 179, -10, 180), (-20, -180, -10, -179))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda g: g,
        lambda g: {"type": "Feature", "geometry": g, "properties": {}},
        lambda g: {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": g}]},
        lambda g: {"type": "GeometryCollection", "geometries": [g]},
    ],
)
def test_geojson_in_all_its_wrappings(wrap: Any, tmp_path: Path) -> None:
    geometry = {"type": "Polygon", "coordinates": [SQUARE, HOLE]}
    path = tmp_path / "region.geojson"
    path.write_text(json.dumps(wrap(geometry)))
    points = np.array([[0.5, 1.0], [0.5, 0.55], [1.5, 1.0], [0.5, 2.5]])  # latitude first
    for region in (open_region(path, []), open_region(wrap(geometry), []), open_region(str(path), [])):
        assert region.contains(points).tolist() == [True, False, False, False]
        assert region.boxes == ((0, 0, 1, 2),)
        assert region.facts() == Polygons(geometry).facts()
    assert Polygons(geometry).facts() != Polygons({"type": "Polygon", "coordinates": [SQUARE]}).facts()


def test_wherever_there_is_imagery(tmp_path: Path) -> None:
    raster = GeoTiff(write_geotiff(tmp_path / "a.tif", "EPSG:32619", side_px=200))
    tiles = XyzFolder(write_tiles(tmp_path / "tiles", [16], center=(42.5, -71.06), reach=0))
    region = open_region(None, [raster, tiles])
    points = np.array([CENTER, (42.5, -71.06), (42.43, -71.06), (42.362, -71.06)])
    assert region.contains(points).tolist() == [True, True, False, False]
    assert len(region.boxes) == 2


def test_a_server_does_not_say_where_it_has_imagery(tmp_path: Path) -> None:
    server = TileUrl("http://tiles.invalid/{z}/{x}/{y}", tmp_path, (0, 3))
    with pytest.raises(ConfigError, match=r"it is unknown where tiles\.invalid has imagery: give a region"):
        Imagery([server])


@pytest.mark.parametrize(
    ("region", "text"),
    [
        ((1, 2), r"a box needs four numbers, south, west, north and east; found \(1, 2\)"),
        ((1, 2, "x", 4), r"a box needs four numbers"),
        ((10, 0, 5, 1), r"with south < north; found \(10.0, 0.0, 5.0, 1.0\)"),
        ((0, 0, 1, 400), r"a box is south, west, north, east in degrees"),
        ({"type": "Point", "coordinates": [0, 0]}, r"holds no Polygon and no MultiPolygon"),
        ({"type": "Polygon", "coordinates": [[[0, 0]]]}, r"holds an invalid polygon"),
        ({"type": "Polygon", "coordinates": [[[500, 0], [501, 0], [501, 1], [500, 0]]]}, r"RFC 7946"),
    ],
)
def test_what_is_no_region_is_refused(region: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        open_region(region, [])


def test_a_file_that_is_no_geojson(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no GeoJSON .*gone\.geojson: check the path"):
        open_region(tmp_path / "gone.geojson", [])
    (tmp_path / "a.geojson").write_text("no")
    with pytest.raises(ConfigError, match=r"a\.geojson is not JSON: give a GeoJSON with polygons"):
        open_region(tmp_path / "a.geojson", [])
    (tmp_path / "b.geojson").write_text("[1]")
    with pytest.raises(ConfigError, match="holds list, and an object is needed"):
        open_region(tmp_path / "b.geojson", [])
