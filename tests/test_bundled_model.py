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
MAX_MB = 25


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
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MAX_MB * 1e6


def test_readme_and_card_show_the_same_table(request):
    readme = (request.config.rootpath / "README.md").read_text(encoding="utf-8")
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(table_lines(card)) == 6
    assert table_lines(readme) == table_lines(card)


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
