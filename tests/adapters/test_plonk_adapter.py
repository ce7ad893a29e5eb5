"""PLONK's own network and sampler gave the numbers in fixtures/plonk.json; see HOW.md there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named_numbers import digest, state_of

from geoloc.adapters.plonk import PlonkSampler, schedule
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import CheckpointError, ConfigError

MADE: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures" / "plonk.json").read_text())
START, FEATURES = torch.tensor(MADE["start"]), torch.tensor(MADE["conditions"])


def sampler(**change: torch.Tensor) -> PlonkSampler:
    return PlonkSampler(ForeignTensors(state_of(MADE["tensors"], 1.2) | change, "model.safetensors"))


def test_the_same_field_and_places_as_the_peer() -> None:
    assert digest(state_of(MADE["tensors"], 1.2)) == MADE["sha256"]
    field = sampler().velocity(START, FEATURES, torch.full((5,), 0.3))
    np.testing.assert_allclose(field, MADE["flow"], rtol=0, atol=1e-5)
    x, y, z = sampler().flow(START, FEATURES, MADE["num_steps"]).unbind(-1)
    ours = np.degrees(torch.stack([z.arcsin(), y.atan2(x)], -1).numpy())  # in float32, as the peer does it
    np.testing.assert_allclose(ours, MADE["latlon_deg"], rtol=0, atol=1e-5)


def test_draws_follow_their_seed() -> None:
    first, again, other = (sampler().sample(FEATURES, seed=seed, num_steps=4) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert bool((first[:, 0].abs() <= 90).all())
    assert bool((first[:, 1].abs() <= 180).all())
    with pytest.raises(ConfigError, match="features"):
        sampler().sample(FEATURES[:, 1:], seed=0)


def test_the_schedule_falls_from_one() -> None:
    shares = schedule(torch.linspace(0, 1, 11))
    assert float(shares[0]) == pytest.approx(1)
    assert float(shares[-1]) <= 1e-6
    assert bool((shares.diff() < 0).all())


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(CheckpointError, match="strange"):
        sampler(strange=torch.zeros(1))
    with pytest.raises(CheckpointError, match="in the plane"):
        sampler(**{"final_linear.weight": torch.zeros(2, 32), "final_linear.bias": torch.zeros(2)})
