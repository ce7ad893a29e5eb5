"""Train an experiment, resuming its run if there is one, and save the checkpoint; the same as `geoloc train`.

python scripts/train.py experiment=earthview
python scripts/train.py experiment=osv5m_hybrid run_folder=runs/short experiment.trainer.num_steps=200
"""

import sys

from geoloc.cli.train import compose_experiment, default_configs, train_experiment

if __name__ == "__main__":
    train_experiment(compose_experiment(sys.argv[1:], default_configs()))
