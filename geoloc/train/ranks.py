"""Collective operations of distributed training, and per-rank random seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.distributed import nn as differentiable

# From this rank's batches to the predictions of all ranks, one after another.
Predict: TypeAlias = Callable[[Iterable[Any]], dict[str, Tensor]]


def is_distributed() -> bool:
    """Whether torch.distributed is initialised."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_first_rank() -> bool:
    """Whether this process writes files: rank 0, or the only process."""
    return not is_distributed() or torch.distributed.get_rank() == 0


def all_gather_rows(own: Tensor) -> Tensor:
    """Rows of all ranks, (b, …) -> (n, …), with gradients back to each rank; b may differ between ranks.

    A loss over all rows that every rank computes, averaged over the ranks by DDP, has the gradients of one process
    with the whole batch.
    """
    if not is_distributed():
        return own
    lengths = [
        torch.zeros(1, dtype=torch.int64, device=own.device)
        for _ in range(torch.distributed.get_world_size())
    ]
    torch.distributed.all_gather(lengths, torch.tensor([len(own)], device=own.device))
    longest = max(int(length) for length in lengths)
    padded = torch.cat([own, own.new_zeros(longest - len(own), *own.shape[1:])])
    if own.requires_grad:
        parts = list(differentiable.all_gather(padded))
    else:
        parts = [torch.empty_like(padded) for _ in lengths]
        torch.distributed.all_gather(parts, padded)
    return torch.cat([part[: int(length)] for part, length in zip(parts, lengths, strict=True)])


def all_gather_named(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """CPU tensors of all ranks, concatenated by name in the order of ranks, on every rank; lengths may differ."""
    if not is_distributed():
        return own
    parts: list[dict[str, Tensor]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, own)
    names = next(part for part in parts if part).keys()
    return {name: torch.cat([part[name] for part in parts if part]) for name in names}


def seed_of(*numbers: int) -> int:
    """A 63-bit seed that depends on every given number (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
