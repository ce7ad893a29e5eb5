"""The recipe on small mosaics and a tiny tower: it learns, and a killed run goes on as if nothing had happened."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from geoloc.errors import CheckpointError, OutputMismatchError
from geoloc.images.preprocess import Preprocess
from geoloc.localize.geolocalizer import Geolocalizer
from geoloc.models.backbone import Backbone
from geoloc.models.config import (
    BackboneConfig,
    CellHeadConfig,
    EmbeddingHeadConfig,
    NetworkConfig,
    OffsetHeadConfig,
)
from geoloc.models.network import GeoNetwork
from geoloc.models.plain import from_plain
from geoloc.train.augment import photometric
from projects.earthview.looks import random_looks, recoloured, restyled, tinted
from projects.earthview.mosaics import Mosaic
from projects.earthview.training import (
    BatchMaker,
    EarthviewExperiment,
    EarthviewRecipe,
    Stage,
    load_imagenet_trunk,
    load_start,
    shifted_latlon_deg,
    train,
)
from quadtree import Quadtree, build_quadtree
from quadtree.sphere import haversine_km

RECIPE = EarthviewRecipe(
    num_steps=6,
    places_per_step=4,
    stages=(Stage(0.5, 16, 0.2, 0.0), Stage(0.5, 24, 0.2, 0.3)),
    warmup_steps=2,
    save_every_steps=2,
)


class TinyTower(nn.Module):
    """Enough of a backbone to train on."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_dim = 16
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def noise_mosaics() -> dict[str, Mosaic]:
    rng = np.random.default_rng(0)
    return {
        name: Mosaic(name, Image.fromarray(rng.integers(0, 255, (256, 512, 3)).astype(np.uint8)))
        for name in ("a", "b", "c")
    }


def places() -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.stack([rng.uniform(-60, 75, 500), rng.uniform(-180, 180, 500)], -1)


def tiny_network(quadtree: Quadtree) -> GeoNetwork:
    torch.manual_seed(0)
    config = NetworkConfig(
        BackboneConfig(custom={"embed_dim": 16, "vision_cfg": {}}),
        cells=CellHeadConfig(),
        offsets=OffsetHeadConfig((8,)),
        embeddings={"query": EmbeddingHeadConfig(8), "aerial": EmbeddingHeadConfig(8)},
    )
    return GeoNetwork(config, TinyTower(), quadtree.bounds_deg, quadtree.center_latlon_deg)


@pytest.fixture(scope="module")
def quadtree() -> Quadtree:
    return build_quadtree(places(), max_points_per_cell=50, max_depth=5, root="world")


def test_a_batch_depends_on_its_step_alone(quadtree):
    maker = BatchMaker(RECIPE, noise_mosaics(), places())
    a, b = maker.batch(4), maker.batch(4)
    assert torch.equal(a.images, b.images)
    assert np.array_equal(a.latlon_deg, b.latlon_deg)
    assert not torch.equal(maker.batch(5).images, a.images)
    assert a.images.shape == (8, 3, 24, 24)
    assert maker.batch(0).images.shape == (8, 3, 16, 16)
    made_ahead = list(maker.batches(4))
    assert len(made_ahead) == 2
    assert torch.equal(made_ahead[0].images, a.images)


def test_views_are_centred_on_training_places_and_half_of_them_are_neighbours():
    maker = BatchMaker(replace(RECIPE, places_per_step=64), noise_mosaics(), places())
    latlon_deg = maker.batch(0).latlon_deg
    nearest = haversine_km(latlon_deg[:, None], places()[None]).min(-1)
    assert nearest.max() < 1e-9
    queries = latlon_deg[:64]
    # Places are some 900 km apart here, so the neighbour is the place itself or one of the next.
    apart = haversine_km(queries[:32], queries[32:])
    assert np.median(apart) < 500


def test_the_bare_relief_is_drawn_in_random_colours_and_never_blended():
    mosaics = noise_mosaics()
    picture = np.zeros((256, 512, 3), np.uint8)
    picture[:, 256:] = (120, 255, 0)  # the eastern half is land of one height
    mosaics["relief"] = Mosaic("relief", Image.fromarray(picture))
    maker = BatchMaker(replace(RECIPE, places_per_step=64, blend_probability=1.0), mosaics, places())
    assert maker.batch(0).images.isfinite().all()


