"""The weights' moving average over the steps (EMA), which validates better than the last weights do.

Knows nothing about what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential moving average of the parameters that train; float32, whatever they are.

    After the k-th step, average = d average + (1 - d) weights with d = min(decay, k / (9 + k)): early averages
    forget faster, so that a short run does not average its random start (as TensorFlow's
    ExponentialMovingAverage with `num_updates`). Buffers are not averaged: they are the model's own.

    Args:
        module: whose parameters.
        decay: below 1; 1 / (1 - decay) is about how many steps it looks back.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self._parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.num_updates += 1
        decay = min(self.decay, self.num_updates / (9 + self.num_updates))
        average, weights = list(self._average.values()), list(self._parameters.values())
        torch._foreach_lerp_(average, [w.detach().float() for w in weights], 1 - decay)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """The module has the averaged weights inside the block, and its own again after it."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._copy_in(self._average)
        try:
            yield
        finally:
            self._copy_in(own)

    @torch.no_grad()
    def apply(self) -> None:
        """Give the module the averaged weights for good."""
        self._copy_in(self._average)

    def _copy_in(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.data.copy_(values[name])

    def state_dict(self) -> dict[str, object]:
        """All that `load_state_dict` needs."""
        return {"num_updates": self.num_updates, "average": self._average}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a state of the same module."""
        self.num_updates = int(state["num_updates"])  # type: ignore[call-overload]
        average = state["average"]
        assert isinstance(average, dict)
        for name, values in self._average.items():
            values.copy_(average[name])
