"""`geoloc recall`: both kinds of sets from files to the report, photos that cannot be read, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import VIT, tiny_geolocalizer, tiny_image
from typer.testing import CliRunner

from geoloc.cli import app
from geoloc.data.layouts.vg import vg_stem
from geoloc.errors import ConfigError, NotFoundError
from geoloc.evaluate.recall_set import RecallRules, RecallSet, open_recall_set, score_recall_set
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.config import AggregationConfig, BackboneConfig, EmbeddingHeadConfig
from geoloc.search.structures import Structure


def geoloc(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output + str(result.exception or "")


def place(number: float) -> tuple[float, float]:
    """Places 111 m apart, from south to north."""
    return 55.7 + number / 1000, 13.2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained: like pictures have like vectors all the same."""
    head = EmbeddingHeadConfig(8, aggregation=AggregationConfig("cosplace"))
    made = tiny_geolocalizer(
        None,
        cells=None,
        offsets=None,
        backbone=BackboneConfig(custom=VIT, features="map"),
        embeddings={"query": head},
        street_as_query=True,
    )
    made.save_pretrained(folder := tmp_path_factory.mktemp("model"))
    return folder


@pytest.fixture
def town(tmp_path: Path) -> Path:
    """Pictures of eight places; queries from 10 m away of four of them, one with a wrong position, one from afar."""

    def paint(split: str, seed: int, latlon_deg: tuple[float, float]) -> None:
        path = tmp_path / "town" / "images" / "test" / split / f"{vg_stem(latlon_deg, note=str(seed))}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny_image(seed)).save(path)

    for seed in range(8):
        paint("database", seed, place(seed))
    for seed in range(4):
        paint("queries", seed, place(seed + 0.09))
    paint("queries", 4, place(5))
    paint("queries", 5, place(500))
    return tmp_path / "town"


def test_photos_that_say_where_they_are(town: Path, model: Path, tmp_path: Path) -> None:
    code, said = geoloc("recall", town, "--model", model, "-o", tmp_path / "report", "--at", 1, "--at", 8)
    assert code == 0, said
    assert (
        "town test/queries: recall@1 80.0%, recall@8 100.0% of 5 queries, 8 photos in the database, 1 queries"
        in said
    )
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["recall_at"]["1"] == 0.8
    assert metrics["rules"]["right"] == "within 25 m, on the ellipsoid"
    assert "| 80.0 | 100.0 | 5 | 1 | 8 |" in (tmp_path / "report" / "metrics.md").read_text()
    rows = pq.read_table(tmp_path / "report" / "queries.parquet").to_pylist()
    assert [row["wrong_before"] for row in rows][:4] == [0, 0, 0, 0]
    assert [row["num_positives"] for row in rows] == [1, 1, 1, 1, 1, 0]
    assert rows[5]["wrong_before"] is None
    assert [Path(row["best"]).stem[-1:] for row in rows] == [Path(row["query"]).stem[-1:] for row in rows]

    # Another way to count embeds nothing again.
    embedded = tmp_path / "report.embeddings" / "00000.parquet"
    before = embedded.stat().st_mtime_ns
    code, said = geoloc(
        "recall",
        town,
        "--model",
        model,
        "-o",
        tmp_path / "report",
        "--without-positive",
        "miss",
        "--radius-m",
        200,
    )
    assert code == 0, said
    assert "recall@1 83.3%" in said
    assert "of 6 queries" in said
    assert embedded.stat().st_mtime_ns == before


