"""A model with references, end to end: search, fit, calibrate, save, load. Tiny, random, and all of it real."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import tiny_geolocalizer, tiny_image

from geoloc.errors import CheckpointError, ConfigError, FingerprintMismatchError, IntegrityError
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.localize.job import LocalizeJob
from geoloc.localize.rows import LocalizeWork
from geoloc.localize.session import Session, SessionOptions
from geoloc.metrics.scores import geoscore
from geoloc.models.config import EmbeddingHeadConfig
from geoloc.photos.sources import plan_shards
from geoloc.posterior.reranker_network import RerankerConfig
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import ReferenceRows
from quadtree.sphere import haversine_km

EMBEDDINGS = {"query": EmbeddingHeadConfig(8), "aerial": EmbeddingHeadConfig(8)}


def searching_model() -> Geolocalizer:
    """One whose two embeddings are the same, so that a reference of the query's own picture is its twin."""
    model = tiny_geolocalizer(embeddings=EMBEDDINGS)
    model.network.embeddings["aerial"].load_state_dict(model.network.embeddings["query"].state_dict())
    return model


def batch(seeds: range, model: Geolocalizer) -> torch.Tensor:
    return torch.stack([model.load(tiny_image(seed)) for seed in seeds])


def places_of(model: Geolocalizer, seeds: range) -> NDArray[np.float64]:
    """Where pictures were "taken": in one of their probable cells, near its representative point."""
    rng = np.random.default_rng(seeds.start)
    assert model.quadtree is not None
    found = []
    for prediction in model.localize_batch(batch(seeds, model), reference=None, places=False, top_k=3):
        chosen = prediction.candidates[rng.integers(len(prediction.candidates))]
        found.append(model.quadtree.center_latlon_deg[model.quadtree.paths.index(chosen.key)])
    return np.array(found) + rng.normal(0, 0.2, (len(seeds), 2)).clip(-0.5, 0.5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without references."""
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    searching_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def truth(saved: Path) -> NDArray[np.float64]:
    """Where the pictures 0 to 399 were taken; of the model as it was saved, since a fitted one differs."""
    return places_of(Geolocalizer.from_pretrained(saved), range(400))


@pytest.fixture
def model(saved: Path) -> Geolocalizer:
    return Geolocalizer.from_pretrained(saved)


@pytest.fixture(scope="module")
def database(
    saved: Path, truth: NDArray[np.float64], tmp_path_factory: pytest.TempPathFactory
) -> ReferenceDatabase:
    """The pictures 0 to 399 themselves, each at its place."""
    model = Geolocalizer.from_pretrained(saved)
    seeds = range(400)
    folder = tmp_path_factory.mktemp("db") / "refs"
    made = ReferenceDatabase.create(folder, dim=8, model_fingerprint=model.embedding_fingerprint)
    rows = ReferenceRows(truth, source="aerial", key=[f"picture {seed}" for seed in seeds])
    made.append(rows, model.embed_reference(batch(seeds, model), "aerial"))
    return made


def labelled(
    model: Geolocalizer, truth: NDArray[np.float64], seeds: range
) -> Iterator[tuple[torch.Tensor, NDArray[np.float64]]]:
    for start in range(seeds.start, seeds.stop, 50):
        part = range(start, min(start + 50, seeds.stop))
        yield batch(part, model), truth[part.start : part.stop]


def test_a_twin_among_the_references_is_found_and_named(
    model: Geolocalizer, database: ReferenceDatabase, truth: NDArray[np.float64]
) -> None:
    seeds = range(20)
    bare = model.localize_batch(batch(seeds, model), reference=None, places=False)
    found = model.localize_batch(batch(seeds, model), reference=database, places=False, top_k=500)
    assert all(c.source == "cell" for p in bare for c in p.candidates)
    best = [
        max((c for c in p.candidates if c.source == "aerial"), key=lambda c: c.similarity or 0) for p in found
    ]
    assert [c.key for c in best] == [f"picture {seed}" for seed in seeds]
    assert min(c.similarity or 0 for c in best) > 0.999
    away = haversine_km(np.array([(c.lat, c.lon) for c in best]), truth[:20])
    assert away.max() < 1e-3
    assert all(p.cell_path == q.cell_path for p, q in zip(bare, found, strict=True))
    assert all(p.radius_km == {} for p in found)  # nothing was calibrated with this database
    assert all(set(p.radius_km) == {50, 90} for p in bare)
    for prediction in found:
        probabilities = [c.probability for c in prediction.candidates]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) <= 1 + 1e-9


def test_fitting_then_calibrating_then_saving_then_loading(
    model: Geolocalizer, database: ReferenceDatabase, truth: NDArray[np.float64], tmp_path: Path
) -> None:
    seeds = range(350, 400)
    before = model.embedding_fingerprint
    model.reference = database
    model.fit_reranker(labelled(model, truth, range(200)), config=RerankerConfig(hidden_dim=8))
    model.calibrate(labelled(model, truth, range(200, 350)), "made up", reference="own")
    assert model.embedding_fingerprint == before
    with pytest.raises(CheckpointError, match="fitted since it was saved"):
        _ = model.identity
    off = {}
    for name, reference in (("without", None), ("with", "own")):
        predictions = model.localize_batch(batch(seeds, model), reference=reference, places=False)
        off[name] = haversine_km(np.array([(p.lat, p.lon) for p in predictions]), truth[350:])
        inside = np.mean([d <= p.radius_km[90] for d, p in zip(off[name], predictions, strict=True)])
        assert inside > 0.75  # 50 pictures: the standard deviation of nine in ten is 4 %
    assert geoscore(off["with"]).mean() > 1.5 * geoscore(off["without"]).mean()

    model.save_pretrained(tmp_path / "a")
    loaded = Geolocalizer.from_pretrained(tmp_path / "a")
    assert loaded.embedding_fingerprint == before
    assert loaded.identity == model.identity
    assert loaded.reference is not None
    assert len(loaded.reference) == 400
    images = batch(seeds, model)
    assert loaded.localize_batch(images, places=False) == model.localize_batch(images, places=False)
    # And saving over itself keeps the database that it reads from.
    loaded.save_pretrained(tmp_path / "a")
    again = Geolocalizer.from_pretrained(tmp_path / "a")
    assert again.localize_batch(images, places=False) == model.localize_batch(images, places=False)


def test_a_flipped_bit_in_the_checkpoints_references_or_reranker_is_refused(
    model: Geolocalizer, database: ReferenceDatabase, truth: NDArray[np.float64], tmp_path: Path
) -> None:
    model.reference = database
    model.fit_reranker(labelled(model, truth, range(100)), config=RerankerConfig(hidden_dim=4))
    model.save_pretrained(tmp_path / "a")
    files = [p for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert not [p.name for p in files if not p.stat().st_size]
    names = {p.relative_to(tmp_path / "a").as_posix() for p in files}
    assert {
        "reranker.safetensors",
        "reference/manifest.json",
        "reference/segments/0000/rows.parquet",
    } <= names
    for path in files:
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(IntegrityError):
            Geolocalizer.from_pretrained(tmp_path / "a")
        path.write_bytes(data)
    Geolocalizer.from_pretrained(tmp_path / "a")


def test_references_of_another_model_are_refused(database: ReferenceDatabase, tmp_path: Path) -> None:
    other = tiny_geolocalizer(seed=9, embeddings=EMBEDDINGS)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(FingerprintMismatchError, match="was made with the model"):
        other.localize(tiny_image(0), reference=database)
    blind = tiny_geolocalizer()
    blind.save_pretrained(tmp_path / "blind")
    with pytest.raises(ConfigError, match="embeddings of 0 widths"):
        _ = blind.embedding_dim


def test_a_change_of_the_database_is_seen_by_the_next_query(
    model: Geolocalizer, truth: NDArray[np.float64], tmp_path: Path
) -> None:
    made = ReferenceDatabase.create(tmp_path / "refs", dim=8, model_fingerprint=model.embedding_fingerprint)
    image = batch(range(1), model)
    assert all(c.source == "cell" for c in model.localize_batch(image, reference=made)[0].candidates)
    made.append(ReferenceRows(truth[:1], source="aerial", key=["a"]), model.embed_reference(image, "aerial"))
    assert "a" in [c.key for c in model.localize_batch(image, reference=made, top_k=40)[0].candidates]
    made.delete(row_ids=[0])
    assert "a" not in [c.key for c in model.localize_batch(image, reference=made, top_k=40)[0].candidates]


def test_a_reference_on_a_line_between_cells_is_named(model: Geolocalizer, tmp_path: Path) -> None:
    """Of these longitudes, a way through unit vectors brings many back on the other side of their line."""
    points = np.array([(16.35229888, -180 + 360 * k / 4096) for k in range(0, 4096, 16)])
    vectors = np.tile(model.embed_reference(batch(range(1), model), "aerial"), (len(points), 1))
    made = ReferenceDatabase.create(tmp_path / "refs", dim=8, model_fingerprint=model.embedding_fingerprint)
    keys = [str(k) for k in range(len(points))]
    made.append(ReferenceRows(points, source="aerial", key=keys), vectors)
    for prediction in model.localize_batch(batch(range(20), model), reference=made, top_k=200):
        for candidate in prediction.candidates:
            if candidate.source == "aerial":
                assert candidate.lon == pytest.approx(points[int(candidate.key or ""), 1])


@pytest.mark.parametrize(
    "query", ["resized", "single", "five_crops", "nearest_crop", "majority_voting", "four_turns"]
)
def test_every_query_mode_localises(query: str, database: ReferenceDatabase, saved: Path) -> None:
    model = Geolocalizer.from_pretrained(saved)
    if query == "single":  # a tower that takes any shape: this ViT does not
        with pytest.raises(ConfigError, match=r"query mode single.*central_crop"):
            model.localize(tiny_image(0), reference=database, query=query)
        return
    one = model.localize(tiny_image(0), reference=database, query=query, places=False)
    several = model.localize(
        [tiny_image(0), tiny_image(1, 64, 48)], reference=database, query=query, places=False
    )
    assert one.lat == pytest.approx(several[0].lat, abs=1e-3)
    assert any(c.source == "aerial" for c in one.candidates)


def test_a_job_with_references_names_them_in_its_identity(
    model: Geolocalizer, database: ReferenceDatabase, tmp_path: Path
) -> None:
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for seed in range(5):
        Image.fromarray(tiny_image(seed)).save(tmp_path / "photos" / f"{seed}.png")
    plain = Session(model, SessionOptions())
    session = Session(model, SessionOptions(query="five_crops"), database)
    assert plain.identity != session.identity
    assert session.identity["reference"] == database.identity
    with LocalizeJob(
        LocalizeWork(session), plan_shards([str(tmp_path / "photos")]), tmp_path / "o.csv"
    ) as job:
        job.run()
        rows = list(job.rows())
    assert all(any(c["source"] == "aerial" for c in row["candidates"]) for row in rows)
