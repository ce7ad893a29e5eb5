"""OSV-5M's recipe (Astruc et al., CVPR 2024), for OSV-5M or any photos with locations.

Cells of a quadtree over the training photos, or administrative units, are the classes. The network is trained in one of
the published ways: classification, hybrid, regression, region or text contrast, auxiliary targets; the whole tower, its
last block, LoRA or a frozen tower. The result is a calibrated checkpoint.

Differences from the published code: validation photos are held out by cells of a quadtree, so that none has a neighbour
in training; class centres are means on the sphere, in degrees; the last block is found in towers of any depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from geoloc.data.sample import SampleTable
from geoloc.data.samplers import Shuffled, density_weights
from geoloc.data.stream import LoadImage, SampleStream
from geoloc.errors import ConfigError, FingerprintMismatchError
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.backbone import Backbone
from geoloc.models.losses import AUXILIARY_WIDTHS
from geoloc.models.network import GeoNetwork
from geoloc.models.plain import to_plain
from geoloc.models.text_tower import TextTower, TextTowerConfig
from geoloc.posterior.fit import LabelledBatch
from geoloc.train.module import CONTRASTS, GeoTask, TaskConfig
from geoloc.train.photos import PhotosConfig
from geoloc.train.positives import WithPositives
from geoloc.train.ranks import is_first_rank
from geoloc.train.recipes import in_order, metrics_table, preprocess_of, register
from geoloc.train.run_folder import RunFolder
from geoloc.train.settings import MachineConfig, TrainerConfig
from geoloc.train.trainer import fit
from quadtree import Quadtree, build_quadtree
from quadtree.morton import MAX_DEPTH
from quadtree.sphere import spherical_mean_latlon_deg

Unit = Literal["country", "region", "area", "city"]
Target = Literal["cell", "country", "region", "area", "city"]

# From wide to narrow, with our column of each. OSV-5M's columns are called sub-region, and its experiments area.
_COLUMNS: Final = {"country": "country", "region": "region", "area": "sub_region", "city": "city"}


@dataclass(frozen=True)
class QuadtreeConfig:
    """Cells of the classifier.

    Attributes:
        path: file of an existing tree, .parquet or OSV-5M's .csv; null builds a tree from the training photos.
        max_points_per_cell: a cell with more photos is split.
        max_depth: largest depth of a cell.
    """

    path: str | None = None
    max_points_per_cell: int = 1000
    max_depth: int = 10


@dataclass(frozen=True)
class Osv5mExperiment:
    """Experiment of the recipe "osv5m".

    Attributes:
        data: training photos, and those held out for validation and calibration.
        task: network, losses, and trainable parameters.
        target: classes of the classifier.
        positives_by: unit that a photo's positive shares, for the losses "regions" and "pairs".
        batch_size: photos of a batch, over all devices.
        density_exponent: every batch is resampled with weights 1 / count^exponent of the photos around; null does not.
        texts: frozen text tower of the loss "texts".
    """

    data: PhotosConfig
    task: TaskConfig
    trainer: TrainerConfig
    batch_size: int
    quadtree: QuadtreeConfig = field(default_factory=QuadtreeConfig)
    target: Target = "cell"
    positives_by: Target = "region"
    density_exponent: float | None = 0.75
    texts: TextTowerConfig | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.target != "cell" and "offsets" in self.task.mix:
            raise ConfigError(f"offsets are inside cells, and the target is {self.target!r}: set target=cell")
        if self.target != "cell" and self.quadtree.path is not None:
            raise ConfigError(
                f"quadtree.path is for target=cell; the target {self.target!r} makes its own classes"
            )
        if ("texts" in self.task.mix) != (self.texts is not None):
            raise ConfigError(
                "the loss 'texts' and the text tower experiment.texts go together: give both or neither"
            )


@register("osv5m", Osv5mExperiment, "locations by cells, offsets or regression (OSV-5M)")
def run(
    experiment: Osv5mExperiment, name: str, run_folder: str | Path, machine: MachineConfig | None = None
) -> Geolocalizer:
    """Train or resume the experiment, then calibrate on the held-out photos.

    Raises:
        ConfigError: inconsistent settings, or a column that the photos do not have.
        FingerprintMismatchError: the photos are labelled with another quadtree.
        OutputMismatchError: the folder holds another run.
    """
    machine = machine or MachineConfig()
    training, held_out = experiment.data.open()
    classes = _Classes.of(experiment, training)
    torch.manual_seed(experiment.trainer.seed)
    backbone = Backbone(experiment.task.network.backbone)
    tree = classes.tree
    network = (
        GeoNetwork(experiment.task.network, backbone)
        if tree is None
        else GeoNetwork(experiment.task.network, backbone, tree.bounds_deg, tree.center_latlon_deg)
    )
    described = to_plain(experiment) | {
        "quadtree_fingerprint": None if tree is None else tree.fingerprint,
        "num_photos": [len(training), 0 if held_out is None else len(held_out)],
    }
    folder = RunFolder(run_folder, described)
    preprocess = preprocess_of(backbone)
    labels = dict(classes.labels)
    sentences: list[str] = []
    if experiment.texts is not None:
        labels["text_id"], sentences = _sentences(training)
    positives_of = None
    if experiment.task.mix.keys() & set(CONTRASTS):
        positives_of = _ids_of(training, experiment.positives_by, tree)
        labels["region_id"] = positives_of
    labels |= _auxiliary_targets(training, experiment.task.mix.keys() & AUXILIARY_WIDTHS.keys())
    task = GeoTask(
        experiment.task,
        network,
        tree,
        groups=classes.groups,
        texts=None if experiment.texts is None else TextTower(experiment.texts),
        sentences=sentences,
    )
    load, seed = LoadImage(preprocess), experiment.trainer.seed
    exponent = experiment.density_exponent
    stream = SampleStream(
        training,
        load,
        Shuffled(len(training), seed),
        batch_size=experiment.batch_size,
        labels=labels,
        resampling_weights=None if exponent is None else density_weights(training.latlon_deg, exponent),
        seed=seed,
    )
    data = stream if positives_of is None else WithPositives(stream, positives_of)
    validation = None if held_out is None else in_order(held_out, load, machine.num_workers)
    fitted = fit(task, data, experiment.trainer, machine, folder, validation)
    card = _card(name, experiment, fitted.metrics)
    model = Geolocalizer(name, task.network.cpu(), preprocess, tree, card=card)
    if validation is not None and tree is not None and is_first_rank():
        model.calibrate(
            _labelled(validation), f"{len(held_out or ())} photos held out of {experiment.data.path}"
        )
    return model


# --- Classes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Classes:
    """Classes of the classifier.

    Attributes:
        tree: quadtree whose cells are the classes; None without a cell head.
        labels: "cell_id" (n,), -1 unknown, and optionally "group_ids" (n, L), of the training photos.
        groups: (L, C) coarser unit of each class, for hierarchical administrative classes.
    """

    tree: Quadtree | None
    labels: dict[str, NDArray[np.int64]]
    groups: NDArray[np.int64] | None

    @classmethod
    def of(cls, experiment: Osv5mExperiment, training: SampleTable) -> _Classes:
        if experiment.task.network.cells is None:
            return cls(None, {}, None)
        if experiment.target == "cell":
            tree = _tree(experiment.quadtree, training)
            labelled = training if training.fingerprint is not None else training.with_cells(tree)
            return cls(tree, {"cell_id": labelled.cells_of(tree)}, None)
        tree, cell_ids = unit_tree(training, experiment.target)
        if not experiment.task.hierarchical:
            return cls(tree, {"cell_id": cell_ids}, None)
        wider = list(_COLUMNS)[: list(_COLUMNS).index(experiment.target)]
        if not wider:
            raise ConfigError(
                "no unit is coarser than a country: set task.hierarchical=false, or another target"
            )
        of_photo = np.stack([training.codes(_COLUMNS[unit])[0] for unit in wider])
        groups = np.full((len(wider), tree.num_cells), -1, np.int64)
        known = cell_ids >= 0
        for level, codes in enumerate(of_photo):
            np.maximum.at(groups[level], cell_ids[known], codes[known])
        return cls(tree, {"cell_id": cell_ids, "group_ids": of_photo.T.copy()}, groups)


def _tree(config: QuadtreeConfig, training: SampleTable) -> Quadtree:
    if config.path is None:
        if training.fingerprint is not None:
            raise FingerprintMismatchError(
                f"the photos in {training.root} are labelled with the quadtree {training.fingerprint[:12]}, and "
                "quadtree.path is not set: set it to that tree"
            )
        return build_quadtree(training.latlon_deg, config.max_points_per_cell, config.max_depth)
    return (
        Quadtree.read_osv5m_csv(config.path) if config.path.endswith(".csv") else Quadtree.read(config.path)
    )


def unit_tree(training: SampleTable, unit: Unit) -> tuple[Quadtree, NDArray[np.int64]]:
    """Administrative units as cells of a quadtree, one per unit, around the mean location of its photos.

    A classifier of countries or cities is then a checkpoint like any other. Units whose means lie within a metre of
    each other share a cell.

    Returns:
        The tree, and (n,) the cell of each photo's unit, -1 where the unit is unknown.

    Raises:
        ConfigError: the photos have no such column, or it is empty.
    """
    codes, names = training.codes(_COLUMNS[unit])
    if not names:
        raise ConfigError(
            f"target is {unit!r}, but the column {_COLUMNS[unit]!r} of {training.root} is empty"
        )
    by_unit = np.argsort(codes, kind="stable")[np.sum(codes < 0) :]
    bounds = np.searchsorted(codes[by_unit], np.arange(1, len(names)))
    centers = np.stack([spherical_mean_latlon_deg(p) for p in np.split(training.latlon_deg[by_unit], bounds)])
    tree = build_quadtree(centers, max_points_per_cell=2, max_depth=MAX_DEPTH)
    return tree, np.where(codes < 0, -1, tree.assign(centers)[codes])


def _ids_of(training: SampleTable, target: Target, tree: Quadtree | None) -> NDArray[np.int64]:
    if target != "cell":
        return training.codes(_COLUMNS[target])[0]
    if tree is None:
        raise ConfigError(
            "positives_by is 'cell', but the network has no cells: choose region, or add network.cells"
        )
    return tree.assign(training.latlon_deg)


# --- Labels -------------------------------------------------------------------------------------------------


def _sentences(training: SampleTable) -> tuple[NDArray[np.int64], list[str]]:
    """Text id of each photo, -1 without a city, and the text of each id: city, area, region, country."""
    codes, names = training.codes("city")
    ids, first = np.unique(codes, return_index=True)
    sentences = [""] * len(names)
    for code, row in zip(ids.tolist(), first.tolist(), strict=True):
        if code >= 0:
            sample = training[row]
            parts = [sample.city, sample.sub_region, sample.region, sample.country]
            # OSV-5M's unique names repeat the coarser units after an underscore.
            sentences[code] = "A photo taken in " + ", ".join(part.split("_")[0] for part in parts if part)
    return codes, sentences


def _auxiliary_targets(training: SampleTable, names: set[str]) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for name in sorted(names):
        values = training.numbers(name)
        if AUXILIARY_WIDTHS[name] > 1:
            found[name] = np.where(np.isnan(values), -1, values).astype(np.int64)
        elif name == "drive_side":
            found[name] = values.astype(np.float32)
        else:  # standardised, so that kilometres and indices have the same scale
            found[name] = ((values - np.nanmean(values)) / max(np.nanstd(values), 1e-12)).astype(np.float32)
    return found


def _labelled(validation: SampleStream) -> Iterator[LabelledBatch]:
    for batch in validation.batches():
        yield batch["image"], batch["latlon_deg"].numpy()


def _card(name: str, experiment: Osv5mExperiment, metrics: Any) -> str:
    mix = ", ".join(f"{loss} x {weight:g}" for loss, weight in experiment.task.mix.items())
    return (
        f"# {name}\n\nTrained with geoloc's recipe for OSV-5M on {experiment.data.path}; losses: {mix}; "
        f"{experiment.trainer.num_steps} steps of {experiment.batch_size * experiment.trainer.accumulate} photos.\n\n"
        f"{metrics_table(metrics)}"
    )
