"""Cells against pyproj's geodesics, at every latitude, and against each other: none overlap, none are missing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod

from geoloc.errors import ConfigError
from geoloc.geo.regions import Box, Polygons
from geoloc.reference.aerial.cells import CellGrid, blocks

GEOD = Geod(ellps="WGS84")

sizes = st.sampled_from([2.0, 30.0, 500.0])
latitudes = st.floats(-89.9, 89.9)
longitudes = st.floats(-179.9, 179.9)


def apart_m(a: np.ndarray, b: np.ndarray) -> float:
    return float(GEOD.inv(a[1], a[0], b[1], b[0])[2])


@given(sizes, latitudes, longitudes)
def test_rows_and_cells_are_exactly_one_side_apart(size: float, lat: float, lon: float) -> None:
    grid = CellGrid(size)
    row, column = grid.cell_of([[lat, lon]])[0]
    here, east, north = grid.center_latlon_deg(
        np.array([[row, column], [row, column + 1], [row + 1, column]])
    )
    assert apart_m(here, east) == pytest.approx(size, rel=1e-6)
    # Rows along the meridian, whatever the shift of their columns.
    assert apart_m(here, np.array([north[0], here[1]])) == pytest.approx(size, rel=1e-6)


@given(sizes, latitudes, longitudes)
def test_a_point_lies_in_its_cell(size: float, lat: float, lon: float) -> None:
    grid = CellGrid(size)
    cell = grid.cell_of([[lat, lon]])
    (south, west), (north, east) = (grid.points_latlon_deg(cell, s, s)[0] for s in (0.0, 1.0))
    assert south - 1e-9 <= lat <= north + 1e-9
    assert west - 1e-9 <= lon <= east + 1e-9
    assert (grid.cell_of(grid.center_latlon_deg(cell)) == cell).all()


@pytest.mark.parametrize("mercator", [False, True])
@given(latitudes, longitudes)
def test_boxes_share_the_cells_out_among_them(mercator: bool, lat: float, lon: float) -> None:
    grid = CellGrid(30.0, mercator)
    lat, d = min(max(lat, -84.0), 84.0), 0.003
    east = min(lon + 3 * d, 180.0)
    whole = grid.cells_with_center_in((lat, lon, lat + 2 * d, east))
    parts = [
        grid.cells_with_center_in(box)
        for box in (
            (lat, lon, lat + d, lon + d),
            (lat, lon + d, lat + d, east),
            (lat + d, lon, lat + 2 * d, lon + d),
            (lat + d, lon + d, lat + 2 * d, east),
        )
        if box[1] < box[3]
    ]
    found = np.concatenate(parts)
    assert len(np.unique(found, axis=0)) == len(found)
    assert set(map(tuple, found.tolist())) == set(map(tuple, whole.tolist()))
    centers = grid.center_latlon_deg(whole)
    assert ((centers >= (lat - 1e-9, lon - 1e-9)) & (centers <= (lat + 2 * d + 1e-9, east + 1e-9))).all()


def test_a_known_area_has_a_known_number_of_cells() -> None:
    # 10 km by 10 km have 111,111 cells of 30 m; those at the edge may be in or out.
    for lat in (0.0, 47.0, -60.0, 80.0):
        width = GEOD.fwd(0, lat, 90, 10_000)[0]
        height = GEOD.fwd(0, lat, 0, 10_000)[1] - lat
        cells = CellGrid(30).cells_with_center_in((lat, 0.0, lat + height, width))
        assert len(cells) == pytest.approx(111_111, rel=3e-3 if lat < 70 else 1e-2)


def test_statewides_figures() -> None:
    """The area of its example has 110 thousand cells (boston100: about 100 square kilometres)."""
    box = Box((42.3113, -71.1616, 42.4012, -71.0400))
    num_cells = sum(len(block.cells) for block in blocks(CellGrid(30), box, 4096))
    assert 110_000 < num_cells < 113_000


def test_around_the_world_a_row_ends_before_it_meets_itself() -> None:
    grid = CellGrid(100_000.0)
    cells = grid.cells_with_center_in((-90.0, -180.0, 90.0, 180.0))
    for row in np.unique(cells[:, 0]):
        columns = cells[cells[:, 0] == row, 1]
        assert (np.diff(columns) == 1).all()
        lat = float(grid.center_latlon_deg(np.array([[row, 0]]))[0, 0])
        around = 2 * np.pi * 6378137 * np.cos(np.radians(lat)) / 100_000
        assert around * 1.004 >= len(columns) >= around * 0.99 - 3
    assert len(cells) == pytest.approx(4 * np.pi * 6371.0088**2 / 1e4, rel=0.01)
    assert len(np.unique(cells, axis=0)) == len(cells)
    by_block = np.concatenate([b.cells for b in blocks(grid, Box((-90, -180, 90, 180)), 500)])
    assert set(map(tuple, by_block.tolist())) == set(map(tuple, cells.tolist()))


def test_blocks_are_quadtree_cells_and_small() -> None:
    box = Box((42.30, -71.20, 42.36, -71.10))
    found = list(blocks(CellGrid(30), box, 1000))
    assert all(len(block.cells) <= 1100 for block in found)
    assert [block.path for block in found] == sorted(block.path for block in found)
    cells = np.concatenate([block.cells for block in found])
    assert len(np.unique(cells, axis=0)) == len(cells)
    # Every cell with a corner in the box, found the slow way.
    grid = CellGrid(30)
    near = grid.cells_with_center_in((42.29, -71.21, 42.37, -71.09))
    touching = np.zeros(len(near), bool)
    for north, east in ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)):
        touching |= box.contains(grid.points_latlon_deg(near, north, east))
    assert set(map(tuple, cells.tolist())) == set(map(tuple, near[touching].tolist()))


def test_a_polygon_takes_the_cells_that_touch_it() -> None:
    triangle = {"type": "Polygon", "coordinates": [[[10, 50], [10.01, 50], [10, 50.01], [10, 50]]]}
    grid = CellGrid(30)
    cells = np.concatenate([block.cells for block in blocks(grid, Polygons(triangle), 4096)])
    area = 0.5 * GEOD.inv(10, 50, 10.01, 50)[2] * GEOD.inv(10, 50, 10, 50.01)[2]
    edge = GEOD.inv(10.01, 50, 10, 50.01)[2] + GEOD.inv(10, 50, 10.01, 50)[2] + GEOD.inv(10, 50, 10, 50.01)[2]
    assert area / 900 < len(cells) < area / 900 + edge / 30 * 1.5


def test_mercator_cells_shrink_with_the_cosine() -> None:
    grid = CellGrid(30, mercator=True)
    cell = grid.cell_of([[60.0, 10.0]])
    here, east = grid.center_latlon_deg(np.concatenate([cell, cell + np.array([0, 1])]))
    assert apart_m(here, east) == pytest.approx(15.0, rel=4e-3)  # the sphere of Mercator is not the ellipsoid
    assert grid.metres_in_cell(cell)[0] == pytest.approx(0.5, rel=1e-4)
    assert CellGrid(30).metres_in_cell(cell)[0] == 1.0


def test_keys_name_the_grid() -> None:
    cells = np.array([[157123, -195044], [0, 0]])
    assert CellGrid(30).keys(cells) == ["30m/157123/-195044", "30m/0/0"]
    assert CellGrid(2.5, mercator=True).keys(cells[1:]) == ["2.5m-mercator/0/0"]


@pytest.mark.parametrize("size", [0.0, -1.0, np.nan, 2e6])
def test_impossible_sizes_are_refused(size: float) -> None:
    with pytest.raises(ConfigError, match=r"cell_size_m is .*; it must be 0.1 to 1,000,000 m"):
        CellGrid(size)
