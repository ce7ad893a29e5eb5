"""Countries and their administrative regions, as the table of GeoNames' cities knows them.

A point belongs to the country and the region of the nearest city of the table, as in OSV-5M's protocol. So a country
reaches into the sea, and a point near a border may count as the neighbour's.
"""

import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from geoloc.errors import ConfigError, NotFoundError
from geoloc.geo.countries import COUNTRY_NAMES
from geoloc.geo.places import load_places
from geoloc.geo.regions.base import FloatArray, Mask, Region
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, haversine_km, latlon_to_unit

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

# Names in use that the time zone database does not have.
_ALIASES: Final = {
    "burma": "MM",
    "cape verde": "CV",
    "czechia": "CZ",
    "democratic republic of the congo": "CD",
    "great britain": "GB",
    "holland": "NL",
    "ivory coast": "CI",
    "macao": "MO",
    "russian federation": "RU",
    "the netherlands": "NL",
    "turkiye": "TR",
    "uk": "GB",
    "united states of america": "US",
    "usa": "US",
    "vatican": "VA",
}

_GERMANIC: Final = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "æ": "ae", "ß": "ss", "þ": "th"}
)
_PLAIN: Final = str.maketrans(
    {"ø": "o", "æ": "ae", "ß": "ss", "þ": "th", "ð": "d", "ł": "l", "đ": "d", "ı": "i"}
)
_MAX_CHOICES: Final = 10


class Division(NamedTuple):
    """A country, or a first or second administrative level of one.

    Attributes:
        country_code: ISO 3166-1 alpha-2.
        admin1: first level; "" for a country.
        admin2: second level; "" for a country or a first level.
    """

    country_code: str
    admin1: str = ""
    admin2: str = ""

    @property
    def label(self) -> str:
        """Text that `find_division` reads, such as "SE/Skane"."""
        return "/".join(part for part in self if part)


class PlaceRegion(Region):
    """All points whose nearest city of the table is in a country or administrative region.

    Its area is that of the cities' Voronoi cells, on land and sea, estimated from points.

    Attributes:
        division: what it is.

    Raises:
        NotFoundError: no city of the table is in it.
    """

    def __init__(self, division: Division, name: str | None = None) -> None:
        places = load_places()
        self.division, self.name = division, name or division.label
        is_in = places.country_codes == division.country_code
        if division.admin1:
            is_in &= places.admin1 == division.admin1
        if division.admin2:
            is_in &= places.admin2 == division.admin2
        self._is_in: Mask = is_in.astype(np.bool_)
        if not self._is_in[places.first_rows].any():
            raise NotFoundError(
                f"no city of the table is in {division.label}, so no point would be: give a box, S,W,N,E"
            )

    def contains(self, latlon_deg: ArrayLike) -> Mask:  # noqa: D102  as in the base class
        return np.asarray(self._is_in[load_places().nearest(latlon_deg).place_id])

    def facts(self) -> dict[str, Any]:  # noqa: D102
        return {"division": list(self.division), "num_cities": int(self._is_in.sum())}

    def _may_touch(self, boxes: FloatArray) -> Mask:
        """By the triangle inequality between a box's centre, its farthest point and the nearest cities."""
        inner, outer = self._trees
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        # The farthest point of a box that is no wider than half the Earth is a corner.
        corners = boxes.reshape(-1, 1, 4)[..., [[0, 1], [0, 3], [2, 1], [2, 3]]].reshape(-1, 4, 2)
        reach_km = haversine_km(middle[:, None], corners).max(1)
        center = latlon_to_unit(middle)
        if outer is None:
            return np.ones(len(boxes), np.bool_)
        to_inner, to_outer = (
            2 * np.arcsin(np.minimum(tree.query(center)[0] / 2, 1)) for tree in (inner, outer)
        )
        is_near = (to_inner - to_outer) * EARTH_MEAN_RADIUS_KM <= 2 * reach_km + 1e-6
        return np.asarray(is_near | (boxes[:, 3] - boxes[:, 1] > 180))

    def _anchors(self) -> FloatArray:
        return load_places().latlon_deg[self._is_in]

    @cached_property
    def _trees(self) -> "tuple[cKDTree, cKDTree | None]":
        """The cities inside and all others, without those that are never the nearest."""
        from scipy.spatial import cKDTree

        places = load_places()
        is_in = self._is_in[places.first_rows]
        unit = latlon_to_unit(places.latlon_deg[places.first_rows])
        return cKDTree(unit[is_in]), None if is_in.all() else cKDTree(unit[~is_in])


