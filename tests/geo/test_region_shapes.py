"""Boxes and circles: membership, area and samples against the sphere's formulas, pyproj and random points."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod

from geoloc.errors import ConfigError
from geoloc.geo.regions import Box, Circle, Region, parse_region
from geoloc.geo.regions.boxes import box_area_km2, halves_of, points_in_boxes
from quadtree.errors import InvalidCoordinateError

RADIUS_KM = 6371.0088
SPHERE = Geod(a=RADIUS_KM * 1000, b=RADIUS_KM * 1000)
EARTH_KM2 = 4 * np.pi * RADIUS_KM**2


@st.composite
def boxes(draw: st.DrawFn) -> tuple[float, float, float, float]:
    height = 10 ** draw(st.floats(-6, 2.2))
    south = draw(st.one_of(st.just(-90.0), st.floats(-90, 89.99)))
    north = min(90.0, south + height)
    west = draw(st.one_of(st.just(-180.0), st.floats(-180, 179.99)))
    width = 10 ** draw(st.floats(-6, 2.55))
    east = west + width
    if east > 180:
        east = min(east - 360, west - 1e-9)
    return south, west, north, east


def uniform_points(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, n))), rng.uniform(-180, 180, n)], 1)


@given(boxes(), st.integers(1, 300))
@settings(deadline=None)
def test_a_box_holds_its_sample(bounds: tuple[float, ...], n: int) -> None:
    box = Box(bounds)
    points = box.sample(n)
    assert 1 <= len(points) <= n
    assert box.contains(points).all()
    assert ((points[:, 1] >= -180) & (points[:, 1] < 180)).all()
    south, west, north, east = bounds
    width = np.radians(east - west + 360 * (west > east))
    exact = RADIUS_KM**2 * width * (np.sin(np.radians(north)) - np.sin(np.radians(south)))
    assert box.area_km2 == pytest.approx(exact, rel=1e-6, abs=1e-6)
    assert np.array_equal(points, Box(bounds).sample(n))


def test_as_many_points_as_asked_for() -> None:
    assert [len(Box((10, 170, 40, -170)).sample(n)) for n in (1, 7, 1000)] == [1, 7, 1000]
    assert len(Circle((-89, 5), 400).sample(1000)) >= 999  # one may be rounded out


def test_the_smallest_box_has_a_point() -> None:
    box = Box((10.0, 20.0, np.nextafter(10.0, 11), np.nextafter(20.0, 21)))
    assert box.sample(5).tolist() == [[10.0, 20.0]] * len(box.sample(5))
    assert len(box.sample(5)) >= 1


def test_the_pole_and_the_antimeridian() -> None:
    cap = Box((80, -180, 90, 180))
    assert cap.contains([[90, 0], [90, 12], [80, 0], [79.9, 0], [85, 180], [85, -180]]).tolist() == [
        True, True, True, False, True, True,
    ]  # fmt: skip
    assert not Box((80, 0, 85, 10)).contains([[85, 5]])[0]
    assert Box((-1, 170, 1, -170)).contains([[0, 180], [0, -190], [0, 530], [0, 169]]).tolist() == [
        True, True, True, False,
    ]  # fmt: skip


@given(
    st.one_of(st.sampled_from([-90.0, 0.0, 89.999, 90.0]), st.floats(-90, 90)),
    st.one_of(st.sampled_from([-180.0, 179.999]), st.floats(-180, 180)),
    st.floats(-3, 4.3).map(lambda e: 10**e),
)
@settings(deadline=None)
def test_a_circle_as_pyproj(lat: float, lon: float, radius_km: float) -> None:
    circle = Circle((lat, lon), radius_km)
    points = circle.sample(200)
    assert len(points) >= 1
    assert circle.contains(points).all()
    probes = np.concatenate([uniform_points(300), points])
    apart_km = (
        SPHERE.inv(np.full(len(probes), lon), np.full(len(probes), lat), probes[:, 1], probes[:, 0])[2] / 1000
    )
    clear = np.abs(apart_km - radius_km) > 1e-3 * radius_km + 1e-6
    assert np.array_equal(circle.contains(probes)[clear], (apart_km <= radius_km)[clear])
    inside = probes[circle.contains(probes)]
    held = np.zeros(len(inside), bool)
    for south, west, north, east in circle.boxes:
        longitude = np.where((inside[:, 1] == -180) & (east == 180.0), 180.0, inside[:, 1])
        held |= (inside[:, 0] >= south) & (inside[:, 0] <= north) & (longitude >= west) & (longitude <= east)
    assert held.all()
    cap = 2 * np.pi * RADIUS_KM**2 * (1 - np.cos(min(radius_km / RADIUS_KM, np.pi)))
    assert circle.area_km2 == pytest.approx(cap, rel=1e-6, abs=1e-4)


@pytest.mark.parametrize(
    "region",
    [Box((-90, -180, 90, 180)), Box((50, 170, 90, -100)), Box((-90, 0, -60, 10)), Circle((60, 179), 3000)],
    ids=lambda region: region.name,
)
def test_a_sample_is_even(region: Region) -> None:
    """Each part of the region has its share of the points, far more exactly than at random."""
    points, probes = region.sample(20_000), uniform_points(400_000)
    probes = probes[region.contains(probes)]
    middle_lat, middle_lon = np.median(probes[:, 0]), np.median(probes[:, 1])
    for north in (False, True):
        for east in (False, True):
            shares = [
                (((p[:, 0] >= middle_lat) == north) & ((p[:, 1] >= middle_lon) == east)).mean()
                for p in (points, probes)
            ]
            assert shares[0] == pytest.approx(shares[1], abs=5 / np.sqrt(len(probes)))
    assert region.area_km2 / EARTH_KM2 == pytest.approx(len(probes) / 400_000, abs=5 * 0.5 / np.sqrt(400_000))


def test_no_two_points_are_close() -> None:
    """The nearest neighbour of each of n points on the Earth is about sqrt(area / n) away."""
    from scipy.spatial import cKDTree

    from quadtree.sphere import latlon_to_unit

    unit = latlon_to_unit(Box((-90, -180, 90, 180)).sample(5000))
    distance = cKDTree(unit).query(unit, k=2)[0][:, 1]
    assert distance.min() > 0.4 * np.sqrt(4 * np.pi / 5000)


def test_points_in_several_boxes_follow_their_areas() -> None:
    pair = np.array([(0.0, 0.0, 10.0, 10.0), (60.0, 0.0, 70.0, 10.0)])
    points = points_in_boxes(pair, 10_000)
    area = box_area_km2(pair)
    assert (points[:, 0] <= 10).sum() == pytest.approx(10_000 * area[0] / area.sum(), abs=2)
    assert box_area_km2(halves_of(pair)).sum() == pytest.approx(area.sum(), rel=1e-12)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1,2", "has 2 numbers; a box has four, S,W,N,E, and a circle three, LAT,LON,KM"),
        ("1,2,3,4,5", "has 5 numbers"),
        ("1,,3", "looks like numbers, but is not"),
        ((1, 2), "a box needs four numbers"),
        (7, "a box needs four numbers"),
        ((95, 0, 10), "a circle is latitude, longitude and a radius in km"),
        ((0, 0, 0), "the radius of a circle is a positive number of km; found 0"),
        ("0,0,-3", "the radius of a circle is a positive number of km"),
        ((0, 180, 1, -180), "has no width"),
    ],
)
def test_what_is_no_shape(value: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_region(value)


def test_text_and_numbers() -> None:
    assert parse_region(" -20, 179,-10,-179").facts() == Box((-20, 179, -10, -179)).facts()
    assert parse_region(np.array([1.0, 2.0, 3.0, 4.0])).facts() == {"bounds_deg": [1, 2, 3, 4]}
    circle = parse_region("55.7,13.2,50")
    assert (
        circle.facts()
        == parse_region([55.7, 13.2, 50]).facts()
        == {"center_deg": [55.7, 13.2], "radius_km": 50}
    )
    assert circle.name == "55.7,13.2,50"
    assert parse_region(circle) is circle


def test_bad_calls() -> None:
    with pytest.raises(ConfigError, match="n is 0; a sample has at least 1 point"):
        Box((0, 0, 1, 1)).sample(0)
    with pytest.raises(ConfigError, match="n is 0"):
        Circle((0, 0), 1).sample(0)
    with pytest.raises(InvalidCoordinateError):
        Box((0, 0, 1, 1)).contains([[91, 0]])
