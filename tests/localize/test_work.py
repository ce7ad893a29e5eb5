"""A real (tiny) model over shards: its own answers, the same bytes from every engine, and the commands."""

import json
import pickle
import re
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import tiny_checkpoint, tiny_geolocalizer, tiny_image
from typer.testing import CliRunner

from geoloc.cli import app
from geoloc.errors import ConfigError, NotFoundError, OutputMismatchError
from geoloc.jobs.shards import ShardJob
from geoloc.localize.embed import EmbedOptions, EmbedWork
from geoloc.localize.job import LocalizeJob
from geoloc.localize.rows import LocalizeWork
from geoloc.localize.session import SessionOptions
from geoloc.localize.table import read_rows
from geoloc.models.config import EmbeddingHeadConfig
from geoloc.photos.sources import plan_shards
from geoloc.reference.database import ReferenceDatabase
from geoloc.reference.rows import ReferenceRows

NUM_IMAGES = 7


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of photos, one of them broken, with their truth; a checkpoint that can embed; and its references."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "photos").mkdir()
    for number in range(NUM_IMAGES):
        Image.fromarray(tiny_image(number)).save(folder / "photos" / f"{number}.png")
    (folder / "photos" / "3.png").write_bytes(b"broken")
    rows = "".join(f"{number}.png,{number * 10},{number * 20}\n" for number in range(NUM_IMAGES))
    (folder / "photos" / "truth.csv").write_text("id,latitude,longitude\n" + rows)
    tiny_checkpoint(
        folder / "model",
        embeddings={"query": EmbeddingHeadConfig(dim=8), "aerial": EmbeddingHeadConfig(dim=8)},
    )
    model = tiny_geolocalizer().from_pretrained(folder / "model")
    database = ReferenceDatabase.create(folder / "refs", dim=8, model_fingerprint=model.embedding_fingerprint)
    rng = np.random.default_rng(1)
    points = model.quadtree.center_latlon_deg.repeat(5, axis=0) + rng.normal(
        0, 0.1, (5 * model.quadtree.num_cells, 2)
    )
    vectors = rng.normal(size=(len(points), 8)).astype(np.float32)
    keys = [f"tile {number}" for number in range(len(points))]
    database.append(
        ReferenceRows(points, source="aerial", key=keys),
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
    )
    return folder


def run(world, output, work, engine="local", num_workers=0):
    """The files of an embedding job."""
    job = ShardJob(output, plan_shards([str(world / "photos")], 3), work.identity())
    job.run(work, engine=engine, num_workers=num_workers)
    job.finish()
    return {path.name: path.read_bytes() for path in sorted(output.iterdir())}


def localize(world, output, model=None, options=None, engine="local", num_workers=0, **modes):
    """The rows of a localising job with three images a shard."""
    model = model or str(world / "model")
    work = LocalizeWork(model, options, batch_size=3, num_threads=1, **modes)
    with LocalizeJob(work, plan_shards([str(world / "photos")], 3), output, resume=True) as job:
        job.run(engine=engine, num_workers=num_workers)
        job.finish()
    return list(read_rows(output))


def test_localize_is_the_models_own_answer(world, tmp_path):
    rows = localize(world, tmp_path / "out.parquet", options=SessionOptions(top_k=3))
    assert [row["id"] for row in rows] == [f"{number}.png" for number in range(NUM_IMAGES)]
    assert [row["error"] is None for row in rows] == [number != 3 for number in range(NUM_IMAGES)]
    model = tiny_geolocalizer().from_pretrained(str(world / "model"))
    alone = model.localize(world / "photos" / "5.png", top_k=3)
    assert (rows[5]["latitude"], rows[5]["longitude"]) == pytest.approx((alone.lat, alone.lon), abs=1e-4)
    assert len(rows[5]["candidates"]) == len(alone.candidates)


def test_another_option_is_another_job(world, tmp_path):
    localize(world, tmp_path / "out.csv")
    with pytest.raises(OutputMismatchError, match=r"top_k is 5 there and 6 here; .*--overwrite"):
        localize(world, tmp_path / "out.csv", options=SessionOptions(top_k=6))


