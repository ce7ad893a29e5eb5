"""A step of the trainer against a bare PyTorch loop over the same model, loss, optimiser and batch.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py [--steps 40] [--rounds 3]

OSV-5M's hybrid (cells and offsets) over EfficientNet-Lite0 with random weights, 32 pictures of 96 px, one thread: a
small network, beside which a trainer's own work shows. The trainer writes metrics and shows its progress as by default;
both take turns, and a step is what lies between two requests for a batch. Goal: at most 1.05 of the bare loop.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from geoloc.models.backbone import Backbone
from geoloc.models.config import BackboneConfig, CellHeadConfig, NetworkConfig, OffsetHeadConfig
from geoloc.models.network import GeoNetwork
from geoloc.train.module import GeoTask, TaskConfig
from geoloc.train.optimise import build_optimizer
from geoloc.train.run_folder import RunFolder
from geoloc.train.settings import MachineConfig, TrainerConfig
from geoloc.train.trainer import fit
from quadtree import Quadtree, build_quadtree

SIZE_PX, BATCH_SIZE = 96, 32
TRUNK = {
    "timm_model_name": "tf_efficientnet_lite0",
    "timm_pool": "avg",
    "timm_proj": "",
    "image_size": SIZE_PX,
}


@dataclass
class SameBatch:
    """One batch, again and again; notes when it was asked for."""

    values: dict[str, torch.Tensor]
    asked_s: list[float] = field(default_factory=list)

    def batch(self, index: int, rank: int, world_size: int) -> dict[str, torch.Tensor]:
        """The trainer's `TrainingData`."""
        self.asked_s.append(time.perf_counter())
        return self.values

    def step_s(self) -> list[float]:
        """Durations of the steps so far, without the first two, in which memory is got and kernels are chosen."""
        taken = np.diff(self.asked_s)[2:].tolist()
        self.asked_s.clear()
        return taken


def new_task(tree: Quadtree) -> GeoTask:
    """The same weights each time."""
    torch.manual_seed(0)
    config = NetworkConfig(
        BackboneConfig(custom={"embed_dim": 1280, "vision_cfg": TRUNK}, features="pooled"),
        cells=CellHeadConfig((512,)),
        offsets=OffsetHeadConfig((512,)),
    )
    network = GeoNetwork(config, Backbone(config.backbone), tree.bounds_deg, tree.center_latlon_deg)
    return GeoTask(TaskConfig(config, {"classes": 1, "offsets": 1}), network, tree)


def bare_loop(tree: Quadtree, config: TrainerConfig, data: SameBatch) -> None:
    """What anybody would write."""
    task = new_task(tree).train()
    optimizer = build_optimizer(task.roles(), config.optimizer)
    for step in range(config.num_steps):
        batch = data.batch(step, 0, 1)
        optimizer.zero_grad()
        torch.stack(list(task.losses(batch).values())).sum().backward()
        if config.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(task.parameters(), config.optimizer.clip_norm)
        optimizer.step()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    points = np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, 20_000))), rng.uniform(-180, 180, 20_000)], 1)
    tree = build_quadtree(points, max_points_per_cell=100)
    values: dict[str, Any] = {
        "image": torch.randn(BATCH_SIZE, 3, SIZE_PX, SIZE_PX),
        "latlon_deg": torch.from_numpy(points[:BATCH_SIZE]),
        "cell_id": torch.from_numpy(tree.assign(points[:BATCH_SIZE])),
    }
    config = TrainerConfig(num_steps=options.steps)
    machine = MachineConfig(accelerator="cpu", threads=1, num_workers=0)
    data = SameBatch(values)
    trained: list[float] = []
    bare: list[float] = []
    ratios = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            fit(new_task(tree), data, config, machine, RunFolder(Path(folder), {}))
        trained += data.step_s()
        bare_loop(tree, config, data)
        bare += data.step_s()
        num = options.steps - 3
        ratios.append(median(trained[-num:]) / median(bare[-num:]))
    print(f"trainer    {1000 * median(trained):7.1f} ms a step of {BATCH_SIZE}, {tree.num_cells} cells")
    print(f"bare loop  {1000 * median(bare):7.1f} ms")
    print(f"ratio of medians, median of {options.rounds} rounds: {median(ratios):.3f} (goal: at most 1.05)")


if __name__ == "__main__":
    main()
