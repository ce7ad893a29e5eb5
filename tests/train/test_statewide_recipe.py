"""Photos and tiles of one synthetic landscape: the recipe learns to match them, and a killed run keeps its plan."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from linear_task import CONFIG, MACHINE
from PIL import Image
from small_photos import CONFIGS
from tiny import VIT

from geoloc import Geolocalizer, ReferenceDatabase
from geoloc.cli.train import compose_experiment, experiments, train_experiment
from geoloc.data.sample import SampleTable
from geoloc.data.samplers import SpatialBuckets
from geoloc.data.stream import SampleStream
from geoloc.errors import ConfigError
from geoloc.geo.tiles import mercator_latlon_deg
from geoloc.images.preprocess import Preprocess
from geoloc.train.hard_examples import HardExamples, HardExamplesConfig
from geoloc.train.run_folder import RunFolder, read_metrics
from geoloc.train.statewide import LoadPair, ViewsConfig, recall
from geoloc.train.trainer import fit
from quadtree.sphere import haversine_km

ZOOM, TILES = 14, 3
M_PER_PX = 2 * math.pi * 6378137 / 2**ZOOM / 256
FIRST = 2 ** (ZOOM - 1)  # the tile south-east of null island


def landscape():
    """(768, 768, 3) uint8, smooth and different everywhere."""
    rng = np.random.default_rng(0)
    size = 256 * TILES
    coarse = Image.fromarray(rng.integers(0, 256, (size // 16, size // 16, 3)).astype(np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of tiles, and a table of photos that show the ground around them."""
    folder = tmp_path_factory.mktemp("world")
    ground = landscape()
    for x in range(TILES):
        for y in range(TILES):
            path = folder / "tiles" / str(ZOOM) / str(FIRST + x) / f"{FIRST + y}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ground[y * 256 : y * 256 + 256, x * 256 : x * 256 + 256]).save(path)
    (folder / "photos").mkdir()
    rng = np.random.default_rng(1)
    pixels = rng.integers(100, 668, (48, 2))
    for number, (x, y) in enumerate(pixels):
        Image.fromarray(ground[y - 16 : y + 16, x - 16 : x + 16]).save(folder / "photos" / f"{number}.png")
    latlon_deg = mercator_latlon_deg(np.stack([pixels[:, 0], -pixels[:, 1]], -1) * M_PER_PX)
    columns = {
        "key": [str(n) for n in range(48)],
        "image_file": [f"photos/{n}.png" for n in range(48)],
    }
    SampleTable(folder, columns, latlon_deg).write(folder / "photos.parquet")
    return folder


def small(name, world, run_folder, *overrides):
    values = compose_experiment(
        [
            f"experiment={name}",
            f"run_folder={run_folder}",
            f"experiment.data.path={world}/photos.parquet",
            "experiment.data.layout=null",
            "experiment.data.validation_share=0.25",
            "experiment.data.buffer_km=0.1",
            f"experiment.views.source=[{world}/tiles]",
            "experiment.views.gsd_m_per_px=[10, 20]",
            "experiment.views.cell_size_m=300",
            "experiment.trainer.num_steps=2",
            "experiment.trainer.validate_every_steps=2",
            "experiment.batch_size=6",
            "experiment.photo_size_px=null",  # the tower below takes squares
            "experiment.network.embeddings.query={dim: 16, aggregation: {heads: 4}}",
            "experiment.network.embeddings.aerial={dim: 16, aggregation: {heads: 4, num_views: 2}}",
            *[
                "machine.accelerator=cpu",
                "machine.num_workers=0",
                "machine.progress=false",
                "machine.logger=csv",
            ],
            *overrides,
        ],
        CONFIGS,
    )
    network = values["experiment"]["network"]
    network["backbone"] = {"custom": VIT, "features": "map"}
    if network["aerial_backbone"] is not None:
        network["aerial_backbone"] = network["backbone"]
    return values


