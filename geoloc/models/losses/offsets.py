"""Losses of offsets inside cells."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def offset_loss(offsets: Tensor, targets: Tensor, beta: float | None = None) -> Tensor:
    """Mean squared error of the true cells' offsets (OSV-5M's `l2_hybrid`).

    Args:
        offsets: (B, 2) predicted in the true cell.
        targets: (B, 2) from `OffsetHead.target`.
        beta: if given, smooth L1: linear above beta, which is robust to outliers.
    """
    if beta is None:
        return functional.mse_loss(offsets, targets)
    return functional.smooth_l1_loss(offsets, targets, beta=beta)
