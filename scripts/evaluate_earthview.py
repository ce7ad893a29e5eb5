"""Measure the headline table of the bundled model, on mosaics that it was trained on and on an unseen one.

npm pack cesium@1.140.0 && tar xzf cesium-1.140.0.tgz package/Source/Assets/Textures/NaturalEarthII
python scripts/evaluate_earthview.py natural_earth=package/Source/Assets/Textures/NaturalEarthII

`make earthview-table` runs both. With save_to=FOLDER the checkpoint is saved again with the table in its
card.
"""

import hydra
from omegaconf import DictConfig

COMMAND = "make earthview-table"


@hydra.main(version_base="1.3", config_path="../configs", config_name="evaluate_earthview")
def main(config: DictConfig) -> None:
    """Measure, print, and save with the card if asked to."""
    import torch

    from geoloc import Geolocalizer
    from geoloc.data.earthview import Mosaic, load_basemap_mosaics
    from geoloc.evaluate.earthview import measure, model_card, to_markdown

    torch.set_num_threads(config.threads)
    model = Geolocalizer.from_pretrained(config.model)
    unseen = Mosaic.from_tms_folder("natural_earth_2", config.natural_earth)
    sets = {"held-out places, mosaics seen in training": load_basemap_mosaics()}
    rows = measure(model, {"held-out places, unseen mosaic": {unseen.name: unseen}, **sets})
    table = to_markdown(rows)
    print(table)
    if config.save_to:
        model.card = model_card(model, table, COMMAND)
        model.save_pretrained(config.save_to, half=True)


if __name__ == "__main__":
    main()
