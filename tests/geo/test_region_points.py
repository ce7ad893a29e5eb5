"""The surroundings of points, against a search through all boxes by their bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoloc.errors import ConfigError
from geoloc.geo.regions import near_points
from quadtree.errors import InvalidCoordinateError
from quadtree.morton import cell_bounds_deg

LATITUDES = st.one_of(st.sampled_from([-90.0, 90.0, 0.0]), st.floats(-90, 90))
LONGITUDES = st.one_of(st.sampled_from([-180.0, 180.0, 0.0]), st.floats(-180, 180))


@given(
    st.lists(st.tuples(LATITUDES, LONGITUDES), min_size=1, max_size=20),
    st.lists(st.tuples(LATITUDES, LONGITUDES), min_size=1, max_size=20),
)
@settings(deadline=None, max_examples=60)
def test_membership_as_by_the_bounds_of_each_box(
    points: list[tuple[float, float]], probes: list[tuple[float, float]]
) -> None:
    region = near_points(points, "x")
    assert region.depth == 15
    assert region.contains(points).all()
    bounds = cell_bounds_deg(region.codes, region.depth)
    both = np.array([*probes, *points, *(np.array(points) + np.array([0, 0.005]))])
    lon = np.where(both[:, 1] >= 180, both[:, 1] - 360, both[:, 1])
    expected = [
        bool(
            (
                (bounds[:, 0] <= lat)
                & ((lat < bounds[:, 2]) | ((lat == 90) & (bounds[:, 2] == 90)))
                & (bounds[:, 1] <= east)
                & (east < bounds[:, 3])
            ).any()
        )
        for lat, east in zip(both[:, 0], lon, strict=True)
    ]
    assert region.contains(both).tolist() == expected


@pytest.mark.parametrize(
    "center", [(10.0, 20.0), (0.0, 180.0), (90.0, 0.0), (-90.0, 170.0), (89.9999, -180.0)]
)
def test_neighbours_are_in_it(center: tuple[float, float]) -> None:
    """A step of a box from a point stays inside, also across the antimeridian and the poles."""
    region = near_points([center], "x")
    height, width = 180 / 2**15, 360 / 2**15
    for up in (-1, 0, 1):
        for right in (-1, 0, 1):
            lat, lon = center[0] + 0.999 * up * height, center[1] + 0.999 * right * width
            if abs(lat) > 90:
                lat, lon = np.sign(lat) * 180 - lat, lon + 180
            assert region.contains([[lat, lon]])[0], (up, right)
    assert not region.contains([[center[0] - np.sign(center[0] or 1) * 3.1 * height, center[1]]])[0]


def test_many_points_make_coarser_boxes() -> None:
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(-90, 90, 20_000), rng.uniform(-180, 180, 20_000)], 1)
    region = near_points(points, "x")
    assert region.depth == 6  # 4096 boxes cover the Earth
    assert len(region.codes) == 4096
    assert region.area_km2 == pytest.approx(4 * np.pi * 6371.0088**2, rel=1e-12)
    land = points / (90, 180) * (4, 6) + (55, 13)
    country = near_points(land, "x")
    assert 6 < country.depth < 15
    assert 1024 < len(country.codes) <= 9 * 4096
    assert len(country.boxes) <= 64
    assert country.contains(land).all()
    assert not country.contains([[45, 13], [55, 30]]).any()


def test_samples() -> None:
    region = near_points([[55.7, 13.2], [-33, 151], [0, 180]], "mine")
    sample = region.sample(300)
    assert sample.shape == (300, 2)
    assert region.contains(sample).all()
    assert len(np.unique(sample.round(0), axis=0)) >= 3
    assert region.name == "mine"
    assert region.facts() == near_points([[0, -180], [-33, 151], [55.7, 13.2], [55.7, 13.2]], "y").facts()
    assert len(region.codes) == 27


def test_nothing_to_be_near() -> None:
    with pytest.raises(ConfigError, match="there are no points for the region 'mine'"):
        near_points(np.zeros((0, 2)), "mine")
    with pytest.raises(InvalidCoordinateError):
        near_points([[91, 0]], "mine")
