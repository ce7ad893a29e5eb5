"""Polygons of GeoJSON, against shapely for each point and an equal-area projection of pyproj."""

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from geoloc.errors import ConfigError, MissingDependencyError, NotFoundError
from geoloc.geo.regions import Polygons, parse_region
from geoloc.geo.regions.boxes import box_area_km2, points_in_boxes
from geoloc.reference.aerial.cells import CellGrid, blocks

FIJI_CUT = {
    "type": "MultiPolygon",
    "coordinates": [
        [[[179.9, -17.1], [180, -17.1], [180, -17], [179.9, -17], [179.9, -17.1]]],
        [[[-180, -17.1], [-179.9, -17.1], [-179.9, -17], [-180, -17], [-180, -17.1]]],
    ],
}
FIJI_UNCUT = {
    "type": "Polygon",
    "coordinates": [[[179.9, -17.1], [-179.9, -17.1], [-179.9, -17], [179.9, -17], [179.9, -17.1]]],
}
METRES = {
    "type": "FeatureCollection",
    "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}},
    "features": [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[10, 20], [60, 20], [60, 70], [10, 70], [10, 20]]],
            },
        }
    ],
}


def square(west: float, south: float, side: float) -> list[list[float]]:
    east, north = west + side, south + side
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


@given(
    st.lists(st.tuples(st.floats(-170, 170), st.floats(-80, 80)), min_size=3, max_size=8),
    st.integers(1, 200),
)
@settings(deadline=None, max_examples=50)
def test_a_polygon_as_shapely(corners: list[tuple[float, float]], n: int) -> None:
    hull = shapely.MultiPoint(corners).convex_hull
    if (
        hull.geom_type != "Polygon"
        or hull.area < 1e-6
        or np.abs(np.diff(hull.exterior.coords.xy[0])).max() > 180
    ):
        return
    region = Polygons(json.loads(shapely.to_geojson(hull)))
    rng = np.random.default_rng(0)
    probes = np.stack([rng.uniform(-90, 90, 500), rng.uniform(-180, 180, 500)], 1)
    expected = [hull.contains(shapely.Point(lon, lat)) for lat, lon in probes]
    assert region.contains(probes).tolist() == expected
    points = region.sample(n)
    assert 1 <= len(points) <= n
    assert region.contains(points).all()


def test_the_area_as_an_equal_area_projection() -> None:
    triangle = [[-10.0, 40.0], [30.0, 50.0], [5.0, 75.0], [-10.0, 40.0]]
    hole = square(5, 55, 3)
    region = Polygons({"type": "Polygon", "coordinates": [triangle, hole]})
    # Cylindrical equal-area on the sphere, with edges straight in degrees: many short pieces.
    project = Transformer.from_crs(
        "+proj=longlat +R=6371008.8 +no_defs", "+proj=cea +R=6371008.8 +no_defs", always_xy=True
    )
    dense = shapely.segmentize(shapely.Polygon(triangle, [hole]), 0.01)
    flat = shapely.transform(dense, lambda xy: np.stack(project.transform(*xy.T), -1))
    assert region.area_km2 == pytest.approx(flat.area / 1e6, rel=1e-6)
    # The estimate of other regions, from points, agrees.
    cover = region.cover(1024, 1 << 15)
    inside = region.contains(points_in_boxes(cover, 1 << 14)).mean()
    assert box_area_km2(cover).sum() * inside == pytest.approx(region.area_km2, rel=0.01)


def test_a_polygon_that_is_cut_at_the_antimeridian() -> None:
    region = Polygons(FIJI_CUT)
    assert region.boxes == ((-17.1, -180, -17, -179.9), (-17.1, 179.9, -17, 180))
    points = [[-17.05, 179.95], [-17.05, -179.95], [-17.05, 180], [-17.05, 0], [-17.05, 179.8]]
    assert region.contains(points).tolist() == [True, True, True, False, False]
    assert region.area_km2 == pytest.approx(parse_region((-17.1, 179.9, -17, -179.9)).area_km2, rel=1e-9)
    sample = region.sample(100)
    assert 90 <= len(sample) <= 100
    assert abs((sample[:, 1] > 0).mean() - 0.5) < 0.1
    # The work of a build grows with the region, not with its longitudes.
    assert sum(len(block.cells) for block in blocks(CellGrid(1000), region, 100)) < 400


