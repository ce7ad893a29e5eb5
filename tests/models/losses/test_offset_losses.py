"""Losses of offsets, worked by hand."""

import pytest
import torch

from geoloc.models.losses import offset_loss


def test_offset_loss_by_hand() -> None:
    offsets, targets = torch.tensor([[0.5, -0.5], [0.0, 1.2]]), torch.tensor([[0.25, 0.5], [0.0, 1.0]])
    # errors 0.25, -1, 0, 0.2
    assert float(offset_loss(offsets, targets)) == pytest.approx((0.0625 + 1 + 0 + 0.04) / 4)
    # smooth L1 with beta 0.5: e² / (2 beta) below it, e - beta / 2 above it
    assert float(offset_loss(offsets, targets, beta=0.5)) == pytest.approx((0.0625 + 0.75 + 0 + 0.04) / 4)
