"""Write the views of the bundled model's test as a benchmark: pictures, and a table of where they were taken.

    python -m projects.earthview.make_views runs/earthview-views --places 3000 --mosaic etopo1
    geoloc evaluate benchmark -m earthview -b csv --data runs/earthview-views --output runs/earthview-report

The same places and views as the table in README, from one mosaic; PNG, so that nothing of a picture is lost.
"""

import argparse
from pathlib import Path

from PIL import Image

from geoloc.files import atomic_write
from projects.earthview.mosaics import (
    UNSEEN_MOSAIC,
    HeldOutPlaces,
    load_basemap_mosaics,
    load_cities_latlon_deg,
    view_images,
)
from projects.earthview.table import SEED


def main() -> None:
    """Parse, render, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the pictures and truth.csv go")
    parser.add_argument("--places", type=int, default=3000, help="the first so many of the 3,000 test places")
    parser.add_argument("--mosaic", default=UNSEEN_MOSAIC, help="what is looked at")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    places = HeldOutPlaces.draw(load_cities_latlon_deg()).test_latlon_deg[: options.places]
    rows = []
    for pictures, latlon_deg in view_images(load_basemap_mosaics([options.mosaic]), places, SEED):
        for picture, (lat, lon) in zip(pictures, latlon_deg.tolist(), strict=True):
            name = f"{len(rows):05}.png"
            Image.fromarray(picture).save(options.folder / name)
            rows.append(f"{name},{lat!r},{lon!r}\n")
    with atomic_write(options.folder / "truth.csv", "w") as file:
        file.writelines(["id,latitude,longitude\n", *rows])
    print(f"{len(rows)} views of {options.mosaic} -> {options.folder}")


if __name__ == "__main__":
    main()
