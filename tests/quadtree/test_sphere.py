from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod

from quadtree import InvalidCoordinateError, QuadtreeError, sphere

SPHERE = Geod(a=6371008.8, b=6371008.8)  # pyproj's own spherical geometry, by another method than ours

latitudes = st.floats(-90, 90)
longitudes = st.floats(-180, 180, exclude_max=True)
points = st.tuples(latitudes, longitudes).map(np.array)
ordered_latitudes = st.tuples(latitudes, latitudes).map(sorted)
ordered_longitudes = st.tuples(longitudes, longitudes).map(sorted)


@given(st.floats(-1e6, 1e6))
def test_wrapping_is_exact(longitude_deg):
    wrapped = float(sphere.wrap_longitude_deg(longitude_deg))
    exact = (Fraction(longitude_deg) + 180) % 360 - 180
    assert -180 <= wrapped < 180
    if -360 <= longitude_deg <= 360 or exact == Fraction(float(exact)):
        assert Fraction(wrapped) == exact
    assert abs(Fraction(wrapped) - exact) <= Fraction(1, 2**45)


@pytest.mark.parametrize(
    ("longitude_deg", "expected"),
    [
        (180, -180),
        (-180, -180),
        (np.nextafter(180, 0), np.nextafter(180, 0)),
        (540, -180),
        (-540, -180),
        (359.5, -0.5),
    ],
)
def test_validate_wraps_longitude(longitude_deg, expected):
    assert sphere.validate_latlon_deg([12.5, longitude_deg]).tolist() == [12.5, expected]


def test_validate_keeps_a_valid_array():
    latlon_deg = np.array([[90.0, -180.0], [-90.0, 179.9]])
    assert sphere.validate_latlon_deg(latlon_deg) is latlon_deg
    assert sphere.validate_latlon_deg(np.zeros((0, 2))).shape == (0, 2)
    assert sphere.validate_latlon_deg(latlon_deg.astype(np.float32)).dtype == np.float64


@pytest.mark.parametrize(
    ("latlon_deg", "message"),
    [
        (
            [[0, 0], [90.001, 5]],
            r"latitude of point 1 .*\(90.001, 5.0\); 1 of these 2 .*are the columns swapped",
        ),
        ([[np.nan, 5]], r"latitude of point 0 .*\(nan, 5.0\)"),
        ([[-np.inf, 5]], "latitude of point 0"),
        ([[5, 0], [5, np.nan], [5, np.inf]], r"longitude of point 1 .*2 of these 3 points"),
        ([1.0, 2.0, 3.0], r"must have shape \(\.\.\., 2\), latitude first; found \(3,\)"),
        (7.0, r"must have shape \(\.\.\., 2\)"),
    ],
)
def test_validate_refuses(latlon_deg, message):
    with pytest.raises(InvalidCoordinateError, match=message):
        sphere.validate_latlon_deg(latlon_deg)


@given(points, points)
def test_haversine_equals_pyproj_on_a_sphere(a, b):
    expected_km = SPHERE.inv(a[1], a[0], b[1], b[0])[2] / 1000
    # Two antipodes are 20015 km apart; haversine resolves their distance to a few metres at worst.
    tolerance_km = 1e-9 if expected_km < 19900 else 0.01
    assert sphere.haversine_km(a, b) == pytest.approx(expected_km, rel=1e-10, abs=tolerance_km)


def test_haversine_broadcasts_and_blocks_agree():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-90, 90, (2, 10_000, 2))
    whole = sphere.haversine_km(a, b)
    assert whole.shape == (10_000,)
    np.testing.assert_array_equal(whole, sphere.haversine_km(a[:, None], b[:, None])[:, 0])
    assert sphere.haversine_km(a[:3, None], b[None, :4]).shape == (3, 4)
    assert sphere.haversine_km(a[:3, None], b[None, :4])[2, 1] == sphere.haversine_km(a[2], b[1])


def test_haversine_is_finite_for_antipodes():
    half_turn_km = np.pi * 6371.0088
    assert sphere.haversine_km([19.2, 166.835], [-19.2, -13.165]) == pytest.approx(half_turn_km)


@given(points, points)
def test_geodesic_is_near_the_sphere(a, b):
    geodesic_km, haversine_km = sphere.geodesic_km(a, b), sphere.haversine_km(a, b)
    assert abs(geodesic_km - haversine_km) <= 0.0057 * haversine_km + 1e-6


def test_geodesic_broadcasts():
    # The length of the equator's quadrant on WGS84 is its radius times pi / 2.
    quadrants_km = sphere.geodesic_km([[0, 0], [0, 90]], [0, 0])
    np.testing.assert_allclose(quadrants_km, [0, 6378.137 * np.pi / 2])


@given(points)
def test_unit_vectors_there_and_back(latlon_deg):
    unit = sphere.latlon_to_unit(latlon_deg)
    latitude, longitude = np.radians(latlon_deg)
    expected = [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)]
    np.testing.assert_allclose(unit, expected, rtol=0, atol=1e-15)
    back = sphere.unit_to_latlon(3.0 * unit)
    assert -180 <= back[1] < 180
    assert sphere.haversine_km(latlon_deg, back) < 1e-8


