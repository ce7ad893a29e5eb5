"""No place in a coarse answer is finer than asked for, whatever is read from it."""

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_geolocalizer, tiny_image, tiny_quadtree

from geoloc.errors import ConfigError
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.config import EmbeddingHeadConfig, RegressionHeadConfig
from geoloc.posterior.coarse import CoarseGrid, coarse_path, coarsened
from geoloc.posterior.prediction import Atom, Candidate, Prediction
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import ReferenceRows
from quadtree.morton import cell_bounds_deg
from quadtree.sphere import destination_latlon_deg, haversine_km, latlon_to_unit, unit_to_latlon
from quadtree.tree import parse_paths

TREE = tiny_quadtree()
BORDERS = (-180.0, -179.9999999, -90.0, 0.0, 90.0, 179.9999999)
sizes_km = st.floats(math.log(0.001), math.log(20_000)).map(math.exp)
latitudes = st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, -89.9999999, 0.0, 89.9999999, 90.0]))
longitudes = st.one_of(st.floats(-180, 179.9999999), st.sampled_from(BORDERS))
places = st.tuples(latitudes, longitudes)


@given(sizes_km, places, st.floats(0, 360), st.floats(0, 2))
def test_middles_stay_lie_in_reach_and_keep_their_distance(
    cell_km: float, place: tuple[float, float], bearing_deg: float, cells_away: float
) -> None:
    grid = CoarseGrid(cell_km)
    middle = grid.snap(place)
    assert -90 <= middle[0] <= 90
    assert -180 <= middle[1] < 180
    assert np.array_equal(grid.snap(middle), middle)
    assert haversine_km(place, middle) <= grid.reach_km(middle[0]) * (1 + 1e-6) + 1e-6
    nearby = grid.snap(destination_latlon_deg(place, bearing_deg, cells_away * cell_km))
    if not np.array_equal(nearby, middle):
        assert haversine_km(nearby, middle) >= cell_km * (1 - 1e-6) - 1e-6


def test_a_grid_by_hand() -> None:
    # Four rows of 45 degrees (5004 km). In the inner ones, 2 asin(sin(5000 / 2R) / cos 22.5) = 48.9 degrees keep two
    # middles apart: seven boxes; in the outer ones 175.7 degrees: two.
    grid = CoarseGrid(5000)
    points = [(0, 0), (90, 17), (-90, -180), (44.9, 179.9), (-0.1, -26), (-44.9, -25)]
    width = 360 / 7
    expected = [
        (22.5, 0), (67.5, 90), (-67.5, -90), (22.5, 180 - width / 2), (-22.5, -width), (-22.5, 0)
    ]  # fmt: skip
    assert grid.snap(points) == pytest.approx(np.array(expected, float))
    assert grid.reach_km(22.5) == pytest.approx(float(haversine_km((22.5, 0), (0, width / 2))))


@pytest.mark.parametrize("cell_km", [0, -5, 0.0001, 20_001, math.nan, math.inf])
def test_an_impossible_size_is_refused(cell_km: float) -> None:
    with pytest.raises(ConfigError, match=rf"max_precision_km is {cell_km}; expected 0.001 to 20000 km"):
        CoarseGrid(cell_km)


def made_up(point: tuple[float, float], others: list[tuple[float, float]]) -> Prediction:
    """A prediction with candidates and bells at other places."""
    share = 0.9 / max(1, len(others))
    candidates = [
        Candidate(
            lat, lon, share, ("cell", "aerial", "street")[n % 3], None if n % 3 == 0 else 0.9, f"secret {n}"
        )
        for n, (lat, lon) in enumerate(others)
    ]
    atoms = tuple(Atom(lat, lon, share, 0.02) for lat, lon in others)
    path = TREE.paths[int(TREE.assign([point])[0])]
    return Prediction(*point, path, 0.5, tuple(candidates), {50: 0.3, 90: 700.25}, posterior=atoms)


def places_in(prediction: Prediction) -> list[tuple[float, float]]:
    parts: list[Any] = [prediction, *prediction.candidates, *prediction.posterior]
    return [(part.lat, part.lon) for part in parts]


def sides_km(path: str) -> tuple[float, float]:
    """Height of a box, and its width where it is widest."""
    codes, depths = parse_paths([path])
    south, west, north, east = cell_bounds_deg(codes >> 2 * (24 - depths), depths, TREE.root_deg)[0]
    widest = 0.0 if south <= 0 <= north else min(abs(south), abs(north))
    return float(haversine_km((south, 0), (north, 0))), 111.195 * (east - west) * math.cos(
        math.radians(widest)
    )


