"""Whole evaluations against slow ones written out in plain Python, and against reverse_geocoder."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from geoloc.errors import ConfigError
from geoloc.evaluate.evaluation import Evaluation
from geoloc.evaluate.matching import match
from geoloc.evaluate.place_names import name_places
from geoloc.files.tables import PointTable
from geoloc.geo.places import load_places
from geoloc.metrics.protocols import get_protocol
from quadtree.sphere import destination_latlon_deg, haversine_km


def tables(num=600, seed=0, **truth_columns):
    """Photos near cities, at the antimeridian and the poles too; predictions with errors of all sizes."""
    rng = np.random.default_rng(seed)
    cities = load_places().latlon_deg
    truth = cities[rng.integers(0, len(cities), num)] + rng.normal(0, 0.1, (num, 2))
    truth[:20] = np.stack([rng.uniform(-90, 90, 20), 180 + rng.normal(0, 0.5, 20)], 1)
    truth[20:30] = np.stack([rng.uniform(89, 90, 10), rng.uniform(-180, 180, 10)], 1)
    truth[:, 0] = truth[:, 0].clip(-90, 90)
    error_km = np.exp(rng.normal(4, 2, num)).clip(0, 15000)
    predicted = destination_latlon_deg(truth, rng.uniform(0, 360, num), error_km)
    predicted[::17] = np.nan
    ids = np.array([f"{i:04}" for i in range(num)], np.object_)
    radius_km = error_km * rng.uniform(0.5, 3, num)
    others = {
        "radius_90_km": pa.chunked_array([radius_km]),
        "radius_50_km": pa.chunked_array([radius_km / 2]),
    }
    truth_table = PointTable(
        Path("truth.csv"), ids, truth, {k: pa.chunked_array([v]) for k, v in truth_columns.items()}
    )
    return truth_table, PointTable(Path("predictions.csv"), ids, predicted, others)


def evaluate(protocol, truth, predictions, **options):
    evaluation = Evaluation(get_protocol(protocol), **options)
    evaluation.add(match(truth, predictions))
    return evaluation


def test_default_names_are_those_of_brute_force_on_the_sphere():
    truth, predictions = tables(60)
    matched = match(truth, predictions)
    names = name_places(matched, "nearest-city")
    places = load_places()
    right = 0
    for row in range(len(matched)):
        found = []
        for point in (matched.truth_latlon_deg[row], matched.predicted_latlon_deg[row]):
            nearest = None
            if np.isfinite(point).all():
                distance_km = haversine_km(np.broadcast_to(point, places.latlon_deg.shape), places.latlon_deg)
                nearest = places.country_codes[int(distance_km.argmin())]
            found.append(nearest)
        assert names.true_country[row] == found[0]
        assert names.predicted_country[row] == (found[1] or "")
        right += found[0] == found[1]
    metrics = evaluate("geodesic", truth, predictions).metrics()
    assert metrics["accuracy_by_admin"]["country"] == right / 60


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)  # the peer's
def test_osv5m_is_its_own_code_written_out():
    """metrics/utils.py of OSV-5M: names by reverse_geocoder, joined, compared with the truth's unique_* columns."""
    import reverse_geocoder

    rng = np.random.default_rng(1)
    truth, predictions = tables(800, seed=2)
    geocoder = reverse_geocoder.RGeocoder(mode=2, verbose=False)

    def keys(points):
        # Its own tree, asked in this process: its pquery forks, which can hang beside Arrow's threads.
        rows = [geocoder.locations[row] for row in geocoder.tree.query(points)[1]]
        parts = [(r["cc"], r["admin1"], r["admin2"], r["name"]) for r in rows]
        return {
            "country": [cc for cc, *_ in parts],
            "region": [f"{a1}_{cc}" for cc, a1, *_ in parts],
            "sub_region": [f"{a2}_{a1}_{cc}" for cc, a1, a2, _ in parts],
            "city": [f"{name}_{a2}_{a1}_{cc}" for cc, a1, a2, name in parts],
        }

    predictions.latlon_deg[np.isnan(predictions.latlon_deg)] = 0
    wrapped = np.stack([truth.latlon_deg[:, 0], (truth.latlon_deg[:, 1] + 180) % 360 - 180], 1)
    true, predicted = keys(wrapped), keys(predictions.latlon_deg)
    for level in ("region", "city"):  # missing names, as the CSV has them
        for row in rng.integers(0, 800, 40):
            true[level][row] = ""
    columns = {
        f"unique_{level.replace('_', '-')}": pa.chunked_array([pa.array(values)])
        for level, values in true.items()
    }
    truth = PointTable(truth.path, truth.ids, truth.latlon_deg, columns)
    metrics = evaluate("osv5m", truth, predictions).metrics()
    for level in true:
        # pandas reads "" and "NA" as missing, fillna makes "NaN" of them, and "nan" is what the metric looks for.
        expected = np.mean(
            [t == p and t not in ("", "NA") for t, p in zip(true[level], predicted[level], strict=True)]
        )
        assert metrics["accuracy_by_admin"][level] == pytest.approx(expected, abs=1e-12), level


