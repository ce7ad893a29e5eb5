"""Statewide's own Flax modules gave the vectors in fixtures/statewide.json; see HOW.md there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from named_numbers import digest, state_of
from torch import Tensor

from geoloc import Geolocalizer
from geoloc.adapters.options import Options
from geoloc.adapters.statewide import adapt_statewide
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import CheckpointError, ConfigError

MADE: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures" / "statewide.json").read_text())
SMALL = Options(image_size_px=64)


def state() -> dict[str, Tensor]:
    return state_of(MADE["tensors"], 1.2)


def pixels() -> tuple[Tensor, Tensor]:
    """Two photos and two places with four views each, normalised."""
    rng = np.random.default_rng(11)
    drawn = [rng.integers(0, 256, shape).astype(np.float32) for shape in ((2, 64, 64, 3), (2, 4, 64, 64, 3))]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    photos, views = (torch.from_numpy(((x / 255 - mean) / std).astype(np.float32)) for x in drawn)
    return photos.movedim(-1, 1), views.movedim(-1, 2)


def test_the_same_vectors_as_the_peer() -> None:
    assert digest(state()) == MADE["sha256"]
    network = adapt_statewide(ForeignTensors(state(), "last.safetensors"), SMALL).network
    for tower in (network.backbone, network.aerial_backbone):
        for norm in tower.modules():
            if "LayerNorm" in type(norm).__name__:  # of timm's ConvNeXts only this small one has 1e-5
                norm.eps = 1e-6
    photos, views = pixels()
    network = network.double()
    with torch.inference_mode():
        for images, role, name in ((photos, "query", "pv_features"), (views, "aerial", "aerial_features")):
            expected = torch.tensor(MADE[name], dtype=torch.float64) / 6  # the peer's, in single precision
            ours = network.embed_images(images.double(), role)
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_the_folder_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    safetensors.torch.save_file(state(), tmp_path / "weights" / "last.safetensors")
    model = Geolocalizer.from_pretrained(tmp_path, image_size_px=64)
    model.save_pretrained(tmp_path / "ours")
    again = Geolocalizer.from_pretrained(tmp_path / "ours")
    assert again.embedding_fingerprint == model.embedding_fingerprint
    photos, _ = pixels()
    np.testing.assert_array_equal(
        again.runner.embed_images(photos, "query"), model.runner.embed_images(photos, "query")
    )


def test_photos_and_aerial_views_are_as_published() -> None:
    adapted = adapt_statewide(ForeignTensors(state(), "x"), Options())
    assert (adapted.preprocess.size_hw, adapted.preprocess.resize) == ((480, 640), "pad")
    assert adapted.preprocess.of_aerial.size_hw == (384, 384)
    small = adapt_statewide(ForeignTensors(state(), "x"), SMALL).preprocess
    assert (small.size_hw, small.resize, small.of_aerial.size_hw) == ((64, 64), "shortest", (64, 64))
    wide = adapt_statewide(ForeignTensors(state(), "x"), Options(image_size_px=(240, 320))).preprocess
    assert (wide.size_hw, wide.resize, wide.of_aerial.size_hw) == ((240, 320), "pad", (384, 384))


def test_a_rectangle_goes_through(tmp_path: Path) -> None:
    safetensors.torch.save_file(state(), tmp_path / "last.safetensors")
    model = Geolocalizer.from_pretrained(tmp_path / "last.safetensors", image_size_px=(48, 64))
    photo = np.random.default_rng(0).integers(0, 256, (100, 60, 3), np.uint8)
    loaded = model.load(photo)
    assert tuple(loaded.shape) == (3, 48, 64)
    black = -np.array(model.preprocess.mean) / np.array(model.preprocess.std)
    np.testing.assert_allclose(loaded[:, :, 0].T, np.tile(black, (48, 1)), atol=1e-6)
    vector = model.runner.embed_images(loaded[None], "query")
    assert float(np.linalg.norm(vector)) == pytest.approx(1)
    views = torch.zeros(1, 4, 3, *model.preprocess.of_aerial.size_hw)
    assert model.embed_reference(views, "aerial").shape == (1, model.embedding_dim)


def test_what_does_not_fit_is_named() -> None:
    tensors = state()
    del tensors["params//pv_encoder//Stage_0//Block_0//Conv_0//bias"]
    with pytest.raises(CheckpointError, match=r"backbone\.tower\.trunk\.stages\.0\.blocks\.0\.conv_dw\.bias"):
        adapt_statewide(ForeignTensors(tensors, "x"), SMALL)
    with pytest.raises(CheckpointError, match="strange"):
        adapt_statewide(ForeignTensors(state() | {"params//strange": torch.zeros(1)}, "x"), SMALL)
    with pytest.raises(ConfigError, match="another pooling than the spatial softmax"):
        adapt_statewide(
            ForeignTensors(state() | {"params//pv_decoder//Linear_2//weight": torch.zeros(1, 1)}, "x"), SMALL
        )
