import numpy as np

from geoloc.geo.continents import CONTINENT_OF, DENSITY_CELL_KM2, DENSITY_CLASSES, density_class
from geoloc.geo.countries import COUNTRY_NAMES
from geoloc.geo.places import load_places


def test_every_country_of_the_table_of_cities_has_its_one_continent():
    assert not set(load_places().country_codes) - CONTINENT_OF.keys()
    assert CONTINENT_OF.keys() >= COUNTRY_NAMES.keys()
    assert CONTINENT_OF["SE"] == "Europe"
    assert CONTINENT_OF["FJ"] == "Oceania"
    assert len(set(CONTINENT_OF.values())) == 7


def test_density():
    paris, pacific, pole, antimeridian = density_class([[48.86, 2.35], [-40, -120], [90, 0], [-17.8, 180]])
    assert (paris, pacific, pole) == (DENSITY_CLASSES[-1], "no city", "no city")
    assert antimeridian in DENSITY_CLASSES
    assert 9_900 < DENSITY_CELL_KM2 < 10_000
    assert density_class(np.empty((0, 2))).shape == (0,)
