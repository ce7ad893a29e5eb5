"""Train an experiment, resuming its run if there is one, and save the checkpoint.

python scripts/train.py experiment=earthview
python scripts/train.py experiment=earthview run_folder=runs/short experiment.recipe.num_steps=200
"""

from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(config: DictConfig) -> None:
    """Turn the composed values into typed ones, strictly, and call the library."""
    import torch

    from geoloc.models.config import from_plain
    from geoloc.train.earthview import EarthviewExperiment, run

    torch.set_num_threads(1)  # the recipe shares its batch among threads itself
    values: Any = OmegaConf.to_container(config.experiment, resolve=True)
    model = run(from_plain(EarthviewExperiment, values, "experiment"), config.run_folder, config.threads)
    model.save_pretrained(config.checkpoint, half=True)
    print(f"saved {config.checkpoint}; `geoloc localize PHOTO --model {config.checkpoint}` uses it")


if __name__ == "__main__":
    main()
