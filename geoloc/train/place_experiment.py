"""What an experiment of place recognition is made of; `geoloc.train.places` runs it."""

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
    """CosPlace's family; defaults are its own.

    Attributes:
        groups: what a class is, and which classes share a classifier.
        num_groups: the first groups, by their key, that are trained, one after another and round and round.
        steps_per_group: of a turn.
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
    """GSV-Cities' family; defaults are its own.

    Attributes:
        images_per_place: K; the batch size is a multiple of it.
        min_images_per_place: places with fewer are left out; K by default.
        choice: of a place's photos, "random" or "newest".
        by_city: the places of a city come together, so that most batches are of one; else all are mixed.
        loss: over the pairs of a batch; see `geoloc.models.losses.pairs`.
        miner: of the pairs that count; null counts all.
    """

    images_per_place: int = 4
    min_images_per_place: int | None = None
    choice: Choice = "random"
    by_city: bool = True
    loss: LossConfig = field(default_factory=lambda: LossConfig("multi_similarity"))
    miner: LossConfig | None = field(default_factory=lambda: LossConfig("multi_similarity"))


@dataclass(frozen=True)
class TuplesConfig:
    """The Deep VG benchmark's family; defaults are its own.

    Attributes:
        queries: the training queries; the experiment's photos are their database.
        mining: of positives and negatives.
        loss: "triplet", "sare_independent" or "sare_joint".
    """

    queries: PhotoSet
    mining: MiningConfig = field(default_factory=MiningConfig)
    loss: LossConfig = field(default_factory=lambda: LossConfig("triplet"))


@dataclass(frozen=True)
class PlacesExperiment:
    """The whole experiment, of one of the families `classes`, `places` and `tuples`.

    Attributes:
        photos: that are trained with.
        network: with the embedding "query", which serves street references, too.
        batch_size: photos of a batch, or tuples, of all devices together.
        fine_tune: which of the backbone's parameters train.
        database: of the validation, and
        queries: which are sought in it; neither without validation.
        recall: how validation counts.
        augment: of training photos.
        night: some training photos are turned into night; null none.
        domains: photos of the target teach the backbone not to tell domains apart; null none.
        target: photos of another domain, without labels; for `domains` and `night.fourier_beta`.
        test_queries: that will be tested on: the target must not hold any of them, nor of `queries`.
        start_from: a checkpoint whose tensors the network starts from, where names and shapes are the same, such as a
            NetVLAD for a CRN.
        photo_size_px: height and width that photos are squeezed into; null takes the tower's own pictures.
        pca_dim: after training, vectors are projected on so many principal axes of the training photos' vectors.
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
                "this recipe trains one embedding for photos and street references: network.embeddings has 'query' "
                "alone, and network.street_as_query=true"
            )
        if self.network.cells or self.network.offsets or self.network.regression:
            raise ConfigError("this recipe trains an embedding only: leave cells, offsets and regression out")
        if (self.database is None) != (self.queries is None):
            raise ConfigError("validation seeks queries in a database: give both or neither")
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
                "domains and night.fourier_beta need photos of a target domain, and nothing else does: give the target "
                "with one of them, or leave all out"
            )
        if (self.target is None) != (self.test_queries is None):
            raise ConfigError(
                "an adaptation target needs test_queries, the photos that will be tested on, so that a target that "
                "holds some is refused: give both or neither"
            )
        aggregation = self.network.embeddings["query"].aggregation
        if aggregation is not None and aggregation.pca:
            raise ConfigError("PCA is fitted after training: set pca_dim, and leave aggregation.pca out")
        height, width = self.photo_size_px or (0, 0)
        if height != width and aggregation is not None and aggregation.kind == "mixvpr":
            raise ConfigError(
                f"photo_size_px is {height} x {width}, but 'mixvpr' mixes the positions of a square: leave it out"
            )
        if self.pca_dim is not None:
            with_projection(self.network, self.pca_dim)  # before the training that it is for


def with_projection(config: NetworkConfig, dim: int) -> NetworkConfig:
    """The network with a projection behind its vectors."""
    embedding = config.embeddings["query"]
    if embedding.aggregation is None:
        raise ConfigError("pca_dim is for embeddings that aggregate feature maps: give an aggregation")
    aggregation = replace(embedding.aggregation, pca=True, fc_dim=embedding.fc_dim)
    return replace(config, embeddings={"query": replace(embedding, dim=dim, aggregation=aggregation)})