def find_division(text: str) -> Division:
    """The country or administrative region of a name.

    Args:
        text: an ISO 3166-1 alpha-2 code or an English name of a country; or the name of a first or second level
            ("Bavaria"), perhaps with what it lies in ("DE/Bavaria", "Skåne, SE", "SE/Skåne/Malmö"). Case, accents
            and punctuation do not matter. A name of a country also means a first level of another country with that
            name, and a second level is meant only where no country and no first level has the name.

    Raises:
        ConfigError: the name has several meanings, which the message lists.
        NotFoundError: the name has none; the message has similar ones.
    """
    found = _meanings(text) or [d for parts in _ways_to_split(text) for d in _inside(*parts)]
    found = list(dict.fromkeys(found))
    if len(found) == 1:
        return found[0]
    if found:
        labels = sorted(d.label for d in found)
        more = f" and {len(labels) - _MAX_CHOICES} more" if len(labels) > _MAX_CHOICES else ""
        raise ConfigError(
            f"the region {text!r} has several meanings; choose one of {', '.join(labels[:_MAX_CHOICES])}{more}"
        )
    raise NotFoundError(_unknown(text))


def _meanings(text: str) -> list[Division]:
    """Divisions of a name without what it lies in."""
    if country := _country_of(text):
        # "Mexico" is not the state of Mexico, but "Georgia" may be the state of the United States.
        is_code = len(text.strip()) == 2
        named = [d for key in _keys(text) for d in _index().first.get(key, ()) if not is_code]
        return [Division(country), *(d for d in named if d.country_code != country)]
    for level in (_index().first, _index().second):
        if found := [d for key in _keys(text) for d in level.get(key, ())]:
            return found
    return []


def _ways_to_split(text: str) -> Iterable[tuple[str, list[str]]]:
    """A country's code, and names inside it from the larger to the smaller: "SE/Skane" and "Skane, SE"."""
    for separator, step in (("/", 1), (",", -1)):
        parts = text.split(separator)[::step]
        if len(parts) > 1 and (country := _country_of(parts[0])):
            yield country, parts[1:]
            if len(parts) > 2:  # one name that has the separator in it
                yield country, [separator.join(parts[1:][::step])]


def _inside(country: str, names: list[str]) -> list[Division]:
    """Divisions of a country by their names."""
    index = _index()

    def of(level: dict[str, list[Division]], name: str) -> list[Division]:
        return [d for key in _keys(name) for d in level.get(key, ()) if d.country_code == country]

    if len(names) == 1:
        return of(index.first, names[0]) or of(index.second, names[0])
    if len(names) == 2:
        above = {d.admin1 for d in of(index.first, names[0])}
        return [d for d in of(index.second, names[1]) if d.admin1 in above]
    return []


class _Index(NamedTuple):
    """Divisions by the keys of their names."""

    countries: dict[str, str]
    first: dict[str, list[Division]]
    second: dict[str, list[Division]]


@cache
def _index() -> _Index:
    places = load_places()
    countries = dict(_ALIASES)
    for code, name in COUNTRY_NAMES.items():
        countries |= dict.fromkeys(_keys(name), code)
    first: dict[str, list[Division]] = {}
    second: dict[str, list[Division]] = {}
    names = set(zip(places.country_codes, places.admin1, places.admin2, strict=True))
    for level, found in (
        (first, {Division(code, admin1) for code, admin1, _ in names if admin1}),
        (second, {Division(*name) for name in names if name[1] and name[2]}),
    ):
        for division in sorted(found):
            for key in _keys(division.admin2 or division.admin1):
                level.setdefault(key, []).append(division)
    return _Index(countries, first, second)


def _country_of(text: str) -> str | None:
    code = text.strip().upper()
    if code in COUNTRY_NAMES:
        return code
    countries = _index().countries
    return next((countries[key] for key in _keys(text) if key in countries), None)


def _keys(text: str) -> list[str]:
    """Spellings under which a name is looked up: "Skåne" is "skane", and "Örebro" is both "oerebro" and "orebro"."""
    lower = unicodedata.normalize("NFC", text).casefold().replace("&", " and ")
    return list(dict.fromkeys(_ascii(lower.translate(table)) for table in (_GERMANIC, _PLAIN)))


def _ascii(text: str) -> str:
    letters = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(re.findall(r"\w+", letters))


def _unknown(text: str) -> str:
    index = _index()
    name = re.split(r"[/,]", text)[-1 if "/" in text else 0]
    labels = {key: COUNTRY_NAMES[code] for key, code in index.countries.items()}
    for level in (index.second, index.first):
        labels |= {key: divisions[0].label for key, divisions in level.items()}
    near = [labels[key] for key in get_close_matches(_keys(name)[-1], labels, n=5, cutoff=0.7)]
    similar = f"; similar are {', '.join(dict.fromkeys(near))}" if near else ""
    return (
        f"there is no region {text!r}{similar}; give S,W,N,E, LAT,LON,KM, a .geojson, a country (SE, Sweden) or an "
        "administrative region (SE/Skane)"
    )
