"""Tiles against morecantile, another implementation of the same standard."""

import morecantile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoloc.geo import tiles

TMS = morecantile.tms.get("WebMercatorQuad")

latitudes = st.floats(-85, 85)
longitudes = st.floats(-179.999, 179.999)
zooms = st.integers(0, 22)


@given(latitudes, longitudes, zooms)
def test_bounds_are_morecantiles(lat: float, lon: float, zoom: int) -> None:
    theirs_tile = TMS.tile(lon, lat, zoom)
    tile = tiles.Tile(zoom, theirs_tile.x, theirs_tile.y)
    theirs = TMS.bounds(theirs_tile)
    expected = (theirs.bottom, theirs.left, theirs.top, theirs.right)
    np.testing.assert_allclose(tiles.tile_bounds_deg(tile), expected, atol=1e-9)


@given(latitudes, longitudes)
def test_mercator_is_morecantiles_and_turns_back(lat: float, lon: float) -> None:
    xy = tiles.mercator_xy_m((lat, lon))
    np.testing.assert_allclose(xy, TMS.xy(lon, lat), atol=1e-6)
    np.testing.assert_allclose(tiles.mercator_latlon_deg(xy), (lat, lon), atol=1e-9)


def test_pixels_of_known_places() -> None:
    assert tiles.pixel_xy((0.0, 0.0), 0).tolist() == pytest.approx([128.0, 128.0])
    assert tiles.pixel_xy((85.0511287798066, -180.0), 3, 512).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert (
        tiles.pixel_xy((0.0, 181.0), 0)[0] > 256.0
    )  # not wrapped: a patch at the antimeridian is in one piece
