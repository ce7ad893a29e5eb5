"""Statewide's recipe (Fervers et al., ECCV 2024): a joint embedding of street photos and aerial views.

A pair is a photo, and aerial views at several ground resolutions around a point near it, in any heading. Photos and
views have a tower each (or share one). The contrastive loss leaves out pairs within a cell of each other. The result is
a checkpoint that embeds photos and the cells of a reference database.

Difference from the published code: weight decay follows the learning rate (AdamW).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geoloc.data.sample import Sample
from geoloc.data.samplers import SpatialBuckets
from geoloc.data.stream import SampleStream
from geoloc.errors import ConfigError
from geoloc.geo.wgs84 import offset_latlon_deg
from geoloc.images.decode import decode_image
from geoloc.images.preprocess import Preprocess
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.metrics.cells import statewide_recall
from geoloc.models.aggregation import EmbeddingScale
from geoloc.models.backbone import Backbone
from geoloc.models.config import NetworkConfig
from geoloc.models.losses import decoupled_contrastive_loss, info_nce, soft_margin_triplet_loss
from geoloc.models.losses.regression import haversine_km
from geoloc.models.network import GeoNetwork
from geoloc.models.plain import to_plain
from geoloc.reference.aerial.cells import CellGrid
from geoloc.reference.aerial.open import open_sources
from geoloc.reference.aerial.source import AerialSource, read_patch
from geoloc.train.hard_examples import HardExamples, HardExamplesConfig
from geoloc.train.optimise import Role, roles_of
from geoloc.train.photos import PhotosConfig
from geoloc.train.ranks import all_gather_rows
from geoloc.train.recipes import in_order, metrics_table, preprocess_of, register
from geoloc.train.run_folder import RunFolder
from geoloc.train.settings import MachineConfig, TrainerConfig
from geoloc.train.trainer import fit
from quadtree.sphere import haversine_km as distance_km

RECALL_AT = (1, 5, 10, 100)
RECALL_RADIUS_M = 50.0


@dataclass(frozen=True)
class ViewsConfig:
    """Aerial views of a location.

    Attributes:
        source: sources for `geoloc.reference.aerial.open_sources`, by priority.
        gsd_m_per_px: ground resolution of each view.
        shift_m: half side of the square around the photo in which a training view's centre is uniform.
        cell_size_m: size of the reference cells; validation uses the north-up cell that contains the photo.
        jitter: strength of brightness, contrast and saturation jitter in training; 0 changes nothing.
    """

    source: tuple[str, ...]
    gsd_m_per_px: tuple[float, ...] = (0.2, 0.4, 0.8, 1.6)
    shift_m: float = 10.0
    cell_size_m: float = 30.0
    jitter: float = 0.15

    def __post_init__(self) -> None:
        if not self.gsd_m_per_px or min(self.gsd_m_per_px) <= 0:
            raise ConfigError(
                f"gsd_m_per_px is {list(self.gsd_m_per_px)}; it needs a positive number for each view"
            )
        if not (self.shift_m >= 0 and self.cell_size_m > 0 and 0 <= self.jitter < 1):
            raise ConfigError(f"{self}: shift_m must be at least 0, cell_size_m positive, jitter in [0, 1)")


@dataclass(frozen=True)
class ContrastConfig:
    """Loss over the pairs of a batch; defaults are Statewide's.

    Attributes:
        kind: "decoupled" leaves a pair out of its own denominator; "info_nce"; "triplet" with soft margin.
        label_smoothing: share of the target that the other pairs get, for "decoupled".
        scale: scale of both embeddings; the temperature is 1 / scale².
        learnable_scale: whether the scale is trained.
    """

    kind: Literal["decoupled", "info_nce", "triplet"] = "decoupled"
    label_smoothing: float = 0.1
    scale: float = 6.0
    learnable_scale: bool = False


@dataclass(frozen=True)
class StatewideExperiment:
    """Experiment of the recipe "statewide".

    Attributes:
        data: street photos.
        network: network with the embeddings "query" and "aerial".
        batch_size: pairs of a batch, over all devices.
        bucket_size_m: an epoch has one photo of each square of this side.
        hard_examples: hard example mining; null takes pairs in random order.
        photo_size_px: height and width that photos are fitted into, padded with black; null takes the tower's
            preprocessing.
    """

    data: PhotosConfig
    views: ViewsConfig
    network: NetworkConfig
    trainer: TrainerConfig
    batch_size: int = 30
    bucket_size_m: float = 5.0
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    hard_examples: HardExamplesConfig | None = None
    photo_size_px: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if {"query", "aerial"} - self.network.embeddings.keys():
            raise ConfigError("network.embeddings needs 'query' for photos and 'aerial' for the views")
        if self.network.cells or self.network.offsets or self.network.regression:
            raise ConfigError("this recipe trains embeddings only: leave cells, offsets and regression out")
        aggregation = self.network.embeddings["aerial"].aggregation
        num_views = 1 if aggregation is None else aggregation.num_views
        if num_views != len(self.views.gsd_m_per_px):
            raise ConfigError(
                f"views.gsd_m_per_px has {len(self.views.gsd_m_per_px)} views, and the aerial embedding takes "
                f"{num_views}: set network.embeddings.aerial.aggregation.num_views"
            )
        if self.batch_size < 2:
            raise ConfigError(f"batch_size is {self.batch_size}; a contrast needs at least 2 pairs")


@dataclass(frozen=True)
class LoadPair:
    """Loader from a photo to a pair: {"image": (3, S, S), "aerial": (V, 3, S, S), "aerial_deg": (2,) float64}."""

    views: ViewsConfig
    preprocess: Preprocess
    aerial_preprocess: Preprocess
    is_training: bool

    @cached_property
    def _sources(self) -> list[AerialSource]:
        return open_sources(self.views.source)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Mapping[str, Tensor]:
        """Decode the photo and read its aerial views.

        Raises:
            BadImageError: the photo is missing or broken.
        """
        photo = decode_image(sample.image.read(), min_side_px=self.preprocess.decode_min_side_px)
        here, heading_deg = np.array(sample.latlon_deg), 0.0
        if self.is_training:
            north_m, east_m = rng.uniform(-self.views.shift_m, self.views.shift_m, 2)
            here = offset_latlon_deg(here, east_m, north_m)
            heading_deg = rng.uniform(0, 360)
        else:
            grid = CellGrid(self.views.cell_size_m)
            here = grid.center_latlon_deg(grid.cell_of(here[None]))[0]
        wanted = self.aerial_preprocess
        colour = [255 * mean for mean in wanted.mean]  # zero after normalisation
        patches = [
            read_patch(
                self._sources, here, heading_deg=heading_deg, gsd_m_per_px=gsd, size_px=wanted.size_hw[0]
            ).filled(colour)
            for gsd in self.views.gsd_m_per_px
        ]
        if self.is_training and self.views.jitter:
            (photo,) = jittered([photo], self.views.jitter, rng)
            patches = jittered(patches, self.views.jitter, rng)
        return {
            "image": self.preprocess(photo),
            "aerial": torch.stack([wanted(patch) for patch in patches]),
            "aerial_deg": torch.from_numpy(np.asarray(here, np.float64)),
        }


def jittered(
    images: list[NDArray[np.uint8]], strength: float, rng: np.random.Generator
) -> list[NDArray[np.uint8]]:
    """Images (h, w, 3) with one random brightness, contrast and saturation for all, each 1 ± strength."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    found = []
    for image in images:
        pixels = image.astype(np.float32) * brightness
        pixels += (1 - contrast) * (pixels.mean() - pixels)
        grey = pixels.mean(-1, keepdims=True)
        pixels += (1 - saturation) * (grey - pixels)
        found.append(pixels.clip(0, 255).round().astype(np.uint8))
    return found


