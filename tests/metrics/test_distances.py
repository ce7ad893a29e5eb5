"""Each peer's formula, against its own words in plain Python and against pyproj and geographiclib's ellipsoid."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod

from geoloc.metrics.distances import Distance
from quadtree.sphere import EARTH_MEAN_RADIUS_KM
from quadtree.sphere import haversine_km as mean_sphere_km

POINTS = st.tuples(
    st.floats(-90, 90) | st.sampled_from([-90.0, 0.0, 90.0]),
    st.floats(-180, 180, exclude_max=True) | st.sampled_from([-180.0, 0.0, 179.9999]),
)
ADVERSARIAL = [
    ((0.0, 0.0), (0.0, 179.9)),
    ((0.0, 0.0), (0.5, 179.7)),  # where Vincenty's iteration fails
    ((90.0, 12.0), (-90.0, 77.0)),
    ((10.0, 179.999), (10.0, -179.999)),
    ((48.8566, 2.3522), (48.8566, 2.3522)),
    ((30.0, 20.0), (30.0, 20.000001)),
]


def by_hand(a, b, radius_km, ending):
    lat_a, lon_a, lat_b, lon_b = map(math.radians, (*a, *b))
    h = math.sin((lat_b - lat_a) / 2) ** 2
    h += math.cos(lat_a) * math.cos(lat_b) * math.sin((lon_b - lon_a) / 2) ** 2
    h = min(h, 1.0)
    if ending == "arcsin":
        return radius_km * 2 * math.asin(math.sqrt(h))
    return 2 * radius_km * math.atan2(math.sqrt(h), math.sqrt(1 - h))


@pytest.mark.parametrize(("radius_km", "ending"), [(6371.0, "atan2"), (6378.137, "arcsin")])
@given(a=POINTS, b=POINTS)
def test_great_circles_by_hand(radius_km, ending, a, b):
    formula = "haversine" if ending == "atan2" else "haversine-arcsin"
    found = Distance(formula=formula, radius_km=radius_km).km([a], [b])
    # arcsin loses half the digits beside an antipode.
    assert found[0] == pytest.approx(by_hand(a, b, radius_km, ending), rel=1e-9, abs=1e-3)


@given(a=POINTS, b=POINTS)
def test_the_mean_sphere_is_the_quadtrees(a, b):
    found = Distance(formula="haversine", radius_km=EARTH_MEAN_RADIUS_KM).km([a], [b])
    assert found[0] == pytest.approx(float(mean_sphere_km(a, b)), rel=1e-12, abs=1e-9)


@given(a=POINTS, b=POINTS)
def test_distances_are_distances(a, b):
    for formula in ("geodesic", "haversine", "haversine-arcsin"):
        distance = Distance(formula=formula)
        there, back, nowhere = distance.km([a, b, a], [b, a, a])
        assert there == pytest.approx(back, abs=1e-6)
        assert nowhere == 0
        assert 0 <= there <= 20040


def test_geodesic_is_pyprojs_to_a_millimetre_at_poles_antimeridian_and_antipodes():
    rng = np.random.default_rng(0)
    a = np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, 1000))), rng.uniform(-180, 180, 1000)], 1)
    b = np.concatenate(
        [-a[:300] + rng.normal(0, 0.2, (300, 2)) * [1, 1], a[300:] + rng.normal(0, 1, (700, 2))]
    )
    b[:, 0] = b[:, 0].clip(-90, 90)
    a, b = (np.concatenate([x, [pair[i] for pair in ADVERSARIAL]]) for i, x in enumerate((a, b)))
    _, _, metres = Geod(a=6378137.0, f=1 / 298.257223563).inv(a[:, 1], a[:, 0], b[:, 1], b[:, 0])
    assert np.abs(Distance().km(a, b) * 1000 - metres).max() < 1e-3


def test_geodesic_of_a_meridian_by_hand():
    # Quarter of the meridian of WGS84: 10,001.965729 km (Karney 2013, section 5).
    assert Distance().km([[0.0, 5.0]], [[90.0, 40.0]])[0] == pytest.approx(10001.965729, abs=1e-6)


def test_radii_differ_by_their_ratio():
    a, b = [[48.8566, 2.3522]], [[51.5074, -0.1278]]
    mean, equatorial = (Distance(formula="haversine", radius_km=r).km(a, b)[0] for r in (6371.0, 6378.137))
    assert equatorial / mean == pytest.approx(6378.137 / 6371.0, rel=1e-13)
    assert mean == pytest.approx(343.556, abs=1e-3)


def test_float32_is_within_two_metres_of_float64_and_is_what_its_name_says():
    rng = np.random.default_rng(1)
    a = np.stack([rng.uniform(-80, 80, 5000), rng.uniform(-180, 180, 5000)], 1)
    b = a + rng.normal(0, 1, a.shape)
    single = Distance(formula="haversine", radius_km=6371.0, precision="float32").km(a, b)
    double = Distance(formula="haversine", radius_km=6371.0).km(a, b)
    assert single.dtype == np.float32
    assert np.abs(single - double).max() < 0.002 + 1e-6 * double.max()


def test_antipodes_have_no_nan():
    rng = np.random.default_rng(2)
    a = np.stack([rng.uniform(-90, 90, 20000), rng.uniform(-180, 0, 20000)], 1)
    for formula in ("haversine", "haversine-arcsin"):
        for precision in ("float32", "float64"):
            found = Distance(formula=formula, precision=precision).km(
                a, -a + [0, 0] + [[0, 180]] + 2 * a * [0, 1]
            )
            assert np.isfinite(found).all()
            assert found.max() == pytest.approx(math.pi * EARTH_MEAN_RADIUS_KM, rel=1e-6)


def test_blocks_do_not_show():
    rng = np.random.default_rng(3)
    a, b = rng.uniform(-80, 80, (2, 40000, 2))
    whole = Distance(formula="haversine").km(a, b)
    parts = [Distance(formula="haversine").km(a[i : i + 777], b[i : i + 777]) for i in range(0, 40000, 777)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_nan_is_nan_and_shapes_are_checked():
    for formula in ("geodesic", "haversine", "haversine-arcsin"):
        found = Distance(formula=formula).km([[np.nan, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 2.0]])
        assert np.isnan(found[0])
        assert found[1] > 100
        assert len(Distance(formula=formula).km(np.empty((0, 2)), np.empty((0, 2)))) == 0
    with pytest.raises(ValueError, match=r"two arrays \(n, 2\), latitude first; found \(2,\) and \(2,\)"):
        Distance().km([1.0, 2.0], [1.0, 2.0])