@pytest.mark.parametrize("name", [name for name in experiments(CONFIGS) if name.startswith("statewide")])
def test_an_experiment_trains_and_saves_a_checkpoint(name, world, tmp_path):
    train_experiment(small(name, world, tmp_path / "run"))
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert {"loss/contrast", "val/recall_at_1", "val/median_rank"} <= {name for _, name, _ in rows}
    model = Geolocalizer.from_pretrained(tmp_path / "run" / "checkpoint")
    assert (model.network.aerial_backbone is None) == (name == "statewide_boston")
    images = torch.stack([model.load(world / "photos" / f"{n}.png") for n in range(2)])
    query = model.network.embed_images(images, "query")
    places = model.embed_views(images[:, None].repeat(1, 2, 1, 1, 1), np.ones((2, 2), bool), (10.0, 20.0))
    assert query.shape == places.shape == (2, 16)


def test_it_learns(world, tmp_path):
    values = small(
        "statewide_boston",
        world,
        tmp_path / "run",
        "experiment.hard_examples=null",
        "experiment.views.shift_m=0",
        "experiment.batch_size=12",
        "experiment.trainer.num_steps=60",
        "experiment.trainer.validate_every_steps=null",
        "experiment.trainer.early_stopping=null",
        "experiment.trainer.schedule={kind: constant, warmup_steps: 5, final_factor: 0}",
        "experiment.trainer.optimizer.lr={heads: 0.003, backbone: 0.003}",
    )
    train_experiment(values)
    losses = [v for _, name, v in read_metrics(tmp_path / "run" / "metrics.csv") if name == "loss/contrast"]
    assert losses[-1] < 0.8 * losses[0]


def test_photos_on_black_beside_square_views(world, tmp_path):
    values = small("statewide", world, tmp_path / "run", "experiment.photo_size_px=[32, 64]")
    tower = {"timm": "test_resnet", "features": "map", "image_size_px": 48}
    values["experiment"]["network"] |= {"backbone": tower, "aerial_backbone": tower}
    train_experiment(values)
    model = Geolocalizer.from_pretrained(tmp_path / "run" / "checkpoint")
    photo = model.load(world / "photos" / "0.png")  # 32 x 32
    assert photo.shape == (3, 32, 64)
    black = -torch.tensor(model.preprocess.mean) / torch.tensor(model.preprocess.std)
    torch.testing.assert_close(photo[:, :, :16], black[:, None, None].expand(3, 32, 16))
    assert model.preprocess.of_aerial.size_hw == (48, 48)
    views = torch.zeros(1, 2, 3, 48, 48)
    assert model.embed_views(views, np.ones((1, 2), bool), (10.0, 20.0)).shape == (1, 16)
    database = ReferenceDatabase.create(tmp_path / "refs", model=model)
    box = (0.0, 0.0, 0.05, 0.05)
    database.add_aerial(f"{world}/tiles", cell_size_m=1000, gsd_m_per_px=(10, 20), region=box)
    assert len(database) > 0


def test_views_that_do_not_fit_the_embedding(world, tmp_path):
    with pytest.raises(ConfigError, match="has 1 views, and the aerial embedding takes 2"):
        train_experiment(small("statewide", world, tmp_path / "run", "experiment.views.gsd_m_per_px=[10]"))