@pytest.mark.parametrize("role", ["query", "aerial"])
def test_embeddings(world, tmp_path, role):
    run(world, tmp_path / "out", EmbedWork(str(world / "model"), EmbedOptions(role=role, batch_size=2)))
    table = pq.read_table(tmp_path / "out" / "00001.parquet")
    assert table["id"].to_pylist() == ["3.png", "4.png", "5.png"]
    broken, *rest = table["embedding"].to_pylist()
    assert broken is None
    assert table["error"].to_pylist()[0] is not None
    assert np.linalg.norm(np.array(rest, float), axis=1) == pytest.approx(1, abs=2e-3)


def test_embeddings_of_crops_are_those_of_their_mean(world, tmp_path):
    run(world, tmp_path / "out", EmbedWork(str(world / "model"), EmbedOptions(query="five_crops")))
    (found,) = pq.read_table(tmp_path / "out" / "00002.parquet")["embedding"].to_pylist()
    model = tiny_geolocalizer().from_pretrained(world / "model")
    with torch.inference_mode():
        features = model.network.backbone(model.load_query(world / "photos" / "6.png", "five_crops"))
        expected = model.network.embed(features.mean(0, keepdim=True), "query")[0]
    assert np.array(found, float) == pytest.approx(expected.numpy(), abs=2e-3)


def test_query_modes_that_give_no_one_embedding_are_refused():
    with pytest.raises(ConfigError, match=r"nearest_crop searches with several embeddings of an image"):
        EmbedOptions(query="nearest_crop")
    with pytest.raises(ConfigError, match=r"five_crops is for queries, and street is a role of references"):
        EmbedOptions(role="street", query="five_crops")
    with pytest.raises(ConfigError, match=r"query mode is 'six_crops'; expected one of central_crop"):
        SessionOptions(query="six_crops")


def test_what_is_loaded_is_not_pickled(world):
    work = LocalizeWork(str(world / "model"), SessionOptions(reference=(str(world / "refs"),)))
    work.identity()
    assert "session" in work.__dict__
    arrived = pickle.loads(pickle.dumps(work))
    assert arrived.__dict__.keys() == {
        "model_name",
        "options",
        "batch_size",
        "truth_from_exif",
        "device",
        "num_threads",
        "model_options",
        "on_batch",
    }


def test_a_driver_needs_none_of_its_workers_devices(world):
    there = LocalizeWork(str(world / "model"), device="cuda:99")
    assert there.identity() == LocalizeWork(str(world / "model")).identity()
    embedding = EmbedWork(str(world / "model"), EmbedOptions(device="cuda:99"))
    assert embedding.identity() == EmbedWork(str(world / "model")).identity() | {"device": "cuda:99"}


