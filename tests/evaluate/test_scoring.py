"""An evaluation in shards is the evaluation in one pass, on every engine and after every interruption."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from geoloc.errors import BadTableError, ConfigError, OutputMismatchError
from geoloc.evaluate.evaluation import BUILT_IN_BREAKDOWNS, Evaluation
from geoloc.evaluate.matching import match
from geoloc.evaluate.scoring import score
from geoloc.files.tables import PointTable
from geoloc.geo.places import load_places
from geoloc.metrics.protocols import get_protocol
from quadtree.sphere import destination_latlon_deg

PROTOCOL = get_protocol("geodesic")
NUM_IMAGES = 500
ON_RAY = pytest.param(
    "ray",
    marks=[
        pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra"),
        pytest.mark.filterwarnings("ignore"),  # Ray's own, of sockets that it leaves open
    ],
)


@pytest.fixture(scope="module")
def matched():
    """Photos near cities; predictions in another order, with radii, some of them absent."""
    rng = np.random.default_rng(0)
    truth = load_places().latlon_deg[rng.integers(0, len(load_places().latlon_deg), NUM_IMAGES)]
    error_km = np.exp(rng.normal(4, 2, NUM_IMAGES)).clip(0, 15000)
    predicted = destination_latlon_deg(truth, rng.uniform(0, 360, NUM_IMAGES), error_km)
    ids = np.array([f"{number:04}" for number in range(NUM_IMAGES)], np.object_)
    cameras = {"camera": pa.chunked_array([["x", "y"] * (NUM_IMAGES // 2)])}
    rows = rng.permutation(NUM_IMAGES)[: NUM_IMAGES - 30]
    radii = {"radius_90_km": pa.chunked_array([2 * error_km[rows]])}
    return match(
        PointTable(Path("t.csv"), ids, truth, cameras),
        PointTable(Path("p.csv"), ids[rows], predicted[rows], radii),
    )


BREAKDOWNS = [*BUILT_IN_BREAKDOWNS, "camera"]


@pytest.fixture(scope="module")
def expected(matched):
    whole = Evaluation(PROTOCOL, BREAKDOWNS)
    whole.add(matched)
    return json.dumps(whole.metrics())


def scores(matched, folder, **options):
    return json.dumps(score(matched, PROTOCOL, BREAKDOWNS, folder=folder, **options).metrics())


@pytest.mark.parametrize("images_per_shard", [1000, 500, 77, 8])
def test_any_sharding_is_the_whole(matched, expected, tmp_path, images_per_shard):
    assert scores(matched, tmp_path / "job", images_per_shard=images_per_shard) == expected
    assert len(list((tmp_path / "job").glob("0*.json"))) == -(-NUM_IMAGES // images_per_shard)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", ON_RAY])
def test_any_engine_writes_the_same_states(matched, expected, tmp_path, engine):
    found = scores(matched, tmp_path / "job", images_per_shard=77, engine=engine, num_workers=2)
    assert found == expected
    assert scores(matched, tmp_path / "here", images_per_shard=77) == expected
    for path in sorted((tmp_path / "here").iterdir()):
        assert path.read_bytes() == (tmp_path / "job" / path.name).read_bytes(), path.name


def test_an_interrupted_evaluation_continues(matched, expected, tmp_path, monkeypatch):
    real_add, num_added = Evaluation.add, []

    def add(evaluation, part):
        if len(num_added) == 3:
            raise KeyboardInterrupt
        num_added.append(len(part))
        real_add(evaluation, part)

    monkeypatch.setattr(Evaluation, "add", add)
    with pytest.raises(KeyboardInterrupt):
        scores(matched, tmp_path / "job", images_per_shard=100)
    assert sorted(path.name for path in (tmp_path / "job").glob("0*.json")) == [
        "00000.json", "00001.json", "00002.json",
    ]  # fmt: skip
    num_added.clear()
    assert scores(matched, tmp_path / "job", images_per_shard=100) == expected
    assert num_added == [100, 100]


def test_other_images_or_rules_are_another_job(matched, tmp_path):
    scores(matched, tmp_path / "job")
    with pytest.raises(OutputMismatchError, match="protocol is geodesic there and osv5m here"):
        score(matched, get_protocol("osv5m"), BREAKDOWNS, folder=tmp_path / "job")
    moved = matched.predictions.latlon_deg.copy()
    moved[7, 0] += 1e-9
    predictions = PointTable(Path("p.csv"), matched.predictions.ids, moved, matched.predictions.others)
    with pytest.raises(OutputMismatchError, match=r"holds another job: predictions is .* delete this one"):
        scores(match(matched.truth, predictions), tmp_path / "job")


def test_what_the_tables_lack_is_said_before_the_work(matched, tmp_path):
    with pytest.raises(ConfigError, match=r"no breakdown 'lens': t.csv has the columns camera, and built in"):
        score(matched, PROTOCOL, ["lens"], folder=tmp_path / "job")
    radii = ["1"] * 400 + ["wide"] + ["1"] * (len(matched.predictions) - 401)
    predictions = PointTable(
        Path("p.parquet"),
        matched.predictions.ids,
        matched.predictions.latlon_deg,
        {"radius_50_km": pa.chunked_array([radii])},
    )
    with pytest.raises(BadTableError, match=r"p.parquet row 401: radius_50_km is 'wide'"):
        scores(match(matched.truth, predictions), tmp_path / "job", images_per_shard=100)
    assert not (tmp_path / "job").exists()
