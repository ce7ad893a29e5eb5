"""PLONK's own network, samplers and likelihood gave the numbers in fixtures/plonk.json; see HOW.md there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named_numbers import digest, state_of

from geoloc.adapters.plonk import PlonkField, carried, log_density, schedule, to_latlon_deg
from geoloc.adapters.tensors import ForeignTensors
from geoloc.errors import CheckpointError, ConfigError

MADE: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures" / "plonk.json").read_text())
START, FEATURES = torch.tensor(MADE["start"]), torch.tensor(MADE["conditions"])


def field(**change: torch.Tensor) -> PlonkField:
    return PlonkField(ForeignTensors(state_of(MADE["tensors"], 1.2) | change, "model.safetensors"))


def test_the_same_field_as_the_peer() -> None:
    assert digest(state_of(MADE["tensors"], 1.2)) == MADE["sha256"]
    share = torch.tensor(0.3, dtype=torch.float64)
    moves = field().double()(START.double(), FEATURES.double(), share)
    np.testing.assert_allclose(moves, MADE["flow"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("made", MADE["draws"], ids=lambda m: f"{m['kind']}-{m['guidance']}-{m['num_steps']}")
def test_the_same_places_as_the_peer(made: dict[str, Any]) -> None:
    start = START if made["kind"] == "sphere" else START * 0.5
    points = carried(
        field().double(),
        made["kind"],
        start,
        FEATURES.double(),
        guidance=made["guidance"],
        num_steps=made["num_steps"],
    )
    np.testing.assert_allclose(points, made["points"], rtol=0, atol=1e-9)
    ours, theirs = to_latlon_deg(points).numpy(), np.array(made["latlon_deg"], np.float64)
    has_latitude = np.isfinite(theirs)
    np.testing.assert_allclose(ours[has_latitude], theirs[has_latitude], rtol=0, atol=1e-7)
    assert bool((np.abs(ours[~has_latitude]) == 90).all())
    assert made["kind"] == "space" or bool(has_latitude.all())
    length = points.norm(dim=-1)
    assert made["kind"] != "sphere" or bool(((length - 1).abs() < 1e-9).all())


@pytest.mark.parametrize("made", MADE["likelihood"], ids=lambda m: str(m["guidance"]))
def test_the_same_likelihood_as_the_peer(made: dict[str, Any]) -> None:
    places = torch.tensor(made["latlon_deg"])
    ours = log_density(field().double(), FEATURES.double(), places, guidance=made["guidance"], tolerance=4e-7)
    np.testing.assert_allclose(ours, made["log_density"], rtol=0, atol=1e-4)


def test_the_schedule_falls_from_one() -> None:
    shares = schedule(torch.linspace(0, 1, 11))
    assert float(shares[0]) == pytest.approx(1)
    assert float(shares[-1]) <= 1e-6
    assert bool((shares.diff() < 0).all())


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(CheckpointError, match="strange"):
        field(strange=torch.zeros(1))
    with pytest.raises(CheckpointError, match="points of 2 numbers"):
        field(**{"initial_mapper.weight": torch.zeros(32, 2)})
    with pytest.raises(ConfigError, match="takes"):
        carried(field(), "sphere", START, FEATURES[:, 1:])
    with pytest.raises(ConfigError, match="one of sphere"):
        carried(field(), "plane", START, FEATURES)  # type: ignore[arg-type]
    for wrong in ({"guidance": -1.0}, {"num_steps": 0}):
        with pytest.raises(ConfigError, match="at least one step"):
            carried(field(), "sphere", START, FEATURES, **wrong)
