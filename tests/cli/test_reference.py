"""`geoloc reference`: a database's life from the command line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from PIL import Image
from tiny import tiny_checkpoint, tiny_image

from geoloc import cli
from geoloc.models.config import EmbeddingHeadConfig
from geoloc.reference.database import ReferenceDatabase

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    heads = {role: EmbeddingHeadConfig(dim=8) for role in ("query", "aerial", "street")}
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", embeddings=heads)


@pytest.fixture
def reference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> Run:
    """Run `geoloc reference …` in a folder with a raster and photos: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    profile = {"driver": "GTiff", "width": 200, "height": 200, "count": 3, "dtype": "uint8"}
    transform = rasterio.Affine(1, 0, 330000, 0, -1, 4691000)
    with rasterio.open("town.tif", "w", crs="EPSG:32619", transform=transform, **profile) as file:
        file.write(rng.integers(0, 256, (3, 200, 200), dtype=np.uint8))
    Path("photos").mkdir()
    for number in range(4):
        Image.fromarray(tiny_image(number)).save(f"photos/{number}.jpg")
    lines = [f"{number}.jpg,{10 + number},{20 + number},45" for number in range(4)]
    Path("photos.csv").write_text("\n".join(["id,latitude,longitude,heading_deg", *lines]))

    def run(*arguments: Any) -> tuple[int, str, str]:
        words = list(map(str, arguments))
        if words[0] in ("build", "add") and "--model" not in words:
            words += ["--model", str(checkpoint)]
        monkeypatch.setattr(sys, "argv", ["geoloc", "reference", *words])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        out, err = capsys.readouterr()
        return int(exited.value.code or 0), out, err

    return run


STREET = ("--street", "photos", "--metadata", "photos.csv", "--licence", "CC0-1.0")
AERIAL = ("--aerial", "town.tif", "--gsd-m-per-px", "1,2")


def test_build_both_kinds_and_build_again(reference: Run) -> None:
    code, out, err = reference("build", "refs", *AERIAL, *STREET)
    database = ReferenceDatabase.open("refs")
    rows = database.info()["rows_by_source"]
    assert (code, err) == (0, "")
    assert rows["street"] == 4
    assert 36 <= rows["aerial"] <= 64
    lines = out.splitlines()
    assert lines[0].startswith(f"aerial: {rows['aerial']} rows")
    assert lines[1:] == ["street: 4 rows", f"{len(database)} rows in refs"]
    again = reference("build", "refs", *AERIAL, *STREET)
    assert again[0] == 0
    assert again[1].splitlines()[1:] == ["street: 4 rows (already there)", f"{len(database)} rows in refs"]


def test_built_in_two_steps_it_holds_the_same(reference: Run) -> None:
    reference("build", "one", *STREET, *AERIAL)
    reference("build", "two", *AERIAL)
    code, out, _ = reference("add", "two", *STREET)
    assert code == 0
    assert out.startswith("street: 4 rows\n")
    one, two = (ReferenceDatabase.open(name).info() for name in ("one", "two"))
    for name in ("rows_by_source", "num_segments", "num_shards", "model_fingerprint"):
        assert one[name] == two[name]


def test_stored_as_int8(reference: Run) -> None:
    assert reference("build", "refs", *STREET, "--dtype", "int8")[0] == 0
    assert ReferenceDatabase.open("refs").vector_format.dtype == "int8"
    code, _, err = reference("build", "refs", *STREET)
    assert code == 2
    assert (
        err
        == "error: refs stores int8, and --dtype is float32: repeat what it has, or choose another folder\n"
    )


def test_what_cannot_be_used_is_told_and_the_exit_code_says_so(reference: Run) -> None:
    Path("photos/1.jpg").write_text("no picture")
    code, out, err = reference("build", "refs", *STREET)
    assert code == 1
    assert out == "street: 3 rows, 1 unusable\n3 rows in refs\n"
    assert err == "  1.jpg: not a JPEG, PNG, WebP, TIFF, GIF, BMP or HEIF image\n"


def test_location_rows(reference: Run) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    columns = {"latitude": [1.0, 2.0, 3.0], "longitude": [4.0, 5.0, 6.0]}
    pq.write_table(pa.table({**columns, "embedding": vectors.tolist()}), "gallery.parquet")
    code, out, _ = reference("build", "refs", "--locations", "gallery.parquet")
    assert (code, out) == (0, "location: 3 rows\n3 rows in refs\n")
    pq.write_table(pa.table(columns), "bare.parquet")
    code, _, err = reference("build", "refs", "--locations", "bare.parquet")
    assert code == 2
    assert "bare.parquet has no column 'embedding'" in err


def test_a_region_by_numbers_and_by_geojson(reference: Run) -> None:
    reference("build", "all", *AERIAL)
    south, west, north, east = 42.351, -71.065, 42.3525, -71.06
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    box = {"type": "Polygon", "coordinates": [ring]}
    Path("region.geojson").write_text(json.dumps(box))
    assert reference("build", "box", *AERIAL, "--region", f"{south},{west},{north},{east}")[0] == 0
    assert reference("build", "polygon", *AERIAL, "--region", "region.geojson")[0] == 0
    sizes = [len(ReferenceDatabase.open(name)) for name in ("box", "polygon", "all")]
    assert sizes[0] == sizes[1] < sizes[2]


