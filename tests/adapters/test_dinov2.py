"""DINOv2's own code resampled the positions in fixtures/dinov2.json; see HOW.md there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from named_numbers import state_of
from torch import Tensor

from geoloc.adapters.dinov2 import read_dinov2, resampled_positions
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import ConfigError

MADE: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures" / "dinov2.json").read_text())


@pytest.mark.parametrize("tag", ["dinov2_vits14", "dinov2_vits14_reg"])
def test_the_same_positions_as_the_peer(tag: str) -> None:
    positions = state_of({"pos_embed": [1, 1370, 3]}, 1.2)["pos_embed"].double() * 30
    side = MADE[tag]["image_size_px"] // 14
    ours = resampled_positions(positions, side, with_registers=tag.endswith("reg"))
    assert ours.shape == (1, 1 + side**2, 3)
    theirs = torch.tensor(MADE[tag]["positions"], dtype=torch.float64)
    torch.testing.assert_close(ours[0, : len(theirs)], theirs, rtol=0, atol=1e-9)
    other = resampled_positions(positions, side, with_registers=not tag.endswith("reg"))
    assert float((other[0, : len(theirs)] - theirs).abs().max()) > 1e-3  # the kinds differ


def file(**change: Tensor) -> ForeignTensors:
    tensors = {
        "cls_token": torch.ones(1, 1, 384),
        "pos_embed": torch.full((1, 1370, 384), 2.0),
        "mask_token": torch.zeros(1, 384),
        "blocks.0.mlp.w12.bias": torch.zeros(4),
        "blocks.0.mlp.w3.bias": torch.zeros(2),
    }
    return ForeignTensors(tensors | change, "x")


def test_names_and_registers() -> None:
    config, state = read_dinov2(file(), "", 518)
    assert config == {"timm": "vit_small_patch14_dinov2", "image_size_px": 518}
    assert set(state) == {"cls_token", "pos_embed", "blocks.0.mlp.fc1.bias", "blocks.0.mlp.fc2.bias"}
    config, state = read_dinov2(file(register_tokens=torch.zeros(1, 4, 384)), "", 28)
    assert config["timm"] == "vit_small_patch14_reg4_dinov2"
    assert state["pos_embed"].shape == (1, 4, 384)
    torch.testing.assert_close(state["cls_token"], torch.full((1, 1, 384), 3.0))  # with its own position


def test_what_is_no_dinov2() -> None:
    with pytest.raises(ConfigError, match="multiple of 14"):
        read_dinov2(file(), "", 100)
    with pytest.raises(ConfigError, match="trunk of width 5"):
        read_dinov2(file(pos_embed=torch.zeros(1, 1370, 5)), "", 224)
