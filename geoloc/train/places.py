"""Place recognition recipe: an embedding in which photos of one place are similar, trained in one of three families.

    classes    CosPlace (Berton et al., CVPR 2022): classify squares of ground by heading, one group at a time
    places     GSV-Cities (Ali-bey et al., 2022): batches of P places x K photos, and a loss over their pairs
    tuples     Deep VG benchmark (Berton et al., CVPR 2022): queries with a positive and mined negatives

The result is a checkpoint that embeds photos and street references alike. For domain adaptation some training photos
get a night look, or every batch has photos of the target domain, which must not be test photos (`check_apart`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geoloc.data.place_groups import PlaceGroups, place_groups
from geoloc.data.place_samplers import ImageOfClass, PlacesTimesImages
from geoloc.data.sample import SampleTable
from geoloc.data.samplers import InOrder, Shuffled
from geoloc.data.stream import LoadImage, SampleStream
from geoloc.errors import ConfigError
from geoloc.files import atomic_write
from geoloc.geo.near import rows_within_m
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.aggregation import MAX_DESCRIPTORS, AggregatingHead, NetVLAD, fit_pca, local_descriptors
from geoloc.models.backbone import Backbone
from geoloc.models.network import GeoNetwork
from geoloc.models.plain import to_plain
from geoloc.train.domains import KeyedPhoto, check_apart
from geoloc.train.mining import MinedTuples, TupleMiner, rarity_weights
from geoloc.train.photos import PhotoSet
from geoloc.train.place_batches import GroupBatches, with_target
from geoloc.train.place_experiment import (
    ClassesConfig,
    PlacesConfig,
    PlacesExperiment,
    TuplesConfig,
    with_projection,
)
from geoloc.train.place_photos import LoadPlacePhoto
from geoloc.train.place_task import (
    PlaceLoss,
    PlaceTask,
    RecallConfig,
    Truth,
    batch_loss,
    group_loss,
    tuple_loss,
)
from geoloc.train.ranks import is_first_rank, seed_of
from geoloc.train.recipes import in_order, metrics_table, preprocess_of, register
from geoloc.train.run_folder import RunFolder
from geoloc.train.settings import MachineConfig
from geoloc.train.task import TrainingData
from geoloc.train.trainer import fit

_EMBED_BATCH = 64  # batch size without gradients
_VLAD_PHOTOS, _VLAD_PER_PHOTO = 500, 100  # photos and descriptors for NetVLAD's clusters, as published


@register("places", PlacesExperiment, "photos of one place as similar vectors (place recognition)")
def run(
    experiment: PlacesExperiment, name: str, run_folder: str | Path, machine: MachineConfig | None = None
) -> Geolocalizer:
    """Train or resume the experiment.

    Raises:
        ConfigError: inconsistent settings, too few photos of a place, no positives, or a target with test queries.
        NotFoundError: photos are missing.
        OutputMismatchError: the folder holds another run.
    """
    machine = machine or MachineConfig()
    photos = experiment.photos.open()
    target = _opened_target(experiment)
    torch.manual_seed(experiment.trainer.seed)
    backbone = Backbone(experiment.network.backbone)
    network = GeoNetwork(experiment.network, backbone)
    preprocess = preprocess_of(backbone)
    if experiment.photo_size_px is not None:
        preprocess = replace(preprocess, image_size_px=experiment.photo_size_px, resize="squash")
    plain = LoadImage(preprocess)
    load = LoadPlacePhoto(preprocess, experiment.augment, experiment.night, target)
    family = _family(experiment, photos, load, plain, machine)
    data: TrainingData = family.data
    if experiment.domains is not None:
        assert target is not None
        data = with_target(data, _target_stream(experiment, target, load))
    validation, truth = _validation(experiment, plain, machine)
    described = to_plain(experiment) | {"num_photos": [len(photos), len(family.table), len(target or ())]}
    folder = RunFolder(run_folder, described)
    if not folder.state_path.exists():
        _start(network, experiment, photos, plain)
    network.train()
    task = PlaceTask(
        network, experiment.fine_tune, family.loss, family.class_counts, experiment.domains, truth
    )
    fitted = fit(task, data, experiment.trainer, machine, folder, validation)
    network.cpu()
    if experiment.pca_dim is not None:
        network = _with_pca(network, experiment, photos, plain)
    facts = family.facts()
    if is_first_rank() and isinstance(family.data, MinedTuples):
        mined = {"embedded_photos": family.data.num_embedded, "refreshes": family.data.num_refreshes}
        with atomic_write(folder.folder / "mining.json", "w") as file:
            file.write(json.dumps(mined) + "\n")
    return Geolocalizer(name, network, preprocess, None, card=_card(name, experiment, fitted.metrics, facts))


# --- Families -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Family:
    """Data and loss of a family.

    Attributes:
        data: training batches.
        loss: loss of a batch.
        table: samples of the batches.
        class_counts: number of classes of each group's classifier.
        description: sentence about the data for the model card.
    """

    data: Any
    loss: PlaceLoss
    table: SampleTable
    class_counts: tuple[int, ...] = ()
    description: str = ""

    def facts(self) -> str:
        """The description, with the work of mining."""
        if not isinstance(self.data, MinedTuples):
            return self.description
        mined = f"{self.data.num_embedded:,} photos in {self.data.num_refreshes} refreshes"
        return f"{self.description} Mining embedded {mined}."


def _family(
    experiment: PlacesExperiment,
    photos: SampleTable,
    load: LoadPlacePhoto,
    plain: LoadImage,
    machine: MachineConfig,
) -> _Family:
    if experiment.classes is not None:
        return _of_classes(experiment, experiment.classes, photos, load)
    if experiment.places is not None:
        return _of_places(experiment, experiment.places, photos, load)
    assert experiment.tuples is not None
    return _of_tuples(experiment, experiment.tuples, photos, load, plain, machine)


def _of_classes(
    experiment: PlacesExperiment, config: ClassesConfig, photos: SampleTable, load: LoadPlacePhoto
) -> _Family:
    has_heading = "heading_deg" in photos.columns.column_names
    headings = photos.numbers("heading_deg") if has_heading else None
    groups: PlaceGroups = place_groups(photos.latlon_deg, headings, config.groups)
    chosen = groups.trainable(config.num_groups)
    counts = tuple(int(groups.num_classes[group]) for group in chosen)
    seed, size = experiment.trainer.seed, experiment.batch_size
    streams = []
    for group, count in zip(chosen, counts, strict=True):
        class_ids = groups.class_ids(group)
        order = ImageOfClass(class_ids, seed_of(seed, group), passes=-(-size // count))
        streams.append(
            SampleStream(photos, load, order, batch_size=size, labels={"class_id": class_ids}, seed=seed)
        )
    data = GroupBatches(streams, config.steps_per_group * experiment.trainer.accumulate)
    names = "; ".join(groups.names[group] for group in chosen)
    description = f"{sum(counts):,} classes in {len(chosen)} groups ({names})."
    return _Family(data, group_loss(config.loss), photos, counts, description)


def _of_places(
    experiment: PlacesExperiment, config: PlacesConfig, photos: SampleTable, load: LoadPlacePhoto
) -> _Family:
    place_ids, _ = photos.codes("place_id")
    names = photos.columns.column_names
    order = PlacesTimesImages(
        place_ids,
        config.images_per_place,
        experiment.trainer.seed,
        min_images_per_place=config.min_images_per_place,
        choice=config.choice,
        captured_at=photos.numbers("captured_at") if "captured_at" in names else None,
        group_ids=photos.codes("city")[0] if config.by_city and "city" in names else None,
    )
    stream = SampleStream(
        photos,
        load,
        order,
        batch_size=experiment.batch_size,
        labels={"place": place_ids},
        seed=experiment.trainer.seed,
    )
    description = f"{order.num_places:,} places, {config.images_per_place} photos of each in an epoch."
    return _Family(stream, batch_loss(config.loss, config.miner), photos, description=description)


def _of_tuples(
    experiment: PlacesExperiment,
    config: TuplesConfig,
    photos: SampleTable,
    load: LoadPlacePhoto,
    plain: LoadImage,
    machine: MachineConfig,
) -> _Family:
    queries, seed = config.queries.open(), experiment.trainer.seed
    weights = rarity_weights([queries.numbers(column) for column in config.mining.weigh_by], len(queries))
    miner = TupleMiner(photos.latlon_deg, queries.latlon_deg, config.mining, seed, weights)
    table = SampleTable.joined([photos, queries])
    data = MinedTuples(
        table, load, plain, miner, experiment.batch_size, seed, num_workers=machine.num_workers
    )
    description = (
        f"{len(queries) - miner.num_without_positive:,} queries with a photo within "
        f"{config.mining.positive_radius_m:g} m, {miner.num_without_positive:,} without one; "
        f"{config.mining.kind} mining."
    )
    return _Family(data, tuple_loss(config.loss, config.mining.negatives), table, description=description)


# --- Target and validation ----------------------------------------------------------------------------------


def _opened_target(experiment: PlacesExperiment) -> SampleTable | None:
    if experiment.target is None or experiment.test_queries is None:
        return None
    target, sets = experiment.target.open(), [experiment.test_queries, experiment.queries]
    check_apart(
        _keyed(target),
        (photo for photo_set in sets if photo_set is not None for photo in _keyed(photo_set.open())),
    )
    return target


def _keyed(table: SampleTable) -> Iterator[KeyedPhoto]:
    for row, key in enumerate(table.keys.to_pylist()):
        yield KeyedPhoto(key, table.encoded(row).read())


def _target_stream(experiment: PlacesExperiment, target: SampleTable, load: LoadPlacePhoto) -> SampleStream:
    assert experiment.domains is not None
    seed = seed_of(experiment.trainer.seed, 1)
    return SampleStream(
        target,
        replace(load, night=None),
        Shuffled(len(target), seed),
        batch_size=experiment.domains.images,
        seed=seed,
    )


def validation_of(
    database: PhotoSet, queries: PhotoSet, recall: RecallConfig, plain: LoadImage, num_workers: int
) -> tuple[SampleStream, Truth]:
    """Stream over database and queries, and their ground truth.

    Raises:
        NotFoundError, BadTableError: as `PhotoSet.open`.
    """
    opened = database.open(), queries.open()
    table = SampleTable.joined(opened)
    stream = in_order(table, plain, num_workers, _EMBED_BATCH)
    near = rows_within_m(opened[1].latlon_deg, opened[0].latlon_deg, recall.radius_m)
    return stream, Truth(len(opened[0]), near, recall)


@torch.no_grad()
def recall_of(model: Geolocalizer, validation: SampleStream, truth: Truth) -> dict[str, float]:
    """Validation recall of a model, from the result of `validation_of`."""
    vectors = [model.network.embed_images(batch["image"], "query") for batch in validation.batches()]
    return truth.score(torch.cat(vectors))


def _validation(
    experiment: PlacesExperiment, plain: LoadImage, machine: MachineConfig
) -> tuple[SampleStream | None, Truth | None]:
    if experiment.database is None or experiment.queries is None:
        return None, None
    return validation_of(
        experiment.database, experiment.queries, experiment.recall, plain, machine.num_workers
    )


# --- Before and after training ------------------------------------------------------------------------------


def _start(network: GeoNetwork, experiment: PlacesExperiment, photos: SampleTable, plain: LoadImage) -> None:
    """Initialise the network from `start_from`, and the clusters of a NetVLAD from local descriptors."""
    if experiment.start_from is not None:
        given, own = (
            Geolocalizer.from_pretrained(experiment.start_from).network.state_dict(),
            network.state_dict(),
        )
        same = {name: t for name, t in given.items() if name in own and own[name].shape == t.shape}
        if not any(name.startswith("backbone.") for name in same):
            raise ConfigError(
                f"start_from={experiment.start_from} has no tensor of this backbone: take one with the same backbone"
            )
        network.load_state_dict(own | same)
        if any(name.startswith("embeddings.query.pool.centres") for name in same):
            return
    head = network.embeddings["query"]
    if not isinstance(head, AggregatingHead) or not isinstance(head.pool, NetVLAD):
        return
    generator = torch.Generator().manual_seed(seed_of(experiment.trainer.seed, 2))
    found = []
    with torch.no_grad():
        for images in _some_images(photos, plain, _VLAD_PHOTOS, experiment.trainer.seed):
            maps = network.eval().backbone.feature_map(images)  # type: ignore[operator]
            found.append(local_descriptors(maps, _VLAD_PER_PHOTO, generator))
    head.pool.initialize(torch.cat(found), experiment.trainer.seed)


def _with_pca(
    network: GeoNetwork, experiment: PlacesExperiment, photos: SampleTable, plain: LoadImage
) -> GeoNetwork:
    """The network followed by a PCA projection, fitted on training photos."""
    assert experiment.pca_dim is not None
    found = GeoNetwork(with_projection(experiment.network, experiment.pca_dim), network.backbone).eval()
    found.load_state_dict(network.state_dict(), strict=False)
    head = found.embeddings["query"]
    assert isinstance(head, AggregatingHead)
    assert head.pca is not None
    with torch.no_grad():
        vectors = [
            head.before_pca(found.backbone.feature_map(images))  # type: ignore[operator]
            for images in _some_images(photos, plain, MAX_DESCRIPTORS, experiment.trainer.seed)
        ]
    fit_pca(head.pca, torch.cat(vectors))
    return found


def _some_images(photos: SampleTable, plain: LoadImage, num: int, seed: int) -> Iterator[torch.Tensor]:
    rows = np.random.default_rng(seed).permutation(len(photos))[:num]
    for batch in SampleStream(photos, plain, InOrder(rows), batch_size=_EMBED_BATCH).batches():
        yield batch["image"]


def _card(name: str, experiment: PlacesExperiment, metrics: Any, facts: str) -> str:
    unit = "tuples" if experiment.tuples is not None else "photos"
    return (
        f"# {name}\n\nPhotos of one place as similar vectors, trained with geoloc's recipe for place recognition on "
        f"{experiment.photos.path}: {facts} {experiment.trainer.num_steps} steps of "
        f"{experiment.batch_size * experiment.trainer.accumulate} {unit}. A photo of the database is right within "
        f"{experiment.recall.radius_m:g} m; queries without one: {experiment.recall.without_positive}.\n\n"
        f"{metrics_table(metrics)}"
    )
