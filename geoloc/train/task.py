"""Protocols between the trainer, the trained task and its data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from geoloc.train.optimise import Role
from geoloc.train.ranks import Predict


class Task(Protocol):
    """A trainable task: an `nn.Module` with these methods.

    A task whose batches leave some parameters without gradient has a true attribute `leaves_out_parameters`, for DDP.
    """

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Named, weighted losses of one batch, scalars; their sum is minimised."""
        ...

    def roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """Name, parameter and role of every parameter, each once."""
        ...

    def predict(self, batch: Any) -> dict[str, Tensor]:
        """Predictions for validation: named tensors, (b, …) each."""
        ...

    def score(self, predicted: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics of the whole validation set; predictions come in any order."""
        ...


class TrainingData(Protocol):
    """Training batches by number."""

    def batch(self, index: int, rank: int, world_size: int) -> Any:
        """This rank's part of batch `index`; depends on the three arguments only."""
        ...


@runtime_checkable
class PlannedData(Protocol):
    """Training data that depends on the current weights, so that batches are planned several at a time."""

    def plan(self, index: int, predict: Predict, rank: int, world_size: int) -> int:
        """Plan batch `index` and those after it if needed; return the first batch number not planned."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The plan, as tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a plan."""
        ...


class ValidationData(Protocol):
    """A finite validation set."""

    def batches(self, rank: int, world_size: int) -> Iterable[Any]:
        """This rank's batches; over all ranks, every sample comes once."""
        ...
