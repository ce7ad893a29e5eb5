"""Metres on the ellipsoid against pyproj's own projections and zones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod, Proj, Transformer

from geoloc.errors import ConfigError
from geoloc.geo import wgs84
from quadtree import InvalidCoordinateError

GEOD = Geod(ellps="WGS84")
latitudes = st.floats(-89.9, 89.9)
longitudes = st.floats(-180, 179.9)


@given(latitudes, longitudes, st.floats(-50_000, 50_000), st.floats(-50_000, 50_000))
def test_an_offset_is_the_azimuthal_equidistant_plane(
    lat: float, lon: float, east: float, north: float
) -> None:
    found = wgs84.offset_latlon_deg((lat, lon), east, north)
    plane = f"+proj=aeqd +lat_0={lat!r} +lon_0={lon!r} +ellps=WGS84 +units=m"
    back = Transformer.from_crs(4326, plane, always_xy=True).transform(found[1], found[0])
    assert back == pytest.approx((east, north), abs=1e-3)


def test_offsets_have_the_shape_of_what_is_given() -> None:
    assert wgs84.offset_latlon_deg((48.0, 2.0), np.zeros((3, 4)), 1.0).shape == (3, 4, 2)
    assert wgs84.offset_latlon_deg((0.0, 179.9999), 100.0, 0.0)[1] < -179.99
    with pytest.raises(InvalidCoordinateError):
        wgs84.offset_latlon_deg((91.0, 0.0), 0.0, 0.0)


@given(latitudes, st.sampled_from([1.0, 30.0, 1_000.0]))
def test_a_longitude_step_is_so_many_metres(lat: float, spacing: float) -> None:
    step = float(wgs84.longitude_step_deg(lat, spacing))
    if step < 360:
        assert GEOD.inv(0, lat, step, lat)[2] == pytest.approx(spacing, rel=1e-9)
    else:
        assert GEOD.inv(0, lat, 180, lat)[2] < spacing


@given(st.floats(-10_001_965, 10_001_965))
def test_a_meridian_arc_is_so_many_metres(arc: float) -> None:
    lat = float(wgs84.meridian_latitude_deg(arc))
    assert GEOD.inv(0, 0, 0, lat)[2] == pytest.approx(abs(arc), abs=1e-6)
    assert float(wgs84.meridian_arc_m(lat)) == pytest.approx(arc, abs=1e-6)


def test_a_meridian_ends_at_the_poles() -> None:
    assert wgs84.meridian_latitude_deg(wgs84.QUARTER_MERIDIAN_M) == pytest.approx(90.0)
    assert np.isnan(wgs84.meridian_latitude_deg([1.01e7, -1.01e7])).all()


def test_projecting_and_back() -> None:
    latlon = np.array([[[42.0, -71.0], [43.0, -72.0]]])
    xy = wgs84.project("EPSG:32619", latlon)
    assert xy.shape == latlon.shape
    np.testing.assert_allclose(xy[0, 0], Proj(32619)(-71.0, 42.0), atol=1e-6)
    np.testing.assert_allclose(wgs84.unproject(32619, xy), latlon, atol=1e-9)
    with pytest.raises(ConfigError, match=r"'EPSG:1' is no coordinate reference system .* give an EPSG code"):
        wgs84.project("EPSG:1", latlon)


def test_axes_of_a_plane_are_those_of_its_definition() -> None:
    """EPSG:31467 counts northings first; EPSG:2249 is in feet of 12/39.37 m."""
    assert wgs84.plane_axes("EPSG:25832") == (False, 1.0)
    assert wgs84.plane_axes(31467) == (True, 1.0)
    assert wgs84.plane_axes(2249) == (False, pytest.approx(12 / 39.37, rel=1e-12))
    with pytest.raises(ConfigError, match="WGS 84 is in degrees, where metres or feet are needed"):
        wgs84.plane_axes(4326)
