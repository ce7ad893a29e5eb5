"""Every protocol on fixtures whose results were worked out by hand from the peer's own formula."""

import math

import numpy as np
import pytest

from geoloc.errors import ConfigError
from geoloc.metrics.protocols import PROTOCOLS, get_protocol
from geoloc.metrics.tally import Tally

NAMES = [
    "geodesic",
    "osv5m",
    "plonk",
    "pigeon",
    "geoclip",
    "im2gps",
    "yfcc",
    "vpr-25m",
    "cosplace",
    "msls-740",
    "statewide",
]


def summary(name, distances, dtype=np.float64):
    tally = Tally(get_protocol(name))
    tally.add(np.array(distances, dtype))
    return tally.summary()


def test_all_named_protocols_are_there():
    assert list(PROTOCOLS) == NAMES
    with pytest.raises(ConfigError, match=r"no protocol 'osv'; known are geodesic, osv5m, plonk"):
        get_protocol("osv")


# One degree of latitude from the equator. Ellipsoid: 110.574389 km (Karney 2013); sphere: R pi / 180.
ONE_DEGREE_KM = {
    "geodesic": 110.574389,
    "geoclip": 110.574389,
    "osv5m": 6371 * math.pi / 180,
    "plonk": 6371 * math.pi / 180,
    "im2gps": 6371 * math.pi / 180,
    "yfcc": 6371 * math.pi / 180,
    "pigeon": 6378.137 * math.pi / 180,
    "vpr-25m": 110.574389,
    "cosplace": 110.574389,
    "msls-740": 110.574389,
    "statewide": 110.574389,
}


@pytest.mark.parametrize("name", NAMES)
def test_one_degree(name):
    found = get_protocol(name).distance.km([[0.0, 7.0]], [[1.0, 7.0]])
    assert found[0] == pytest.approx(ONE_DEGREE_KM[name], abs=2e-5 if found.dtype == np.float32 else 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_exactly_on_a_threshold(name):
    """OSV-5M, PLONK and PIGEON test d < r; GeoCLIP tests d <= r."""
    radius = get_protocol(name).thresholds_km[0]
    share = summary(
        name, [radius], np.float32 if "float32" in str(get_protocol(name).distance) else np.float64
    )
    strict = {"osv5m", "plonk", "pigeon", "statewide"}
    assert share["accuracy_within_km"][f"{radius:g}"] == (0.0 if name in strict else 1.0)


def test_geoscore_of_osv5ms_example_and_mean_of_scores_not_score_of_the_mean():
    assert summary("osv5m", [28.328569])["geoscore"] == pytest.approx(4906.0044, abs=5e-5)
    found = summary("osv5m", [0.0, 14927.0])["geoscore"]
    assert found == pytest.approx((5000 + 5000 * math.exp(-10)) / 2)


def test_pigeon_rounds_every_score_first():
    # 4906.0044 -> 4906, 4838.13… -> 4838
    distances = [28.328569, 49.15]
    exact = [5000 * math.exp(-d / 1492.7) for d in distances]
    assert summary("pigeon", distances)["geoscore"] == sum(map(round, exact)) / 2
    assert summary("osv5m", distances)["geoscore"] == pytest.approx(sum(exact) / 2, abs=1e-6)


def test_a_missing_prediction_is_a_miss_or_is_dropped():
    distances = [0.0, math.nan, 100.0, 100.0]
    ours, plonk = summary("geodesic", distances), summary("plonk", distances)
    score = 5000 * math.exp(-100 / 1492.7)
    assert ours["geoscore"] == pytest.approx((5000 + 2 * score) / 4)
    assert plonk["geoscore"] == pytest.approx((5000 + 2 * score) / 3)
    assert ours["accuracy_within_km"]["200"] == 0.75
    assert plonk["accuracy_within_km"]["200"] == 1.0
    for found in (ours, plonk):
        assert (found["num_images"], found["num_missing"]) == (4, 1)
        assert found["mean_km"] == pytest.approx(200 / 3)


def test_facts_state_all_that_decides_a_number():
    facts = get_protocol("osv5m").facts()
    assert facts["distance"] == "haversine (atan2 form), radius 6371.0 km, float32"
    assert (facts["threshold"], facts["num_images"], facts["admin"]) == ("d < r", 210122, "osv5m")
    assert (
        get_protocol("pigeon").facts()["distance"] == "haversine (arcsin form), radius 6378.137 km, float64"
    )
