"""Painted places that look alike from near and different from far, and experiments on them with a tiny tower."""

import numpy as np
from PIL import Image
from small_photos import CONFIGS

from geoloc.cli.train import compose_experiment
from geoloc.data.sample import SampleTable
from geoloc.geo.wgs84 import offset_latlon_deg

NUM_PLACES = 12
LAYER3_CHANNELS = 192  # of the tower
SETS = {"photos": 8, "train_queries": 2, "database": 2, "queries": 2, "target": 2, "test_queries": 1}


def small_places(folder):
    """Tables of 12 places 100 m apart across the border of UTM zones 32 and 33, as PNGs of their own pattern each."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (NUM_PLACES, 4, 4, 3))
    for name, count in SETS.items():
        (folder / name).mkdir(parents=True)
        columns = {key: [] for key in ("key", "image_file", "place_id", "city", "heading_deg", "captured_at")}
        latlon = []
        for place, pattern in enumerate(patterns):
            for number in range(count):
                noisy = (pattern * rng.uniform(0.8, 1.0) + rng.normal(0, 8, pattern.shape)).clip(0, 255)
                key = f"{name}{place}_{number}"
                picture = Image.fromarray(noisy.astype(np.uint8)).resize((64, 64), Image.Resampling.NEAREST)
                picture.save(folder / name / f"{key}.png")
                columns["key"].append(key)
                columns["image_file"].append(f"{name}/{key}.png")
                columns["place_id"].append(f"place{place}")
                columns["city"].append(f"city{place % 2}")
                columns["heading_deg"].append(10.0)
                columns["captured_at"].append(float(rng.integers(1e9)))
                latlon.append(
                    offset_latlon_deg(
                        np.array([48.0, 11.994]), *(np.array([100.0 * place, 0]) + rng.uniform(0, 4, 2))
                    )
                )
        SampleTable(folder, columns, np.array(latlon)).write(folder / f"{name}.parquet")


def small(name, folder, run_folder, *overrides):
    """A composed experiment on them with two steps."""
    values = compose_experiment(
        [
            f"experiment={name}",
            f"run_folder={run_folder}",
            *(
                f"machine.{value}"
                for value in (
                    "accelerator=cpu",
                    "num_workers=0",
                    "progress=false",
                    "logger=csv",
                    "log_every_steps=1",
                )
            ),
            *overrides,
        ],
        CONFIGS,
    )
    experiment = values["experiment"]
    for key in ("photos", "database", "queries", "target", "test_queries"):
        if experiment.get(key) is not None:
            experiment[key] = {"path": f"{folder}/{key}.parquet"}
    if "tuples" in experiment:
        experiment["tuples"]["queries"] = {"path": f"{folder}/train_queries.parquet"}
    if "network" in experiment:
        backbone = experiment["network"]["backbone"] | {"timm": "test_resnet", "pretrained": None}
        experiment["network"]["backbone"] = backbone | {"image_size_px": 32}
    return values


# What makes the published experiments small, by the beginning of their names.
SMALLER = {
    "cosplace": [
        "experiment.classes.groups={cell_size_m: 50, cells_between: 2, headings_between: 1, min_images_per_class: 4}",
        "experiment.classes.num_groups=2",
        "experiment.classes.steps_per_group=1",
        "experiment.trainer.num_steps=3",
        "dim=16",
    ],
    "gsv": [
        "experiment.batch_size=16",
        "experiment.trainer.precision='32'",
        "experiment.trainer.num_steps=2",
    ],
    "vgbench": [
        "experiment.photo_size_px=[32, 48]",
        "experiment.tuples.mining={queries_per_refresh: 4, negatives: 3, pool: 12}",
        "experiment.batch_size=2",
        "experiment.trainer.num_steps=3",
    ],
}
ALWAYS = ["experiment.trainer.validate_every_steps=null", "experiment.trainer.early_stopping=null"]


def shrunk(name, folder, run_folder, *overrides):
    """A published experiment on them, with few steps and narrow heads."""
    family = next(part for part in SMALLER if name.startswith(part))
    if name == "cosplace_soup":
        return small(name, folder, run_folder, *overrides)
    values = small(name, folder, run_folder, *SMALLER[family], *ALWAYS, *overrides)
    head = values["experiment"]["network"]["embeddings"]["query"]
    kind = head["aggregation"]["kind"]
    if kind in ("netvlad", "crn"):
        head["aggregation"]["clusters"] = 4
        head["dim"] = 4 * LAYER3_CHANNELS
    elif kind == "gem":
        head["dim"] = LAYER3_CHANNELS
    return values
