"""Losses of offsets inside cells."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def offset_loss(offsets: Tensor, targets: Tensor, beta: float | None = None) -> Tensor:
    """Squared error of the true cells' offsets, mean over both axes (OSV-5M's `l2_hybrid`).

    Args:
        offsets: (B, 2) predicted in the true cell.
        targets: (B, 2) from `OffsetHead.target`.
        beta: if given, errors above beta count linearly (smooth L1), which outliers pull less.
    """
    if beta is None:
        return functional.mse_loss(offsets, targets)
    return functional.smooth_l1_loss(offsets, targets, beta=beta)
