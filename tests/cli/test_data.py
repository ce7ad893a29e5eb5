"""`geoloc data` as a user types it."""

from pathlib import Path

import pytest
from PIL import Image
from tiny import tiny_image
from typer.testing import CliRunner

from geoloc.cli import app
from geoloc.cli.data import LayoutName
from geoloc.data.layouts import LAYOUTS, open_layout
from geoloc.errors import BadTableError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(tiny_image(i)).save(folder / f"{i}.jpg")
    (folder / "t.csv").write_text("id,latitude,longitude\n0,1,2\n1,2,3\n2,3,4\n3,4,5\n")
    return folder


def geoloc(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_the_command_knows_all_layouts():
    assert {name.value for name in LayoutName} == set(LAYOUTS)


def test_verify_of_what_is_good(photos):
    done = geoloc("verify", "photos", photos, "--decode", "--workers", 2)
    assert done.exit_code == 0
    assert "samples     4" in done.output
    assert "findings    none" in done.output


def test_verify_names_rows_and_files(photos):
    (photos / "t.csv").write_text("id,latitude,longitude\n0,1,2\n1,2,3\n2,95,4\n7,4,5\n")
    (photos / "1.jpg").write_bytes((photos / "1.jpg").read_bytes()[:400])
    done = geoloc("verify", "photos", photos)
    assert done.exit_code == 1
    assert "t.csv line 4: (95.0, 4.0) is no place on Earth" in done.output
    assert "t.csv line 5: there is no image file for the id '7'" in done.output
    assert "bad image" not in done.output
    done = geoloc("verify", "photos", photos, "--decode")
    assert f"bad image: {photos / '1.jpg'} of the id '1': " in done.output
    assert "1 bad coordinate, 1 missing image, 1 bad image" in done.output


def test_shard(photos, tmp_path):
    done = geoloc("shard", "photos", photos, tmp_path / "s", "--samples-per-shard", 3, "--workers", 0)
    assert done.exit_code == 0, done.output
    assert "4 samples in 2 shards" in done.output
    assert len(open_layout("webdataset", tmp_path / "s")) == 4
    again = geoloc("shard", "photos", photos, tmp_path / "s", "--samples-per-shard", 3, "--workers", 0)
    assert again.exit_code == 0


def test_shard_refuses_or_drops_what_is_bad(photos, tmp_path):
    (photos / "1.jpg").unlink()
    (photos / "2.jpg").write_bytes(b"no picture")
    done = geoloc("shard", "photos", photos, tmp_path / "s", "--workers", 0)
    assert isinstance(done.exception, BadTableError)
    assert "t.csv line 3: there is no image file" in str(done.exception)
    done = geoloc("shard", "photos", photos, tmp_path / "s", "--drop-bad", "--workers", 0)
    assert "2 samples in 1 shard, 2 samples left out" in done.output
