"""Statewide's recipe (Fervers et al., ECCV 2024): street photos and aerial views of their places as one embedding.

One pair: a photo, and aerial views at several ground resolutions around a point near it, in any heading. The photo goes
through one tower, the views together through another (or the same), and every batch is told apart by a contrastive
loss that leaves out pairs within a cell of each other. What comes out is a checkpoint that embeds photos and the cells
of a reference database.

What is done otherwise than in the seed: weight decay follows the learning rate (AdamW).
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
from geoloc.data.samplers import InOrder, SpatialBuckets
from geoloc.data.stream import SampleStream
from geoloc.errors import ConfigError
from geoloc.geo.wgs84 import offset_latlon_deg
from geoloc.images.decode import decode_image
from geoloc.images.preprocess import Preprocess
from geoloc.localize.geolocalizer import Geolocalizer
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
from geoloc.train.optimise import Role
from geoloc.train.osv5m import preprocess_of
from geoloc.train.photos import PhotosConfig
from geoloc.train.ranks import of_all_ranks
from geoloc.train.run_folder import RunFolder
from geoloc.train.settings import MachineConfig, TrainerConfig
from geoloc.train.trainer import fit
from quadtree.sphere import haversine_km as distance_km

RECALL_AT = (1, 5, 10, 100)
RECALL_RADIUS_M = 50.0


@dataclass(frozen=True)
class ViewsConfig:
    """The aerial views of a place.

    Attributes:
        source: what `geoloc.reference.aerial.open_sources` opens, or several by priority.
        gsd_m_per_px: ground resolution of each view.
        shift_m: a training view's centre is uniform in a square of so many metres to each side of the photo.
        cell_size_m: of the reference cells; validation sees the cell that holds the photo, north up.
        jitter: of brightness, contrast and saturation in training; 0 leaves pictures as they are.
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
            raise ConfigError(f"{self}: shift_m is at least 0, cell_size_m positive, jitter in [0, 1)")


@dataclass(frozen=True)
class ContrastConfig:
    """The loss over the pairs of a batch; defaults are Statewide's.

    Attributes:
        kind: "decoupled" leaves a pair out of its own denominator; "info_nce"; "triplet" has a soft margin.
        label_smoothing: share of the target that goes to the other pairs, of "decoupled".
        scale: of both embeddings, so that cosines are divided by 1 / scale².
        learnable_scale: whether it trains.
    """

    kind: Literal["decoupled", "info_nce", "triplet"] = "decoupled"
    label_smoothing: float = 0.1
    scale: float = 6.0
    learnable_scale: bool = False


@dataclass(frozen=True)
class StatewideExperiment:
    """The whole experiment.

    Attributes:
        data: street photos.
        network: with the embeddings "query" and "aerial".
        batch_size: pairs of a batch, of all devices together.
        bucket_size_m: an epoch shows one photo of each square of ground of this side.
        hard_examples: batches are clusters of hard examples; null takes pairs as they come.
        photo_size_px: height and width that whole photos are fitted into, with black around; null takes the tower's own
            pictures.
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
    """From a photo to a pair: {"image": (3, S, S), "aerial": (V, 3, S, S), "aerial_deg": (2,) float64}."""

    views: ViewsConfig
    preprocess: Preprocess
    aerial_preprocess: Preprocess
    is_training: bool

    @cached_property
    def _sources(self) -> list[AerialSource]:
        return open_sources(self.views.source)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Mapping[str, Tensor]:
        """Read and decode the photo, and cut the views.

        Raises:
            BadImageError: there is no usable photo.
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
        colour = [255 * mean for mean in wanted.mean]  # to the network this is nothing
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
    """Pictures (h, w, 3) in another light, all the same: brightness, contrast and saturation times 1 ± strength."""
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
    """Photos and aerial views that learn to be alike.

    A batch is a dict: "image" (B, 3, S, S), "aerial" (B, V, 3, S, S), and where both are, "latlon_deg" and
    "aerial_deg" (B, 2) float64.

    Args:
        network: with the embeddings "query" and "aerial".
        config: the loss.
        min_distance_m: a photo and a view within it are no negatives of each other.
    """

    def __init__(self, network: GeoNetwork, config: ContrastConfig, min_distance_m: float) -> None:
        super().__init__()
        self.network, self.config, self.min_distance_m = network, config, min_distance_m
        self.scale = EmbeddingScale(config.scale, learnable=config.learnable_scale)

    def roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """Every parameter's name and role."""
        for name, parameter in self.named_parameters():
            is_tower = name.startswith(("network.backbone.", "network.aerial_backbone."))
            yield name, parameter, "backbone" if is_tower else "heads"

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The contrast over the pairs of all ranks."""
        found = {name: of_all_ranks(value) for name, value in self._embedded(batch).items()}
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
        """Embeddings of both, their places, and "row" of the batch."""
        return self._embedded(batch) | {"row": batch["row"]}

    def score(self, predicted: Mapping[str, Tensor]) -> dict[str, float]:
        """Recall among the views of the whole validation set, each photo's own cell or any within 50 m."""
        return recall(*(predicted[name] for name in ("query", "aerial", "query_deg", "aerial_deg")))


