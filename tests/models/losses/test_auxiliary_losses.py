"""Auxiliary targets by hand, with truths missing."""

import math

import pytest
import torch

from geoloc.errors import ConfigError
from geoloc.models.losses import AUXILIARY_WIDTHS, auxiliary_losses

NAN = float("nan")


def test_each_target_by_hand() -> None:
    probs = torch.tensor([[0.7, 0.3] + [0.0] * 10, [0.5, 0.5] + [0.0] * 10, [0.2, 0.8] + [0.0] * 10])
    found = auxiliary_losses(
        {
            "land_cover": probs.clamp_min(1e-30).log(),
            "drive_side": torch.tensor([[0.0], [math.log(3)], [100.0]]),
            "road_index": torch.tensor([[1.0], [2.0], [3.0]]),
        },
        {
            "land_cover": torch.tensor([0, -1, 1]),
            "drive_side": torch.tensor([1.0, 0.0, NAN]),
            "road_index": torch.tensor([NAN, 5.0, 4.0]),
            "soil": torch.tensor([1, 2, 3]),  # a column that is not predicted
        },
    )
    assert found.keys() == {"land_cover", "drive_side", "road_index"}
    assert found["land_cover"].item() == pytest.approx(-(math.log(0.7) + math.log(0.8)) / 2)
    assert found["drive_side"].item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert found["road_index"].item() == pytest.approx((9 + 1) / 2)


@pytest.mark.parametrize("name", AUXILIARY_WIDTHS)
def test_without_any_truth_there_is_nothing_to_learn(name: str) -> None:
    predicted = torch.randn(3, AUXILIARY_WIDTHS[name], requires_grad=True)
    target = torch.full((3,), -1) if AUXILIARY_WIDTHS[name] > 1 else torch.full((3,), NAN)
    loss = auxiliary_losses({name: predicted}, {name: target})[name]
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert torch.equal(gradient, torch.zeros_like(predicted))


def test_names_that_do_not_fit() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown auxiliary target 'clima'; known are land_cover, climate,"
    ):
        auxiliary_losses({"clima": torch.zeros(1, 31)}, {})
    with pytest.raises(
        ConfigError, match=r"'soil' is predicted, but the batch has no such target \(it has: no"
    ):
        auxiliary_losses({"soil": torch.zeros(1, 14)}, {})
