"""Train the bundled model: network, references, reranker and calibration. A killed run continues where it was.

python -m projects.earthview.train
python -m projects.earthview.train --config-name earthview_longer experiment.recipe.start_from=CHECKPOINT
"""

from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base="1.3", config_path=".", config_name="earthview")
def main(config: DictConfig) -> None:
    """Compose the config, train, and save the checkpoint in half precision."""
    import torch

    from geoloc.models.plain import from_plain
    from projects.earthview import training

    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    torch.set_num_threads(1)  # training shares each batch among threads of its own
    experiment = from_plain(training.EarthviewExperiment, values["experiment"], "experiment")
    model = training.run(experiment, values["run_folder"], values["threads"])
    model.save_pretrained(values["checkpoint"], half=True)
    print(f"saved {values['checkpoint']}")


if __name__ == "__main__":
    main()
