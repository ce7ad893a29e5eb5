"""Write data sets in the layouts of OSV-5M and Statewide from real imagery: views of the Earth from above.

    python -m projects.earthview.make_dataset osv5m runs/earthview-osv5m --train 3000 --test 500
    python -m projects.earthview.make_dataset statewide runs/earthview-statewide --train 3000 --test 500
    geoloc data verify osv5m runs/earthview-osv5m --decode
    geoloc data verify statewide runs/earthview-statewide/train --decode

A photo is what a camera sees that looks down on a place at any heading, 400 to 1200 km wide. Test places are those of
the bundled model's test, and no training place is within 25 km of one. For Statewide, photos are views of one mosaic
and the tiles (XYZ, with layout.yaml) are cut from another: its problem at planet scale. Needs the extra `earthview`.
"""

import argparse
import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from geoloc.data.layouts.statewide import directory_levels, statewide_stem
from geoloc.files import atomic_write
from geoloc.geo.places import load_places
from geoloc.geo.tiles import WORLD_SIDE_M, Tile, mercator_latlon_deg
from projects.earthview.mosaics import (
    BASEMAP_MOSAICS,
    UNSEEN_MOSAIC,
    HeldOutPlaces,
    Mosaic,
    load_basemap_mosaics,
    load_cities_latlon_deg,
    view_images,
)

SEED = 2026
JPEG = {"format": "JPEG", "quality": 90}
OSV5M_COLUMNS = """
id latitude longitude thumb_original_url country sequence captured_at lon_bin lat_bin cell region sub-region city
land_cover road_index drive_side climate soil dist_sea quadtree_10_5000 quadtree_10_25000 quadtree_10_1000
quadtree_10_50000 quadtree_10_12500 quadtree_10_500 quadtree_10_2500 unique_region unique_sub-region unique_city
unique_country creator_username creator_id
"""
MOSAICS = [name for name in BASEMAP_MOSAICS if name != UNSEEN_MOSAIC]  # that is for the model's test alone
TILE_PX = 256
MAX_ZOOM = 5  # 4.9 km a pixel at the equator, a little finer than the mosaics


def main() -> None:
    """Parse, render, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("layout", choices=("osv5m", "statewide"))
    parser.add_argument("folder", type=Path, help="made if it is not there")
    parser.add_argument("--train", type=int, default=3000, help="photos to train on")
    parser.add_argument("--test", type=int, default=500, help="photos to test with, at most 3000")
    parser.add_argument("--size-px", type=int, default=224, help="side of a photo")
    parser.add_argument("--photos", default="blue_marble", choices=MOSAICS, help="what photos show")
    parser.add_argument(
        "--tiles", default="shaded_relief", choices=MOSAICS, help="statewide: what tiles show"
    )
    options = parser.parse_args()
    cities = load_cities_latlon_deg()
    held_out = HeldOutPlaces.draw(cities)
    train = held_out.training_places(options.train, cities, np.random.default_rng(SEED))
    places = {"train": train, "test": held_out.test_latlon_deg[: options.test]}
    mosaics = load_basemap_mosaics(sorted({options.photos, options.tiles}))
    shown = {options.photos: mosaics[options.photos]}
    options.folder.mkdir(parents=True, exist_ok=True)
    for number, (split, latlon_deg) in enumerate(places.items()):
        pictures = photos(shown, latlon_deg, SEED + number, options.size_px)
        if options.layout == "osv5m":
            write_osv5m(options.folder, split, latlon_deg, pictures)
        else:
            write_street(options.folder / split, latlon_deg, pictures)
        print(f"{len(latlon_deg)} photos of {options.photos} for {split}")
    if options.layout == "statewide":
        num = write_tiles(options.folder / "tiles", mosaics[options.tiles])
        print(f"{num} tiles of {options.tiles}")


def photos(
    mosaics: Mapping[str, Mosaic], latlon_deg: NDArray[np.float64], seed: int, size_px: int
) -> Iterator[Image.Image]:
    """One view of each place."""
    for pictures, _ in view_images(mosaics, latlon_deg, seed, size_px):
        yield from map(Image.fromarray, pictures)


# --- OSV-5M -----------------------------------------------------------------------------------------------


def write_osv5m(
    folder: Path, split: str, latlon_deg: NDArray[np.float64], pictures: Iterator[Image.Image]
) -> None:
    """SPLIT.csv and images/SPLIT/NN/ID.jpg; columns that nothing is known of stay empty."""
    first_id = 10**9 if split == "train" else 2 * 10**9
    rows = []
    named = load_places().nearest(latlon_deg)
    for number, picture in enumerate(pictures):
        image_id = first_id + number
        path = folder / "images" / split / f"{number % 100:02}" / f"{image_id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, **JPEG)
        place = named[number]
        parts = [part or "NaN" for part in (place.name, place.admin2, place.admin1, place.country_code)]
        latitude, longitude = latlon_deg[number].tolist()
        rows.append(
            {
                "id": image_id,
                "latitude": latitude,
                "longitude": longitude,
                "country": parts[3],
                "region": parts[2],
                "sub-region": parts[1],
                "city": parts[0],
                "sequence": f"view-{image_id}",
                "unique_country": parts[3],
                "unique_region": "_".join(parts[2:]),
                "unique_sub-region": "_".join(parts[1:]),
                "unique_city": "_".join(parts),
            }
        )
    with atomic_write(folder / f"{split}.csv", "w") as file:
        writer = csv.DictWriter(file, OSV5M_COLUMNS.split(), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# --- Statewide --------------------------------------------------------------------------------------------


def write_street(folder: Path, latlon_deg: NDArray[np.float64], pictures: Iterator[Image.Image]) -> None:
    """Statewide's folder of photos; each is a sequence of its own."""
    num, levels = len(latlon_deg), directory_levels(len(latlon_deg))
    for number, picture in enumerate(pictures):
        stem = folder / "images" / statewide_stem(number, levels)
        stem.parent.mkdir(parents=True, exist_ok=True)
        picture.save(stem.with_name(f"{stem.name}-480.jpg"), **JPEG)
        about = {"latlon": latlon_deg[number].tolist(), "timestamp": 0, "sequence": number}
        stem.with_name(f"{stem.name}.json").write_text(json.dumps(about))
    for name, key, values in (
        ("latlons", "latlons", latlon_deg),
        ("timestamps", "timestamps", np.zeros(num, np.int64)),
        ("sequence-idxs", "sequence_idxs", np.arange(num)),
    ):
        with atomic_write(folder / f"{name}.npz", "wb") as file:
            np.savez(file, **{key: values})
    facts = {
        "images-num": num,
        "images-directory-levels": levels,
        "sequences-num": num,
        "sequences-directory-levels": levels,
        "orig-resolution": False,
    }
    with atomic_write(folder / "dataset.json", "w") as file:
        file.write(json.dumps(facts, indent=2) + "\n")


