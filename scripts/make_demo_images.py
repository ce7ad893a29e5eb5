"""Make the demo's example images: real imagery of held-out places, half of it from the unseen mosaic.

python scripts/make_demo_images.py demo/images

The places are drawn from the test set's cities, not chosen by what the model says of them. The truth is in
each file's EXIF, which predictions never see (`geoloc localize --truth-from-exif` compares with it).
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from geoloc.geo.places import load_places
from projects.earthview.mosaics import (
    UNSEEN_MOSAIC,
    HeldOutPlaces,
    Views,
    load_basemap_mosaics,
    load_cities_latlon_deg,
)

NUM_IMAGES = 12
SIZE_PX = 448
SEED = 12
GPS_IFD = 0x8825


def gps_exif(lat: float, lon: float) -> Image.Exif:
    """EXIF with a position, to 0.01 seconds of arc."""

    def dms(degrees: float) -> tuple[float, float, float]:
        minutes, seconds = divmod(round(abs(degrees) * 3600, 2), 60)
        return float(minutes // 60), float(minutes % 60), round(seconds, 2)

    exif = Image.Exif()
    exif[GPS_IFD] = {1: "N" if lat >= 0 else "S", 2: dms(lat), 3: "E" if lon >= 0 else "W", 4: dms(lon)}
    return exif


def main() -> None:
    """Write the images."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)

    mosaics = load_basemap_mosaics([UNSEEN_MOSAIC, "blue_marble"])
    test = HeldOutPlaces.draw(load_cities_latlon_deg()).test_latlon_deg
    cities = load_places().nearest(test)
    is_city = np.array([place.distance_km < 0.01 for place in cities])
    rng = np.random.default_rng(SEED)
    chosen = rng.choice(np.flatnonzero(is_city), NUM_IMAGES, replace=False)
    views = Views.random(test[chosen], rng)
    for i, index in enumerate(chosen):
        name, mosaic = list(mosaics.items())[i % 2]
        picture = mosaic.render(views[i : i + 1], SIZE_PX)[0]
        image = Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())
        city = "".join(c if c.isalnum() else "-" for c in cities[index].name.lower())
        path = arguments.folder / f"{i + 1:02d}_{city}_{name.replace('_', '-')}.jpg"
        image.save(path, quality=88, exif=gps_exif(*test[index]))
        print(path, cities[index].label, f"{views.footprint_km[i]:.0f} km")


if __name__ == "__main__":
    main()
