"""A real (tiny) model over shards: its own answers, the same bytes from every engine, and the commands."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import tiny_checkpoint, tiny_geolocalizer, tiny_image
from typer.testing import CliRunner

from geoloc.batch.sources import plan_shards
from geoloc.batch.work import EmbedWork, LocalizeWork, WorkOptions
from geoloc.cli import app
from geoloc.errors import OutputMismatchError
from geoloc.jobs.shards import ShardJob
from geoloc.localize.output import read_rows
from geoloc.models.config import EmbeddingHeadConfig

NUM_IMAGES = 7


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of photos, one of them broken, with their truth; and a checkpoint that can embed."""
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
    return folder


def run(world, output, work, engine="local", num_workers=0):
    job = ShardJob(output, plan_shards([str(world / "photos")], 3), work.identity())
    job.run(work, engine=engine, num_workers=num_workers)
    job.finish()
    return {path.name: path.read_bytes() for path in sorted(output.iterdir())}


def test_localize_is_the_models_own_answer(world, tmp_path):
    work = LocalizeWork(str(world / "model"), WorkOptions(batch_size=2, top_k=3))
    run(world, tmp_path / "out", work)
    rows = [row for number in range(3) for row in read_rows(tmp_path / "out" / f"{number:05}.parquet")]
    assert [row["id"] for row in rows] == [f"{number}.png" for number in range(NUM_IMAGES)]
    assert [row["error"] is None for row in rows] == [number != 3 for number in range(NUM_IMAGES)]
    model = tiny_geolocalizer().from_pretrained(str(world / "model"))
    alone = model.localize(world / "photos" / "5.png", top_k=3)
    assert (rows[5]["latitude"], rows[5]["longitude"]) == pytest.approx((alone.lat, alone.lon), abs=1e-4)
    assert len(rows[5]["candidates"]) == len(alone.candidates)


def test_another_option_is_another_job(world, tmp_path):
    run(world, tmp_path / "out", LocalizeWork(str(world / "model")))
    with pytest.raises(OutputMismatchError, match="top_k is 5 there and 6 here"):
        run(world, tmp_path / "out", LocalizeWork(str(world / "model"), WorkOptions(top_k=6)))


@pytest.mark.parametrize("role", ["query", "aerial"])
def test_embeddings(world, tmp_path, role):
    run(world, tmp_path / "out", EmbedWork(str(world / "model"), role, options=WorkOptions(batch_size=2)))
    table = pq.read_table(tmp_path / "out" / "00001.parquet")
    assert table["id"].to_pylist() == ["3.png", "4.png", "5.png"]
    broken, *rest = table["embedding"].to_pylist()
    assert broken is None
    assert table["error"].to_pylist()[0] is not None
    assert np.linalg.norm(np.array(rest, float), axis=1) == pytest.approx(1, abs=2e-3)


@pytest.mark.slow
def test_processes_write_the_bytes_of_this_process(world, tmp_path):
    work = LocalizeWork(str(world / "model"))
    assert run(world, tmp_path / "b", work, num_workers=2) == run(world, tmp_path / "a", work)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_writes_the_bytes_of_this_process(world, tmp_path):
    pytest.importorskip("ray")
    work = LocalizeWork(str(world / "model"))
    assert run(world, tmp_path / "b", work, "ray", 2) == run(world, tmp_path / "a", work)


def geoloc(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    return result.exit_code, result.output, result.exception


def test_the_commands(world, tmp_path):
    code, text, error = geoloc(
        "batch",
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
    assert "3 shards of localize" in text
    evaluate = (
        "evaluate", "-m", world / "model", "-b", "csv", "--data", world / "photos", "-o", tmp_path / "report",
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