def discs() -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    disc = ((x - 16) ** 2 + (y - 16) ** 2 < 80).float()
    images = (0.2 + 0.6 * torch.stack([disc, 0.5 * disc, 1 - disc])).expand(12, 3, 32, 32).contiguous()
    return images + 0.02 * torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("look", [recoloured, restyled])
def test_chosen_images_keep_their_shapes_and_lose_their_colours(look):
    images, disc = discs(), discs()[0, 0] > 0.5
    chosen = torch.arange(12) < 9
    drawn = look(images, chosen, torch.Generator().manual_seed(1))
    assert torch.equal(drawn[9:], images[9:])
    assert (drawn - images)[:9].abs().mean((1, 2, 3)).min() > 0.02
    inside, outside = drawn[:9, :, disc].mean(-1), drawn[:9, :, ~disc].mean(-1)
    assert (inside - outside).abs().amax(-1).median() > 0.1


def test_no_image_is_in_two_strange_looks_and_shares_are_kept():
    images = torch.rand(2000, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = random_looks(images, 0.2, 0.3, torch.Generator().manual_seed(1))
    changed = (drawn != images).flatten(1).any(1)
    assert changed.float().mean() == pytest.approx(0.5, abs=0.04)
    restyled_alone = random_looks(images, 0.2, 0.0, torch.Generator().manual_seed(1))
    assert ((restyled_alone != images).flatten(1).any(1)).float().mean() == pytest.approx(0.2, abs=0.03)
    assert torch.equal(random_looks(images, 0.0, 0.0, torch.Generator()), images)


def test_tinted_land_differs_from_sea_and_no_two_maps_are_alike():
    relief = torch.zeros(8, 3, 32, 32)
    relief[:, 0, :, 16:] = torch.linspace(0.1, 0.9, 16)
    relief[:, 1, :, 16:] = 1.0
    drawn = tinted(relief, torch.Generator().manual_seed(0))
    assert drawn.shape == relief.shape
    assert 0 <= drawn.min() <= drawn.max() <= 1
    assert torch.equal(drawn, tinted(relief, torch.Generator().manual_seed(0)))
    # No depth anywhere: the sea is one colour, but for grain and the strip beside the land.
    sea, land = drawn[..., :16].mean((2, 3)), drawn[..., 16:].mean((2, 3))
    assert (sea - land).abs().amax(-1).min() > 0.05
    assert sea.std(0).min() > 0.1


def test_tinted_seas_show_their_floor_in_some_maps_and_are_flat_in_others():
    relief = torch.zeros(64, 3, 32, 32)
    relief[:, 2] = torch.linspace(0.0, 1.0, 32)
    drawn = tinted(relief, torch.Generator().manual_seed(0))
    across = drawn.mean(2).std(-1).amax(1)  # of the columns of each map
    assert 0.2 < (across < 0.06).float().mean() < 0.6


def test_the_relief_gets_its_share_of_the_queries_and_is_never_a_reference():
    mosaics = noise_mosaics()
    mosaics["relief"] = Mosaic("relief", Image.fromarray(np.zeros((256, 512, 3), np.uint8)))
    maker = BatchMaker(replace(RECIPE, places_per_step=400, relief_share=0.25), mosaics, places())
    seen = []
    maker._render = lambda views, size, main, share, generator: (
        seen.append(main),
        torch.rand(len(main), 3, size, size),
    )[1]
    maker.batch(0)
    queries, references = seen
    assert (queries == 3).mean() == pytest.approx(0.25, abs=0.06)
    assert set(references) == {0, 1, 2}
    assert not (queries == references).any()


def test_a_run_killed_after_any_save_ends_with_the_same_weights(quadtree, tmp_path, monkeypatch):
    whole = train(tiny_network(quadtree), quadtree, noise_mosaics(), places(), RECIPE, tmp_path / "whole")

    class Killed(BaseException):
        pass

    original = torch.optim.AdamW.step
    for last_step in (3, 5):
        folder, done = tmp_path / f"killed{last_step}", []

        def step(self, *args, done=done, last_step=last_step, **kwargs):
            if len(done) == last_step:
                raise Killed
            done.append(1)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(Killed):
            train(tiny_network(quadtree), quadtree, noise_mosaics(), places(), RECIPE, folder)
        monkeypatch.setattr(torch.optim.AdamW, "step", original)
        resumed = train(tiny_network(quadtree), quadtree, noise_mosaics(), places(), RECIPE, folder)
        for key, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[key]), key


