"""Masked mean."""

from __future__ import annotations

from torch import Tensor


def mean_where(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of `values` (N,) where `counts` (N,) bool is true; 0 if there is none.

    The other values may be infinite, but then their gradients are not 0.
    """
    return values.masked_fill(~counts, 0).sum() / counts.sum().clamp_min(1)
