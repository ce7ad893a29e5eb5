"""The best point against a fine grid, masses against counts, on random mixtures all over the sphere.

The references spread each kernel by a quadrature of their own (radii by mass, angles evenly) and measure distances by
the haversine formula.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import ncx2

from geoloc.errors import ConfigError
from geoloc.posterior import distribution as module
from geoloc.posterior.cells import choose_cells
from geoloc.posterior.distribution import (
    HALF_TURN_KM,
    POINTS_PER_ATOM,
    Posterior,
    distance_km,
)
from geoloc.posterior.utility import Utility, mass_in_disc
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, haversine_km, latlon_to_unit, unit_to_latlon

Array = NDArray[np.float64]


def random_units(rng: np.random.Generator, n: int) -> Array:
    return normalised(rng.normal(size=(n, 3)))


def normalised(vectors: Array) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def tangents(unit: Array) -> tuple[Array, Array]:
    """Two directions across a unit vector and across each other, (3,) -> (3,), (3,)."""
    first = normalised(np.cross(unit, [0.3, -0.5, 0.8]))
    return first, np.cross(unit, first)


def mixture(
    seed: int, *, most: int = 14, background: bool = True
) -> tuple[Array, Array, Array, Array, Array]:
    """Atoms in a few clusters, one of them at a pole or on the antimeridian now and then; light background."""
    rng = np.random.default_rng(seed)
    k, clusters = int(rng.integers(1, most)), int(rng.integers(1, 5))
    centres = random_units(rng, clusters)
    centres[0] = [[0, 0, 1], [0, 0, -1], [-1, 0, 0], centres[0]][seed % 4]
    spread = np.exp(rng.uniform(np.log(50), np.log(2500))) / EARTH_MEAN_RADIUS_KM
    unit = normalised(centres[rng.integers(0, clusters, k)] + spread * rng.normal(size=(k, 3)))
    weight = rng.dirichlet(np.full(k, rng.uniform(0.2, 2)))
    scale = np.exp(rng.uniform(np.log(20), np.log(700), k))
    n = int(rng.integers(1, 60)) if background and seed % 3 else 0
    return (
        unit,
        weight,
        scale,
        random_units(rng, n),
        rng.dirichlet(np.ones(max(n, 1)))[:n] * rng.choice([0.05, 0.4]),
    )


# --- The best point ---


def spread_finely(unit: Array, weight: Array, scale: Array) -> tuple[Array, Array]:
    """8 radii of equal mass by 16 angles for each atom, in degrees, with weights."""
    radii = np.sqrt(-2 * np.log1p(-(np.arange(8) + 0.5) / 8))
    radii *= np.sqrt(2 / np.mean(radii**2))  # the same variance as the Gaussian
    angles = np.arange(16) * np.pi / 8
    points = []
    for u, s in zip(unit, scale, strict=True):
        a, b = tangents(u)
        turn = np.cos(angles)[:, None] * a + np.sin(angles)[:, None] * b
        step = radii * s / EARTH_MEAN_RADIUS_KM
        points.append((np.cos(step)[:, None, None] * u + np.sin(step)[:, None, None] * turn).reshape(-1, 3))
    return unit_to_latlon(np.concatenate(points)), np.repeat(weight / 128, 128)


def expected_utility(text: str, parts: tuple[Array, ...], places: Array) -> Array:
    unit, weight, scale, background, background_weight = parts
    if text.startswith("within:"):
        radius = float(text.removeprefix("within:"))
        d = haversine_km(unit_to_latlon(places)[:, None], unit_to_latlon(unit)[None])
        return np.asarray(ncx2.cdf((radius / scale) ** 2, 2, (d / scale) ** 2) @ weight)
    latlon, mass = spread_finely(unit, weight, scale)
    latlon, mass = (
        np.concatenate([latlon, unit_to_latlon(background)]),
        np.concatenate([mass, background_weight]),
    )
    d = haversine_km(unit_to_latlon(places)[:, None], latlon[None])
    return np.asarray((np.exp(-d / 1492.7) if text == "geoscore" else -d) @ mass)


def best_on_a_grid(text: str, parts: tuple[Array, ...]) -> float:
    """A Fibonacci grid of 1200 points and all atoms, then four finer grids around the best places so far."""
    i = np.arange(1200) + 0.5
    z, turn = 1 - i / 600, np.pi * (1 + 5**0.5) * i
    grid = np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], -1)
    places = np.concatenate([grid, parts[0]])
    for step_km in (300, 100, 30, 10):
        value = expected_utility(text, parts, places)
        best = places[np.argsort(-value)[:4]]
        offsets = np.linspace(-1.5, 1.5, 7) * step_km / EARTH_MEAN_RADIUS_KM
        x, y = (axis.ravel()[:, None] for axis in np.meshgrid(offsets, offsets))
        around = [normalised(place + x * a + y * b) for place in best for a, b in [tangents(place)]]
        places = np.concatenate([best, *around])
    return float(expected_utility(text, parts, places).max())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("text", ["geoscore", "median"])
def test_the_point_is_as_good_as_the_best_of_a_fine_grid(text: str, seed: int) -> None:
    parts = mixture(seed)
    found = expected_utility(text, parts, Posterior(*parts).point(Utility.parse(text))[None])[0]
    best = best_on_a_grid(text, parts)
    assert abs(best - found) < 0.005 * abs(best) or found > best


@pytest.mark.parametrize("text", ["within:25", "within:200", "within:1000"])
def test_the_disc_is_nearly_as_full_as_the_best_of_a_fine_grid(text: str) -> None:
    """Covering most with one disc has many local optima: a few per cent are lost now and then."""
    shares = []
    for seed in range(12):
        parts = mixture(seed, background=False)
        found = expected_utility(text, parts, Posterior(*parts).point(Utility.parse(text))[None])[0]
        shares.append(found / best_on_a_grid(text, parts))
    assert min(shares) > 0.9
    assert np.mean(shares) > 0.985


def posterior_at(
    latlon_deg: list[list[float]], weight: list[float] | None = None, scale_km: float = 100
) -> Posterior:
    n = len(latlon_deg)
    weights = np.ones(n) if weight is None else np.array(weight)
    return Posterior(latlon_to_unit(latlon_deg), weights, np.full(n, scale_km))


@pytest.mark.parametrize("text", ["geoscore", "median"])
@pytest.mark.parametrize(
    ("places", "between"),
    [
        ([[10, 178], [10, -178], [13, 180], [7, 180]], [10, 180]),
        ([[85, 0], [85, 90], [85, 180], [85, -90]], [90, 0]),
        ([[-85, 45], [-85, 135], [-85, -135], [-85, -45]], [-90, 0]),
    ],
    ids=["antimeridian", "north pole", "south pole"],
)
def test_the_middle_of_a_ring_across_the_seams(
    text: str, places: list[list[float]], between: list[float]
) -> None:
    point = posterior_at(places).point(Utility.parse(text))
    assert haversine_km(unit_to_latlon(point), between) < 25


def test_one_atom_is_its_own_best_point() -> None:
    for text in ("geoscore", "median", "within:25", "within:500"):
        point = posterior_at([[48.8566, 2.3522]]).point(Utility.parse(text))
        # The spiral is not quite round, so its best point may be a little beside the middle.
        assert haversine_km(unit_to_latlon(point), [48.8566, 2.3522]) < 10


def test_the_utility_decides() -> None:
    """One sharp heavy place against a diffuse region with more mass."""
    ring = [[0, 40 + x] for x in range(0, 40, 4)]
    parts = posterior_at([[0, 0], *ring], [0.3] + [0.07] * 10, 150)
    at = {
        text: unit_to_latlon(parts.point(Utility.parse(text))).tolist()
        for text in ("geoscore", "median", "within:300")
    }
    assert at["within:300"] == pytest.approx([0, 0], abs=0.5)
    assert 45 < at["median"][1] < 65
    assert 45 < at["geoscore"][1] < 72


def test_the_background_moves_the_median() -> None:
    atoms, far = latlon_to_unit([[0, 0], [0, 10]]), latlon_to_unit([[0, 40 + x] for x in range(20)])
    with_background = Posterior(atoms, np.array([0.3, 0.2]), np.full(2, 50.0), far, np.full(20, 0.03))
    assert unit_to_latlon(with_background.point(Utility("median")))[1] > 30
    without = Posterior(atoms, np.array([0.3, 0.2]), np.full(2, 50.0))
    assert unit_to_latlon(without.point(Utility("median")))[1] < 1


def test_a_large_background_is_searched_by_its_heaviest_points(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    unit, weight, scale, _, _ = mixture(7)
    background, mass = random_units(rng, 6000), rng.dirichlet(np.ones(6000)) * 0.3
    parts = (unit, weight, scale, background, mass)
    for text in ("geoscore", "median"):
        limited = Posterior(*parts).point(Utility.parse(text))
        monkeypatch.setattr(module, "MAX_SEARCHED", 10**6)
        unlimited = Posterior(*parts).point(Utility.parse(text))
        monkeypatch.undo()
        a, b = expected_utility(text, parts, np.stack([limited, unlimited]))
        assert a == pytest.approx(b, rel=0.01)


@given(st.integers(0, 10**6), st.sampled_from(["geoscore", "median", "within:200"]))
def test_turning_the_earth_turns_the_point(seed: int, text: str) -> None:
    """Atoms without kernels, so that nothing but rounding depends on the axes."""
    unit, weight, scale, background, mass = mixture(seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    sharp = np.zeros_like(scale)
    utility = Utility.parse(text)
    straight = Posterior(unit, weight, sharp, background, mass)
    turned = Posterior(unit @ turn.T, weight, sharp, background @ turn.T, mass)
    d = distance_km(straight.point(utility)[None] @ turn.T, straight.cloud_unit @ turn.T)
    e = distance_km(turned.point(utility)[None], turned.cloud_unit)
    value = [(utility.expected(x, np.zeros(1)) @ straight.cloud_weight)[0] for x in (d, e)]
    assert value[0] == pytest.approx(value[1], rel=1e-5, abs=1e-3)


@given(st.integers(0, 10**6))
def test_turning_the_earth_leaves_the_radii(seed: int) -> None:
    """With kernels: the spirals turn in their planes, so masses agree as well as 16 points a kernel can."""
    unit, weight, scale, background, mass = mixture(seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    straight = Posterior(unit, weight, scale, background, mass)
    turned = Posterior(unit @ turn.T, weight, scale, background @ turn.T, mass)
    at = unit[weight.argmax()]
    for radius in (100.0, 1000.0, 5000.0):
        assert straight.mass_within(at, radius) == pytest.approx(
            turned.mass_within(at @ turn.T, radius),
            abs=0.2,  # 1 of 4,000 differs by more than 0.12
        )
    (a,), (b,) = straight.radii_km(at, [0.9]), turned.radii_km(at @ turn.T, [0.9])
    assert straight.mass_within(at, b) == pytest.approx(0.9, abs=0.12)
    assert turned.mass_within(at @ turn.T, a) == pytest.approx(0.9, abs=0.12)


# --- Masses and radii ---


@given(st.integers(0, 10**6), st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_radii_and_masses_are_inverse_and_ascending(seed: int, masses: list[float]) -> None:
    posterior = Posterior(*mixture(seed))
    at = random_units(np.random.default_rng(seed), 1)[0]
    masses = sorted(masses)
    radii = posterior.radii_km(at, masses)
    assert all(0 <= r <= HALF_TURN_KM for r in radii)
    assert radii == sorted(radii)
    for mass, radius in zip(masses, radii, strict=True):
        assert posterior.mass_within(at, radius) == pytest.approx(mass, abs=1e-9)


@given(st.integers(0, 10**6), st.floats(0, 20015))
def test_mass_within_is_the_count(seed: int, radius_km: float) -> None:
    posterior = Posterior(*mixture(seed))
    at = random_units(np.random.default_rng(seed), 1)[0]
    d = haversine_km(unit_to_latlon(at), unit_to_latlon(posterior.cloud_unit))
    inside = posterior.cloud_weight[d <= radius_km].sum()
    # Between two points of the cloud the mass grows evenly, so it is ahead of the count by one point at most.
    nearest_outside = posterior.cloud_weight[d > radius_km - 0.001].max(initial=0)
    assert inside - 1e-5 <= posterior.mass_within(at, radius_km) <= inside + nearest_outside + 1e-5


def test_the_ends_of_the_mass() -> None:
    posterior = posterior_at([[0, 0], [10, 10]])
    at = latlon_to_unit([0, 0])
    assert posterior.mass_within(at, 0.0) == 0
    assert posterior.mass_within(at, HALF_TURN_KM) == 1
    assert posterior.radii_km(at, [0.0, 1.0]) == [0, HALF_TURN_KM]
    # Beyond the farthest point of the cloud there is still a little, so a truth there has a mass of its own.
    a, b = (posterior.mass_within(at, r) for r in (5000.0, 10000.0))
    assert 1 - 1e-6 < a < b < 1
    assert posterior.radii_km(at, [a, b]) == pytest.approx([5000, 10000], rel=1e-3)


def test_weights_are_scaled_to_one() -> None:
    rng = np.random.default_rng(0)
    posterior = Posterior(
        random_units(rng, 3), np.array([2.0, 1, 1]), np.full(3, 9.0), random_units(rng, 1), np.ones(1)
    )
    assert posterior.weight.tolist() == [0.4, 0.2, 0.2]
    weight = posterior.cloud_weight
    assert posterior.cloud_unit.shape == (3 * POINTS_PER_ATOM + 1, 3)
    assert weight.sum() == pytest.approx(1)
    assert weight[-1] == pytest.approx(0.2)


# --- Kernels ---


@given(st.floats(-90, 90), st.floats(-180, 180), st.floats(0.1, 600))
def test_a_kernels_points_have_its_mean_and_variance(lat: float, lon: float, scale_km: float) -> None:
    atom = latlon_to_unit([lat, lon])
    cloud = Posterior(atom[None], np.ones(1), np.array([scale_km])).cloud_unit
    assert np.linalg.norm(cloud, axis=-1) == pytest.approx(np.ones(POINTS_PER_ATOM), abs=1e-12)
    first, other = tangents(atom)
    x, y = cloud @ first, cloud @ other
    angle = np.arctan2(np.hypot(x, y), cloud @ atom)
    flat = np.stack([x, y]) / np.hypot(x, y) * angle * EARTH_MEAN_RADIUS_KM
    assert flat.mean(1) == pytest.approx([0, 0], abs=1e-6 * scale_km + 1e-7)
    assert flat @ flat.T / POINTS_PER_ATOM == pytest.approx(scale_km**2 * np.eye(2), abs=1e-6 * scale_km**2)


def test_a_kernel_wider_than_the_earth_ends_at_the_antipode() -> None:
    cloud = posterior_at([[0, 0]], scale_km=30000).cloud_unit
    assert np.isfinite(cloud).all()
    assert np.linalg.norm(cloud, axis=-1) == pytest.approx(np.ones(POINTS_PER_ATOM))


@given(st.floats(0, 3000), st.floats(1, 800), st.floats(1, 2000))
def test_mass_in_disc_is_the_rice_law(d: float, scale: float, radius: float) -> None:
    """|X| of a Gaussian around (d, 0): its square over the variance is a noncentral chi-square."""
    expected = ncx2.cdf((radius / scale) ** 2, 2, (d / scale) ** 2)
    assert float(mass_in_disc(np.array(d), np.array(scale), radius)) == pytest.approx(expected, abs=1e-4)


def test_mass_in_disc_of_a_point_is_a_step() -> None:
    assert mass_in_disc(np.array([0.0, 24.9, 25.1, 1e4]), np.zeros(4), 25.0) == pytest.approx(
        [1, 1, 0, 0], abs=1e-4
    )


@pytest.mark.parametrize("text", ["geoscore", "median", "within:300"])
def test_the_pull_is_the_derivative(text: str) -> None:
    utility, scale = Utility.parse(text), np.array(90.0)
    for d in (50.0, 250.0, 400.0):
        up, down = (float(utility.expected(np.array(d + h), scale)) for h in (0.5, -0.5))
        pull = float(utility.pull(np.array(d), scale)) * d
        if text == "geoscore":
            pull /= 1492.7  # left out: a factor that all pulls share changes nothing
        assert pull == pytest.approx(down - up, rel=1e-3)


# --- Distances and texts ---


@given(st.integers(0, 10**6))
def test_distances_are_the_haversines(seed: int) -> None:
    a, b = np.split(random_units(np.random.default_rng(seed), 10), 2)
    b[0], b[1] = a[0], -a[1]
    expected = haversine_km(unit_to_latlon(a)[:, None], unit_to_latlon(b)[None])
    assert distance_km(a, b) == pytest.approx(expected, abs=3e-4)


def test_utilities_are_read() -> None:
    assert Utility.parse("geoscore") == Utility("geoscore")
    assert Utility.parse("median") == Utility("median")
    assert Utility.parse("within:25km") == Utility.parse("within:25") == Utility("within", 25.0)
    assert Utility.parse("within:0.5km") == Utility("within", 0.5)
    assert Utility.parse(Utility("within", 3.0)) == Utility("within", 3.0)


@pytest.mark.parametrize(
    "text", ["", "mean", "within", "within:", "within:0", "within:-5", "within:25 km", "Median"]
)
def test_other_utilities_are_refused(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"utility is '.*'; expected geoscore, median or within:<radius in km>"
    ):
        Utility.parse(text)


# --- Choosing cells ---


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=60).filter(any), st.floats(0.01, 1), st.integers(1, 80)
)
def test_chosen_cells_are_the_head_of_the_sorted_list(counts: list[int], mass: float, most: int) -> None:
    """Many equal probabilities, on purpose."""
    probs = np.array(counts) / sum(counts)
    ranked = sorted(range(len(probs)), key=lambda cell: (-probs[cell], cell))
    expected, held = [], 0.0
    for cell in ranked[:most]:
        expected.append(cell)
        held += probs[cell]
        if held >= mass:
            break
    assert choose_cells(probs, mass, most).tolist() == expected