class CrossViewTask(nn.Module):
    """Task that trains a joint embedding of photos and aerial views.

    A batch is a dict: "image" (B, 3, S, S), "aerial" (B, V, 3, S, S), and their locations "latlon_deg" and "aerial_deg"
    (B, 2) float64.

    Args:
        network: network with the embeddings "query" and "aerial".
        config: loss settings.
        min_distance_m: a photo and a view within this distance are no negatives of each other.
    """

    def __init__(self, network: GeoNetwork, config: ContrastConfig, min_distance_m: float) -> None:
        super().__init__()
        self.network, self.config, self.min_distance_m = network, config, min_distance_m
        self.scale = EmbeddingScale(config.scale, learnable=config.learnable_scale)

    def roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """See `Task.roles`."""
        return roles_of(self)

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The contrastive loss over the pairs of all ranks."""
        found = {name: all_gather_rows(value) for name, value in self._embedded(batch).items()}
        query, aerial = found["query"], found["aerial"]
        query_rad, aerial_rad = (torch.deg2rad(found[name]) for name in ("query_deg", "aerial_deg"))
        valid = 1000 * haversine_km(query_rad[:, None], aerial_rad) > self.min_distance_m
        temperature = self.scale.temperature()
        if self.config.kind == "decoupled":
            loss = decoupled_contrastive_loss(query, aerial, temperature, valid, self.config.label_smoothing)
        elif self.config.kind == "info_nce":
            loss = info_nce(query, aerial, temperature, valid)
        else:
            loss = soft_margin_triplet_loss(query, aerial, temperature, valid)
        return {"contrast": loss}

    def _embedded(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        aerial = batch["aerial"] if self.network.aggregates("aerial") else batch["aerial"][:, 0]
        return {
            "query": self.network.embed_images(batch["image"], "query"),
            "aerial": self.network.embed_images(aerial, "aerial"),
            "query_deg": batch["latlon_deg"],
            "aerial_deg": batch["aerial_deg"],
        }

    def predict(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Embeddings "query" and "aerial", their locations, and "row" of the batch."""
        return self._embedded(batch) | {"row": batch["row"]}

    def score(self, predicted: Mapping[str, Tensor]) -> dict[str, float]:
        """Recall among the cells of the whole validation set, see `recall`."""
        found = (predicted[name] for name in ("query", "aerial", "query_deg", "aerial_deg"))
        return recall(*found)


