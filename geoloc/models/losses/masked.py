"""The mean over the rows that count. Knows nothing about what the rows are."""

from __future__ import annotations

from torch import Tensor


def mean_where(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of `values` (N,) where `counts` (N,) bool is true; 0 where none is.

    The other values may be anything, infinite too, but their gradients are 0 only if they are finite.
    """
    return values.masked_fill(~counts, 0).sum() / counts.sum().clamp_min(1)
