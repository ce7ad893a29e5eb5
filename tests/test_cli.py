import csv
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import tiny_checkpoint, tiny_geolocalizer

from geoloc import __version__, cli
from geoloc.localize.job import job_folder, num_done_on_disk
from geoloc.posterior.coarse import CoarseGrid
from quadtree import Quadtree, build_quadtree

COMMAND = [sys.executable, "-m", "geoloc"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


def make_photos(folder, num_images, size_px=40):
    """Photos of noise; every second one says in its EXIF that it was taken at 48 N, 2 E."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    for number in range(num_images):
        exif = Image.Exif()
        if number % 2 == 0:
            exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 0.0, 0.0), 3: "E", 4: (2.0, 0.0, 0.0)})
        pixels = rng.integers(0, 256, (size_px, size_px + 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.jpg", exif=exif)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder `photos` with five photos in the current one."""
    make_photos(tmp_path / "photos", 5)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


@pytest.fixture
def geoloc(monkeypatch, capsys):
    """Run the command in this process: exit code, stdout, stderr."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["geoloc", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as exited:
            cli.main()
        out, err = capsys.readouterr()
        return exited.value.code or 0, out, err

    return run


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- localize ---------------------------------------------------------------------------------------------


def test_a_table_on_the_screen_and_a_summary(geoloc, photos, checkpoint):
    code, out, err = geoloc("localize", "photos", "--model", checkpoint)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    rows = [line for line in lines if re.match(r" \d{3}\.jpg ", line)]
    assert len(rows) == 5
    assert all(
        re.search(r" -?\d+\.\d{4} +-?\d+\.\d{4} +[A-Z].* +\d+% +[\d,.]+ km +[\d,.]+ km", r) for r in rows
    )
    assert re.fullmatch(r"5 images localised with tiny, \d+\.\d s", lines[-1])
    assert os.listdir() == ["photos"]


def test_the_same_prediction_as_the_library(geoloc, photos, checkpoint):
    geoloc("localize", "photos", "-m", checkpoint, "-o", "out.csv", "--batch-size", 5, "--utility", "median")
    predictions = tiny_geolocalizer().localize(
        [photos / f"{n:03}.jpg" for n in range(5)], batch_size=5, utility="median"
    )
    for row, prediction in zip(read_csv("out.csv"), predictions, strict=True):
        assert float(row["latitude"]) == pytest.approx(prediction.lat, abs=1e-4)
        assert float(row["longitude"]) == pytest.approx(prediction.lon, abs=1e-4)
        assert row["cell_path"] == prediction.cell_path
        assert row["place"] == prediction.place.label
        assert float(row["radius_90_km"]) == pytest.approx(prediction.radius_km[90], rel=1e-3)


def test_three_formats_hold_the_same(geoloc, photos, checkpoint):
    for suffix in ("csv", "geojson", "parquet"):
        code, out, _ = geoloc("localize", "photos", "-m", checkpoint, "-o", f"out.{suffix}", "--quiet")
        assert code == 0
        assert re.fullmatch(rf"5 images localised with tiny, \d+\.\d s -> out\.{suffix}\n", out)
    rows = read_csv("out.csv")
    features = json.loads(Path("out.geojson").read_text())["features"]
    table = pq.read_table("out.parquet").to_pylist()
    assert [row["id"] for row in rows] == [f"{n:03}.jpg" for n in range(5)]
    for row, feature, record in zip(rows, features, table, strict=True):
        assert feature["properties"] == record | {"candidates": json.loads(record["candidates"])}
        assert {name: str(value) for name, value in record.items() if isinstance(value, float)} == {
            name: row[name] for name, value in record.items() if isinstance(value, float)
        }
        assert feature["geometry"]["coordinates"] == [record["longitude"], record["latitude"]]


def test_a_broken_image_gets_a_row_and_the_exit_code_tells(geoloc, photos, checkpoint):
    (photos / "002.jpg").write_bytes((photos / "003.jpg").read_bytes()[:800])
    code, out, err = geoloc("localize", "photos", "-m", checkpoint, "-o", "out.csv")
    assert (code, err) == (1, "")
    assert re.search(r" 002\.jpg +error: truncated JPEG", out)
    assert re.search(r"4 of 5 images localised with tiny, \d+\.\d s, 1 failed -> out\.csv\n$", out)
    assert [row["error"] != "" for row in read_csv("out.csv")] == [False, False, True, False, False]


def test_a_model_that_was_never_calibrated_has_no_radii_and_says_so(geoloc, photos, tmp_path):
    model = tiny_checkpoint(tmp_path / "rough", calibration=None)
    code, out, _ = geoloc("localize", "photos", "-m", model, "-o", "out.csv", "--quiet")
    assert code == 0
    assert re.fullmatch(
        r"5 images localised with tiny, .* s, no radii \(nothing was calibrated\) -> out\.csv\n", out
    )
    assert {row["radius_90_km"] for row in read_csv("out.csv")} == {""}


def test_a_list_on_standard_input(geoloc, photos, checkpoint):
    code, _, _ = geoloc(
        "localize", "-", "-m", checkpoint, "-o", "out.csv", stdin=b"photos/004.jpg\nphotos/gone.jpg\n"
    )
    assert code == 1
    assert [(row["id"], row["error"]) for row in read_csv("out.csv")] == [
        ("photos/004.jpg", ""),
        ("photos/gone.jpg", "file not found"),
    ]


def test_a_coarse_answer_is_coarse_in_every_file(geoloc, photos, checkpoint):
    fine = [p.to_dict() for p in tiny_geolocalizer().localize([photos / f"{n:03}.jpg" for n in range(5)])]
    for suffix in ("csv", "geojson", "parquet"):
        options = ["--max-precision-km", 700, "-o", f"out.{suffix}", "--map", f"{suffix}.html"]
        assert geoloc("localize", "photos", "-m", checkpoint, *options)[0] == 0
    grid = CoarseGrid(700)
    for row in read_csv("out.csv"):
        place = float(row["latitude"]), float(row["longitude"])
        assert grid.snap(place) == pytest.approx(np.array(place), abs=1e-6)
        assert float(row["radius_50_km"]) % 700 == float(row["radius_90_km"]) % 700 == 0
        assert row["place"].count(",") < 2  # a region, no city
    texts = [Path(name).read_bytes() for name in ("out.csv", "out.geojson", "out.parquet", "csv.html")]
    for answer in fine:
        for place in (answer, *answer["candidates"]):
            assert not any(f"{place['lat']:.3f}".encode() in text for text in texts)


def test_abstaining_is_shown(geoloc, photos, checkpoint):
    _, out, _ = geoloc("localize", "photos", "-m", checkpoint, "--abstain-above-km", 1)
    assert out.count("(abstained) ") == 5
    assert out.endswith(", 5 abstained\n")


def test_a_file_name_cannot_steer_the_terminal(geoloc, photos, checkpoint):
    (photos / "000.jpg").rename(photos / "\x1b[31m[bold]evil\n.jpg")
    _, out, _ = geoloc("localize", "photos", "-m", checkpoint)
    assert r" \x1b[31m[bold]evil\n.jpg " in out
    assert "\x1b" not in out


def test_the_table_is_for_few_images_or_when_nothing_else_is_left(geoloc, photos, checkpoint, monkeypatch):
    monkeypatch.setattr("geoloc.cli.localize.FEW_IMAGES", 4)
    _, out, _ = geoloc("localize", "photos", "-m", checkpoint, "-o", "out.csv")
    assert out.count("\n") == 1
    _, out, _ = geoloc("localize", "photos", "-m", checkpoint)
    assert out.count(".jpg") == 5


def map_data(path):
    text = path.read_text()
    return json.loads(
        re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)[1]
    )


def test_the_map_shows_everything_and_is_the_same_every_time(geoloc, photos, checkpoint, tmp_path):
    (photos / "003.jpg").write_text("no picture")
    arguments = ("localize", "photos", "-m", checkpoint, "--map", "map.html", "--truth-from-exif")
    code, out, _ = geoloc(*arguments, "--output", "out.csv")
    assert code == 1
    assert re.search(
        r"1 failed, median error [\d,]+ km over 3 images with a position in EXIF \(for evaluation only, the "
        r"model does not see it\) -> out\.csv, map\.html\n$",
        out,
    )
    first = (tmp_path / "map.html").read_bytes()
    data = map_data(tmp_path / "map.html")
    assert data["title"] == "Predicted places of 5 images"
    assert data["note"].startswith("Model tiny (")
    assert [point["name"] for point in data["points"]] == [f"{n:03}.jpg" for n in range(5)]
    for n, (point, row) in enumerate(zip(data["points"], read_csv("out.csv"), strict=True)):
        if n == 3:
            assert "latlon" not in point
            assert point["error"] == row["error"] != ""
            continue
        assert point["latlon"] == [float(row["latitude"]), float(row["longitude"])]
        radii = {"50": float(row["radius_50_km"]), "90": float(row["radius_90_km"])}
        assert point["radii"] == pytest.approx(radii, rel=1e-3)
        assert len(point["candidates"]) == len(json.loads(row["candidates"])) > 0
        assert point.get("truth") == ([48.0, 2.0] if n % 2 == 0 else None)
        assert len(point["thumbnail"]) > 500
        assert 0 < sum(weight for _, _, weight, _ in point.pop("posterior")) < 1.01
    (tmp_path / "map.html").unlink()
    code, out, _ = geoloc(*arguments, "--output", "out.csv", "--resume")  # complete: drawn from the output
    assert code == 1
    assert out.splitlines()[-1].startswith("already complete: 5 images, 1 failed")
    again = (tmp_path / "map.html").read_bytes()
    assert map_data(tmp_path / "map.html") == data  # less the posteriors, which no table has
    geoloc(*arguments, "--output", "out.csv", "--overwrite")
    assert (tmp_path / "map.html").read_bytes() == first != again


def test_a_map_has_a_limit_and_says_so(geoloc, photos, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("geoloc.cli.localize.MAX_MAP_IMAGES", 2)
    geoloc("localize", "photos", "-m", checkpoint, "--map", "map.html")
    data = map_data(tmp_path / "map.html")
    assert len(data["points"]) == 2
    assert "The first 2 of 5 images." in data["note"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["gone.jpg"], r"there is no file or folder 'gone.jpg'; check the path"),
        (["photos/*.gif"], r"no image found in photos/\*\.gif \(a pattern\); looked for files that end in"),
        (["photos", "-o", "x.txt"], r"the suffix of 'x.txt' names no format of tables; known are \.csv, "),
        (["photos", "-o", "no/x.csv"], r"there is no folder no for x.csv; create it first"),
        (["photos", "-o", "there.csv"], r"there.csv exists already: .*--overwrite.*--resume"),
        (["photos", "-o", "there.csv", "--resume"], r"there.csv exists, and no receipt"),
        (["photos", "-o", "x.csv", "--resume", "--overwrite"], r"choose one of them"),
        (["photos", "--resume"], r"--resume is about an output: add --output"),
        (["photos", "--overwrite"], r"--overwrite is about an output: add --output"),
        (["photos", "--map", "map.png"], r"map\.png must end in \.html"),
        (["photos", "--map", "no/map.html"], r"there is no folder no for map\.html"),
        (["photos", "--utility", "best"], r"utility is 'best'; expected geoscore, median or within:"),
        (["photos", "--top-k", "2000"], r"top_k is 2000; expected 1 to 1000"),
        (["photos", "--max-precision-km", "0"], r"max_precision_km is 0.0; expected 0.001 to 20000 km"),
        (["photos", "--abstain-above-km", "0"], r"abstain_above_km is 0.0; expected a positive number"),
        (["photos", "--model", "no/such/model"], r"no/such/model"),
        (
            ["photos", "--device", "vulcan"],
            r"the device 'vulcan' cannot be used: .*; --device cpu always can",
        ),
    ],
)
def test_a_mistake_is_one_line_on_stderr(geoloc, photos, checkpoint, arguments, text):
    (photos.parent / "there.csv").write_text("mine")
    if "--model" not in arguments:
        arguments = [*arguments, "--model", checkpoint]
    code, out, err = geoloc("localize", *arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: [^\n]*{text}[^\n]*\n", err)
    assert sorted(os.listdir()) == ["photos", "there.csv"]


def test_usage_errors_have_the_same_exit_code(geoloc, photos):
    for arguments in (
        ["localize"],
        ["localize", "photos", "--batch-size", "0"],
        ["localise"],
        ["quadtree", "x"],
    ):
        code, _, err = geoloc(*arguments)
        assert code == 2
        assert "Error: " in err


def test_a_traceback_is_for_those_who_ask_and_for_bugs(geoloc, photos, checkpoint, monkeypatch):
    code, _, err = geoloc("--debug", "localize", "gone.jpg")
    assert code == 2
    assert "Traceback" in err
    assert err.endswith("NotFoundError: there is no file or folder 'gone.jpg'; check the path\n")
    monkeypatch.setattr("geoloc.localize.rows.open_session", lambda *_, **__: 1 / 0)
    code, _, err = geoloc("localize", "photos")
    assert code == 2
    assert err.endswith("ZeroDivisionError: division by zero\n")


def test_what_the_system_refuses_is_one_line_too(geoloc, photos, checkpoint, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "photos/secret")

    monkeypatch.setattr("geoloc.photos.find.os.scandir", refuse)
    assert geoloc("localize", "photos")[1:] == ("", "error: Permission denied: photos/secret\n")


# --- Interrupted and killed -------------------------------------------------------------------------------


def start(*arguments, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Tests that a script runs in the background inherit a deaf ear for ctrl-c, and would hand it on.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([*COMMAND, *map(str, arguments)], env=environment, text=True, **pipes, **options)


def wait_for_rows(process, output, num_images):
    """Wait until the rows of so many images of a running job are on the disk."""
    while process.poll() is None and num_done_on_disk(output) < num_images:
        time.sleep(0.002)


def test_ctrl_c_keeps_what_is_done_and_says_how_to_continue(geoloc, tmp_path, checkpoint):
    make_photos(tmp_path / "photos", 600)  # enough to be interrupted on a busy machine, too
    output, whole = tmp_path / "out.csv", tmp_path / "whole.csv"
    options = ["localize", tmp_path / "photos", "-m", checkpoint, "--batch-size", 1, "--output"]
    process = start(*options, output)
    wait_for_rows(process, output, 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    done = re.fullmatch(
        r"interrupted: (\d+) of 600 images are done; the same command with --resume continues\n", err
    )
    assert out == ""
    assert not output.exists()
    num_done = num_done_on_disk(output)
    assert num_done == int(done[1])
    assert 0 < num_done < 600
    assert num_done % 64 == 0  # what a kill costs at most
    code, out, _ = geoloc(*options, output, "--resume")
    assert code == 0
    assert f"600 images localised with tiny, {600 - num_done} of them now, " in out
    geoloc(*options, whole)
    assert output.read_bytes() == whole.read_bytes()


def test_ctrl_c_before_anything_is_done(geoloc, photos, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("geoloc.localize.rows.open_session", interrupt)
    assert geoloc("localize", "photos", "-o", "out.csv") == (130, "", "interrupted: nothing was saved\n")


@pytest.mark.slow
def test_killed_at_50_random_moments_the_file_is_the_same(tmp_path, checkpoint):
    num_kills, rng = 50, random.Random(2024)
    make_photos(tmp_path / "photos", 1200, size_px=160)
    (tmp_path / "photos" / "100.jpg").write_text("no picture")
    output, last = tmp_path / "out.geojson", 1200
    arguments = [
        "localize",
        tmp_path / "photos",
        "-m",
        checkpoint,
        "-o",
        output,
        "--resume",
        "--batch-size",
        4,
    ]

    def run_to_its_end():
        start_s = time.monotonic()
        process = start(*arguments)
        _, err = process.communicate()
        assert process.returncode == 1, err  # one image is broken
        assert sorted(os.listdir(tmp_path)) == [".out.geojson.receipt", "out.geojson", "photos"]
        return output.read_bytes(), time.monotonic() - start_s

    expected, whole_s = run_to_its_end()
    output.unlink()
    killed = {"loading": 0, "working": 0, "writing": 0}
    num_finished = 0
    while sum(killed.values()) < num_kills:
        before = num_done_on_disk(output)
        process = start(*arguments)
        if before == last or rng.random() < 0.2:
            time.sleep(rng.uniform(0, whole_s))
        else:
            target = last if rng.random() < 0.3 else min(last, before + 64 * rng.randint(1, 6))
            wait_for_rows(process, output, target)
            time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            after = num_done_on_disk(output)
            is_writing = after != before and (after in (0, last))
            killed["writing" if is_writing else "working" if after != before else "loading"] += 1
        if output.exists() and not job_folder(output).exists():
            assert run_to_its_end()[0] == expected  # complete already
            output.unlink()
            num_finished += 1
    assert run_to_its_end()[0] == expected
    print(f"killed {killed}, finished {num_finished + 1} times")
    assert min(killed.values()) >= 3


# --- quadtree ---------------------------------------------------------------------------------------------


@pytest.fixture
def points(tmp_path, monkeypatch):
    """A table of 5,000 points as CSV, and as Parquet with other names of its columns."""
    rng = np.random.default_rng(3)
    latlon_deg = np.stack([rng.uniform(-60, 70, 5000), rng.uniform(-180, 180, 5000)], axis=1)
    np.savetxt(tmp_path / "points.csv", latlon_deg, "%.17g", ",", header="latitude,longitude", comments="")
    pq.write_table(pa.table({"y": latlon_deg[:, 0], "x": latlon_deg[:, 1]}), tmp_path / "points.parquet")
    monkeypatch.chdir(tmp_path)
    return latlon_deg


def test_build_from_csv_and_parquet_is_the_librarys_tree(geoloc, points):
    options = ["--max-points-per-cell", 300, "--max-depth", 4, "--root", "data"]
    code, out, _ = geoloc("quadtree", "build", "points.csv", "a.parquet", *options)
    assert code == 0
    columns = ["--latitude-column", "y", "--longitude-column", "x"]
    assert geoloc("quadtree", "build", "points.parquet", "b.parquet", *options, *columns)[0] == 0
    tree = build_quadtree(points, max_points_per_cell=300, max_depth=4, root="data")
    assert Quadtree.read("a.parquet") == Quadtree.read("b.parquet") == tree
    assert out == (
        f"{tree.num_cells} cells, depth {tree.depths.min()} to {tree.max_depth}, "
        f"fingerprint {tree.fingerprint[:12]} -> a.parquet\n"
    )


def test_build_replaces_nothing_unasked(geoloc, points):
    assert geoloc("quadtree", "build", "points.csv", "a.parquet")[0] == 0
    code, _, err = geoloc("quadtree", "build", "points.csv", "a.parquet", "--max-depth", 2)
    assert code == 2
    assert re.match(r"error: a\.parquet exists already: .*--overwrite", err)
    assert geoloc("quadtree", "build", "points.csv", "a.parquet", "--max-depth", 2, "--overwrite")[0] == 0
    assert Quadtree.read("a.parquet").max_depth == 2


def facts(out):
    return dict(re.findall(r"^(\S.*?)  +(.*)$", out, re.MULTILINE))


def test_info_says_what_the_tree_is(geoloc, points):
    geoloc("quadtree", "build", "points.csv", "a.parquet", "--max-points-per-cell", 300)
    code, out, _ = geoloc("quadtree", "info", "a.parquet")
    tree = Quadtree.read("a.parquet")
    assert code == 0
    found = facts(out)
    assert found["root"] == "the whole Earth"
    assert found["cells"] == f"{tree.num_cells:,}"
    assert found["points"] == "5,000"
    assert found["empty leaves"] == f"{len(tree.empty_paths):,}"
    assert found["fingerprint"] == tree.fingerprint
    # Area by Archimedes: a zone of the sphere has the share of its height.
    heights = np.diff(np.sin(np.radians(tree.bounds_deg[:, [0, 2]])))[:, 0]
    shares = heights / 2 * (tree.bounds_deg[:, 3] - tree.bounds_deg[:, 1]) / 360
    assert found["empty share of the area"] == f"{1 - shares.sum():.1%}"
    earth_km2 = 4 * np.pi * 6371.0088**2
    assert found["area of a cell"].startswith(
        f"{shares.min() * earth_km2:,.0f} to {shares.max() * earth_km2:,.0f}"
    )
    by_depth = re.findall(r"^ +(\d+) +([\d,]+)  #+$", out, re.MULTILINE)
    assert [(int(depth), int(count)) for depth, count in by_depth] == [
        (depth, int((tree.depths == depth).sum())) for depth in np.unique(tree.depths)
    ]


def test_info_of_osv5ms_table(geoloc, points):
    tree = build_quadtree(points, max_points_per_cell=300, root="data")
    tree.write_osv5m_csv("cells.csv")
    code, out, _ = geoloc("quadtree", "info", "cells.csv")
    assert code == 0
    assert facts(out)["points"] == "unknown"
    assert re.fullmatch(r"-\S+ to \S+ N, -\S+ to \S+ E", facts(out)["root"])
    assert facts(out)["fingerprint"] == tree.fingerprint


def test_maps_of_a_tree(geoloc, points, tmp_path):
    build_quadtree(points, max_points_per_cell=2000, max_depth=2).write("a.parquet")
    for name, first_bytes in (("map.html", b"<!"), ("map.png", b"\x89PNG")):
        code, out, _ = geoloc("quadtree", "map", "a.parquet", "--output", name)
        assert code == 0
        assert re.fullmatch(rf"\d+ cells -> {name}\n", out)
        assert (tmp_path / name).read_bytes().startswith(first_bytes)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["build", "points.csv", "tree.csv"], r"tree\.csv must end in \.parquet"),
        (["build", "gone.csv", "tree.parquet"], r"no table of points at gone\.csv"),
        (
            ["build", "points.parquet", "tree.parquet"],
            r"has no column 'latitude' and 'longitude'; its columns are",
        ),
        (["build", "points.csv", "no/tree.parquet"], r"there is no folder no for tree\.parquet"),
        (
            ["info", "gone.parquet"],
            r"there is no quadtree at gone\.parquet: build one with `geoloc quadtree build`",
        ),
        (["info", "points.parquet"], r"points\.parquet is Parquet but no quadtree"),
        (["info", "points.csv"], r"points\.csv is not an OSV-5M cell table: missing columns"),
        (["info", "tree.json"], r"tree\.json is not a quadtree: it must end in \.parquet, or in \.csv"),
        (["map", "points.csv", "--output", "map.svg"], r"map\.svg must end in \.html or \.png"),
    ],
)
def test_a_mistake_with_trees_is_one_line_on_stderr(geoloc, points, arguments, text):
    code, out, err = geoloc("quadtree", *arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: [^\n]*{text}[^\n]*\n", err)
    assert sorted(os.listdir()) == ["points.csv", "points.parquet"]


# --- The command itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--help"], ["localize", "--help"], ["quadtree", "--help"], ["--version"]]
)
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import sys\nfrom geoloc.cli import main\nsys.argv = ['geoloc', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "numpy", "pandas", "pyarrow", "matplotlib", "PIL", "rich", "scipy", "open_clip"}
    assert not heavy & set(done.stderr.split())
    assert done.stdout


def test_the_module_is_the_command():
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"geoloc {__version__}\n"


def test_help_names_every_option_of_localize(geoloc):
    _, out, _ = geoloc("localize", "--help")
    for option in (
        "--model",
        "--output",
        "--map",
        "--resume",
        "--overwrite",
        "--truth-from-exif",
        "--device",
    ):
        assert f" {option}" in out
    assert "Exit code: 0 all localised, 1 some images" in " ".join(out.split())