def test_a_polygon_that_is_not_cut_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"from longitude 179\.9 to -179\.9, more than 180 degrees; .*cut it there"
    ):
        Polygons(FIJI_UNCUT)
    world = {
        "type": "Polygon",
        "coordinates": [[[-180, -90], [180, -90], [180, -60], [-180, -60], [-180, -90]]],
    }
    region = Polygons(world)  # a whole turn is clear
    assert region.contains([[-75, 0], [-90, 17], [-75, 180], [-59, 0]]).tolist() == [True, True, True, False]


def test_coordinates_of_another_system_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"coordinates of 'urn:ogc:def:crs:EPSG::3857', and WGS84 degrees are needed"
    ):
        Polygons(METRES)
    for name in ("urn:ogc:def:crs:OGC:1.3:CRS84", "EPSG:4326"):
        assert Polygons(METRES | {"crs": {"type": "name", "properties": {"name": name}}}).contains(
            [[30, 20]]
        )[0]
    with pytest.raises(ConfigError, match="WGS84 degrees are needed"):
        Polygons(METRES | {"crs": 7})


@pytest.mark.parametrize(
    "coordinates",
    [
        [[[10**400, 0], [1, 0], [1, 1], [10**400, 0]]],
        json.loads("[" * 300 + "]" * 300),
        [[["a", 0], [1, 0], [1, 1], ["a", 0]]],
        [[[0, 0], [1, 0]]],
        7,
        None,
        [[[0, 0], [1, 1], [2, 2], [0, 0]]],
    ],
)
def test_hostile_polygons_are_one_line(coordinates: Any) -> None:
    with pytest.raises(ConfigError) as error:
        Polygons({"type": "Polygon", "coordinates": coordinates})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_tiny_islands_far_apart_all_have_points() -> None:
    """Islands of ten metres across an ocean: a box around them is almost all water."""
    islands = [[square(west, south, 1e-4)] for west in (-170.0, 10.0, 150.0) for south in (-60.0, 0.0, 70.0)]
    region = Polygons({"type": "MultiPolygon", "coordinates": islands})
    points = region.sample(900)
    assert 700 <= len(points) <= 900
    assert region.contains(points).all()
    assert len(np.unique(points.round(0), axis=0)) == 9
    assert len(region.sample(1)) == 1


def test_more_islands_than_boxes() -> None:
    rng = np.random.default_rng(1)
    islands = [[square(*rng.uniform((-170, -80), (170, 80)), 1e-9)] for _ in range(300)]
    region = Polygons({"type": "MultiPolygon", "coordinates": islands})
    points = region.sample(10)
    assert 1 <= len(points) <= 10
    assert region.contains(points).all()
    assert len(region.boxes) <= 64
    corners = np.array([island[0][0][::-1] for island in islands])
    held = np.zeros(300, bool)
    for south, west, north, east in region.boxes:
        held |= ((corners >= (south, west)) & (corners <= (north, east))).all(1)
    assert held.all()


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [square(0, 0, 1)]}))
    for given_path in (path, str(path)):
        region = parse_region(given_path)
        assert region.name == str(path)
        assert region.contains([[0.5, 0.5]])[0]
    with pytest.raises(NotFoundError, match=r"there is no GeoJSON gone\.json"):
        parse_region("gone.json")


def test_without_shapely(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("shapely"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"pip install 'geoloc-vision\[aerial\]'"):
        Polygons({"type": "Polygon", "coordinates": [square(0, 0, 1)]})
