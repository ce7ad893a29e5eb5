"""Train each family of place recognition on a data set that can be made here, and print one Markdown table.

    python scripts/compare_places.py

Makes the data (projects/earthview/make_place_dataset.py) unless it is there, and trains from the same trunk
(EfficientNet-Lite0 with ImageNet's weights) with as many photos: CosPlace's classes, GSV-Cities' places, the VG
benchmark's tuples with random, partial and full mining, and places with photos turned into night, without and with
looks of the target's. Each is tested on a continent that no training saw, by day and by night, within 25 m, next to the
untrained tower with GeM. A run that is there is read again, or goes on if it was killed. Needs the extras `earthview`
and `train`.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from compare_recipes import TRUNK, save_trunk  # the script beside this one

from geoloc import Geolocalizer
from geoloc.cli.train import compose_experiment, default_configs, train_experiment
from geoloc.data.stream import LoadImage
from geoloc.train.photos import PhotoSet
from geoloc.train.place_task import RecallConfig
from geoloc.train.places import recall_of, validation_of

SEED = 7  # of the data: settings were tried on data of seed 0
COMMON = [
    "dim=1280",
    "experiment.network.embeddings.query.aggregation={kind: gem, normalize_positions: true}",
    "experiment.augment={smallest_area: 0.7, strength: 0.5}",
    "experiment.fine_tune={mode: full, freeze_before: null}",
    "experiment.trainer.precision='32'",
    "experiment.trainer.validate_every_steps=null",
    "experiment.trainer.early_stopping=null",
    "experiment.trainer.schedule={kind: cosine, warmup_steps: 20, milestones: [], gamma: 0.1}",
    "machine.accelerator=cpu",
    "machine.threads=1",
    "machine.num_workers=0",
    "machine.progress=false",
    "machine.logger=csv",
    "machine.save_every_steps=100",
]
# From above, all directions show the same ground.
GROUPS = "{cell_size_m: 20, heading_step_deg: null, cells_between: 2, min_images_per_class: 4}"
CLASSES = [
    f"experiment.classes={{num_groups: 4, steps_per_group: 20, groups: {GROUPS}}}",
    "experiment.batch_size=56",
]
# GSV-Cities' own numbers (1 and 0) push everything apart first, and take longer than this.
SIMILARITY = "{kind: multi_similarity, options: {alpha: 2, base: 0.5}}"
PLACES = [
    "experiment.batch_size=56",
    "experiment.places.by_city=false",
    f"experiment.places.loss={SIMILARITY}",
]
# Triplets move a tower slowly: faster with a linear layer behind it, and photos as they are.
TUPLES = [
    "dim=256",
    "experiment.network.embeddings.query.aggregation={kind: cosplace}",
    "experiment.augment={smallest_area: 1.0, strength: 0.0}",
    "experiment.batch_size=8",
    "experiment.photo_size_px=null",  # the squares of the other families
    "experiment.tuples.mining={queries_per_refresh: 80, negatives: 5, pool: 300}",
]
NIGHT = ["experiment.night={share: 0.3, darkroom: true}"]
FOURIER = [
    "experiment.night={share: 0.3, darkroom: true, fourier_beta: 0.1}",
    "experiment.target={path: DATA/vg, layout: vg, split: target}",
    "experiment.test_queries={path: DATA/vg, layout: vg, split: test/queries_night}",
]
RUNS = {
    "untrained": ("gsv_cosplace", PLACES),
    "classes, CosFace": ("cosplace_r18_512", CLASSES),
    "places, multi-similarity": ("gsv_cosplace", PLACES),
    "tuples, random mining": ("vgbench_gem_partial", [*TUPLES, "mining=random"]),
    "tuples, partial mining": ("vgbench_gem_partial", TUPLES),
    "tuples, full mining": ("vgbench_gem_partial", [*TUPLES, "mining=full"]),
    "places, a third at night": ("gsv_cosplace", [*PLACES, *NIGHT]),
    "places, a third at night in looks of the target": ("gsv_cosplace", [*PLACES, *FOURIER]),
}
STEPS = {"gsv_cosplace": 250}  # of 56 photos: night is learnt after day
OTHER_STEPS = 100


def main() -> None:
    """Make, train, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/places"))
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, each on one core")
    options = parser.parse_args()
    make_data(options.folder)
    jobs = [
        (name, options.folder, STEPS.get(experiment, OTHER_STEPS) if name != "untrained" else 0)
        for name, (experiment, _) in RUNS.items()
    ]
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        rows = list(pool.map(measure, *zip(*jobs, strict=True)))
    print("| run | steps of 56 photos | R@1 day | R@5 day | R@1 night | R@5 night | mined with | seconds |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for (name, _, steps), row in zip(jobs, rows, strict=True):
        shares = " | ".join(f"{100 * row[key]:.1f}" for key in ("day 1", "day 5", "night 1", "night 5"))
        mined = f"{row['mined']:,.0f} photos" if row["mined"] else ""
        print(f"| {name} | {steps} | {shares} | {mined} | {row['seconds']:.0f} |")


def make_data(folder: Path) -> None:
    """The data set, and the trunk's weights."""
    if not (folder / "data" / "README.md").exists():  # which is written last
        module = "projects.earthview.make_place_dataset"
        subprocess.run([sys.executable, "-m", module, folder / "data", "--seed", str(SEED)], check=True)
    save_trunk(folder / "imagenet.pt")


def measure(name: str, folder: Path, steps: int) -> dict[str, float]:
    """Recall of a run by day and night on the test's continent, and what its mining embedded."""
    run = folder / f"{name.replace(', ', '-').replace(' ', '_')}-{steps}"
    if not (run / "results.json").exists():
        start = time.monotonic()
        train_experiment(described(name, folder, run, steps))
        found: dict[str, float] = {"seconds": time.monotonic() - start, "mined": 0}
        if (mining := run / "mining.json").exists():
            found["mined"] = json.loads(mining.read_text("utf-8"))["embedded_photos"]
        model = Geolocalizer.from_pretrained(run / "checkpoint")
        for light, split in (("day", "test/queries"), ("night", "test/queries_night")):
            database, queries = (
                PhotoSet(str(folder / "data/vg"), "vg", part) for part in ("test/database", split)
            )
            validation = validation_of(database, queries, RecallConfig(), LoadImage(model.preprocess), 0)
            recall = recall_of(model, *validation)
            found |= {f"{light} {k}": recall[f"recall_at_{k}"] for k in (1, 5)}
        (run / "results.json").write_text(json.dumps(found))
    return dict(json.loads((run / "results.json").read_text("utf-8")))


def described(name: str, folder: Path, run: Path, steps: int) -> dict[str, Any]:
    """The composed experiment with our data and trunk."""
    experiment, overrides = RUNS[name]
    vg = folder / "data/vg"
    rates = "{heads: 1e-3, backbone: 3e-4, classifiers: 1e-2}" if steps else "{heads: 1e-12, backbone: 1e-12}"
    values = compose_experiment(
        [
            f"experiment={experiment}",
            f"run_folder={run}",
            f"experiment.photos.path={folder / 'data' / ('gsv_cities' if experiment.startswith('gsv') else 'vg')}",
            f"experiment.database={{path: {vg}, layout: vg, split: val/database}}",
            f"experiment.queries={{path: {vg}, layout: vg, split: val/queries}}",
            f"experiment.trainer.num_steps={steps or 1}",
            "experiment.trainer.optimizer={kind: adam, weight_decay: 0, clip_norm: 1.0, lr: " + rates + "}",
            *COMMON,
            *(value.replace("DATA", str(folder / "data")) for value in overrides),
        ],
        default_configs(),
    )
    network = values["experiment"]["network"]
    network["backbone"] = {"custom": TRUNK, "features": "map", "pretrained": str(folder / "imagenet.pt")}
    return values


if __name__ == "__main__":
    main()
