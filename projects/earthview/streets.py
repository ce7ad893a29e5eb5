"""Streets of a shrunken Earth: where a generated place-recognition data set takes its photos.

Pictures of the whole Earth show kilometres in a pixel, and places are told apart at 25 m. So each continent is a
*city*: shrunken `SCALE` times about its own centre, which stays where it is. A point keeps its azimuth from the centre,
and its distance is divided by `SCALE`: a metre on the map is 10 km of ground. A *photo* is a view from above, some 270
km wide, which is 27 m of the map.

Places are 30 m apart on the UTM grid, in the middles of CosPlace's 10 m cells, and photos of one are at most
`JITTER_M` from there. So any two photos of a place are within 4 m and share most of their ground, while photos of two
places are more than 25 m apart. A photo's heading is the direction that points up in it. Cities of different splits
are on different continents.

Knows nothing about pictures, files and models.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from geoloc.geo.utm import UtmCoordinates, from_utm, to_utm
from projects.earthview.mosaics import SOUTHERN_LIMIT_DEG, Views, is_land
from quadtree.sphere import destination_latlon_deg, haversine_km, initial_bearing_deg

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SCALE: Final = 10_000  # metres of ground in a metre of the map
SPACING_M: Final = 30.0  # between places
JITTER_M: Final = 2.0  # of a photo from its place's middle: those of two places are 26 m apart at least
HEADING_CLASS_DEG: Final = 30.0
HEADING_JITTER_DEG: Final = 12.0  # from the middle of its class
FOOTPRINT_KM: Final = (220.0, 320.0)  # of ground, side of a photo
MAX_TILT_DEG: Final = 10.0
LEAST_LAND: Final = 0.6  # of a place's ground: the sea looks alike everywhere
_CELL_M: Final = 10.0
_BETWEEN_CITIES_KM: Final = 600.0  # more than two photos' ground


@dataclass(frozen=True)
class City:
    """A continent, shrunken about its centre.

    Attributes:
        name: as a city of GSV-Cities.
        split: "train", "val" or "test".
        center_latlon_deg: the one point that is where it is.
    """

    name: str
    split: str
    center_latlon_deg: tuple[float, float]

    def map_latlon_deg(self, xy_m: FloatArray) -> FloatArray:
        """Where points of the map, (n, 2) metres east and north of the centre, say that they are, (n, 2)."""
        base = self._base
        return from_utm(base.east_m + xy_m[:, 0], base.north_m + xy_m[:, 1], base.zone[0], base.is_north[0])

    def ground_latlon_deg(self, xy_m: FloatArray) -> FloatArray:
        """Where on the real Earth the same points are, (n, 2)."""
        bearing_deg = np.degrees(np.arctan2(xy_m[:, 0], xy_m[:, 1])) % 360
        return destination_latlon_deg(self.center_latlon_deg, bearing_deg, np.hypot(*xy_m.T) * SCALE / 1000)

    def ground_heading_deg(self, xy_m: FloatArray, heading_deg: FloatArray) -> FloatArray:
        """The compass direction on the real Earth of a heading on the map, (n,)."""
        ahead = np.stack([np.sin(np.radians(heading_deg)), np.cos(np.radians(heading_deg))], -1)
        return initial_bearing_deg(self.ground_latlon_deg(xy_m), self.ground_latlon_deg(xy_m + ahead))

    @property
    def _base(self) -> UtmCoordinates:
        return to_utm(np.array([self.center_latlon_deg]))

    def places_m(self) -> FloatArray:
        """The middles of all places of the city, (n, 2) metres east and north of its centre, from south-west."""
        base = self._base
        reach = np.arange(-600.0, 600.0, SPACING_M)
        first = [_CELL_M / 2 - metres[0] % _CELL_M for metres in (base.east_m, base.north_m)]
        y, x = np.meshgrid(reach + first[1], reach + first[0], indexing="ij")
        xy_m = np.stack([x.ravel(), y.ravel()], -1)
        return xy_m[self._is_own_land(xy_m)]

    def _is_own_land(self, xy_m: FloatArray) -> NDArray[np.bool_]:
        ground = self.ground_latlon_deg(xy_m)
        distances_km = {city.name: haversine_km(ground, city.center_latlon_deg) for city in CITIES}
        own_km = distances_km.pop(self.name)
        # By the triangle inequality, places of two cities that both keep this are at least so far from each other.
        is_own = np.min(list(distances_km.values()), 0) - own_km >= _BETWEEN_CITIES_KM
        steps = np.linspace(-1, 1, 9) * SPACING_M / 2
        around = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
        samples = self.ground_latlon_deg((xy_m[:, None] + around).reshape(-1, 2))
        land = is_land(samples).reshape(len(xy_m), -1).mean(-1)
        kept: NDArray[np.bool_] = is_own & (land >= LEAST_LAND) & (ground[:, 0] > SOUTHERN_LIMIT_DEG)
        return kept


CITIES: Final = (
    City("Africa", "train", (5.0, 21.0)),
    City("Asia", "train", (45.0, 93.0)),
    City("Europe", "train", (53.0, 21.0)),
    City("Oceania", "train", (-25.0, 135.0)),
    City("SouthAmerica", "val", (-15.0, -57.0)),
    City("NorthAmerica", "test", (48.0, -99.0)),
)


@dataclass(frozen=True)
class PlacePhotos:
    """Photos of places of one city, not yet taken; every array has one entry a photo.

    Attributes:
        city: of all of them.
        place: (n,) number of the place with its direction of view.
        xy_m: (n, 2) on the city's map.
        heading_deg: (n,) on the map, in [0, 360).
        footprint_km: (n,) side of the ground square.
        tilt_deg: (n,) of the camera from the vertical.
    """

    city: City
    place: IntArray
    xy_m: FloatArray
    heading_deg: FloatArray
    footprint_km: FloatArray
    tilt_deg: FloatArray

    def __len__(self) -> int:
        return len(self.place)

    @staticmethod
    def draw(
        city: City,
        places_m: FloatArray,
        heading_class: IntArray,
        views: int,
        rng: np.random.Generator,
    ) -> "PlacePhotos":
        """So many photos of each place, one after the other.

        Args:
            city: theirs.
            places_m: (n, 2) middles of the places.
            heading_class: (n,) which 30 degrees each is seen in.
            views: of each.
            rng: of the jitter.
        """
        place = np.repeat(np.arange(len(places_m)), views)
        num = len(place)
        angle, radius = rng.uniform(0, 2 * np.pi, num), JITTER_M * np.sqrt(rng.uniform(0, 1, num))
        shift = np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None]
        middle_deg = (heading_class[place] + 0.5) * HEADING_CLASS_DEG
        low, high = np.log(FOOTPRINT_KM)
        return PlacePhotos(
            city,
            place,
            places_m[place] + shift,
            middle_deg + rng.uniform(-HEADING_JITTER_DEG, HEADING_JITTER_DEG, num),
            np.exp(rng.uniform(low, high, num)),
            rng.uniform(0, MAX_TILT_DEG, num),
        )

    def latlon_deg(self) -> FloatArray:
        """Where the map says that they were taken, (n, 2)."""
        return self.city.map_latlon_deg(self.xy_m)

    def ground_views(self) -> Views:
        """The cameras over the real Earth that take them."""
        return Views(
            self.city.ground_latlon_deg(self.xy_m),
            self.city.ground_heading_deg(self.xy_m, self.heading_deg),
            self.footprint_km,
            self.tilt_deg,
        )