def test_plain_columns_of_the_truth():
    points = [[55.7047, 13.191], [59.91, 10.75], [48.85, 2.35]]
    ids = np.array(["a", "b", "c"], np.object_)
    columns = {
        "country": ["Sweden", "NO", ""],
        "region": ["Skane", "Wrong", "Ile-de-France"],
        "city": ["Lund", "Oslo", "Paris"],
    }
    truth = PointTable(
        Path("t.csv"), ids, np.array(points), {k: pa.chunked_array([v]) for k, v in columns.items()}
    )
    metrics = evaluate("geodesic", truth, PointTable(Path("p.csv"), ids, np.array(points))).metrics()
    # A city without its sub-region cannot be told from another of that name, so the levels end at the region.
    assert metrics["accuracy_by_admin"] == {"country": 1.0, "region": pytest.approx(1 / 3)}


def with_candidates(truth, predictions):
    """Predictions in another order than the truth, some of them absent, each with zero to twelve candidates."""
    rng = np.random.default_rng(4)
    rows = rng.permutation(len(predictions))[: len(predictions) * 9 // 10]
    near = destination_latlon_deg(truth.latlon_deg[rows], 90, np.exp(rng.normal(3, 2, len(rows))))
    lists = [
        json.dumps([{"lat": lat, "lon": lon, "key": "k"}] * number)
        for (lat, lon), number in zip(near.tolist(), rng.integers(0, 13, len(rows)), strict=True)
    ]
    abstained = pa.chunked_array([rng.random(len(rows)) < 0.1])
    table = predictions.take(rows)
    others = {**table.others, "candidates": pa.chunked_array([lists]), "abstained": abstained}
    return PointTable(table.path, table.ids, table.latlon_deg, others)


@pytest.mark.parametrize("protocol", ["geodesic", "osv5m", "plonk", "pigeon", "statewide"])
@pytest.mark.parametrize("num_shards", [1, 7, 64])
def test_shards_in_any_order_are_the_whole(num_shards, protocol):
    """Each shard has been through its JSON."""
    rules, breakdowns = get_protocol(protocol), ["country", "continent", "density", "camera"]
    truth, predictions = tables(700, camera=["x", "y"] * 350, cell=["k", "l"] * 350)
    matched = match(truth, with_candidates(truth, predictions))
    whole = Evaluation(rules, breakdowns)
    whole.add(matched)
    merged = Evaluation(rules, breakdowns)
    edges = np.linspace(0, len(matched), num_shards + 1).astype(int)
    for number in np.random.default_rng(num_shards).permutation(num_shards):
        shard = Evaluation(rules, breakdowns)
        shard.add(matched.part(slice(edges[number], edges[number + 1])))
        merged.merge(Evaluation.from_state(rules, json.loads(json.dumps(shard.state()))))
    assert whole.metrics()["recall_at"]
    assert whole.num_abstained > 0
    assert json.dumps(merged.metrics()) == json.dumps(whole.metrics())
    assert merged.names_source == whole.names_source


def test_a_part_is_the_match_of_its_rows():
    truth, predictions = tables(50, camera=["x", "y"] * 25)
    matched = match(truth, with_candidates(truth, predictions))
    part = matched.part(slice(11, 31))
    assert part.ids.tolist() == matched.ids[11:31].tolist()
    for column in ("truth_latlon_deg", "predicted_latlon_deg"):
        np.testing.assert_array_equal(getattr(part, column), getattr(matched, column)[11:31])
    assert part.truth_text("camera").tolist() == matched.truth_text("camera")[11:31].tolist()
    assert part.predicted_text("candidates").tolist() == matched.predicted_text("candidates")[11:31].tolist()
    radii = [m.predicted_numbers("radius_90_km") for m in (part, matched)]
    np.testing.assert_array_equal(radii[0], radii[1][11:31])
    assert len(part.predictions) == (matched.prediction_row[11:31] >= 0).sum() < 20


def test_breakdowns():
    truth, predictions = tables(600, camera=["x", "y", ""] * 200)
    metrics = evaluate("geodesic", truth, predictions, breakdowns=["camera", "continent"]).metrics()
    cameras = metrics["breakdowns"]["camera"]
    assert {name: scores["num_images"] for name, scores in cameras.items()} == {
        "x": 200,
        "y": 200,
        "(unknown)": 200,
    }
    mean = np.mean([scores["geoscore"] for scores in cameras.values()])
    assert mean == pytest.approx(metrics["geoscore"])
    assert sum(s["num_images"] for s in metrics["breakdowns"]["continent"].values()) == 600
    with pytest.raises(
        ConfigError, match=r"no breakdown 'lens': truth.csv has the columns camera, and built in are"
    ):
        evaluate("geodesic", truth, predictions, breakdowns=["lens"])


def test_regions_and_candidates():
    truth, predictions = tables(200)
    distance_km = match(truth, predictions).distance_km(get_protocol("geodesic"))
    metrics = evaluate("geodesic", truth, predictions).metrics()
    known = np.isfinite(distance_km)
    radius_km = predictions.numbers("radius_90_km")
    assert metrics["regions"]["90"]["coverage"] == (distance_km[known] <= radius_km[known]).mean()
    assert metrics["recall_at"] == {}  # nothing asked for it
    assert list(metrics["risk_coverage"]["accuracy_within_km"]) == ["1", "25", "200", "750", "2500"]

    there = [dict(zip(("lat", "lon"), point, strict=True)) for point in truth.latlon_deg.tolist()]
    away = {"lat": -5.0, "lon": 70.0}
    lists = [[away, place] if row % 2 else [place] for row, place in enumerate(there)]
    texts = pa.chunked_array([[json.dumps(candidates) for candidates in lists]])
    with_candidates = PointTable(
        predictions.path, predictions.ids, predictions.latlon_deg, {"candidates": texts}
    )
    assert evaluate("geodesic", truth, with_candidates).metrics()["recall_at"] == {"25000": {"1": 0.5}}
    vpr = evaluate("vpr-25m", truth, PointTable(truth.path, truth.ids, truth.latlon_deg)).metrics()
    assert vpr["recall_at"] == {"25": {"1": 1.0}}


def test_statewide_recall_of_cells():
    ids = np.array(["a", "b", "c"], np.object_)
    points = np.array([[42.0, -71.0], [42.1, -71.1], [42.2, -71.2]])
    truth = PointTable(Path("t.csv"), ids, points, {"cell": pa.chunked_array([["k1", "k2", "k3"]])})

    def candidate(point, key, north_m):
        lat, lon = destination_latlon_deg(point, 0, north_m / 1000).tolist()
        return {"lat": lat, "lon": lon, "key": key}

    lists = [
        [candidate(points[0], "k1", 10)],
        [candidate(points[1], "x", 80), candidate(points[1], "y", 20), candidate(points[1], "k2", 5)],
        [],
    ]
    candidates = {"candidates": pa.chunked_array([[json.dumps(entries) for entries in lists]])}
    found = evaluate("statewide", truth, PointTable(Path("p.csv"), ids, points, candidates)).metrics()[
        "recall_at"
    ]
    third = pytest.approx(1 / 3)
    assert found == {
        "0": {"1": third},
        "25": {"1": third},
        "50": {"1": third},
        "100": {"1": pytest.approx(2 / 3)},
    }
    empty = {"candidates": pa.chunked_array([["", "", "[]"]])}
    assert evaluate("vpr-25m", truth, PointTable(Path("p.csv"), ids, points, empty)).metrics()[
        "recall_at"
    ] == {"25": {}}
