"""`--model-option`: words become values strictly, and every command that takes a model hands them to it."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import tiny_checkpoint
from typer.testing import CliRunner

from geoloc import Geolocalizer
from geoloc.cli import app
from geoloc.cli.model_options import model_options
from geoloc.errors import ConfigError

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from named_numbers import state_of

ADAPTERS = Path(__file__).parents[1] / "adapters"


def test_values_have_the_kinds_of_their_options() -> None:
    said = model_options(
        ["quadtree=a=b.csv", "image_size_px=480,640", "pooled_size=2,3", "lora_alpha=1.5", "aggregation=spoc"]
    )
    assert said == {
        "quadtree": "a=b.csv",
        "image_size_px": (480, 640),
        "pooled_size": (2, 3),
        "lora_alpha": 1.5,
        "aggregation": "spoc",
    }
    assert model_options(["l2=none"]) == {"l2": "none"}
    assert model_options(["image_size_px=512"]) == {"image_size_px": 512}
    assert model_options([]) == {}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["quadtree"], r"'quadtree' is not an option.*options: quadtree=PATH.*pooled_size=N,N"),
        (["quadtre=x.csv"], r"'quadtre=x\.csv' is not an option.*image_size_px=N or N,N.*lora_alpha=NUMBER"),
        (
            ["image_size_px=big"],
            r"image_size_px=big has the wrong kind of value: expected image_size_px=N or N,N",
        ),
        (["image_size_px=0"], "image_size_px=0 has the wrong kind"),
        (["image_size_px=-3"], "image_size_px=-3 has the wrong kind"),
        (["image_size_px=480,"], "image_size_px=480, has the wrong kind"),
        (["image_size_px=3,480,640"], "image_size_px=3,480,640 has the wrong kind"),
        (["pooled_size=2"], "pooled_size=2 has the wrong kind of value: expected pooled_size=N,N"),
        (["lora_alpha=nan"], "lora_alpha=nan has the wrong kind of value: expected lora_alpha=NUMBER"),
        (["tower="], "tower= has the wrong kind of value: expected tower=PATH"),
        (["lora_alpha=1", "lora_alpha=2"], "lora_alpha was given twice"),
    ],
)
def test_what_is_no_option_lists_what_there_is(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_options(texts)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file of the VG benchmark that does not say how it pools."""
    name = "vg alexnet gem"
    made: dict[str, Any] = json.loads((ADAPTERS / "fixtures" / "place_recognition.json").read_text())[name]
    state = state_of(made["tensors"], made["gain"])
    torch.save({n: t for n, t in state.items() if n.startswith("backbone.")}, tmp_path / "best_model.pth")
    return tmp_path / "best_model.pth"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos, and a table of where they were taken."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    with (folder / "photos.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "latitude", "longitude"])
        for number, place in enumerate([(55.7, 13.2), (0.0, -179.0), (-33.9, 151.2)]):
            blocks = rng.integers(0, 256, (6, 8, 3), np.uint8)
            Image.fromarray(blocks).resize((96, 72)).save(folder / f"{number}.png")
            table.writerow([f"{number}.png", *place])
    return folder


SAID = ["--model-option", "aggregation=spoc", "--model-option", "image_size_px=64,96"]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_every_command_hands_them_on(model: Path, photos: Path, tmp_path: Path) -> None:
    refs, given = tmp_path / "refs", ["--model", model, *SAID]
    run(
        "reference", "build", refs, "--street", photos, "--metadata", photos / "photos.csv", *given, "--quiet"
    )
    run("localize", photos, *given, "--reference", refs, "--output", tmp_path / "out.csv", "--quiet")
    with (tmp_path / "out.csv").open(newline="") as file:
        found = [float(row["longitude"]) for row in csv.DictReader(file)]
    assert found == pytest.approx([13.2, -179, 151.2], abs=0.1)

    asked = ["--benchmark", "csv", "--data", photos / "photos.csv", "--reference", refs]
    run("evaluate", "benchmark", *given, *asked, "--output", tmp_path / "report")
    report = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert report["median_km"] < 10
    assert "(64, 96)" in (tmp_path / "report" / "metrics.md").read_text()

    run("embed", photos, *given, "--output", tmp_path / "vectors")
    (shard,) = (tmp_path / "vectors").glob("*.parquet")
    loaded = Geolocalizer.from_pretrained(model, aggregation="spoc", image_size_px=(64, 96))
    expected = loaded.embed_reference(loaded.load(photos / "0.png")[None], "street")[0]
    vectors = dict(
        zip(*(pq.read_table(shard)[name].to_pylist() for name in ("id", "embedding")), strict=True)
    )
    (first,) = (vector for name, vector in vectors.items() if name.endswith("0.png"))
    np.testing.assert_allclose(first, expected, atol=1e-3)

    exported = tmp_path / "onnx"
    assert "embedding_query" in run("export", "onnx", model, exported, "--calibration-images", photos, *SAID)
    run(
        "localize",
        photos,
        "--model",
        exported,
        "--reference",
        refs,
        "--output",
        tmp_path / "o.csv",
        "--quiet",
    )
    with (tmp_path / "o.csv").open(newline="") as file:
        assert [float(row["longitude"]) for row in csv.DictReader(file)] == pytest.approx(found, abs=0.1)


def test_a_model_of_ours_leaves_nothing_open(photos: Path, tmp_path: Path) -> None:
    ours = tiny_checkpoint(tmp_path / "ours")
    for command in (["localize", photos], ["reference", "build", tmp_path / "refs", "--street", photos]):
        arguments = [*command, "--model", ours, "--model-option", "image_size_px=64"]
        with pytest.raises(ConfigError, match="leaves nothing open"):
            CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_an_evaluation_of_predictions_has_no_model(photos: Path) -> None:
    table = str(photos / "photos.csv")
    result = CliRunner().invoke(app, ["evaluate", "score", "--predictions", table, "--truth", table, *SAID])
    assert result.exit_code == 2
    assert "No such option: --model-option" in result.output