def load_pair(world, is_training):
    preprocess = Preprocess(image_size_px=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    views = ViewsConfig((f"{world}/tiles",), (10.0, 20.0), shift_m=50.0, cell_size_m=300.0)
    return LoadPair(views, preprocess, preprocess, is_training)


def test_a_pair_shows_one_place(world):
    table = SampleTable.read(world / "photos.parquet")
    seen = load_pair(world, is_training=False)(table[3], np.random.default_rng(0))
    assert seen["aerial"].shape == (2, 3, 32, 32)
    assert haversine_km(seen["aerial_deg"].numpy(), table.latlon_deg[3]) < 0.3 / 2**0.5
    shifts = []
    for seed in range(40):
        pair = load_pair(world, is_training=True)(table[3], np.random.default_rng(seed))
        shifts.append(1000 * haversine_km(pair["aerial_deg"].numpy(), table.latlon_deg[3]))
    assert 50 < max(shifts) < 50 * 2**0.5 * 1.01


def test_recall_by_hand():
    # Three cells on the equator, 100 m apart; the fourth photo lies in the second cell, 5 m from its centre.
    step = 100 / 111_195
    cells = torch.tensor([[0, 0], [0, step], [0, 2 * step]], dtype=torch.float64)
    aerial = torch.eye(3)
    own = torch.tensor([0, 1, 2, 1])
    query = torch.tensor([[1.0, 0, 0], [0.9, 0.4, 0], [0, 0, 1], [0.9, 0.4, 0.5]])
    photos = cells[own].clone()
    photos[3, 1] += step / 20
    photos[1, 1] -= 0.55 * step  # nearer to the first cell than to its own, and within 50 m of it only
    found = recall(query, aerial[own], photos, cells[own])
    assert found["recall_at_1"] == 0.5  # ranks 0, 1, 0, 2
    assert found["median_rank"] == 0.5
    assert found["recall_at_5"] == 1.0
    assert found["recall_at_1_within_50_m"] == 0.75


# --- Hard examples ------------------------------------------------------------------------------------------


def hard_stream(world):
    table = SampleTable.read(world / "photos.parquet")
    order = SpatialBuckets(table.latlon_deg, 1, 5.0)
    return SampleStream(table, load_pair(world, is_training=True), order, batch_size=4, seed=7)


def predict_colours(batches):
    """An "embedding" that a test can follow: mean colours."""
    found = [
        {
            "query": batch["image"].mean((2, 3)),
            "aerial": batch["aerial"][:, 0].mean((2, 3)),
            "aerial_deg": batch["aerial_deg"],
            "row": batch["row"],
        }
        for batch in batches
    ]
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def test_a_scan_is_clustered_and_every_pair_of_it_is_trained_once(world):
    data = HardExamples(hard_stream(world), HardExamplesConfig(3, raise_after_samples=10), 300.0)
    assert data.plan(0, predict_colours, 0, 1) == 3
    assert data.plan(2, predict_colours, 0, 1) == 3  # there is a plan for it
    seen = [data.batch(index, 0, 1)["row"] for index in range(3)]
    first_twelve = hard_stream(world).order(0)[:12]
    assert sorted(torch.cat(seen).tolist()) == sorted(first_twelve.tolist())
    assert data.plan(3, predict_colours, 0, 1) == 9  # scans grow
    halves = [data.batch(4, rank, 2)["row"].tolist() for rank in (0, 1)]
    assert sorted(halves[0] + halves[1]) == sorted(data.batch(4, 0, 1)["row"].tolist())


def test_what_is_trained_is_what_was_embedded(world):
    data = HardExamples(hard_stream(world), HardExamplesConfig(3), 300.0)
    embedded = {}

    def remember(batches):
        found = predict_colours(batches)
        embedded.update(
            {tuple(place.tolist()): q for place, q in zip(found["aerial_deg"], found["query"], strict=True)}
        )
        return found

    data.plan(0, remember, 0, 1)
    batch = data.batch(1, 0, 1)
    for place, image in zip(batch["aerial_deg"], batch["image"], strict=True):
        assert torch.equal(embedded[tuple(place.tolist())], image.mean((1, 2)))


class ColourTask(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.map = torch.nn.Linear(3, 3)

    def losses(self, batch):
        return {
            "apart": (self.map(batch["image"].mean((2, 3))) - batch["aerial"][:, 0].mean((2, 3)))
            .square()
            .mean()
        }

    def roles(self):
        return ((name, p, "heads") for name, p in self.named_parameters())

    def predict(self, batch):
        found = predict_colours([batch])
        return found | {"query": self.map(found["query"])}

    def score(self, predicted):
        return {}


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop_at", [2, 5, 6, 10])
def test_a_killed_run_keeps_its_plan(world, tmp_path, stop_at):
    config = replace(CONFIG, num_steps=12, accumulate=1, validate_every_steps=None, early_stopping=None)
    machine = replace(MACHINE, save_every_steps=1)

    def train(folder, task):
        data = HardExamples(hard_stream(world), HardExamplesConfig(3, raise_after_samples=1), 300.0)
        fit(task, data, config, machine, RunFolder(folder, {}))
        return task.map.weight

    class Killed(ColourTask):
        steps = 0

        def losses(self, batch):
            self.steps += 1
            if self.steps > stop_at:
                raise Stopped
            return super().losses(batch)

    expected = train(tmp_path / "unkilled", ColourTask())
    with pytest.raises(Stopped):
        train(tmp_path / "killed", Killed())
    assert torch.equal(train(tmp_path / "killed", ColourTask()), expected)
    assert json.loads((tmp_path / "killed" / "config.json").read_text()) == {}
