"""Every experiment on photos composes and trains; the recipe refuses what does not go together, and says what to do."""

import json

import numpy as np
import pytest
import torch
from small_photos import CONFIGS, small, small_table

from geoloc import Geolocalizer
from geoloc.cli.train import compose_experiment, experiments, train_experiment
from geoloc.data.samplers import Shuffled
from geoloc.data.stream import LoadImage, SampleStream
from geoloc.errors import ConfigError, FingerprintMismatchError, OutputMismatchError
from geoloc.images.preprocess import Preprocess
from geoloc.models.backbone import Backbone
from geoloc.models.network import GeoNetwork
from geoloc.models.plain import from_plain
from geoloc.train.module import GeoTask, TaskConfig
from geoloc.train.osv5m import Osv5mExperiment, unit_tree
from geoloc.train.positives import WithPositives
from geoloc.train.run_folder import read_metrics
from quadtree import build_quadtree
from quadtree.sphere import haversine_km

ON_PHOTOS = [name for name in experiments(CONFIGS) if name.startswith("osv5m_") or name == "own_photos"]


@pytest.fixture(scope="module")
def table_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    small_table(folder).write(folder / "photos.parquet")
    return folder / "photos.parquet"


def losses_of(values):
    return {name for _, name, _ in read_metrics(values) if name.startswith("loss/")}


@pytest.mark.parametrize("name", ON_PHOTOS)
def test_an_experiment_trains_and_saves_a_checkpoint(name, table_path, tmp_path):
    values = small(name, table_path, tmp_path / "run")
    train_experiment(values)
    found = {name.removeprefix("loss/") for name in losses_of(tmp_path / "run" / "metrics.csv")}
    assert found == set(values["experiment"]["task"]["mix"])
    model = Geolocalizer.from_pretrained(tmp_path / "run" / "checkpoint")
    prediction = model.localize(table_path.parent / "images" / "0.png")
    assert -90 <= prediction.lat <= 90
    if values["experiment"]["task"]["network"].get("cells") is not None:
        assert prediction.radius_km[50] <= prediction.radius_km[90]


@pytest.mark.parametrize("target", ["cell", "country", "region", "area", "city"])
@pytest.mark.parametrize("hierarchical", [False, True])
def test_every_target_of_the_classification(target, hierarchical, table_path, tmp_path):
    if target == "country" and hierarchical:
        with pytest.raises(ConfigError, match="no unit is coarser than a country"):
            train_experiment(classification(target, hierarchical, table_path, tmp_path))
        return
    train_experiment(classification(target, hierarchical, table_path, tmp_path))
    quadtree = Geolocalizer.from_pretrained(tmp_path / "run" / "checkpoint").quadtree
    if target != "cell":
        assert quadtree.num_cells <= {"country": 4, "region": 8, "area": 8, "city": 8}[target]


def classification(target, hierarchical, table_path, tmp_path):
    return small(
        "osv5m_classification",
        table_path,
        tmp_path / "run",
        f"experiment.target={target}",
        f"experiment.task.hierarchical={str(hierarchical).lower()}",
    )


def test_the_hybrid_learns_where_its_photos_are(table_path, tmp_path):
    values = small(
        "osv5m_hybrid",
        table_path,
        tmp_path / "run",
        "experiment.trainer.num_steps=60",
        "experiment.trainer.validate_every_steps=null",
        "experiment.data.validation_share=0",
        "experiment.task.network.cells.hidden_dims=[]",
        "experiment.task.network.offsets.hidden_dims=[16]",
        "experiment.trainer.optimizer.lr={heads: 0.01, backbone: 0.001}",
    )
    train_experiment(values)
    model = Geolocalizer.from_pretrained(tmp_path / "run" / "checkpoint")
    images = [table_path.parent / "images" / f"{row}.png" for row in range(8)]
    found = np.array([[p.lat, p.lon] for p in model.localize(images)])
    truth = small_table(tmp_path / "again").latlon_deg[:8]
    assert np.median(haversine_km(found, truth)) < 500


