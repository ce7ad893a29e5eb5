"""Exponential moving average (EMA) of the weights.

torch.optim.swa_utils.AveragedModel is not used here: it copies the whole module, frozen towers included, keeps the
average in the parameters' own precision, and starts from the weights after the first step, so that results differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of the trainable parameters, in float32.

    After step k, average = d average + (1 - d) weights with d = min(decay, k / (9 + k)), so that a short run does not
    average its random start (TensorFlow's ExponentialMovingAverage with `num_updates`). Buffers are not averaged.

    Args:
        module: module with the parameters.
        decay: below 1; the average spans about 1 / (1 - decay) steps.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self._parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the average."""
        self.num_updates += 1
        decay = min(self.decay, self.num_updates / (9 + self.num_updates))
        average, weights = list(self._average.values()), list(self._parameters.values())
        torch._foreach_lerp_(average, [w.detach().float() for w in weights], 1 - decay)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Context in which the module has the averaged weights."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._copy_in(self._average)
        try:
            yield
        finally:
            self._copy_in(own)

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the module's weights by the averaged ones."""
        self._copy_in(self._average)

    def _copy_in(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.data.copy_(values[name])

    def state_dict(self) -> dict[str, object]:
        """State for `load_state_dict`."""
        return {"num_updates": self.num_updates, "average": self._average}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore the state of an average over the same module."""
        self.num_updates = int(state["num_updates"])  # type: ignore[call-overload]
        average = state["average"]
        assert isinstance(average, dict)
        for name, values in self._average.items():
            values.copy_(average[name])
