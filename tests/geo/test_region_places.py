"""Countries and administrative regions, against the nearest city of each point found by brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoloc.errors import ConfigError, NotFoundError
from geoloc.geo.countries import COUNTRY_NAMES
from geoloc.geo.places import load_places
from geoloc.geo.regions import PlaceRegion, parse_region
from geoloc.geo.regions.places import Division, find_division
from quadtree.sphere import latlon_to_unit

LATITUDES = st.one_of(st.sampled_from([-90.0, 90.0, 0.0]), st.floats(-90, 90))
LONGITUDES = st.one_of(st.sampled_from([-180.0, 180.0]), st.floats(-180, 180))


@given(st.lists(st.tuples(LATITUDES, LONGITUDES), min_size=1, max_size=5))
@settings(deadline=None, max_examples=30)
def test_a_point_is_in_the_country_of_the_nearest_city(points: list[tuple[float, float]]) -> None:
    places = load_places()
    dots = latlon_to_unit(points) @ latlon_to_unit(places.latlon_deg).T
    for point, dot in zip(points, dots, strict=True):
        order = np.argsort(-dot)[:2]
        codes = set(places.country_codes[order[dot[order] > dot[order[0]] - 1e-15]])
        holding = [code for code in sorted(codes) if parse_region(code).contains([point])[0]]
        assert len(holding) == 1


@pytest.mark.parametrize(
    ("text", "division"),
    [
        ("SE", Division("SE")),
        ("se", Division("SE")),
        ("Sweden", Division("SE")),
        (" sweden ", Division("SE")),
        ("UK", Division("GB")),
        ("USA", Division("US")),
        ("côte d’ivoire", Division("CI")),
        ("Bosnia and Herzegovina", Division("BA")),
        ("Mexico", Division("MX")),  # not the state of Mexico in Mexico
        ("Bavaria", Division("DE", "Bavaria")),
        ("SE/Skåne", Division("SE", "Skane")),
        ("Skåne, SE", Division("SE", "Skane")),
        ("skane,sweden", Division("SE", "Skane")),
        ("Västra Götaland", Division("SE", "Vaestra Goetaland")),
        ("Örebro, Sweden", Division("SE", "OErebro")),
        ("US/Georgia", Division("US", "Georgia")),
        ("GE", Division("GE")),
        ("DE/Bavaria/Upper Bavaria", Division("DE", "Bavaria", "Upper Bavaria")),
        ("Upper Bavaria, Bavaria, Germany", Division("DE", "Bavaria", "Upper Bavaria")),
        ("DE/Upper Bavaria", Division("DE", "Bavaria", "Upper Bavaria")),
        ("Washington, D.C.", Division("US", "Washington, D.C.")),
        ("Washington, D.C., US", Division("US", "Washington, D.C.")),
        ("Tunapuna/Piarco", Division("TT", "Tunapuna/Piarco")),
        ("TT/Tunapuna/Piarco", Division("TT", "Tunapuna/Piarco")),
        ("NA", Division("NA")),  # Namibia, not a missing value
    ],
)
def test_names(text: str, division: Division) -> None:
    region = parse_region(text)
    assert isinstance(region, PlaceRegion)
    assert region.division == division
    assert region.name == text.strip()
    assert find_division(division.label) == division


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("Georgia", "GE, US/Georgia"),
        ("Florida", "PR/Florida, US/Florida, UY/Florida"),
        ("Washington County", "US/Alabama/Washington County, .* and 20 more"),
    ],
)
def test_names_with_several_meanings(text: str, choices: str) -> None:
    with pytest.raises(ConfigError, match=f"several meanings; choose one of {choices}"):
        parse_region(text)


@pytest.mark.parametrize(
    ("text", "similar"),
    [
        ("Swedn", "similar are Sweden"),
        ("Bavria", "similar are DE/Bavaria"),
        ("SE/Skaane", "SE/Skane"),
        ("Vastra Gotaland", "similar are SE/Vaestra Goetaland"),
        ("", "give S,W,N,E, LAT,LON,KM, a .geojson"),
        ("qqqqqqqq", "there is no region 'qqqqqqqq'; give"),
        ("FR/Bavaria", "similar are DE/Bavaria"),
        ("BV", "no city of the table is in BV"),  # Bouvet Island
    ],
)
def test_unknown_names(text: str, similar: str) -> None:
    with pytest.raises(NotFoundError, match=similar):
        parse_region(text)


def test_all_countries_of_the_table_are_found() -> None:
    for code in sorted(set(load_places().country_codes)):
        assert find_division(code) == Division(code)
        if code in ("GE", "LC", "NE"):  # the first level of another country has that name
            with pytest.raises(ConfigError, match=rf"choose one of .*\b{code}\b"):
                find_division(COUNTRY_NAMES[code])
        else:
            assert find_division(COUNTRY_NAMES[code]) == Division(code)


@pytest.mark.parametrize("text", ["VA", "MC", "FJ", "AQ", "NZ", "SE/Skåne", "US/Alaska", "KI"])
def test_samples_of_places(text: str) -> None:
    """Monaco and the Vatican are tiny, Fiji crosses the antimeridian, Antarctica has the pole."""
    region = parse_region(text)
    points = region.sample(500)
    assert 450 <= len(points) <= 500
    assert region.contains(points).all()
    assert 1 <= len(region.sample(1)) <= 1
    assert len(region.boxes) <= 64
    # All of the region is in its boxes, so none of it is missed by the sample.
    cities = load_places().latlon_deg[load_places().first_rows]
    cities = cities[region.contains(cities)]
    held = np.zeros(len(cities), bool)
    for south, west, north, east in region.boxes:
        held |= ((cities >= (south, west)) & (cities <= (north, east))).all(1)
    assert held.all()


def test_the_area_of_all_countries_is_that_of_the_earth() -> None:
    rng = np.random.default_rng(0)
    probes = np.stack(
        [np.degrees(np.arcsin(rng.uniform(-1, 1, 100_000))), rng.uniform(-180, 180, 100_000)], 1
    )
    for code in ("RU", "AU", "BR", "GL"):
        region = parse_region(code)
        share = region.contains(probes).mean()
        area_km2 = 4 * np.pi * 6371.0088**2 * share
        assert region.area_km2 == pytest.approx(area_km2, rel=5 / np.sqrt(share * 100_000) + 0.01)


def test_facts_tell_regions_apart() -> None:
    assert parse_region("Sweden").facts() == parse_region("SE").facts() != parse_region("NO").facts()