def recall(query: Tensor, aerial: Tensor, query_deg: Tensor, aerial_deg: Tensor) -> dict[str, float]:
    """Share of photos with a right view among the k most similar, and the median rank of their own.

    Args:
        query: (n, D) unit vectors of photos.
        aerial: (n, D) unit vectors of the views of their cells; photos of one cell have equal views.
        query_deg: (n, 2) where the photos were taken.
        aerial_deg: (n, 2) centres of the cells.

    Returns:
        "recall_at_1" … are of the cell that holds the photo; "recall_at_1_within_50_m" … of any cell whose centre is
        so near. As Statewide counts, a rank is the number of other cells that are at least as similar.
    """
    places, first = np.unique(aerial_deg.numpy(), axis=0, return_index=True)
    own = np.unique(aerial_deg.numpy(), axis=0, return_inverse=True)[1].ravel()
    references = aerial[torch.from_numpy(first)].float()
    ranks, near_ranks = np.empty(len(query), np.int64), np.empty(len(query), np.int64)
    for start in range(0, len(query), 1024):
        part = slice(start, start + 1024)
        similarity = (query[part].float() @ references.T).numpy()
        truth = query_deg[part].numpy()
        is_near = 1000 * distance_km(truth[:, None], places[None]) < RECALL_RADIUS_M
        for of_photos, is_right in (
            (ranks, own[part, None] == np.arange(len(places))),
            (near_ranks, is_near),
        ):
            best = np.where(is_right, similarity, -np.inf).max(-1, keepdims=True)
            of_photos[part] = ((similarity >= best) & ~is_right).sum(-1)
            of_photos[part][~is_right.any(-1)] = len(places)  # no cell is near
    of_own = {f"recall_at_{k}": float((ranks < k).mean()) for k in RECALL_AT}
    of_near = {f"recall_at_{k}_within_50_m": float((near_ranks < k).mean()) for k in RECALL_AT}
    return of_own | of_near | {"median_rank": float(np.median(ranks))}


def run(
    experiment: StatewideExperiment, name: str, run_folder: str | Path, machine: MachineConfig | None = None
) -> Geolocalizer:
    """Train, going on from a killed run of the same experiment in the folder.

    Raises:
        ConfigError: parts of the experiment that do not go together.
        NotFoundError: photos or imagery are not there.
        OutputMismatchError: the folder holds another run.
    """
    machine = machine or MachineConfig()
    training, held_out = experiment.data.open()
    open_sources(experiment.views.source)  # before the work that it is for
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
        order = InOrder(np.arange(len(held_out)))
        validation = SampleStream(
            held_out, load, order, batch_size=experiment.batch_size, num_workers=machine.num_workers
        )
    task = CrossViewTask(network, experiment.contrast, views.cell_size_m)
    fitted = fit(task, data, experiment.trainer, machine, folder, validation)
    rows = "".join(f"| {key} | {value:.4g} |\n" for key, value in fitted.metrics.items())
    card = (
        f"# {name}\n\nPhotos and aerial views as one embedding, trained with geoloc's recipe for Statewide on "
        f"{experiment.data.path}. Views of {', '.join(f'{gsd:g}' for gsd in views.gsd_m_per_px)} m a pixel; "
        f"{experiment.trainer.num_steps} steps of {experiment.batch_size} pairs.\n\n"
        f"| held-out photos | |\n|---|---|\n{rows}"
    )
    return Geolocalizer(name, task.network.cpu(), preprocess, None, card=card)
