"""Measure the headline table of the bundled model: every stage, on a mosaic it knows and on one it never saw.

python -m projects.earthview.evaluate

`make earthview-table` runs it. With save_to=FOLDER the checkpoint is saved again with the table in its card.
"""

import hydra
from omegaconf import DictConfig

COMMAND = "make earthview-table"


@hydra.main(version_base="1.3", config_path=".", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Measure, print, and save with the card if asked to."""
    import torch

    from geoloc import Geolocalizer
    from projects.earthview.mosaics import UNSEEN_MOSAIC, load_basemap_mosaics
    from projects.earthview.table import answered_to_markdown, measure, model_card, to_markdown

    torch.set_num_threads(config.threads)
    model = Geolocalizer.from_pretrained(config.model)
    mosaics = load_basemap_mosaics(["blue_marble", UNSEEN_MOSAIC])
    sets = {"ETOPO1, never seen": mosaics[UNSEEN_MOSAIC], "Blue Marble, seen": mosaics["blue_marble"]}
    rows = measure(model, sets, mosaics["blue_marble"], config.num_places)
    table = f"{to_markdown(rows)}\n\n{answered_to_markdown(rows)}"
    print(table)
    if config.save_to:
        model.card = model_card(model, table, COMMAND)
        model.save_pretrained(config.save_to, half=True)


if __name__ == "__main__":
    main()
