"""PLONK's own pipeline, from picture to places, gave the numbers in fixtures/plonk_pipeline.json; see HOW.md there."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from named_numbers import digest, state_of
from torch import Tensor

from geoloc.adapters.plonk import carried, to_latlon_deg
from geoloc.adapters.plonk_models import VARIANTS, SamplingModel, adapt_plonk, variant_of
from geoloc.adapters.registry import DINOV2_L14_REGISTERS, MODELS
from geoloc.errors import CheckpointError, ConfigError
from geoloc.images.preprocess import load_and_preprocess
from geoloc.localize.sampler import LocationSampler, SamplingOptions

sys.path.append(str(Path(__file__).parents[1] / "hub"))
from hub_server import HubServer, Repository

FIXTURES = Path(__file__).parent / "fixtures"
MADE: dict[str, Any] = json.loads((FIXTURES / "plonk_pipeline.json").read_text())
NAMES = [name for name in MADE if "/" in name]


def dinov2() -> dict[str, Tensor]:
    made = MADE["dinov2"]
    state = state_of(made["tensors"], 1.2)
    return state | {"pos_embed": state["pos_embed"] * made["pos_gain"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of all models and towers, as they are published."""
    path = tmp_path_factory.mktemp("plonk")
    assert digest(dinov2()) == MADE["dinov2"]["sha256"]
    torch.save(dinov2(), path / "dinov2.pth")
    (path / "street").mkdir()
    street = state_of(MADE["street_clip"]["tensors"], 1.2)
    assert digest(street) == MADE["street_clip"]["sha256"]
    safetensors.torch.save_file(street, path / "street" / "model.safetensors")
    (path / "street" / "config.json").write_text(json.dumps(MADE["street_clip"]["config"]))
    for name in NAMES:
        state = state_of(MADE[name]["tensors"], 1.2)
        assert digest(state) == MADE[name]["sha256"]
        (path / name).mkdir(parents=True)
        safetensors.torch.save_file(state, path / name / "model.safetensors")
    return path


def adapted(folder: Path, name: str) -> SamplingModel:
    tower = "street" if variant_of(name).tower == "streetclip" else "dinov2.pth"
    return adapt_plonk(folder / name, variant_of(name), folder / tower)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_places_as_its_pipeline(folder: Path, name: str) -> None:
    model, made = adapted(folder, name), MADE[name]
    field, backbone = model.field.double(), model.backbone.double()
    picture = "plonk_small.png" if variant_of(name).tower == "streetclip" else "plonk_picture.png"
    image = load_and_preprocess(FIXTURES / picture, model.preprocess)
    with torch.inference_mode():
        features = backbone(image[None].double())[0]
    theirs = torch.tensor(made["features"], dtype=torch.float64)
    torch.testing.assert_close(features, theirs, rtol=0, atol=1e-5)
    start = torch.tensor(made["start"])
    for guidance, latlon_deg in made["latlon_deg"].items():
        points = carried(
            field,
            model.kind,
            start,
            theirs.expand(len(start), -1),
            guidance=float(guidance),
            num_steps=made["num_steps"],
        )
        ours, expected = to_latlon_deg(points).numpy(), np.array(latlon_deg, np.float64)
        there = np.isfinite(expected)
        assert there[:, 1].all()
        np.testing.assert_allclose(ours[there], expected[there], rtol=0, atol=1e-7)


def test_a_tower_of_timm_is_the_same(folder: Path, tmp_path: Path) -> None:
    """timm's file keeps the class token's position in the token."""
    state = dinov2()
    del state["mask_token"]
    state["reg_token"] = state.pop("register_tokens")
    state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    state["pos_embed"] = state["pos_embed"][:, 1:].contiguous()
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    name = NAMES[0]
    from_timm = adapt_plonk(folder / name, variant_of(name), tmp_path).backbone.state_dict()
    for key, tensor in adapted(folder, name).backbone.state_dict().items():
        torch.testing.assert_close(from_timm[key], tensor, rtol=0, atol=1e-6)


def test_pictures_and_kinds(folder: Path) -> None:
    yfcc, osv = adapted(folder, NAMES[0]), adapted(folder, NAMES[1])
    assert (yfcc.kind, yfcc.preprocess.image_size_px, yfcc.preprocess.resize) == ("sphere", 336, "crop")
    assert yfcc.preprocess.mean == (0.485, 0.456, 0.406)
    assert (osv.kind, osv.preprocess.resize, osv.preprocess.floors_centre) == ("space", "shortest", True)
    assert osv.preprocess.mean == (0.48145466, 0.4578275, 0.40821073)
    assert len(VARIANTS) == 9
    published = [model.name for model in MODELS if model.adapter == "plonk"]
    assert {name.partition("/")[2].lower() for name in published} == set(VARIANTS)


def test_model_and_tower_come_from_the_hub(folder: Path, hub: HubServer) -> None:
    model, tower = folder / NAMES[0] / "model.safetensors", safetensors.torch.save(dinov2())
    for name, files in (
        (
            NAMES[0],
            {"config.json": b"{}", "model.safetensors": model.read_bytes(), "README.md": b"never asked for"},
        ),
        (DINOV2_L14_REGISTERS, {"model.safetensors": tower, "config.json": b"never asked for"}),
    ):
        hub.repositories["model", name] = Repository()
        hub.repositories["model", name].commit(files, "published")
    fetched = LocationSampler.from_pretrained(NAMES[0], sampling=SamplingOptions(num_samples=2, num_steps=4))
    here = LocationSampler(NAMES[0], adapted(folder, NAMES[0]), fetched.sampling)
    assert fetched.identity == here.identity
    assert not hub.received("README.md")
    assert fetched.sample(FIXTURES / "plonk_picture.png").shape == (1, 2, 2)


def test_what_does_not_fit_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give published_as="):
        variant_of("somebody/else")
    with pytest.raises(ConfigError, match=r"gives 32 features, and the sampler in .* takes 384"):
        adapt_plonk(folder / NAMES[0], variant_of("PLONK_OSV_5M"), folder / "street")
    torch.save(dinov2() | {"strange": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match="strange"):
        adapt_plonk(folder / NAMES[0], variant_of(NAMES[0]), tmp_path / "more.pth")