@pytest.mark.slow
def test_processes_write_the_bytes_of_this_process(world, tmp_path):
    work = EmbedWork(str(world / "model"))
    assert run(world, tmp_path / "b", work, num_workers=2) == run(world, tmp_path / "a", work)
    localize(world, tmp_path / "a.csv")
    localize(world, tmp_path / "b.csv", num_workers=2)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_writes_the_bytes_of_this_process(world, tmp_path):
    pytest.importorskip("ray")
    localize(world, tmp_path / "a.csv")
    localize(world, tmp_path / "b.csv", engine="ray", num_workers=2)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def geoloc(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    return result.exit_code, result.output, result.exception


def test_the_commands(world, tmp_path):
    code, text, error = geoloc(
        "embed",
        world / "photos",
        "-m",
        world / "model",
        "-o",
        tmp_path / "out",
        "--workers",
        0,
        "--files-per-shard",
        3,
    )
    assert code == 0, error
    assert "3 shards of query embeddings" in text
    evaluate = (
        "evaluate", "benchmark", "-m", world / "model", "-b", "csv", "--data", world / "photos",
        "-o", tmp_path / "report",
    )  # fmt: skip
    code, text, error = geoloc(*evaluate)
    assert code == 0, error
    assert "protocol geodesic, 7 images" in text
    assert "1 nan: predictions with an empty or NaN coordinate" in text
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["num_missing"] == 1
    assert set(metrics["regions"]) == {"50", "90"}
    assert set(metrics["recall_at"]["25000"]) <= {"1", "5", "10"}
    assert metrics["made_with"]["model"].startswith("tiny (")
    before = (tmp_path / "report" / "metrics.json").read_bytes()
    code, _, error = geoloc(*evaluate)  # nothing is localised again
    assert code == 0, error
    assert (tmp_path / "report" / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    "how", [("refs", "five_crops"), ("none", "central_crop"), ("own", "majority_voting")]
)
def test_evaluate_asks_a_model_as_localize_does(world, tmp_path, how):
    reference = str(world / "refs") if how[0] == "refs" else how[0]
    asked = ("-m", world / "model", "--reference", reference, "--query", how[1], "--top-k", 4, "--threads", 1)
    code, _, error = geoloc("localize", world / "photos", *asked, "-o", tmp_path / "localize.parquet", "-q")
    assert code == 1, error  # one image is broken
    expected = list(read_rows(tmp_path / "localize.parquet"))
    sources = {candidate["source"] for row in expected for candidate in row["candidates"]}
    assert ("aerial" in sources) == (how[0] == "refs")

    code, _, error = geoloc(
        "evaluate", "benchmark", *asked, "-b", "csv", "--data", world / "photos", "-o", tmp_path / "report"
    )
    assert code == 0, error
    assert list(read_rows(tmp_path / "report.predictions.parquet")) == expected
    made_with = json.loads((tmp_path / "report" / "metrics.json").read_text())["made_with"]
    assert made_with["query mode"] == how[1]
    digest = ReferenceDatabase.open(world / "refs").identity[:12]
    assert made_with["references"] == (f"{reference} ({digest})" if how[0] == "refs" else "none")


@pytest.mark.parametrize("command", ["localize", "evaluate"])
@pytest.mark.parametrize(
    ("options", "kind", "complaint"),
    [
        (["--reference", "nowhere"], NotFoundError, "there is no reference database nowhere"),
        (["--query", "six_crops"], ConfigError, "query mode is 'six_crops'"),
        (["--device", "warp"], ConfigError, "the device 'warp' cannot be used: .*; --device cpu always can"),
    ],
)
def test_what_the_commands_refuse(world, tmp_path, command, options, kind, complaint):
    inputs = (
        [world / "photos"]
        if command == "localize"
        else ["benchmark", "-b", "csv", "--data", world / "photos"]
    )
    _, _, error = geoloc(command, *inputs, "-m", world / "model", "-o", tmp_path / "out.csv", *options)
    assert isinstance(error, kind)
    assert re.search(complaint, str(error))
    assert list(tmp_path.iterdir()) == []


def test_coarse_tables_are_those_of_the_model(world, tmp_path):
    options = SessionOptions(reference=(str(world / "refs"),), max_precision_km=800.0)
    row = localize(world, tmp_path / "out.csv", options=options)[6]
    model = tiny_geolocalizer().from_pretrained(world / "model")
    database = ReferenceDatabase.open(world / "refs")
    alone = model.localize(world / "photos" / "6.png", reference=database, max_precision_km=800.0)
    assert (row["latitude"], row["longitude"]) == pytest.approx((alone.lat, alone.lon), abs=1e-6)
    assert {candidate["key"] for candidate in row["candidates"] if candidate["source"] == "aerial"} == {""}
    assert row["radius_90_km"] is None  # nothing was calibrated with this database
    with pytest.raises(OutputMismatchError, match=r"max_precision_km is 800\.0 there and null here"):
        localize(world, tmp_path / "out.csv", options=SessionOptions(reference=(str(world / "refs"),)))


@pytest.mark.parametrize("kind", ["tar", "parquet", "url"])
def test_tars_tables_and_urls_give_the_rows_of_their_images(world, tmp_path, kind):
    """The same images from another container: rows in its order, and a killed job continues."""
    photos = sorted((world / "photos").glob("*.png"))
    if kind == "parquet":
        source = tmp_path / "photos.parquet"
        table = {"id": [p.stem for p in photos], "image": [p.read_bytes() for p in photos]}
        pq.write_table(pa.table(table), source, row_group_size=3)
    else:
        source = tmp_path / "photos.tar"
        with tarfile.open(source, "w") as tar:
            for photo in photos:
                tar.add(photo, photo.name)
    name = f"file://{source}" if kind == "url" else source
    code, _, error = geoloc("localize", name, "-m", world / "model", "-o", tmp_path / "out.csv", "-q")
    assert code == 1, error  # one image is broken
    expected = localize(world, tmp_path / "expected.csv")
    found = list(read_rows(tmp_path / "out.csv"))
    assert [row["id"] for row in found] == [photo.stem for photo in photos]
    for row, other in zip(found, expected, strict=True):
        assert (row["latitude"], row["longitude"]) == pytest.approx(
            (other["latitude"], other["longitude"]), abs=1e-4
        )
