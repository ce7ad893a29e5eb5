"""Soups against averages by hand, and against every soup that could have been made."""

from typing import Any

import pytest
import torch
from torch import Tensor

from geoloc.errors import ConfigError
from geoloc.train.soups import greedy_soup, uniform_soup


def model(*values: float, **more: Any) -> dict[str, Tensor]:
    return {
        "net.weight": torch.tensor([float(v) for v in values]),
        "net.steps": torch.tensor(int(values[0])),
        **more,
    }


def test_a_uniform_soup_by_hand() -> None:
    found = uniform_soup({"a": model(1, 2), "b": model(3, 8), "c": model(5, 5)})
    assert found["net.weight"].tolist() == [3, 5]
    assert found["net.steps"].item() == 1  # no half steps: the first one's
    half = uniform_soup({"a": {"w": torch.tensor([1.0]).half()}, "b": {"w": torch.tensor([1.002]).half()}})
    assert half["w"].dtype == torch.float16


def test_what_only_domain_adaptation_uses_is_dropped() -> None:
    adapted = model(3, 4)
    adapted |= {"discriminator.mlp.0.weight": torch.zeros(2), "net.autoencoder.encoder.0.bias": torch.ones(3)}
    found = uniform_soup({"plain": model(1, 2), "adapted": adapted})
    assert set(found) == {"net.weight", "net.steps"}
    assert found["net.weight"].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"net.weight": torch.zeros(2)},
            r"'b' and 'a' cannot be averaged: 'b' lacks net.steps and adds nothing",
        ),
        (model(1, 2, extra=torch.zeros(1)), r"lacks nothing and adds extra \(0 and 1 tensors\)"),
        (model(1, 2, 3), r"'net.weight' is \(3,\) in the first and \(2,\) in the second"),
    ],
)
def test_models_of_another_form_are_named(other: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        uniform_soup({"a": model(1, 2), "b": other})
    with pytest.raises(ConfigError, match=message):
        greedy_soup({"a": model(1, 2), "b": other}, lambda state: 0.0)


def test_no_models() -> None:
    with pytest.raises(ConfigError, match="at least one model"):
        uniform_soup({})


def test_a_greedy_soup_by_hand() -> None:
    """The score is how near the weight is to 4: of 3, 6 and 10 the first two make 4.5, and all of them 6.33."""

    def score(state: dict[str, Tensor]) -> float:
        return -abs(float(state["net.weight"][0]) - 4)

    models = {"far": model(10.0), "low": model(3.0), "high": model(6.0)}
    found = greedy_soup(models, score)
    assert found.members == ("low", "high")
    assert found.state["net.weight"].tolist() == [4.5]
    assert found.score == -0.5
    assert found.scores == {"far": -6, "low": -1, "high": -2}


@pytest.mark.parametrize("seed", range(20))
def test_a_greedy_soup_is_never_below_its_best_member(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    best = torch.randn(4, generator=generator)

    def score(state: dict[str, Tensor]) -> float:
        return -float((state["w"] - best).norm())

    models = {str(i): {"w": best + torch.randn(4, generator=generator)} for i in range(5)}
    found = greedy_soup(models, score)
    assert found.score == score(found.state) >= max(map(score, models.values()))
    torch.testing.assert_close(
        found.state["w"], torch.stack([models[name]["w"] for name in found.members]).mean(0)
    )
