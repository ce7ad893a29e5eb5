import math

import numpy as np
import pytest

from geoloc.metrics.scores import accuracy_within_km, geoscore, summarise


def test_geoscore_of_osv5ms_example() -> None:
    assert float(geoscore(28.328569)) == pytest.approx(4906.0044, abs=5e-5)


def test_geoscore_by_the_formula() -> None:
    assert float(geoscore(0)) == 5000
    found = geoscore([[0.0, 1492.7], [2 * 1492.7, 20015.0]])
    expected = [[5000, 5000 / math.e], [5000 / math.e**2, 5000 * math.exp(-20015 / 1492.7)]]
    assert found == pytest.approx(np.array(expected))


def test_accuracy_is_strict() -> None:
    distances = [0.0, 24.999, 25.0, 25.001]
    assert accuracy_within_km(distances, 25) == 0.5
    assert accuracy_within_km(distances, 25.0005) == 0.75
    assert accuracy_within_km([0.0], 0) == 0


def test_summary() -> None:
    assert summarise([0.5, 30.0, 1000.0], radii_km=[1, 2500, 0.25]) == {
        "num_images": 3,
        "geoscore": pytest.approx(
            (5000 * (math.exp(-0.5 / 1492.7) + math.exp(-30 / 1492.7) + math.exp(-1000 / 1492.7))) / 3
        ),
        "mean_km": pytest.approx(1030.5 / 3),
        "median_km": 30.0,
        "accuracy_within_km": {"1": pytest.approx(1 / 3), "2500": 1.0, "0.25": 0.0},
    }
    assert list(summarise([1.0])["accuracy_within_km"]) == ["1", "25", "200", "750", "2500"]


def test_nothing_has_no_score() -> None:
    with pytest.raises(
        ValueError, match="no distances to score: the truth and the predictions share no image"
    ):
        summarise([])
    with pytest.raises(ValueError, match="no distances to score"):
        accuracy_within_km([], 25)


@pytest.mark.parametrize("bad", [float("nan"), -1.0])
def test_what_is_no_distance_is_not_counted_as_far(bad: float) -> None:
    with pytest.raises(ValueError, match=r"1 of 3 distances are negative or NaN: check the coordinates"):
        summarise([1.0, bad, 2.0])
