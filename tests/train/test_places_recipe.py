"""Every experiment of place recognition trains and embeds; a killed run goes on exactly; and what cannot be trained."""

import json

import numpy as np
import pytest
import torch
from small_photos import CONFIGS
from small_places import shrunk, small_places

from geoloc import Geolocalizer, ReferenceDatabase
from geoloc.cli.train import experiments, train_experiment
from geoloc.data.sample import SampleTable
from geoloc.errors import ConfigError
from geoloc.train.place_task import PlaceTask
from geoloc.train.run_folder import read_metrics
from quadtree.sphere import geodesic_km

PUBLISHED = [name for name in experiments(CONFIGS) if name.startswith(("cosplace", "gsv", "vgbench"))]
GO_ON = "experiment.start_from={}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    small_places(folder)
    return folder


@pytest.fixture(scope="module")
def netvlad(world, tmp_path_factory):
    run = tmp_path_factory.mktemp("netvlad")
    train_experiment(shrunk("vgbench_netvlad_partial", world, run))
    return run / "checkpoint"


def metrics_of(run):
    return {name: value for _, name, value in read_metrics(run / "metrics.csv")}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "cosplace_soup"])
def test_an_experiment_trains_and_embeds(name, world, netvlad, tmp_path):
    run = tmp_path / "run"
    train_experiment(shrunk(name, world, run, *([GO_ON.format(netvlad)] if "crn" in name else [])))
    found = metrics_of(run)
    adapts = name in ("cosplace_grl", "cosplace_aada")
    assert {n for n in found if n.startswith("loss/")} == {"loss/places"} | (
        {"loss/domains"} if adapts else set()
    )
    assert found["val/num_queries"] == 24
    assert found["val/num_without_positive"] == 0
    assert 0 <= found["val/recall_at_1"] <= found["val/recall_at_20"] == 1
    assert ("lr/classifiers" in found) == name.startswith("cosplace")
    model = Geolocalizer.from_pretrained(run / "checkpoint")
    images = model.load(world / "queries" / "queries0_0.png")[None]
    torch.testing.assert_close(
        model.network.embed_images(images, "query"), model.network.embed_images(images, "street")
    )
    assert images.shape[2:] == ((32, 48) if name.startswith("vgbench") else (32, 32))
    if name.startswith("vgbench"):
        mined = json.loads((run / "mining.json").read_text())
        assert mined["refreshes"] == 2  # of 4 queries each, 2 a step
        assert mined["embedded_photos"] > 24


def test_a_trained_model_serves_references_and_localizes(world, tmp_path):
    values = shrunk(
        "gsv_cosplace",
        world,
        tmp_path / "run",
        "experiment.trainer.num_steps=40",
        "experiment.trainer.optimizer.lr={heads: 0.003, backbone: 0.003}",
        "experiment.trainer.schedule={kind: constant, warmup_steps: 0, milestones: []}",
        "experiment.fine_tune={mode: full, freeze_before: null, freeze_batch_norm: false}",
        "dim=32",
    )
    train_experiment(values)
    found = metrics_of(tmp_path / "run")
    assert found["val/recall_at_1"] > 0.9
    model = Geolocalizer.from_pretrained(tmp_path / "run" / "checkpoint")
    photos = SampleTable.read(world / "database.parquet")
    rows = ["id,latitude,longitude"] + [
        f"{photos[row].key}.png,{photos[row].latlon_deg[0]},{photos[row].latlon_deg[1]}"
        for row in range(len(photos))
    ]
    (tmp_path / "photos.csv").write_text("\n".join(rows))
    database = ReferenceDatabase.create(tmp_path / "references", model=model)
    database.add_street(world / "database", metadata=tmp_path / "photos.csv")
    queries = SampleTable.read(world / "queries.parquet")
    predictions = model.localize(
        [world / "queries" / f"{key}.png" for key in queries.keys.to_pylist()], reference=database
    )
    at = np.array([[p.candidates[0].lat, p.candidates[0].lon] for p in predictions])
    assert (1000 * geodesic_km(at, queries.latlon_deg) < 25).mean() == pytest.approx(
        found["val/recall_at_1"], abs=0.09
    )


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("cosplace_grl", ["experiment.trainer.num_steps=6", "experiment.trainer.accumulate=2"]),
        ("gsv_convap_4096", ["experiment.trainer.num_steps=6", "dim=32"]),
        ("vgbench_gem_partial", ["experiment.trainer.num_steps=6", "mining=full"]),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(name, overrides, world, tmp_path, monkeypatch):
    overrides = [*overrides, "machine.save_every_steps=2"]
    train_experiment(shrunk(name, world, tmp_path / "whole", *overrides))
    losses, steps = PlaceTask.losses, []

    def killed(task, batch):
        steps.append(1)
        if len(steps) == (9 if "accumulate" in str(overrides) else 5):
            raise KeyError("killed")
        return losses(task, batch)

    monkeypatch.setattr(PlaceTask, "losses", killed)
    with pytest.raises(KeyError):
        train_experiment(shrunk(name, world, tmp_path / "killed", *overrides))
    monkeypatch.setattr(PlaceTask, "losses", losses)
    train_experiment(shrunk(name, world, tmp_path / "killed", *overrides))
    whole, killed_one = (tmp_path / run for run in ("whole", "killed"))
    assert read_metrics(whole / "metrics.csv") == read_metrics(killed_one / "metrics.csv")
    states = [
        Geolocalizer.from_pretrained(run / "checkpoint").network.state_dict() for run in (whole, killed_one)
    ]
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


