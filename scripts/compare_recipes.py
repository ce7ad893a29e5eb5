"""Train OSV-5M's and Statewide's recipes on imagery that can be made here, and print one Markdown table.

    python scripts/compare_recipes.py --steps 400

Makes both layouts (projects/earthview/make_dataset.py) unless they are there, and trains every recipe and its
untrained twin (ImageNet's trunk, heads as drawn) two at a time, each on one core, with the same trunk and places held
out by cells with a buffer. Statewide's is `statewide_boston` (photos and views share the trunk), without hard examples
and with three times the steps; its recall is of the own cell of 50 km. A run that is there is read again, or goes on if
it was killed. Needs the extras `earthview` and `train`.
"""

import argparse
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from geoloc.cli.train import compose_experiment, default_configs, train_experiment
from geoloc.models.backbone import Backbone
from geoloc.models.config import BackboneConfig
from geoloc.train.run_folder import read_metrics
from projects.earthview.training import load_imagenet_trunk

TRUNK = {
    "embed_dim": 1280,
    "vision_cfg": {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_pool": "avg",
        "timm_proj": "",
        "image_size": 64,
    },
}
COMMON = [
    "experiment.batch_size=32",
    "experiment.data.validation_share=0.2",
    "experiment.data.buffer_km=25",
    "machine.accelerator=cpu",
    "machine.threads=1",
    "machine.num_workers=0",
    "machine.progress=false",
    "machine.logger=csv",
]
OSV5M = ["experiment.task.fine_tune.mode=full"]
CELLS = ["experiment.quadtree.max_points_per_cell=50"]
STATEWIDE = [
    "experiment.hard_examples=null",
    "experiment.views={source: [FOLDER/tiles], gsd_m_per_px: [12000], shift_m: 20000, cell_size_m: 50000}",
    "experiment.network.embeddings.query={dim: 128, aggregation: {heads: 8}}",
    "experiment.network.embeddings.aerial={dim: 128, aggregation: {heads: 8, num_views: 1}}",
]
RECIPES = {
    "osv5m_hybrid": ("osv5m", OSV5M + CELLS),
    "osv5m_classification": ("osv5m", OSV5M + CELLS),
    "osv5m_regression": ("osv5m", OSV5M),
    "statewide_boston": ("statewide", STATEWIDE),
}
STEPS = {"osv5m": 1, "statewide": 3}  # a contrast learns from few pairs a batch
METRICS = {"osv5m": ("geoscore", "median_km"), "statewide": ("recall_at_1", "recall_at_10", "median_rank")}


def main() -> None:
    """Make, train, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    make_data(options.folder)
    jobs = [
        (name, options.folder, steps * STEPS[layout])
        for steps in (options.steps, 0)
        for name, (layout, _) in RECIPES.items()
    ]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        rows = list(pool.map(measure, *zip(*jobs, strict=True)))
    print("| recipe | steps of 32 | metric | trained | untrained |\n|---|--:|---|--:|--:|")
    for (name, _, steps), trained, untrained in zip(jobs, rows, rows[len(RECIPES) :], strict=False):
        for metric in METRICS[RECIPES[name][0]]:
            print(f"| `{name}` | {steps} | {metric} | {trained[metric]:.4g} | {untrained[metric]:.4g} |")


def make_data(folder: Path) -> None:
    """Both layouts, and the trunk's weights."""
    last = {"osv5m": "test.csv", "statewide": "tiles/layout.yaml"}
    for layout, file in last.items():
        if not (folder / layout / file).exists():
            counts = ["--train", "4000", "--test", "800", "--size-px", "96"]
            command = [
                sys.executable,
                "-m",
                "projects.earthview.make_dataset",
                layout,
                folder / layout,
                *counts,
            ]
            subprocess.run(command, check=True)
    save_trunk(folder / "imagenet.pt")


def save_trunk(path: Path) -> None:
    """The trunk with ImageNet's weights, as a file that a config can name."""
    backbone = Backbone(BackboneConfig(custom=TRUNK, features="pooled"))
    load_imagenet_trunk(backbone)
    torch.save(backbone.tower.state_dict(), path)


def measure(name: str, folder: Path, steps: int) -> dict[str, float]:
    """Metrics of a recipe on its held-out places; after 0 steps, of its untrained twin."""
    layout, overrides = RECIPES[name]
    run = folder / f"{name}-{steps}"
    if not (run / "checkpoint").exists():
        train_experiment(described(name, layout, overrides, folder, run, steps))
    return {
        key.removeprefix("val/"): value
        for _, key, value in read_metrics(run / "metrics.csv")
        if key.startswith("val/")
    }


def described(
    name: str, layout: str, overrides: list[str], folder: Path, run: Path, steps: int
) -> dict[str, Any]:
    """The composed experiment with our data and trunk."""
    heads, trunk = (1e-3, 3e-4) if steps else (1e-12, 1e-12)  # a step that changes nothing to speak of
    values = compose_experiment(
        [
            f"experiment={name}",
            f"run_folder={run}",
            f"experiment.data.path={folder / layout}" + ("/train" if layout == "statewide" else ""),
            f"experiment.trainer.num_steps={steps or 1}",
            "experiment.trainer.validate_every_steps=null",
            *(["experiment.trainer.early_stopping=null"] if layout == "statewide" else []),
            "experiment.trainer.schedule={kind: cosine, warmup_steps: 0}",
            f"experiment.trainer.optimizer.lr={{heads: {heads}, backbone: {trunk}}}",
            *COMMON,
            *(value.replace("FOLDER", str(folder / layout)) for value in overrides),
        ],
        default_configs(),
    )
    network = values["experiment"]["network" if layout == "statewide" else "task"]
    network = network if layout == "statewide" else network["network"]
    features = "map" if layout == "statewide" else "pooled"
    network["backbone"] = {
        "custom": TRUNK,
        "features": features,
        "pretrained": str(folder / "imagenet.pt"),
    }
    return values


if __name__ == "__main__":
    main()