def test_a_set_that_says_what_is_right(town: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Pittsburgh"
    folder.mkdir()
    images = town / "images" / "test"
    names = {
        part: np.array(sorted(str(path.relative_to(images)) for path in (images / part).iterdir()))
        for part in ("database", "queries")
    }
    np.save(folder / "pitts_dbImages.npy", names["database"])
    np.save(folder / "pitts_qImages.npy", names["queries"][:4])
    np.save(folder / "pitts_gt.npy", np.array([[0, 7], [1, 7], [5, 6], [3, 4]]))
    code, said = geoloc(
        "recall", folder, "--set", "pitts", "--images", images, "--model", model, "-o", tmp_path / "report"
    )
    assert code == 0, said
    assert "pitts: recall@1 75.0%" in said
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["rules"]["right"] == "the positives listed by pitts"
    loaded = Geolocalizer.from_pretrained(model)
    with torch.inference_mode():
        vectors = [
            np.concatenate(
                [loaded.embed_reference(loaded.load(images / name)[None], "street") for name in part]
            )
            for part in (names["database"], names["queries"][:4])
        ]
    best = (vectors[1] @ vectors[0].T).argmax(1)
    rows = pq.read_table(tmp_path / "report" / "queries.parquet").to_pylist()
    assert [row["best"] for row in rows] == [str(images / names["database"][row]) for row in best]


def test_photos_that_cannot_be_read(town: Path, model: Path, tmp_path: Path) -> None:
    database, queries = (
        sorted((town / "images" / "test" / part).iterdir()) for part in ("database", "queries")
    )
    database[0].write_bytes(b"no picture")
    queries[1].write_bytes(b"no picture")
    code, said = geoloc("recall", town, "--model", model, "-o", tmp_path / "report")
    assert code == 0, said
    assert (
        "recall@1 40.0%" in said
    )  # of five, two are right: the first's only positive is gone, the second's picture
    assert f"{database[0]}: " in said
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["unreadable"] == {"database": 1, "queries": 1}
    rows = pq.read_table(tmp_path / "report" / "queries.parquet").to_pylist()
    assert rows[1]["best"] is None
    assert "of the queries, 1 could not be read: misses" in (tmp_path / "report" / "metrics.md").read_text()


def test_not_one_photo_can_be_read(town: Path, model: Path, tmp_path: Path) -> None:
    for path in (town / "images" / "test").glob("*/*.png"):
        path.write_bytes(b"no picture")
    code, said = geoloc("recall", town, "--model", model, "-o", tmp_path / "report")
    assert code
    assert "no photo of the database of town test/queries could be read" in said


def test_rows_are_those_of_the_whole_database() -> None:
    nan = np.full((1, 3), np.nan, np.float32)
    database = np.concatenate([nan, np.eye(3, dtype=np.float32)])
    positives = tuple(np.array(rows) for rows in ([1], [0, 3], [0]))
    found = RecallSet("x", tuple("abcd"), tuple("efg"), positives, "by hand")
    report = score_recall_set(found, database, np.eye(3, dtype=np.float32)[[0, 1, 2]], RecallRules((1, 3)))
    assert report.best.tolist() == [1, 2, 3]
    assert report.metrics["recall_at"]["1"] == pytest.approx(1 / 3)
    assert report.metrics["recall_at"]["3"] == pytest.approx(
        2 / 3
    )  # the third's only positive cannot be read


@pytest.mark.parametrize("structure", ["flat", "hnsw", "ivfpq"])
def test_structures_find_what_exact_search_finds(structure: Structure) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((700, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    database, queries = vectors[:600], vectors[600:].copy()
    queries[:50] = database[:50]
    positives = (*(np.array([q, 599 - q]) for q in range(99)), np.array([], np.int64))
    names = tuple(map(str, range(700)))
    found = RecallSet("x", names[:600], names[600:], positives, "by hand")
    exact = score_recall_set(found, database, queries, RecallRules((1, 10)))
    report = score_recall_set(found, database, queries, RecallRules((1, 10)), structure)
    assert report.best[:50].tolist() == list(range(50))
    assert report.metrics["recall_at"] == pytest.approx(exact.metrics["recall_at"], abs=0.02)
    assert report.metrics["rules"]["search"] == f"FAISS {structure}, by cosine"
    found_first = report.ranks < 10
    np.testing.assert_array_equal(report.ranks[found_first], exact.ranks[found_first])


def test_refusals(town: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the folder of a named set"):
        open_recall_set(town, images=town)
    with pytest.raises(ConfigError, match="radius_m is 0"):
        open_recall_set(town, radius_m=0)
    with pytest.raises(NotFoundError, match="no_such_dbImages"):
        open_recall_set(town, "no_such")
    with pytest.raises(ConfigError, match="each k is at least 1"):
        RecallRules((0, 1))
    far = RecallSet("x", ("a",), ("b",), (np.array([], np.int64),), "")
    with pytest.raises(ConfigError, match="none of 1 queries has a positive"):
        score_recall_set(far, np.eye(1, dtype=np.float32), np.eye(1, dtype=np.float32))
    code, said = geoloc("recall", town, "--model", "earthview", "-o", tmp_path / "no" / "report")
    assert code
    assert "there is no" in said