def recall(query: Tensor, aerial: Tensor, query_deg: Tensor, aerial_deg: Tensor) -> dict[str, float]:
    """Recall of cells by similarity, and the median rank of the cell that contains the photo.

    Cells with equal similarity rank before the right one, as in Statewide's code.

    Args:
        query: (n, D) unit vectors of photos.
        aerial: (n, D) unit vectors of their cells; photos of one cell have equal vectors.
        query_deg: (n, 2) locations of the photos.
        aerial_deg: (n, 2) centres of the cells.

    Returns:
        "recall_at_1" … of the containing cell; "recall_at_1_within_50_m" … of any cell whose centre is within 50 m;
        "median_rank".
    """
    centres_deg, first, own = np.unique(aerial_deg.numpy(), axis=0, return_index=True, return_inverse=True)
    own, references = own.ravel(), aerial[torch.from_numpy(first)].float()
    width = min(max(RECALL_AT), len(centres_deg))
    ranks, best = np.empty(len(query), np.int64), np.empty((len(query), width), np.int64)
    for start in range(0, len(query), 1024):
        part = slice(start, start + 1024)
        similarity = query[part].float() @ references.T
        of_own = similarity.gather(1, torch.from_numpy(own[part, None]))
        ranks[part] = (similarity >= of_own).sum(-1).numpy() - 1
        values, found = (x.numpy() for x in similarity.topk(width))
        apart_km = distance_km(query_deg[part].numpy()[:, None], centres_deg[found])
        best[part] = np.take_along_axis(found, np.lexsort((-apart_km, found == own[part, None], -values)), -1)
    shares = statewide_recall(
        query_deg.numpy(),
        centres_deg[best],
        best == own[:, None],
        cell_size_m=0.0,  # report the radius for cells of any size
        at=RECALL_AT,
        within_m=(0.0, RECALL_RADIUS_M),
    )
    named = {
        f"recall_at_{k}{'' if radius == '0' else f'_within_{radius}_m'}": share
        for radius, by_k in shares.items()
        for k, share in by_k.items()
    }
    return named | {"median_rank": float(np.median(ranks))}


@register("statewide", StatewideExperiment, "street photos and aerial views as one embedding")
def run(
    experiment: StatewideExperiment, name: str, run_folder: str | Path, machine: MachineConfig | None = None
) -> Geolocalizer:
    """Train or resume the experiment.

    Raises:
        ConfigError: inconsistent settings.
        NotFoundError: photos or imagery are missing.
        OutputMismatchError: the folder holds another run.
    """
    machine = machine or MachineConfig()
    training, held_out = experiment.data.open()
    open_sources(experiment.views.source)  # raises before the network is built
    torch.manual_seed(experiment.trainer.seed)
    config = experiment.network
    backbone = Backbone(config.backbone)
    aerial_backbone = None if config.aerial_backbone is None else Backbone(config.aerial_backbone)
    network = GeoNetwork(config, backbone, aerial_backbone=aerial_backbone)
    described = to_plain(experiment) | {
        "num_photos": [len(training), 0 if held_out is None else len(held_out)]
    }
    folder = RunFolder(run_folder, described)
    preprocess = preprocess_of(backbone)
    of_views = preprocess if aerial_backbone is None else preprocess_of(aerial_backbone)
    if experiment.photo_size_px is not None:
        preprocess = replace(preprocess, image_size_px=experiment.photo_size_px, resize="pad")
    if preprocess.size_hw != of_views.size_hw:
        preprocess = replace(preprocess, aerial_size_px=of_views.size_hw[0])
    views, seed = experiment.views, experiment.trainer.seed
    stream = SampleStream(
        training,
        LoadPair(views, preprocess, of_views, is_training=True),
        SpatialBuckets(training.latlon_deg, seed, experiment.bucket_size_m),
        batch_size=experiment.batch_size,
        seed=seed,
        num_workers=machine.num_workers,
    )
    data = (
        stream
        if experiment.hard_examples is None
        else HardExamples(stream, experiment.hard_examples, views.cell_size_m)
    )
    validation = None
    if held_out is not None:
        load = LoadPair(views, preprocess, of_views, is_training=False)
        validation = in_order(held_out, load, machine.num_workers, experiment.batch_size)
    task = CrossViewTask(network, experiment.contrast, views.cell_size_m)
    fitted = fit(task, data, experiment.trainer, machine, folder, validation)
    card = (
        f"# {name}\n\nPhotos and aerial views as one embedding, trained with geoloc's recipe for Statewide on "
        f"{experiment.data.path}. Views of {', '.join(f'{gsd:g}' for gsd in views.gsd_m_per_px)} m a pixel; "
        f"{experiment.trainer.num_steps} steps of {experiment.batch_size} pairs.\n\n"
        f"{metrics_table(fitted.metrics)}"
    )
    return Geolocalizer(name, task.network.cpu(), preprocess, None, card=card)
