"""What is fitted is recovered from data that were made with it; what is promised is counted."""

import json
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from geoloc.errors import ConfigError
from geoloc.models.plain import from_plain, to_plain
from geoloc.posterior.calibration import (
    Calibration,
    conformal_level,
    fit_kernel,
    fit_temperature,
    log_softmax,
)
from geoloc.posterior.distribution import Posterior
from geoloc.posterior.utility import Utility
from quadtree.sphere import destination_latlon_deg, haversine_km, latlon_to_unit, unit_to_latlon

# --- Temperature ---


def labels(logits: NDArray[np.float64], temperature: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Drawn from softmax(logits / T), by the Gumbel trick."""
    return np.asarray((logits / temperature + rng.gumbel(size=logits.shape)).argmax(-1))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature_is_recovered(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (6000, 12)).astype(np.float32)
    assert fit_temperature(logits, labels(logits, temperature, rng)) == pytest.approx(temperature, rel=0.06)


def test_temperature_is_the_minimum_of_the_likelihood() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (700, 5))  # more than two blocks of rows, the last one short
    truth = labels(logits, 1.7, rng)
    found = fit_temperature(logits, truth)
    loss = {
        t: -log_softmax(logits / t)[np.arange(700), truth].sum() for t in (found, 0.99 * found, 1.01 * found)
    }
    assert min(loss, key=lambda t: loss[t]) == found


def test_temperature_stays_in_its_range() -> None:
    right = np.eye(4) * 0.5
    assert fit_temperature(right, np.arange(4)) == pytest.approx(0.05, rel=0.01)
    assert fit_temperature(right, (np.arange(4) + 1) % 4) == pytest.approx(20, rel=0.01)


def test_log_softmax_of_large_logits() -> None:
    assert log_softmax(np.array([1000.0, 1000.0, -1000.0])) == pytest.approx(
        [-np.log(2), -np.log(2), -2000 - np.log(2)]
    )


# --- Kernel ---


def test_kernel_is_recovered_and_deaf_to_outliers() -> None:
    rng = np.random.default_rng(2)
    distance = np.linalg.norm(rng.normal(0, 37.0, (20000, 2)), axis=-1)
    assert fit_kernel(distance) == pytest.approx(37, rel=0.02)
    distance[:400] = 15000
    assert fit_kernel(distance) == pytest.approx(37, rel=0.04)


def test_kernel_is_never_zero() -> None:
    assert fit_kernel(np.zeros(5)) == 1e-3


# --- Conformal levels ---


@pytest.mark.parametrize("percent", [1, 50, 90, 99])
@pytest.mark.parametrize("n", [1, 2, 9, 10, 11, 99, 100, 1000])
def test_the_level_is_the_textbooks_order_statistic(n: int, percent: int) -> None:
    rank = int(-((-(n + 1) * Fraction(percent, 100)) // 1))  # the ceiling, without floats
    scores = np.random.default_rng(n).permutation(n) / n
    expected = 1.0 if rank > n else sorted(scores)[rank - 1]
    assert conformal_level(scores, percent) == expected


def test_levels_by_hand() -> None:
    scores = np.array([0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.8, 0.4, 0.6])
    assert conformal_level(scores, 50) == 0.5  # ceil(10 * 0.5) = 5th of 9
    assert conformal_level(scores, 90) == 0.9  # the 9th
    assert conformal_level(scores, 95) == 1.0  # there is no 10th


@pytest.mark.parametrize("truth_km", ["a few kernels", "often beyond the cloud"])
def test_calibrated_regions_hold_the_truth_as_often_as_they_say(truth_km: str) -> None:
    """Posteriors that are wrong about their own width, on exchangeable data."""
    rng, n = np.random.default_rng(3), 12000
    places = np.stack([rng.uniform(-80, 80, 20), rng.uniform(-180, 180, 20)], -1)
    posteriors = [
        Posterior(latlon_to_unit([place, place + 1]), np.array([0.8, 0.2]), rng.uniform(20, 100, 2))
        for place in places
    ]
    points = [posterior.point(Utility("geoscore")) for posterior in posteriors]
    of_image = rng.integers(0, 20, n)
    off_km = np.abs(rng.normal(0, 300, n))
    if truth_km == "often beyond the cloud":
        off_km = np.where(rng.random(n) < 0.3, rng.uniform(3000, 15000, n), off_km)
    truth = destination_latlon_deg(places[of_image], rng.uniform(0, 360, n), off_km)
    distance = haversine_km(unit_to_latlon(np.stack(points))[of_image], truth)

    masses = np.array(
        [
            posteriors[i].mass_within(points[i], float(d))
            for i, d in zip(of_image[:5000], distance[:5000], strict=True)
        ]
    )
    levels = [conformal_level(masses, percent) for percent in (50, 90)]
    radii = np.array([p.radii_km(point, levels) for p, point in zip(posteriors, points, strict=True)])
    inside = distance[5000:, None] <= radii[of_image[5000:]]
    assert inside.mean(0) == pytest.approx([0.5, 0.9], abs=0.02)


# --- What is kept ---


def test_round_trip_through_json() -> None:
    levels = {"geoscore": {"50": 0.4, "90": 0.1 + 0.2}, "median": {"90": 1.0}}
    calibration = Calibration(0.7, 0.1, 123.4, levels, 10, "photos")
    assert from_plain(Calibration, json.loads(json.dumps(to_plain(calibration)))) == calibration


def test_levels_of_a_utility() -> None:
    calibration = Calibration(mass_levels={"geoscore": {"50": 0.4}, "median": {"50": 0.3, "90": 0.8}})
    assert calibration.levels("geoscore") == {50: 0.4}
    assert calibration.levels("median") == {50: 0.3, 90: 0.8}
    assert calibration.levels("within:25km") == {}  # never those of another utility
    assert Calibration().levels("geoscore") == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0}, r"calibration\.temperature is 0; it must be positive"),
        ({"temperature": float("nan")}, r"calibration\.temperature is nan"),
        ({"cell_kernel": -1}, r"calibration\.cell_kernel is -1; it must be positive"),
        ({"regression_kernel_km": float("inf")}, r"calibration\.regression_kernel_km is inf"),
        (
            {"mass_levels": {"median": {"90%": 0.5}}},
            r"mass_levels\.median has '90%': 0\.5; expected a percent in",
        ),
        ({"mass_levels": {"median": {"100": 0.5}}}, r"has '100': 0\.5"),
        (
            {"mass_levels": {"median": {"90": 1.5}}},
            r"has '90': 1\.5; expected a percent in 1\.\.99 and a mass in",
        ),
    ],
)
def test_impossible_values_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Calibration(**values)  # type: ignore[arg-type]