def write_tiles(folder: Path, mosaic: Mosaic) -> int:
    """All XYZ tiles down to `MAX_ZOOM`, with the layout.yaml that says so."""
    num = 0
    for zoom in range(MAX_ZOOM + 1):
        for x in range(2**zoom):
            (folder / str(zoom) / str(x)).mkdir(parents=True, exist_ok=True)
            for y in range(2**zoom):
                tile_picture(mosaic, Tile(zoom, x, y)).save(folder / f"{zoom}/{x}/{y}.jpg", **JPEG)
                num += 1
    with atomic_write(folder / "layout.yaml", "w") as file:
        file.write(f'preset: XYZ\npath: "{{zoom}}/{{x}}/{{y}}.jpg"\nmin_zoom: 0\nmax_zoom: {MAX_ZOOM}\n')
    return num


def tile_picture(mosaic: Mosaic, tile: Tile) -> Image.Image:
    """What a mosaic shows in a tile of the web's grid."""
    side_m = WORLD_SIDE_M / 2**tile.zoom
    step = (np.arange(TILE_PX) + 0.5) / TILE_PX * side_m
    x_m, y_m = np.meshgrid(
        tile.x * side_m - WORLD_SIDE_M / 2 + step, WORLD_SIDE_M / 2 - tile.y * side_m - step
    )
    lat, lon = np.moveaxis(mercator_latlon_deg(np.stack([x_m, y_m], -1)), -1, 0)
    km_per_px = side_m / TILE_PX / 1000
    finest = np.floor(np.log2(max(km_per_px / mosaic.km_per_px, 1.0)) + 0.25)
    level = mosaic.levels[min(int(finest), len(mosaic.levels) - 1)]
    height, width = level.shape[-2], level.shape[-1] - 2
    # As in Mosaic.render: one column of padding at each side, and centres of pixels at halves.
    column, row = (lon / 360 + 0.5) * width + 0.5, (0.5 - lat / 180) * height - 0.5
    places = np.stack([2 * column / (width + 1) - 1, 2 * row / (height - 1) - 1], -1)
    picture = torch.nn.functional.grid_sample(
        level,
        torch.from_numpy(places.astype(np.float32))[None],
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )[0]
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).contiguous().numpy())


if __name__ == "__main__":
    main()
