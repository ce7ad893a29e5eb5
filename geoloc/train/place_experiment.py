"""Config of place recognition experiments; `geoloc.train.places` runs them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from geoloc.data.place_groups import GroupsConfig
from geoloc.data.place_samplers import Choice
from geoloc.errors import ConfigError
from geoloc.models.config import NetworkConfig
from geoloc.models.fine_tune import FineTune
from geoloc.train.mining import MiningConfig
from geoloc.train.photos import PhotoSet
from geoloc.train.place_photos import AugmentConfig, NightConfig
from geoloc.train.place_task import DomainsConfig, LossConfig, RecallConfig
from geoloc.train.settings import TrainerConfig


@dataclass(frozen=True)
class ClassesConfig:
    """Settings of the CosPlace family; defaults are CosPlace's.

    Attributes:
        groups: definition of classes, and of the groups that share a classifier.
        num_groups: number of groups that are trained in turn.
        steps_per_group: steps of a turn.
        loss: "cosface", "arcface", "sphereface" or "emms"; see `geoloc.models.losses.margins`.
    """

    groups: GroupsConfig = field(default_factory=GroupsConfig)
    num_groups: int = 8
    steps_per_group: int = 10_000
    loss: LossConfig = field(default_factory=lambda: LossConfig("cosface"))

    def __post_init__(self) -> None:
        if self.num_groups < 1 or self.steps_per_group < 1:
            raise ConfigError(
                f"classes.num_groups is {self.num_groups} and steps_per_group {self.steps_per_group}; "
                "both are at least 1"
            )


@dataclass(frozen=True)
class PlacesConfig:
    """Settings of the GSV-Cities family; defaults are GSV-Cities'.

    Attributes:
        images_per_place: K; the batch size is a multiple of it.
        min_images_per_place: places with fewer images are left out; K by default.
        choice: photos of a place: "random" or "newest".
        by_city: whether places of a city come together, so that most batches are of one city.
        loss: loss over the pairs of a batch; see `geoloc.models.losses.pairs`.
        miner: selects the pairs of the loss; null takes all.
    """

    images_per_place: int = 4
    min_images_per_place: int | None = None
    choice: Choice = "random"
    by_city: bool = True
    loss: LossConfig = field(default_factory=lambda: LossConfig("multi_similarity"))
    miner: LossConfig | None = field(default_factory=lambda: LossConfig("multi_similarity"))


@dataclass(frozen=True)
class TuplesConfig:
    """Settings of the Deep VG benchmark family; defaults are the benchmark's.

    Attributes:
        queries: the training queries; the experiment's photos are their database.
        mining: mining of positives and negatives.
        loss: "triplet", "sare_independent" or "sare_joint".
    """

    queries: PhotoSet
    mining: MiningConfig = field(default_factory=MiningConfig)
    loss: LossConfig = field(default_factory=lambda: LossConfig("triplet"))


@dataclass(frozen=True)
class PlacesExperiment:
    """Experiment of the recipe "places", with exactly one of `classes`, `places` and `tuples`.

    Attributes:
        photos: training photos.
        network: network with the embedding "query", which street references share.
        batch_size: photos or tuples of a batch, over all devices.
        fine_tune: trainable parameters of the backbone.
        database: validation database; null with `queries` null for no validation.
        queries: validation queries.
        recall: how validation recall is counted.
        augment: augmentation of training photos.
        night: night look of some training photos; null for none.
        domains: domain adaptation to the target; null for none.
        target: unlabelled photos of another domain, for `domains` and `night.fourier_beta`.
        test_queries: test queries; a target that shares a photo with them or with `queries` is refused.
        start_from: checkpoint whose tensors of equal name and shape initialise the network, as a NetVLAD for a CRN.
        photo_size_px: height and width that photos are resized to; null takes the backbone's preprocessing.
        pca_dim: dimensions of a PCA that is fitted on vectors of training photos after training; null for none.
    """

    photos: PhotoSet
    network: NetworkConfig
    trainer: TrainerConfig
    batch_size: int
    classes: ClassesConfig | None = None
    places: PlacesConfig | None = None
    tuples: TuplesConfig | None = None
    fine_tune: FineTune = field(default_factory=lambda: FineTune("full"))
    database: PhotoSet | None = None
    queries: PhotoSet | None = None
    recall: RecallConfig = field(default_factory=RecallConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    night: NightConfig | None = None
    domains: DomainsConfig | None = None
    target: PhotoSet | None = None
    test_queries: PhotoSet | None = None
    start_from: str | None = None
    photo_size_px: tuple[int, int] | None = None
    pca_dim: int | None = None

    def __post_init__(self) -> None:
        families = [name for name in ("classes", "places", "tuples") if getattr(self, name) is not None]
        if len(families) != 1:
            raise ConfigError(
                f"an experiment has one of classes, places and tuples; found {' and '.join(families) or 'none'}"
            )
        if set(self.network.embeddings) != {"query"} or not self.network.street_as_query:
            raise ConfigError(
                "this recipe trains one embedding for photos and street references: network.embeddings has only "
                "'query', and network.street_as_query=true"
            )
        if self.network.cells or self.network.offsets or self.network.regression:
            raise ConfigError("this recipe trains an embedding only: leave cells, offsets and regression out")
        if (self.database is None) != (self.queries is None):
            raise ConfigError("validation needs database and queries: give both or neither")
        if self.batch_size < 1 or (self.places is None and self.tuples is None and self.batch_size < 2):
            raise ConfigError(f"batch_size is {self.batch_size}: too small")
        if self.places is not None and self.batch_size % self.places.images_per_place:
            raise ConfigError(
                f"batch_size is {self.batch_size}, and places.images_per_place {self.places.images_per_place}: choose "
                "a multiple of it"
            )
        needs_target = self.domains is not None or (
            self.night is not None and self.night.fourier_beta is not None
        )
        if needs_target != (self.target is not None):
            raise ConfigError(
                "a target is needed by domains and night.fourier_beta only: give the target with one of them, or leave "
                "all out"
            )
        if (self.target is None) != (self.test_queries is None):
            raise ConfigError(
                "an adaptation target needs test_queries, so that a target that shares photos with them is refused: "
                "give both or neither"
            )
        aggregation = self.network.embeddings["query"].aggregation
        if aggregation is not None and aggregation.pca:
            raise ConfigError("PCA is fitted after training: set pca_dim, and leave aggregation.pca out")
        height, width = self.photo_size_px or (0, 0)
        if height != width and aggregation is not None and aggregation.kind == "mixvpr":
            raise ConfigError(
                f"photo_size_px is {height} x {width}, but 'mixvpr' needs square images: leave it out"
            )
        if self.pca_dim is not None:
            with_projection(self.network, self.pca_dim)  # raises before training instead of after it


def with_projection(config: NetworkConfig, dim: int) -> NetworkConfig:
    """The network's config with a PCA projection of `dim` dimensions after its embedding."""
    embedding = config.embeddings["query"]
    if embedding.aggregation is None:
        raise ConfigError("pca_dim is for embeddings that aggregate feature maps: give an aggregation")
    aggregation = replace(embedding.aggregation, pca=True, fc_dim=embedding.fc_dim)
    return replace(config, embeddings={"query": replace(embedding, dim=dim, aggregation=aggregation)})