def test_another_recipe_does_not_continue_a_run(quadtree, tmp_path):
    train(tiny_network(quadtree), quadtree, noise_mosaics(), places(), replace(RECIPE, num_steps=2), tmp_path)
    with pytest.raises(OutputMismatchError, match="another recipe"):
        train(tiny_network(quadtree), quadtree, noise_mosaics(), places(), RECIPE, tmp_path)


def test_a_run_goes_on_from_a_checkpoint_of_the_same_cells_only(quadtree, tmp_path):
    network = tiny_network(quadtree)
    model = Geolocalizer(
        "tiny", network, Preprocess(image_size_px=16, mean=(0.5,) * 3, std=(0.5,) * 3), quadtree
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Geolocalizer, "from_pretrained", lambda folder: model)
        fresh = tiny_network(quadtree)
        for parameter in fresh.parameters():
            nn.init.zeros_(parameter)
        load_start(fresh, quadtree, "folder")
        for key, value in network.state_dict().items():
            assert torch.equal(value, fresh.state_dict()[key]), key
        other = build_quadtree(places(), max_points_per_cell=100, max_depth=5, root="world")
        with pytest.raises(
            CheckpointError, match=r"start_from=folder has the quadtree .* and this experiment"
        ):
            load_start(fresh, other, "folder")
        wider = GeoNetwork(
            replace(network.config, offsets=OffsetHeadConfig((4,))),
            TinyTower(),
            quadtree.bounds_deg,
            quadtree.center_latlon_deg,
        )
        with pytest.raises(CheckpointError, match="another network"):
            load_start(wider, quadtree, "folder")


def test_the_losses_fall(quadtree, tmp_path):
    recipe = replace(
        RECIPE,
        num_steps=60,
        places_per_step=8,
        stages=(Stage(1.0, 16, 0.0, 0.0),),
        head_lr=0.01,
        save_every_steps=60,
    )
    train(tiny_network(quadtree), quadtree, noise_mosaics(), places()[:4], recipe, tmp_path)
    cells = [json.loads(line)["cells"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert np.mean(cells[-10:]) < 0.7 * np.mean(cells[:5])


def test_shifted_places_stay_in_their_square():
    origin = np.array([[0.0, 179.99], [60.0, -180.0], [-45.0, 10.0]]).repeat(200, 0)
    moved = shifted_latlon_deg(origin, 60.0, np.random.default_rng(0))
    distance = haversine_km(origin, moved)
    assert 60 < distance.max() < 60 * 2**0.5 * 1.02  # meridians converge a little inside the square
    assert (np.abs(moved[:, 1]) <= 180).all()


def test_photometric_changes_the_look_and_keeps_the_range():
    images = torch.rand(16, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    changed = photometric(images, torch.Generator().manual_seed(1))
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert (changed - images).abs().mean((1, 2, 3)).min() > 0.01
    assert torch.equal(changed, photometric(images, torch.Generator().manual_seed(1)))


def test_the_experiment_composes_and_its_trunk_takes_the_imagenet_weights(request):
    with initialize_config_dir(str(request.config.rootpath / "projects" / "earthview"), version_base="1.3"):
        config = compose("earthview")
    experiment = from_plain(
        EarthviewExperiment, OmegaConf.to_container(config.experiment, resolve=True), "experiment"
    )
    assert experiment.recipe == EarthviewRecipe()
    backbone = Backbone(experiment.network.backbone, load_pretrained=False)
    before = backbone.tower.trunk.conv_stem.weight.clone()
    load_imagenet_trunk(backbone)
    assert not torch.equal(before, backbone.tower.trunk.conv_stem.weight)
    # ImageNet statistics, not initial ones: running variances of a trained net are not all 1.
    assert backbone.tower.trunk.bn1.running_var.std() > 0.01


def test_the_longer_experiment_goes_on_from_what_it_is_told(request):
    with initialize_config_dir(str(request.config.rootpath / "projects" / "earthview"), version_base="1.3"):
        config = compose("earthview_longer", ["experiment.recipe.start_from=folder"])
    recipe = from_plain(
        EarthviewExperiment, OmegaConf.to_container(config.experiment, resolve=True), "experiment"
    ).recipe
    assert recipe.start_from == "folder"
    assert recipe.stages == (Stage(1.0, 112, 0.12, 0.12),)
    assert recipe.places_per_step == EarthviewRecipe().places_per_step