def test_groups_take_turns_and_their_classifiers_learn_alone(world, tmp_path, monkeypatch):
    groups, losses = [], PlaceTask.losses
    monkeypatch.setattr(
        PlaceTask, "losses", lambda task, batch: groups.append(batch["group"]) or losses(task, batch)
    )
    values = shrunk(
        "cosplace_r18_512",
        world,
        tmp_path / "run",
        "experiment.classes.steps_per_group=2",
        "experiment.trainer.num_steps=6",
    )
    train_experiment(values)
    assert groups == [0, 0, 1, 1, 0, 0]


def test_pca_after_training(world, tmp_path):
    train_experiment(shrunk("vgbench_netvlad_partial", world, tmp_path / "run", "experiment.pca_dim=20"))
    model = Geolocalizer.from_pretrained(tmp_path / "run" / "checkpoint")
    images = torch.stack([model.load(world / "photos" / f"photos{n}_0.png") for n in range(12)])
    assert model.network.embed_images(images, "street").shape == (12, 20)


def test_a_netvlad_starts_from_clusters_and_a_crn_from_a_netvlad(world, netvlad, tmp_path):
    # A learning rate of next to nothing shows what was started from.
    still = "experiment.trainer.optimizer.lr={heads: 1e-12, backbone: 1e-12}"
    train_experiment(shrunk("vgbench_crn_partial", world, tmp_path / "run", GO_ON.format(netvlad), still))
    started, given = (
        Geolocalizer.from_pretrained(folder).network.embeddings["query"].pool
        for folder in (tmp_path / "run" / "checkpoint", netvlad)
    )
    torch.testing.assert_close(started.centres, given.centres)
    torch.testing.assert_close(given.centres.norm(dim=1).max(), torch.tensor(1.0), atol=0.3, rtol=0)


@pytest.mark.parametrize("kind", ["uniform", "greedy"])
def test_a_soup_of_runs(kind, world, tmp_path):
    members = []
    for name in ("cosplace_r18_512", "cosplace_arcface"):
        train_experiment(shrunk(name, world, tmp_path / name))
        members.append(str(tmp_path / name))
    values = shrunk("cosplace_soup", world, tmp_path / "soup", f"experiment.kind={kind}")
    values["experiment"]["members"] = members
    train_experiment(values)
    found = json.loads((tmp_path / "soup" / "soup.json").read_text())
    assert found["of_each"].keys() == set(members)
    states = [
        Geolocalizer.from_pretrained(f"{folder}/checkpoint").network.state_dict()
        for folder in (*found["members"], tmp_path / "soup")
    ]
    for key, tensor in states[-1].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, torch.stack([state[key] for state in states[:-1]]).mean(0))
    if kind == "greedy":
        best = max(each["recall_at_1"] for each in found["of_each"].values())
        assert found["of_the_soup"]["recall_at_1"] >= best
    else:
        assert found["members"] == members


# --- Refusals -----------------------------------------------------------------------------------------------

TWICE = "experiment.classes.groups.min_images_per_class=9"


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "cosplace_r18_512",
            [TWICE],
            r"no class has groups.min_images_per_class=9 photos.*the largest has 8",
        ),
        (
            "cosplace_r18_512",
            [
                "experiment.classes.groups={cell_size_m: 100000, min_images_per_class: 50, heading_step_deg: null}"
            ],
            "there is one class only|no class has",
        ),
        ("gsv_cosplace", ["experiment.places.min_images_per_place=9"], "no place has min_images_per_place=9"),
        (
            "vgbench_gem_partial",
            ["experiment.tuples.mining.positive_radius_m=0.0001"],
            r"none of 24 queries has one of 96 photos.*within mining.positive_radius_m=0.0001 m",
        ),
        ("vgbench_gem_partial", ["experiment.recall.radius_m=0.0001"], "none of 24 queries has a positive"),
        ("vgbench_gem_partial", ["mining=half"], "expected one of 'random', 'full', 'partial'"),
        ("vgbench_gem_partial", ["experiment.tuples.mining.weigh_by=[is_night]"], "no column 'is_night'"),
        (
            "gsv_cosplace",
            ["experiment.places.loss.kind=cosface"],
            "places.loss.kind is 'cosface'; known are multi",
        ),
        (
            "cosplace_r18_512",
            ["experiment.classes.loss.options={marign: 1}"],
            "classes.loss 'cosface' has no option 'marign'; it has scale, margin",
        ),
        ("gsv_cosplace", ["experiment.batch_size=6"], "choose a multiple of it"),
        ("gsv_cosplace", ["experiment.classes={}"], "found classes and places"),
        ("gsv_cosplace", ["experiment.network.street_as_query=false"], "street_as_query=true"),
        ("gsv_cosplace", ["experiment.domains={kind: grl}"], "a target is needed by domains"),
        ("gsv_cosplace", ["experiment.night={darkroom: false}"], "night changes nothing"),
        ("gsv_mixvpr", ["experiment.photo_size_px=[32, 48]"], "'mixvpr' needs square images"),
    ],
)
def test_what_cannot_be_trained(name, overrides, message, world, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train_experiment(shrunk(name, world, tmp_path / "run", *overrides))


def test_a_target_that_holds_a_test_query_is_refused(world, tmp_path):
    values = shrunk("cosplace_fda", world, tmp_path / "run")
    values["experiment"]["target"] = values["experiment"]["test_queries"]
    with pytest.raises(ConfigError, match="12 photos of the adaptation target are test queries"):
        train_experiment(values)
    values["experiment"]["target"] = values["experiment"]["queries"]
    with pytest.raises(ConfigError, match="24 photos of the adaptation target are test queries"):
        train_experiment(values)
