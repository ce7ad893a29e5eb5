"""projects/earthview/make_dataset.py writes what the layouts and the tile folder read."""

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_image

from geoloc.data.layouts import open_layout
from geoloc.reference.aerial.layout import open_layout as open_tiles
from projects.earthview import make_dataset
from projects.earthview.mosaics import Mosaic

LATLON_DEG = np.array([[55.7, 13.2], [-33.9, 151.2], [0.0, -179.99]])


@pytest.fixture(scope="module")
def script():
    return make_dataset


def pictures():
    return (Image.fromarray(tiny_image(i)) for i in range(3))


def test_osv5m(script, tmp_path):
    script.write_osv5m(tmp_path, "train", LATLON_DEG, pictures())
    table = open_layout("osv5m", tmp_path)
    np.testing.assert_array_equal(table.latlon_deg, LATLON_DEG)
    assert (table[0].country, table[0].city.split("_")[0]) == ("SE", "Lund")
    assert len(table.codes("sequence")[1]) == 3


def test_statewide(script, tmp_path):
    script.write_street(tmp_path / "train", LATLON_DEG, pictures())
    np.testing.assert_array_equal(open_layout("statewide", tmp_path / "train").latlon_deg, LATLON_DEG)


def test_tiles(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "MAX_ZOOM", 1)
    ramp = np.broadcast_to(np.linspace(0, 255, 1024)[None, :, None], (512, 1024, 3)).astype(np.uint8)
    assert script.write_tiles(tmp_path, Mosaic("ramp", Image.fromarray(ramp))) == 5
    tiles = open_tiles(tmp_path)
    assert (tiles.min_zoom, tiles.max_zoom) == (0, 1)
    rgb, valid = tiles.read(0, 0, 0, 512, 512)
    assert valid.all()
    # Grey grows with the longitude, and so does a column's number.
    np.testing.assert_allclose(rgb[::64, 8:504, 0].mean(0), np.linspace(0, 255, 512)[8:504], atol=4)
