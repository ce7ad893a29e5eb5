"""`geoloc export onnx`: what it writes, says and refuses."""

from pathlib import Path

import pytest
from PIL import Image
from tiny import tiny_checkpoint, tiny_image
from typer.testing import CliRunner

from geoloc.cli import app
from geoloc.errors import ConfigError, NotFoundError
from geoloc.localize.geolocalizer import Geolocalizer


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(4):
        Image.fromarray(tiny_image(seed)).save(folder / f"{seed}.png")
    return folder


def test_a_model_is_exported_and_localizes(tmp_path: Path, images: Path) -> None:
    model, out = tiny_checkpoint(tmp_path / "model"), tmp_path / "out"
    command = ["export", "onnx", str(model), str(out), "--calibration-images", str(images)]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    assert "4 images of" in result.output
    assert "fp32: largest difference of features" in result.output
    assert "same top cell for 100.00%" in result.output
    assert (out / "parity.json").is_file()
    table = tmp_path / "out.csv"
    localize = ["localize", str(images), "--model", str(out), "--output", str(table), "--reference", "none"]
    assert CliRunner().invoke(app, localize, catch_exceptions=False).exit_code == 0
    latitudes = [float(line.split(",")[1]) for line in table.read_text().splitlines()[1:]]
    expected = [p.lat for p in Geolocalizer.from_pretrained(model).localize(sorted(images.iterdir()))]
    assert latitudes == pytest.approx(expected, abs=1e-3)


def test_refusals(tmp_path: Path, images: Path) -> None:
    model = str(tiny_checkpoint(tmp_path / "model"))
    with pytest.raises(NotFoundError, match="there is no"):
        CliRunner().invoke(
            app,
            ["export", "onnx", model, str(tmp_path / "no" / "out"), "--calibration-images", str(images)],
            catch_exceptions=False,
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises((ConfigError, NotFoundError), match="no image"):
        CliRunner().invoke(
            app,
            ["export", "onnx", model, str(tmp_path / "out"), "--calibration-images", str(tmp_path / "empty")],
            catch_exceptions=False,
        )
    with pytest.raises(ConfigError, match="--least-agreement is about 8 bits: add --int8"):
        CliRunner().invoke(
            app,
            [
                "export",
                "onnx",
                model,
                str(tmp_path / "out"),
                "--calibration-images",
                str(images),
                "--least-agreement=1",
            ],
            catch_exceptions=False,
        )


def test_few_pictures_for_8_bits_are_said_to_be_few(tmp_path: Path, images: Path) -> None:
    command = ["export", "onnx", str(tiny_checkpoint(tmp_path / "model")), str(tmp_path / "out"), "--int8"]
    options = ["--calibration-images", str(images), "--least-agreement", "0.5"]
    result = CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
    assert result.exit_code == 0
    assert "and half judge them: 4 are few for that, give 200 or more" in result.output