@given(points, points)
def test_bearing_equals_pyproj(a, b):
    bearing_deg = float(sphere.initial_bearing_deg(a, b))
    assert 0 <= bearing_deg < 360
    distance_km = sphere.haversine_km(a, b)
    # Near the poles, antipodes and equal points a direction is ill conditioned.
    if max(abs(a[0]), abs(b[0])) < 89.9 and 1e-3 < distance_km < 20000:
        difference_deg = bearing_deg - SPHERE.inv(a[1], a[0], b[1], b[0])[0]
        assert abs((difference_deg + 180) % 360 - 180) < 1e-3


@given(points, st.floats(0, 360), st.floats(0, 20015))
def test_destination_equals_pyproj_and_is_that_far(start, bearing_deg, distance_km):
    end = sphere.destination_latlon_deg(start, bearing_deg, distance_km)
    assert sphere.haversine_km(start, end) == pytest.approx(distance_km, abs=1e-3)
    if abs(start[0]) < 89.9:
        longitude, latitude, _ = SPHERE.fwd(start[1], start[0], bearing_deg, distance_km * 1000)
        assert sphere.haversine_km(end, [latitude, longitude]) < 1e-3


def test_mean_crosses_the_antimeridian_and_weighs():
    np.testing.assert_allclose(sphere.spherical_mean_latlon_deg([[10, 179], [10, -177]])[1], -179)
    np.testing.assert_allclose(
        sphere.spherical_mean_latlon_deg([[0, 0], [0, 90]], [1, 0]), [0, 0], atol=1e-12
    )
    batched = sphere.spherical_mean_latlon_deg([[[0, 0], [0, 10]], [[40, 5], [60, 5]]])
    np.testing.assert_allclose(batched, [[0, 5], [50, 5]])


@given(st.lists(points, min_size=1, max_size=5), points)
def test_mean_minimises_the_squared_chord(latlon_deg, other):
    unit = sphere.latlon_to_unit(np.array(latlon_deg))
    if np.linalg.norm(unit.sum(axis=0)) > 1e-6:
        mean = sphere.spherical_mean_latlon_deg(latlon_deg)
        chords = [((unit - sphere.latlon_to_unit(point)) ** 2).sum() for point in (mean, other)]
        assert chords[0] <= chords[1] + 1e-9


@pytest.mark.parametrize(
    ("latlon_deg", "weights", "message"),
    [
        ([[0, 0], [0, 180]], None, "cancel out"),
        ([[0, 0], [0, 90]], [0, 0], "weights are zero"),
        (np.zeros((0, 2)), None, r"n >= 1; found \(0, 2\)"),
        ([1.0, 2.0], None, r"n >= 1; found \(2,\)"),
    ],
)
def test_mean_refuses(latlon_deg, weights, message):
    with pytest.raises(QuadtreeError, match=message):
        sphere.spherical_mean_latlon_deg(latlon_deg, weights)


@given(points, ordered_latitudes, ordered_longitudes)
def test_box_distance_equals_the_nearest_of_many_points_of_the_box(point, latitude, longitude):
    (south, north), (west, east) = latitude, longitude
    distance_km = float(sphere.box_distance_km(point, [south, west, north, east]))
    num_steps = 400
    latitudes_deg = np.concatenate([np.linspace(south, north, num_steps), np.clip([point[0]], south, north)])
    longitudes_deg = np.concatenate([np.linspace(west, east, num_steps), np.clip([point[1]], west, east)])
    # The nearest point is on the border, or the point itself; the border is four lines.
    border = np.concatenate(
        [
            np.stack([latitudes_deg, np.full_like(latitudes_deg, west)], axis=-1),
            np.stack([latitudes_deg, np.full_like(latitudes_deg, east)], axis=-1),
            np.stack([np.full_like(longitudes_deg, south), longitudes_deg], axis=-1),
            np.stack([np.full_like(longitudes_deg, north), longitudes_deg], axis=-1),
            np.stack([latitudes_deg[-1:], longitudes_deg[-1:]], axis=-1),
        ]
    )
    nearest_km = sphere.haversine_km(point, border).min()
    spacing_km = 112 * max(north - south, east - west) / (num_steps - 1)
    assert distance_km <= nearest_km + 1e-6
    assert nearest_km <= distance_km + spacing_km / 2 + 1e-6


@given(points)
def test_box_distance_is_zero_inside_and_on_every_border(point):
    latitude, longitude = point
    box = [max(latitude - 1, -90), max(longitude - 1, -180), latitude, longitude]
    assert sphere.box_distance_km(point, box) == 0
    assert sphere.box_distance_km([box[0], box[1]], box) == 0
    assert sphere.box_distance_km([latitude, -180.0], [latitude, 170.0, latitude, 180.0]) == 0
    assert sphere.box_distance_km([90.0, longitude], [80.0, 10.0, 90.0, 20.0]) == 0
