"""Build a reference database, or continue one; the same command again goes on where it was stopped.

python scripts/build_reference.py folder=refs aerial.source=tiles/
python scripts/build_reference.py folder=refs 'aerial.source=[utm19/,utm18/]' aerial.region=massachusetts.geojson
python scripts/build_reference.py --config-name street folder=refs street.photos=photos/ street.metadata=photos.csv

configs/reference/ holds the settings. `geoloc reference` does the same without hydra, and more.
"""

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base="1.3", config_path="../configs/reference", config_name="aerial")
def main(config: DictConfig) -> None:
    """Open or create the database, add what is asked for, and say what came of it."""
    from geoloc import Geolocalizer, ReferenceDatabase

    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    model = Geolocalizer.from_pretrained(values["model"], device=values["device"])
    folder = Path(values["folder"])
    if folder.exists():
        database = ReferenceDatabase.open(folder, model=model)
    else:
        database = ReferenceDatabase.create(folder, model=model, dtype=values["dtype"])
    if "aerial" in values:
        aerial = values["aerial"]
        print(database.add_aerial(aerial.pop("source"), **aerial))
    if "street" in values:
        street = values["street"]
        print(database.add_street(street.pop("photos"), **street))
    print(database)


if __name__ == "__main__":
    main()
