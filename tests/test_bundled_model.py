"""The checkpoint that ships in the package: whole, small enough, told truly, and it knows the Earth."""

from pathlib import Path

import numpy as np
import pytest

from geoloc import Geolocalizer
from geoloc.files import verify_manifest
from geoloc.hub.resolve import BUNDLED
from geoloc.images.exif import read_exif_latlon_deg
from quadtree.sphere import haversine_km

FOLDER = BUNDLED / "earthview"
MAX_MB = 25  # of network, cells and calibration; the references come on top
MAX_REFERENCE_MB = 16


def table_lines(text: str) -> list[str]:
    """The rows of the headline table in a Markdown text."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| views | method |"))
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return lines[start:end]


@pytest.fixture(scope="module")
def model() -> Geolocalizer:
    return Geolocalizer.from_pretrained("earthview")


def test_it_is_whole_and_small():
    verify_manifest(FOLDER, strict=True)
    size = {path: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    references = sum(n for path, n in size.items() if path.is_relative_to(FOLDER / "reference"))
    assert 0 < references < MAX_REFERENCE_MB * 1e6
    assert sum(size.values()) - references < MAX_MB * 1e6


def test_measured_page_and_card_show_the_same_table(request):
    measured = (request.config.rootpath / "docs" / "measured.md").read_text(encoding="utf-8")
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(table_lines(card)) == 2 + 2 * 6  # head; six methods on two mosaics
    assert table_lines(measured) == table_lines(card)


def test_it_finds_the_demo_images_of_a_mosaic_that_it_knows(model, request):
    paths = sorted(Path(request.config.rootpath / "demo" / "images").glob("*blue-marble.jpg"))
    truth = np.array([read_exif_latlon_deg(path) for path in paths])
    predictions = model.localize(paths)
    distance_km = haversine_km(np.array([(p.lat, p.lon) for p in predictions]), truth)
    assert len(paths) == 6
    assert np.median(distance_km) < 500  # a tenth of what chance gives: half of the Earth is 10,000 km away
    assert all(set(p.radius_km) == {50, 90} for p in predictions)
    assert all(p.radius_km[50] <= p.radius_km[90] for p in predictions)


def test_its_calibration_and_its_embeddings_are_there(model):
    calibration = model.calibration
    assert calibration.num_images >= 2000
    assert set(calibration.mass_levels) == {"geoscore", "median"}
    assert set(model.network.embeddings) == {"query", "aerial"}


def test_its_references_are_whole_and_searched_unless_one_says_no(model, request):
    assert model.reference is not None
    model.reference.verify()
    assert model.reference.info()["rows_by_licence"] == {"public domain": len(model.reference)}
    assert set(model.calibration.reference_levels) == {model.reference.identity}
    path = next(Path(request.config.rootpath / "demo" / "images").glob("*blue-marble.jpg"))
    found = model.localize(path, top_k=50)
    assert {c.source for c in found.candidates} == {"cell", "aerial"}
    assert {c.source for c in model.localize(path, top_k=50, reference=None).candidates} == {"cell"}


def test_the_table_says_that_every_stage_adds():
    """Cells < offsets < retrieval < reranker < turns in GeoScore, and in median km; and cells beat none at all."""
    lines = table_lines((FOLDER / "README.md").read_text(encoding="utf-8"))[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    for mosaic in {row[0] for row in rows}:
        geoscore = [float(row[4]) for row in rows if row[0] == mosaic]
        median_km = [float(row[6]) for row in rows if row[0] == mosaic]
        assert geoscore[:5] == sorted(set(geoscore[:5]))
        assert geoscore[1] > geoscore[5]
        assert median_km[:5] == sorted(median_km[:5], reverse=True)
        assert median_km[4] < median_km[5]
