"""A handful of photos with everything that OSV-5M knows of its own, and experiments cut down to them."""

from pathlib import Path

import numpy as np
from PIL import Image
from tiny import VIT, tiny_image

from geoloc.cli.train import compose_experiment
from geoloc.data.sample import SampleTable

CONFIGS = Path(__file__).parents[2] / "configs"
TOWER = {"custom": VIT, "features": "pooled"}
TEXT_TOWER = {
    "custom": {"embed_dim": 16, "text_cfg": {"context_length": 24, "width": 16, "heads": 2, "layers": 1}}
}


def small_table(folder, num=32):
    """Photos of eight cities in four countries; the picture tells which country it is. The last has no names."""
    rng = np.random.default_rng(0)
    city = np.arange(num) % 8
    cities = np.array([[-30, -60], [-28, -58], [50, 5], [52, 7], [20, 78], [22, 80], [-25, 135], [-27, 133]])
    (folder / "images").mkdir(parents=True)
    for row in range(num):
        Image.fromarray(tiny_image(int(city[row] // 2))).save(folder / "images" / f"{row}.png")
    country = [f"C{c // 2}" for c in city]
    columns = {
        "key": [f"photo{row}" for row in range(num)],
        "image_file": [f"images/{row}.png" for row in range(num)],
        "country": country,
        "region": [f"R{c % 2}_C{c // 2}" for c in city],
        "sub_region": [f"A{c}_R{c % 2}_C{c // 2}" for c in city],
        "city": [f"Town{c}_A{c}_R{c % 2}_C{c // 2}" for c in city],
        "land_cover": rng.integers(0, 12, num).astype(float),
        "climate": rng.integers(0, 31, num).astype(float),
        "soil": rng.integers(0, 14, num).astype(float),
        "drive_side": rng.integers(0, 2, num).astype(float),
        "road_index": rng.normal(size=num),
        "dist_sea": rng.uniform(0, 900, num),
    }
    for name in ("country", "region", "sub_region", "city"):
        columns[name] = [*columns[name][:-1], None]
    columns["soil"][0] = columns["dist_sea"][1] = np.nan
    return SampleTable(folder, columns, cities[city] + rng.uniform(-0.5, 0.5, (num, 2)))


def small(name, table_path, run_folder, *overrides, machine=()):
    """A composed experiment with a tiny tower on a small table, and two steps."""
    values = compose_experiment(
        [
            f"experiment={name}",
            f"run_folder={run_folder}",
            f"experiment.data.path={table_path}",
            "experiment.data.layout=null",
            "experiment.data.validation_share=0.25",
            "experiment.trainer.num_steps=2",
            "experiment.trainer.validate_every_steps=2",
            "experiment.batch_size=8",
            "experiment.quadtree.max_points_per_cell=6",
            *[
                "machine.accelerator=cpu",
                "machine.num_workers=0",
                "machine.progress=false",
                "machine.logger=csv",
            ],
            *overrides,
        ],
        CONFIGS,
    )
    experiment = values["experiment"]
    experiment["task"]["network"]["backbone"] = TOWER
    if "texts" in experiment:
        experiment["texts"] = TEXT_TOWER
    return values