def test_info_verify_delete_compact_slice_merge(reference: Run) -> None:
    reference("build", "refs", *AERIAL)
    reference("add", "refs", *STREET)
    num_aerial = ReferenceDatabase.open("refs").info()["rows_by_source"]["aerial"]
    code, out, _ = reference("info", "refs")
    assert code == 0
    assert f"rows by source        aerial {num_aerial}, street 4\n" in out
    assert f"rows by licence       unknown {num_aerial}, CC0-1.0 4\n" in out
    assert json.loads(reference("info", "refs", "--json")[1])["num_rows"] == num_aerial + 4
    assert reference("verify", "refs") == (0, f"all is well: {num_aerial + 4} rows, 2 segments in refs\n", "")

    assert reference("slice", "refs", "cut", "--bounds", "9,19,12,30") == (0, "2 rows -> cut\n", "")
    assert reference("slice", "refs", "south", "--path", "0")[1] == "0 rows -> south\n"
    assert reference("merge", "refs", "cut", "both")[1] == f"{num_aerial + 6} rows -> both\n"
    assert reference("delete", "refs", "--key", "0.jpg", "--key", "1.jpg")[1] == (
        f"2 rows deleted, {num_aerial + 2} left in refs\n"
    )
    assert reference("delete", "refs", "--bounds", "-90,-180,90,-60")[1] == (
        f"{num_aerial} rows deleted, 2 left in refs\n"
    )
    code, out, _ = reference("compact", "refs")
    assert code == 0
    assert out.startswith("2 segments -> 1, ")
    assert out.endswith(", 2 rows in refs\n")
    assert reference("delete", "refs", "--row-id", num_aerial + 3)[1] == "1 row deleted, 1 left in refs\n"


def test_verify_finds_a_flipped_bit(reference: Run) -> None:
    reference("build", "refs", *STREET)
    path = Path("refs/segments/0000/embeddings.safetensors")
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    code, out, err = reference("verify", "refs")
    assert (code, out) == (2, "")
    assert "sha256" in err


def test_interrupted_it_says_how_to_go_on(reference: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("geoloc.localize.geolocalizer.Geolocalizer.embed_reference", interrupt)
        code, out, err = reference("build", "refs", *STREET)
    assert (code, out) == (130, "")
    assert err == "interrupted: what is embedded is kept, and the same command continues\n"
    code, _, err = reference("build", "refs", *STREET, "--licence", "MIT")
    assert code == 2
    assert "refs has an unfinished build with other settings: licence is CC0-1.0 there and MIT here; " in err
    assert reference("build", "refs", *STREET)[:2] == (0, "street: 4 rows\n4 rows in refs\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["build", "x"], "there is nothing to add: give --aerial, --street or --locations"),
        (
            ["add", "gone", *STREET],
            "there is no reference database gone: check the path, or create it first",
        ),
        (["build", "x", "--aerial", "gone.tif"], "there is no aerial imagery at gone.tif: check the path"),
        (["build", "x", "--street", "gone"], "there is no folder of photos gone: check the path"),
        (
            ["build", "x", "--aerial", "http://a.invalid/{z}/{x}/{y}"],
            "give cache and zooms, --cache and --zooms",
        ),
        (["build", "x", *AERIAL, "--zooms", "low"], "--zooms is 'low'; expected the coarsest and the finest"),
        (["build", "x", *AERIAL, "--gsd-m-per-px", "fine"], "--gsd-m-per-px is 'fine'; expected numbers"),
        (
            ["build", "x", *AERIAL, "--region", "Boston"],
            "there is no region 'Boston'; similar are",
        ),
        (["build", "x", *AERIAL, "--region", "1,2"], "a box has four, S,W,N,E, and a circle three"),
        (["build", "x", *AERIAL, "--street", "gone"], "there is no folder of photos gone: check the path"),
        (["build", "x", *AERIAL, "--locations", "gone.parquet"], "gone.parquet"),
        (["build", "x", *AERIAL, "--cell-size-m", "0"], "cell_size_m"),
        (["build", "x", *AERIAL, "--value-range", "9"], "--value-range is '9'; expected what becomes black"),
        (
            ["build", "x", *AERIAL, "--value-range", "9,1"],
            "value_range is (9.0, 1.0); it must be two numbers",
        ),
        (["build", "x", *AERIAL, "--min-coverage", "0"], "min_coverage is 0.0"),
        (["build", "x", *AERIAL, "--metadata", "photos.csv"], "--metadata is about photos: add --street"),
        (["build", "x", *STREET, "--column", "latitude"], "--column is 'latitude'; expected geoloc's name"),
        (["build", "x", *STREET, "--street", "more"], "one --metadata describes one --street"),
        (["build", "photos", *STREET], "photos"),
        (["info", "gone"], "there is no reference database gone"),
        (["info", "photos"], "photos is not a reference database: check the path"),
        (["delete", "refs"], "choose rows by exactly one of"),
        (["slice", "refs", "y"], "choose rows by exactly one of"),
        (["slice", "refs", "photos", "--path", "0"], "photos exists and is not empty"),
        (
            ["slice", "refs", "y", "--bounds", "1,2"],
            "--bounds is '1,2'; expected south, west, north and east",
        ),
        (["delete", "refs", "--row-id", "99"], "99"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(reference: Run, arguments: list[str], text: str) -> None:
    ReferenceDatabase.create("refs", dim=8, model_fingerprint="x")
    code, out, err = reference(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert text in err
    assert not Path("x").exists()  # a mistake leaves no empty database


def test_another_model_is_refused(reference: Run, tmp_path: Path) -> None:
    reference("build", "refs", *STREET)
    heads = {role: EmbeddingHeadConfig(dim=8) for role in ("query", "aerial", "street")}
    other = tiny_checkpoint(tmp_path / "other", seed=5, embeddings=heads)
    code, _, err = reference("add", "refs", *AERIAL, "--model", other)
    assert code == 2
    assert "refs was made with the model" in err
