"""Predictions on the map: one of them, and rows of a table."""

import base64
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_map_html import HOSTILE, Page, data_of

from geoloc.errors import BadImageError
from geoloc.geo.places import Place
from geoloc.localize.table import make_row, read_rows, with_truth, write_rows
from geoloc.posterior.prediction import Atom, Candidate, Prediction
from geoloc.view.map_html import MapPoint
from geoloc.view.prediction_map import point_of_row, thumbnail_jpeg, write_prediction_map

PREDICTION = Prediction(
    lat=-17.5,
    lon=179.9,
    cell_path="0312",
    probability=0.8125,
    candidates=(Candidate(-17.5, 179.8, 0.8125, "cell", None, "0312"),),
    radius_km={50: 100.0, 90: 300.0},
    place=Place("Suva", "Central", "", "FJ", (-18.1, 178.4), 170.0),
    posterior=(Atom(-17.5, 179.8, 0.75, 90.0), Atom(-16.0, -179.0, 0.2, 30.0)),
)


def test_one_prediction_with_its_photo(tmp_path: Path) -> None:
    photo = tmp_path / "suva.png"
    Image.new("RGB", (640, 320), (200, 30, 30)).save(photo)
    write_prediction_map(PREDICTION, tmp_path / "map.html", photo)
    data = data_of(tmp_path / "map.html")
    assert data["title"] == "Predicted place of suva.png"
    (point,) = data["points"]
    with Image.open(BytesIO(base64.b64decode(point.pop("thumbnail")))) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (160, 80))
    assert point == {
        "name": "suva.png",
        "latlon": [-17.5, 179.9],
        "radii": {"50": 100.0, "90": 300.0},
        "candidates": [[-17.5, 179.8, 0.8125]],
        "place": PREDICTION.place and PREDICTION.place.label,
        "probability": 0.8125,
        "posterior": [[-17.5, 179.8, 0.75, 90.0], [-16.0, -179.0, 0.2, 30.0]],
    }


def test_the_least_prediction_without_a_photo(tmp_path: Path) -> None:
    write_prediction_map(Prediction(1.0, 2.0, "", 1.0), tmp_path / "map.html")
    data = data_of(tmp_path / "map.html")
    assert data["title"] == "Predicted place of image"
    assert data["points"] == [
        {"name": "image", "latlon": [1.0, 2.0], "radii": {}, "candidates": [], "probability": 1.0}
    ]


def test_photos_of_every_kind_and_a_name(tmp_path: Path) -> None:
    pixels = np.zeros((50, 40, 3), np.uint8)
    for image in (pixels, Image.fromarray(pixels), thumbnail_jpeg(pixels)):
        write_prediction_map(PREDICTION, tmp_path / "map.html", image, name="mine")
        (point,) = data_of(tmp_path / "map.html")["points"]
        assert point["name"] == "mine"
        assert "thumbnail" in point


def test_a_broken_photo_leaves_the_old_map(tmp_path: Path) -> None:
    (tmp_path / "map.html").write_text("old")
    with pytest.raises(BadImageError):
        write_prediction_map(PREDICTION, tmp_path / "map.html", b"no picture")
    assert (tmp_path / "map.html").read_text() == "old"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_is_no_markup(tmp_path: Path, text: str) -> None:
    plain, hostile = tmp_path / "plain.html", tmp_path / "hostile.html"
    write_prediction_map(PREDICTION, plain, name="x")
    write_prediction_map(PREDICTION, hostile, name=text)
    plain_page, hostile_page = (Page(path.read_text(encoding="utf-8")) for path in (plain, hostile))
    assert hostile_page.elements == plain_page.elements
    assert hostile_page.joined("script", 1) == plain_page.joined("script", 1)
    assert data_of(hostile)["points"][0]["name"] == text


def test_a_row_from_a_table_has_all_but_the_posterior(tmp_path: Path) -> None:
    fresh = with_truth(make_row("suva.jpg", PREDICTION), (-18.0, 178.5))
    broken = with_truth(make_row("b.jpg", None, "truncated JPEG"), None)
    write_rows(tmp_path / "out.csv", [fresh, broken], truth=True)
    from_table, failed = map(point_of_row, read_rows(tmp_path / "out.csv"))
    assert failed == point_of_row(broken) == MapPoint("b.jpg", None, error="truncated JPEG")
    assert not from_table.posterior
    assert from_table.truth_latlon_deg == (-18.0, 178.5)
    with_heat = point_of_row(fresh, b"jpeg")
    assert with_heat.posterior == [list(atom) for atom in PREDICTION.posterior]
    assert with_heat.thumbnail_jpeg == b"jpeg"
    assert vars(from_table) == vars(with_heat) | {"posterior": (), "thumbnail_jpeg": None}


@pytest.mark.slow
def test_a_browser_draws_the_posterior(tmp_path: Path) -> None:
    """A bell on the antimeridian: hot on both sides of it, of its size on the ground, and gone beyond."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    pictures = {}
    for name, posterior in {"with": (Atom(0.0, -180.0, 1.0, 100.0),), "without": ()}.items():
        page, picture = tmp_path / f"{name}.html", tmp_path / f"{name}.png"
        write_prediction_map(Prediction(0.0, -180.0, "", 1.0, (), {90: 500.0}, posterior=posterior), page)
        subprocess.run(
            [
                browser,
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                *("--window-size=1340,1000", "--hide-scrollbars", "--virtual-time-budget=2000"),
                f"--user-data-dir={tmp_path / 'profile'}",
                *(f"--screenshot={picture}", page.as_uri()),
            ],
            capture_output=True,
            timeout=120,
            check=True,
        )
        with Image.open(picture) as image:
            pictures[name] = np.asarray(image.convert("RGB"), np.int64)
    # The list takes 340 px, so the map is a square, 86 % of which is the circle's diameter.
    height, width = pictures["with"].shape[:2]
    middle, px_per_km = (340 + (width - 340) // 2, height // 2), 0.86 * min(height, width - 340) / 1000
    change = np.abs(pictures["with"] - pictures["without"]).sum(-1)
    red = pictures["with"][..., 0] - pictures["with"][..., 2]
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):

        def at(values: np.ndarray, km: float, dx: int = dx, dy: int = dy) -> int:
            step = round(km * px_per_km)
            return int(values[middle[1] + dy * step, middle[0] + dx * step])

        assert at(red, 60) > 100
        assert at(change, 60) > at(change, 300) > 10
        assert at(change, 450) == 0
