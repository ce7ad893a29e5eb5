"""The report's files, its page in a real browser where there is one, and the command that writes it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from geoloc.cli import app
from geoloc.errors import OutputMismatchError
from geoloc.evaluate.evaluation import Evaluation
from geoloc.evaluate.matching import match
from geoloc.evaluate.report import EvaluationRun
from geoloc.evaluate.run import EvaluateOptions, evaluate
from geoloc.files import verify_manifest
from geoloc.files.tables import read_points
from geoloc.geo.places import load_places
from geoloc.metrics.protocols import get_protocol
from quadtree.sphere import destination_latlon_deg

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = '<script>alert(1)</script>"&\U0001f30d'


def write_tables(folder, num=150):
    rng = np.random.default_rng(0)
    cities = load_places().latlon_deg
    truth = cities[rng.integers(0, len(cities), num)]
    error_km = np.exp(rng.normal(4, 2, num)).clip(0, 15000)
    predicted = destination_latlon_deg(truth, rng.uniform(0, 360, num), error_km)
    ids = [f"{i}.jpg" for i in range(num)]
    ids[int(error_km.argmax())] = NASTY
    quoted = ['"' + name.replace('"', '""') + '"' for name in ids]
    (folder / "truth.csv").write_text(
        "id,latitude,longitude,camera\n"
        + "".join(
            f"{n},{a:.6f},{b:.6f},{'xy'[i % 2]}\n"
            for i, (n, (a, b)) in enumerate(zip(quoted, truth, strict=True))
        ),
        encoding="utf-8",
    )
    (folder / "predictions.csv").write_text(
        "id,latitude,longitude,radius_50_km,radius_90_km\n"
        + "".join(
            f"{n},{a:.6f},{b:.6f},{e:.3f},{3 * e:.3f}\n"
            for n, (a, b), e in zip(quoted, predicted, error_km * rng.uniform(0.4, 2, num), strict=True)
        )
        + "nobody.jpg,1,1,1,1\n",
        encoding="utf-8",
    )
    return ids, error_km


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    ids, error_km = write_tables(folder)
    (folder / "images").mkdir()
    Image.new("RGB", (640, 480), (10, 120, 160)).save(folder / "images" / ids[int(np.argsort(error_km)[-2])])
    matched = match(read_points(folder / "truth.csv"), read_points(folder / "predictions.csv"))
    evaluation = Evaluation(get_protocol("geodesic"), ["continent", "camera"])
    evaluation.add(matched)
    run = EvaluationRun.of(
        matched,
        evaluation,
        warnings=["Leakage: something."],
        find_image=lambda name: folder / "images" / name if (folder / "images" / name).is_file() else None,
    )
    run.write(folder / "out", title=NASTY)
    return folder / "out", run


def test_files_and_manifest(report):
    folder, run = report
    assert sorted(p.name for p in folder.iterdir()) == [
        "images.parquet", "manifest.json", "metrics.json", "metrics.md", "report.html",
    ]  # fmt: skip
    verify_manifest(folder, strict=True)
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    assert metrics == json.loads(json.dumps(run.metrics))
    assert metrics["protocol"] == "geodesic"
    assert metrics["rules"]["distance"] == "WGS84 geodesic"
    assert metrics["problems"]["extra"]["examples"] == ["nobody.jpg"]
    assert {
        "num_images",
        "num_missing",
        "geoscore",
        "mean_km",
        "median_km",
        "accuracy_within_km",
    } <= metrics.keys()
    assert {"accuracy_by_admin", "recall_at", "regions", "risk_coverage", "breakdowns"} <= metrics.keys()
    assert "geoloc" in metrics["made_with"]["versions"]


def test_rows_of_the_images_add_up_to_the_metrics(report):
    folder, run = report
    rows = pq.read_table(folder / "images.parquet").to_pylist()
    assert len(rows) == 150
    assert np.mean([row["geoscore"] for row in rows]) == pytest.approx(run.metrics["geoscore"], abs=1e-6)
    assert np.median([row["distance_km"] for row in rows]) == pytest.approx(
        run.metrics["median_km"], rel=1e-9
    )
    assert rows[0]["truth_place"].count(",") >= 1


def test_markdown_names_protocol_and_problems(report):
    text = (report[0] / "metrics.md").read_text("utf-8")
    assert "Protocol `geodesic`" in text
    assert "1 extra: predictions for images that the truth does not have" in text
    assert "**Leakage: something.**" in text
    assert "95 % interval of the GeoScore" in text


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.urls = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.urls += [
            value for name, value in attrs if name in ("href", "src", "xlink:href", "srcset", "data")
        ]


def test_the_page_is_one_file_without_scripts(report):
    text = (report[0] / "report.html").read_text("utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert all(url.startswith(("data:", "#")) for url in page.urls)
    assert not re.search(r"url\(|@import|\bstyle=|\bon\w+=", text)
    assert "&lt;script&gt;alert(1)" in text
    assert page.tags.count("figure") == 12
    assert page.tags.count("img") == 1
    for heading in (
        "Where it errs",
        "How far off",
        "calibration",
        "risk and coverage",
        "How deep",
        "confuses",
        "Worst",
    ):
        assert heading in text
    assert "By camera" in text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_nothing_is_logged_and_nothing_is_fetched(report, tmp_path):
    log = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--disable-quic",
            f"--user-data-dir={tmp_path}", "--enable-logging=stderr",
            "--virtual-time-budget=2000", "--dump-dom", (report[0] / "report.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    # The page's policy forbids every request, and a forbidden one would be an error in the console.
    assert "CONSOLE" not in log.stderr
    assert (
        log.stdout.count("<svg") == 17
    )  # map, four charts, confusion, and eleven small maps of the worst cases


def test_a_report_replaces_only_a_report(report, tmp_path):
    _, run = report
    run.write(tmp_path / "r")
    run.write(tmp_path / "r")
    (tmp_path / "r" / "mine.txt").write_text("x")
    with pytest.raises(OutputMismatchError, match=r"mine.txt"):
        run.write(tmp_path / "r")


# --- The command ------------------------------------------------------------------------------------------


def geoloc(*arguments):
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    return result.exit_code, result.output, result.exception


def test_the_command(tmp_path):
    write_tables(tmp_path)
    out = tmp_path / "report"
    code, text, error = geoloc(
        "score", "--predictions", tmp_path / "predictions.csv", "--truth", tmp_path / "truth.csv",
        "--protocol", "osv5m", "--output", out, "--by", "camera", "--gallery", tmp_path / "truth.csv",
    )  # fmt: skip
    assert code == 0, error
    assert "protocol osv5m, 150 images, GeoScore" in text
    assert "1 extra: predictions for images that the truth does not have" in text
    assert "warning: The protocol osv5m is defined on 210,122 images, and these are 150" in text
    assert "Leakage: 150 of 150 images (100.0%) have a point of truth.csv within 1 m" in text
    assert [
        path.name for path in tmp_path.glob(".*")
    ] == []  # the scores of shards go when the report is there
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    assert metrics["made_with"]["gallery"] == "truth.csv"
    assert set(metrics["breakdowns"]) == {"country", "continent", "density", "camera"}


def test_columns_are_mapped_by_flags(tmp_path):
    (tmp_path / "t.csv").write_text("img,lat,lon\na,1,2\n")
    (tmp_path / "p.csv").write_text("name,y,x\na,1,2\n")
    code, text, error = geoloc(
        "score", "-p", tmp_path / "p.csv", "-t", tmp_path / "t.csv", "--column", "id=name", "--column", "latitude=y",
        "--column", "longitude=x", "--truth-column", "id=img", "--truth-column", "latitude=lat",
        "--truth-column", "longitude=lon",
    )  # fmt: skip
    assert code == 0, error
    assert "GeoScore 5,000.0" in text


def test_compare(tmp_path):
    write_tables(tmp_path)
    code, text, error = geoloc(
        "compare",
        tmp_path / "predictions.csv",
        tmp_path / "truth.csv",
        "-t",
        tmp_path / "truth.csv",
        "-o",
        tmp_path / "c",
    )
    assert code == 0, error
    assert "| geoscore |" in text
    found = json.loads((tmp_path / "c" / "comparison.json").read_text("utf-8"))
    assert found["differences"]["geoscore"]["b"] == 5000
    assert found["differences"]["geoscore"]["interval"][0] > 0
    assert found["problems_a"]["extra"]["count"] == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["score", "-p", "p.csv"], "Missing option '--truth'"),
        (["score", "-p", "p.csv", "-b", "csv"], "No such option: -b"),
        (["score", "-p", "p.csv", "-t", "t.csv", "--reference", "none"], "No such option: --reference"),
        (["benchmark", "-b", "csv", "-m", "x"], "Missing option '--data'"),
        (["compare", "a.csv", "-t", "t.csv"], "Missing argument 'B'"),
        (["compare", "a.csv", "b.csv", "-t", "t.csv"], "there is no table"),
        (["score", "-p", "p.csv", "-t", "t.csv", "--protocol", "osv"], "there is no protocol 'osv'"),
        (["score", "-p", "p.csv", "-t", "t.csv"], "there is no table"),
        (["score", "-p", "p.csv", "-t", "t.csv", "--column", "name=x"], "--column names 'name'"),
        (["score", "-p", "p.csv", "-t", "t.csv", "-o", "nowhere/report"], "there is no folder nowhere"),
        (["score", "-p", "p.csv", "-t", "t.csv", "--subset", "s.txt"], "there is no file s.txt of ids"),
    ],
)
def test_what_the_command_refuses(arguments, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, error = geoloc(*arguments)
    assert code != 0
    assert complaint in f"{text}{error}"


def test_the_command_and_the_library_give_the_same_report(tmp_path):
    write_tables(tmp_path)
    code, _, error = geoloc(
        "score", "-p", tmp_path / "predictions.csv", "-t", tmp_path / "truth.csv", "--by", "camera",
        "-o", tmp_path / "by_command",
    )  # fmt: skip
    assert code == 0, error
    tables = (read_points(tmp_path / name) for name in ("truth.csv", "predictions.csv"))
    options = EvaluateOptions(breakdowns=["camera"])
    evaluate(*tables, options, output=tmp_path / "by_call", images=tmp_path)
    a, b = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("by_command", "by_call"))
    assert a == b
    assert a["breakdowns"]["camera"].keys() == {"x", "y"}


def test_a_subset_by_a_file(tmp_path):
    write_tables(tmp_path)
    (tmp_path / "s.txt").write_text("1.jpg\n2.jpg\n")
    code, text, error = geoloc(
        *("score", "-p", tmp_path / "predictions.csv", "-t", tmp_path / "truth.csv"),
        *("--subset", tmp_path / "s.txt"),
    )
    assert code == 0, error
    assert "protocol geodesic, 2 images" in text
    assert "148 outside subset" in text