def test_a_classifier_of_units_has_their_means_as_points(tmp_path):
    table = small_table(tmp_path)
    tree, cell_ids = unit_tree(table, "country")
    assert tree.num_cells == 4
    assert cell_ids[-1] == -1
    for country in range(4):
        rows = [row for row in range(31) if row % 8 // 2 == country]
        assert len(set(cell_ids[rows])) == 1
        np.testing.assert_allclose(
            tree.center_latlon_deg[cell_ids[rows[0]]], table.latlon_deg[rows].mean(0), atol=0.05
        )


def test_positives_share_the_label_and_depend_on_the_number_alone(tmp_path):
    table = small_table(tmp_path)
    preprocess = Preprocess(image_size_px=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    countries = table.codes("country")[0]
    stream = SampleStream(
        table,
        LoadImage(preprocess),
        Shuffled(len(table), 1),
        batch_size=8,
        labels={"region_id": countries},
        seed=5,
    )
    data = WithPositives(stream, countries)
    batch = data.batch(9, 0, 1)
    # Pictures of one country are the same here, so the positive looks like the image.
    known = batch["region_id"] >= 0
    assert torch.equal(batch["image"][known], batch["positive"][known])
    halves = [data.batch(9, rank, 2) for rank in (0, 1)]
    assert sorted(torch.cat([half["row"] for half in halves]).tolist()) == sorted(batch["row"].tolist())
    again = WithPositives(stream, countries).batch(9, 0, 1)
    assert torch.equal(again["positive"], batch["positive"])


def tiny_task(fine_tune):
    values = {
        "network": {
            "backbone": {"custom": DEEPER, "features": "pooled"},
            "cells": {},
            "offsets": {"hidden_dims": [16]},
        },
        "mix": {"classes": 1.0, "offsets": 1.0, "climate": 1.0},
        "fine_tune": fine_tune,
    }
    config = from_plain(TaskConfig, values)
    tree = build_quadtree(np.random.default_rng(0).uniform(-60, 60, (50, 2)), 12, 4)
    backbone = Backbone(config.network.backbone)
    return GeoTask(
        config, GeoNetwork(config.network, backbone, tree.bounds_deg, tree.center_latlon_deg), tree
    )


DEEPER = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
}


@pytest.mark.parametrize(
    ("fine_tune", "role"),
    [
        ({"mode": "full"}, "backbone"),
        ({"mode": "frozen"}, None),
        ({"mode": "last_blocks"}, "last_blocks"),
        ({"mode": "lora", "lora_rank": 2}, "lora"),
    ],
)
def test_roles_are_complete_and_disjoint(fine_tune, role):
    task = tiny_task(fine_tune)
    found = list(task.roles())
    assert {id(p) for _, p, _ in found} == {id(p) for p in task.parameters()}
    assert len({name for name, _, _ in found}) == len(found)
    trains = {r for _, p, r in found if p.requires_grad}
    assert trains == {"heads"} | ({role} if role else set())
    assert all(r != "heads" for name, _, r in found if name.startswith("network.backbone."))
    if fine_tune["mode"] == "last_blocks":  # the last one, however deep the tower is
        blocks = {
            name.split("resblocks.")[1][0] for name, p, _ in found if "resblocks" in name and p.requires_grad
        }
        assert blocks == {"2"}


# --- Refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["experiment.trainer.num_step=3"],
            "experiment.trainer has the unknown key 'num_step'; known keys are",
        ),
        (["experiment.task.mix.cell=1"], "mix has the unknown loss 'cell'; known are classes"),
        (["experiment.task.mix.haversine=1"], "the loss 'haversine' reads the head 'regression'"),
        (["~experiment.task.mix.offsets"], "head 'offsets', and no loss in the mix trains it"),
        (["experiment.target=city"], "offsets are inside cells"),
        (["experiment.batch_size=0"], "batch_size is 0"),
        (["machine.device=2"], "machine has the unknown key 'device'"),
        (["experiment.task.mix.texts=1"], "give both or neither"),
    ],
)
def test_what_does_not_go_together(overrides, message, table_path, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train_experiment(small("osv5m_hybrid", table_path, tmp_path / "run", *overrides))


def test_a_missing_column_is_named(tmp_path):
    table = small_table(tmp_path)
    without = type(table)(
        table.root, table.columns.drop_columns(["climate", "region"]), table.latlon_deg, table.fingerprint
    )
    without.write(tmp_path / "photos.parquet")
    for name, column in (("osv5m_auxiliary", "climate"), ("osv5m_contrastive", "region")):
        with pytest.raises(ConfigError, match=f"no column '{column}'; found"):
            train_experiment(small(name, tmp_path / "photos.parquet", tmp_path / name))


def test_labels_of_another_quadtree_are_refused(tmp_path):
    table = small_table(tmp_path)
    trees = [build_quadtree(table.latlon_deg, size, 8) for size in (4, 8)]
    trees[0].write(tmp_path / "tree.parquet")
    table.with_cells(trees[1]).write(tmp_path / "photos.parquet")
    values = small(
        "osv5m_hybrid",
        tmp_path / "photos.parquet",
        tmp_path / "run",
        f"experiment.quadtree.path={tmp_path}/tree.parquet",
    )
    both = f"{trees[1].fingerprint[:12]}, not with {trees[0].fingerprint[:12]}"
    with pytest.raises(FingerprintMismatchError, match=both):
        train_experiment(values)
    del values["experiment"]["quadtree"]["path"]
    with pytest.raises(FingerprintMismatchError, match="set it to that tree"):
        train_experiment(values)


def test_another_experiment_in_the_folder_is_refused(table_path, tmp_path):
    train_experiment(small("osv5m_hybrid", table_path, tmp_path / "run"))
    other = small("osv5m_hybrid", table_path, tmp_path / "run", "experiment.task.mix.offsets=2")
    with pytest.raises(OutputMismatchError, match=r"task.mix.offsets = 1.0, and this run has 2.0"):
        train_experiment(other)
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    assert described["task"]["mix"] == {"classes": 1.0, "offsets": 1.0}
    assert described["num_photos"][0] + described["num_photos"][1] == 32


def test_names_of_experiments_and_keys(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no experiment 'osv5m'; .* has .*own_photos, "):
        compose_experiment(["experiment=osv5m"], CONFIGS)
    with pytest.raises(ConfigError, match="name an experiment"):
        compose_experiment(["threads=2"], CONFIGS)
    with pytest.raises(ConfigError, match="devices: give it on the command line"):
        compose_experiment(["experiment=own_photos", "machine=ddp"], CONFIGS)
    with pytest.raises(ConfigError, match="encoder"):
        compose_experiment(["experiment=osv5m_hybrid", "encoder=vit_b33"], CONFIGS)


@pytest.mark.parametrize(
    "path", ["ünï/Häuser (alt)", "it's #1; a=b!", "~/my photos/", "Paris,London", "/a-b_c.d", ""]
)
def test_paths_are_of_any_words(path):
    values = compose_experiment(["experiment=own_photos", f"experiment.data.path={path}"], CONFIGS)
    assert values["experiment"]["data"]["path"] == path


def test_values_keep_their_kinds():
    given = {
        "null": None,
        "1e-3": 1e-3,
        "true": True,
        "[1,2]": [1, 2],
        "{a: 1}": {"a": 1},
        "'a b'": "a b",
        "int(3)": 3,
    }
    for text, value in given.items():
        composed = compose_experiment(["experiment=own_photos", f"experiment.data.path={text}"], CONFIGS)
        assert composed["experiment"]["data"]["path"] == value, text


def test_the_encoder_is_one_parameter():
    for path in (CONFIGS / "encoder").glob("*.yaml"):
        weights = "experiment.task.network.backbone.pretrained=weights.safetensors"
        free = ["dinov2_l14", "resnet50"]
        values = compose_experiment(
            [
                "experiment=osv5m_regression",
                f"encoder={path.stem}",
                *([weights] if path.stem in free else []),
            ],
            CONFIGS,
        )
        experiment = from_plain(Osv5mExperiment, values["experiment"], "experiment")
        assert experiment.task.network.regression.hidden_dims == (values["width"], 64)


def test_every_config_has_its_command():
    for path in CONFIGS.rglob("*.yaml"):
        head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
        is_shared = path.parent.name == "recipe" or path.stem == "base"
        assert is_shared or "geoloc " in head or "python scripts/" in head, path
