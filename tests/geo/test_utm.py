"""UTM against pyproj's zones and its own UTM projection, across zone borders and the equator."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pyproj import Proj
from pyproj.aoi import AreaOfInterest
from pyproj.database import query_utm_crs_info

from geoloc.errors import ConfigError
from geoloc.geo.utm import BANDS, from_utm, to_utm, utm_band, utm_epsg, utm_zone, zone_of_epsg
from quadtree import InvalidCoordinateError
from quadtree.sphere import haversine_km

longitudes = st.floats(-180, 179.9)


@given(st.floats(-79.9, 83.9), longitudes)
def test_the_utm_zone_is_one_of_pyprojs(lat: float, lon: float) -> None:
    assume(1e-6 < lon % 6.0 < 6.0 - 1e-6)  # the zones' areas share their edges
    assume(not (lat >= 56.0 and 0.0 <= lon < 42.0))  # theirs have no exceptions: see the known places
    area = AreaOfInterest(lon, lat, lon, lat)
    codes = {int(info.code) for info in query_utm_crs_info("WGS 84", area, contains=True)}
    assert utm_epsg((lat, lon)) in codes


@pytest.mark.parametrize(
    ("latlon_deg", "epsg"),
    [
        ((42.36, -71.06), 32619),
        ((42.36, -73.0), 32618),
        ((-33.9, 151.2), 32756),
        ((60.0, 5.0), 32632),  # western Norway belongs to zone 32
        ((78.0, 15.0), 32633),  # Svalbard has zones 31, 33, 35 and 37
        ((78.0, 8.0), 32631),
        ((0.0, -180.0), 32601),
    ],
)
def test_utm_zones_of_known_places(latlon_deg: tuple[float, float], epsg: int) -> None:
    assert utm_epsg(latlon_deg) == epsg


def test_utm_ends_near_the_poles() -> None:
    with pytest.raises(ConfigError, match=r"UTM ends at 80 S and 84 N; the point is \(85.0, 0.0\)"):
        utm_epsg((85.0, 0.0))


def test_columns_of_points_have_the_zones_of_each_point() -> None:
    points = np.array(
        [[42.36, -71.06], [60.0, 5.0], [78.0, 15.0], [0.0, -180.0], [0.0, 180.0], [10.0, 5.999]]
    )
    assert utm_zone(points).tolist() == [19, 32, 33, 1, 1, 31]
    with pytest.raises(ConfigError, match=r"the point is \(-80.5, 3.0\)"):
        utm_zone([[0, 0], [-80.5, 3.0]])
    with pytest.raises(InvalidCoordinateError):
        utm_zone([[95.0, 3.0]])


def test_bands() -> None:
    latitudes = [-80.0, -72.1, -72.0, -0.01, 0.0, 37.7, 71.9, 72.0, 83.9, 84.0]
    assert "".join(utm_band(latitudes)) == "CCDMNSWXXX"
    assert (np.array(list(BANDS)) >= "N").sum() == 10


def test_a_mix_of_zones_is_pyprojs_own_projection_and_comes_back() -> None:
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(-80, 84, 400), rng.uniform(-180, 180, 400)], -1)
    utm = to_utm(points)
    for i, (lat, lon) in enumerate(points):
        own = Proj(proj="utm", zone=int(utm.zone[i]), ellps="WGS84", south=lat < 0)(lon, lat)
        assert (utm.east_m[i], utm.north_m[i]) == pytest.approx(own, abs=1e-3)
        assert utm.is_north[i] == (lat >= 0)
    back = from_utm(utm.east_m, utm.north_m, utm.zone, utm.is_north)
    np.testing.assert_allclose(haversine_km(back, points), 0, atol=1e-6)


def test_points_may_be_kept_in_a_neighbouring_zone_and_the_other_count_of_northings() -> None:
    border, equator = [0.00005, 5.9999], [-0.00005, 6.0001]  # 11 m apart in latitude, 22 m in longitude
    utm = to_utm([border, equator], zone=31, is_north=True)
    assert utm.north_m[1] < 0  # south of the equator in the count of the north
    np.testing.assert_allclose(np.diff(utm.east_m), 22.3, atol=0.1)
    utm = to_utm([border, equator], zone=[31, 32], is_north=False)
    np.testing.assert_allclose(utm.north_m, [1e7 + 5.5, 1e7 - 5.5], atol=0.1)
    assert abs(np.diff(utm.east_m)) > 600_000
    kept = from_utm(
        [833_978.56, 166_021.44], [5.53, 5.53], [31, 32], True
    )  # a zone is 667,957.1 m wide on the equator
    assert haversine_km(kept[0], kept[1]) < 1e-3


def test_metres_that_no_zone_has_are_nowhere() -> None:
    found = from_utm([5e5, -1.0, 5e5, np.nan, 10.0], [1e6, 1e6, 1.1e7, 1e6, 0.0], 31, True)
    assert np.isnan(found).all(-1).tolist() == [False, True, True, True, False]
    assert from_utm([], [], 31, True).shape == (0, 2)


def test_impossible_zones() -> None:
    for zone in (0, 61, 12.5):
        with pytest.raises(ConfigError, match=f"no UTM zone {zone}: they are 1 to 60"):
            from_utm([5e5, 5e5], [1e6, 1e6], [31, zone], True)
        with pytest.raises(ConfigError, match=f"no UTM zone {zone}"):
            to_utm([[0, 0]], zone=zone)


def test_zones_of_epsg_codes() -> None:
    assert (zone_of_epsg(32633), zone_of_epsg(32760)) == ((33, True), (60, False))
    for code in (32600, 32661, 4326):
        with pytest.raises(ConfigError, match=f"EPSG:{code} is no zone of WGS 84 / UTM: north"):
            zone_of_epsg(code)
