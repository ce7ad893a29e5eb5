"""MegaLoc's own code gave the vectors in fixtures/megaloc.json; see HOW.md there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from named_numbers import digest, pictures, state_of
from precision import FACTOR, double_precision, doubled, rounding_sensitivity

from geoloc.adapters.dinov2 import resampled_positions
from geoloc.adapters.megaloc import adapt_megaloc, is_megaloc
from geoloc.adapters.options import Options
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import CheckpointError, ConfigError
from geoloc.models.aggregation.transport import transport_plan

MADE: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures" / "megaloc.json").read_text())


def test_the_same_vectors_as_the_peer() -> None:
    state, size = state_of(MADE["tensors"], 1.2), MADE["image_size_px"]
    assert digest(state) == MADE["sha256"]
    assert is_megaloc(ForeignTensors(state, "x"))
    network = adapt_megaloc(ForeignTensors(state, "x"), Options(image_size_px=size)).network
    with torch.inference_mode():
        single = network.embed_images(pictures(size), "street")
        with double_precision():
            exact = adapt_megaloc(ForeignTensors(doubled(state), "x"), Options(image_size_px=size)).network
            ours = exact.embed_images(pictures(size).double(), "street")
    theirs = torch.tensor(MADE["output"], dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    sensitivity = rounding_sensitivity(exact, lambda n: n.embed_images(pictures(size).double(), "street"))
    torch.testing.assert_close(single.double(), ours, rtol=0, atol=FACTOR * sensitivity)
    for change, message in (
        ({"strange": torch.zeros(1)}, "strange"),
        ({"backbone.strange": torch.zeros(1)}, "strange"),
    ):
        with pytest.raises(CheckpointError, match=message):
            adapt_megaloc(ForeignTensors(state | change, "x"), Options(image_size_px=size))
    with pytest.raises(ConfigError, match="multiple of 14"):
        adapt_megaloc(ForeignTensors(state, "x"), Options(image_size_px=100))


def test_a_plan_gives_each_cluster_and_position_its_share() -> None:
    """After the last step every position is dealt out whole; many steps fill every cluster with one unit."""
    scores = torch.randn(2, 4, 30, generator=torch.Generator().manual_seed(0)).double()
    plan = transport_plan(scores, torch.tensor(0.5).double())
    assert bool((plan > 0).all())
    assert bool((plan.sum(1) < 1).all())  # the rest is the dustbin's
    torch.testing.assert_close(plan.sum(2), torch.ones(2, 4).double(), rtol=0, atol=0.1)


def test_positions_of_the_same_grid_stay() -> None:
    positions = torch.randn(1, 26, 3)
    assert resampled_positions(positions, 5) is positions
    assert resampled_positions(positions, 3).shape == (1, 10, 3)
    flat = torch.cat([positions[:, :1], torch.ones(1, 25, 3)], 1)
    torch.testing.assert_close(resampled_positions(flat, 3)[:, 1:], torch.ones(1, 9, 3))