@given(sizes_km, places, st.lists(places, max_size=6))
def test_nothing_in_it_is_finer(
    cell_km: float, point: tuple[float, float], others: list[tuple[float, float]]
) -> None:
    grid, fine = CoarseGrid(cell_km), made_up(point, others)
    coarse = coarsened(fine, grid, TREE)
    for place in places_in(coarse):
        assert np.array_equal(grid.snap(place), place)
    assert "secret" not in json.dumps([coarse.to_dict(), coarse.to_geojson()])
    for path in (coarse.cell_path, *(c.key for c in coarse.candidates if c.source == "cell")):
        assert path == "" or min(sides_km(path)) >= cell_km * (1 - 1e-6)
    for percent, radius_km in coarse.radius_km.items():
        assert radius_km >= cell_km
        assert radius_km / cell_km == pytest.approx(round(radius_km / cell_km))
        # What the circle held before, it holds now.
        for bearing in (0.0, 90.0, 200.0):
            edge = destination_latlon_deg(point, bearing, fine.radius_km[percent])
            assert haversine_km((coarse.lat, coarse.lon), edge) <= radius_km + 1e-6
    assert all(atom.scale_km >= cell_km for atom in coarse.posterior)
    for key in ("candidates", "posterior"):
        weights = [getattr(part, "probability", None) or part[2] for part in getattr(coarse, key)]
        assert sum(weights) == pytest.approx(0.9 if others else 0)
        assert all(a >= b for a, b in pairwise(weights))
    assert coarsened(coarse, grid, TREE).candidates == coarse.candidates


@given(
    sizes_km.filter(lambda km: km < 5000),
    places,
    st.lists(st.tuples(st.floats(0, 360), st.floats(0, 0.99)), max_size=5),
)
def test_places_nearby_tell_nothing_by_their_differences(
    cell_km: float, point: tuple[float, float], offsets: list[tuple[float, float]]
) -> None:
    """Wherever around the point they are, the answer is as if they all lay at the point."""
    grid = CoarseGrid(cell_km)
    around = [tuple(destination_latlon_deg(point, b, share * cell_km).tolist()) for b, share in offsets]
    spread, alike = (coarsened(made_up(point, them), grid, TREE) for them in (around, [point] * len(around)))
    assert spread.candidates == alike.candidates
    assert spread.posterior == alike.posterior
    assert set(places_in(spread)) == {tuple(grid.snap(point).tolist())}


def test_a_path_ends_where_its_box_is_large_enough() -> None:
    cell = int(np.argmax(TREE.depths))
    path, (south, west, north, east) = TREE.paths[cell], TREE.bounds_deg[cell]
    point = ((south + north) / 2, (west + east) / 2)
    least = min(
        float(haversine_km((south, 0), (north, 0))),
        111.195 * (east - west) * math.cos(math.radians(point[0])),
    )
    assert coarse_path(TREE, point, least * 0.99) == path
    assert coarse_path(TREE, point, least * 1.01) == path[:-1]
    assert coarse_path(TREE, point, least * 2.02) == path[:-2]
    assert coarse_path(TREE, point, 20_000) == ""


@pytest.fixture(scope="module")
def searching(tmp_path_factory: pytest.TempPathFactory) -> Geolocalizer:
    """A model with a database of its own."""
    folder = tmp_path_factory.mktemp("searching")
    heads = {role: EmbeddingHeadConfig(dim=8) for role in ("query", "aerial")}
    model: Geolocalizer = tiny_geolocalizer(embeddings=heads)
    model.save_pretrained(folder / "model")
    rng = np.random.default_rng(1)
    unit = latlon_to_unit(np.repeat(TREE.center_latlon_deg, 9, axis=0))
    points = unit_to_latlon(unit + rng.normal(0, 0.002, unit.shape))
    vectors = rng.normal(size=(len(points), 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    database = ReferenceDatabase.create(folder / "refs", dim=8, model_fingerprint=model.embedding_fingerprint)
    database.append(
        ReferenceRows(points, source="aerial", key=[f"tile {n}" for n in range(len(points))]), vectors
    )
    model.reference = database
    return model


def test_a_model_answers_coarsely(searching: Geolocalizer) -> None:
    pictures = [tiny_image(seed) for seed in range(6)]
    fine = searching.localize(pictures, top_k=50)
    grid = CoarseGrid(300)
    coarse = searching.localize(pictures, top_k=50, max_precision_km=300)
    assert coarse == searching.localize(pictures, top_k=50, max_precision_km=300)
    for known, found in zip(fine, coarse, strict=True):
        assert any(c.key.startswith("tile") for c in known.candidates)
        assert {c.key for c in found.candidates if c.source == "aerial"} == {""}
        assert len(found.candidates) < len(known.candidates)
        assert found.posterior
        assert (found.lat, found.lon) == tuple(grid.snap((known.lat, known.lon)).tolist())
        for place in places_in(found):
            assert np.array_equal(grid.snap(place), place)
        assert found.place is not None
        assert found.place.name == found.place.admin2 == ""
        assert found.place.country_code


def test_it_abstains_by_the_radius_that_it_tells() -> None:
    model = tiny_geolocalizer()
    fine = model.localize(tiny_image(0), places=False).radius_km[90]
    asked = {"places": False, "abstain_above_km": fine + 1}
    assert not model.localize(tiny_image(0), **asked).abstained
    assert model.localize(tiny_image(0), max_precision_km=2000, **asked).abstained


def test_models_of_other_kinds_answer_coarsely_too() -> None:
    model = tiny_geolocalizer(cells=None, offsets=None, regression=RegressionHeadConfig())
    found = model.localize(tiny_image(0), max_precision_km=100)
    assert (found.cell_path, found.candidates[0].key) == ("", "")
    assert np.array_equal(CoarseGrid(100).snap((found.lat, found.lon)), (found.lat, found.lon))
