"""What the trainer asks of the task that it trains, and of the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from geoloc.train.optimise import Role
from geoloc.train.ranks import Predict


class Task(Protocol):
    """What is trained: an `nn.Module` with these methods.

    One whose batches leave out some of the parameters has a true attribute `leaves_out_parameters`, for DDP.
    """

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Named, weighted losses of one batch, scalars; their sum is minimised."""
        ...

    def roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """Every parameter's name and role, each once."""
        ...

    def predict(self, batch: Any) -> dict[str, Tensor]:
        """What validation needs of a batch: named tensors, (b, …) each."""
        ...

    def score(self, predicted: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics of the whole validation set, whose predictions come in any order."""
        ...


class TrainingData(Protocol):
    """Batches by their number."""

    def batch(self, index: int, rank: int, world_size: int) -> Any:
        """This rank's part of batch `index`: a function of the three alone, in any order, from any process."""
        ...


@runtime_checkable
class PlannedData(Protocol):
    """Training data whose batches depend on what the task has learnt: they are planned some at a time."""

    def plan(self, index: int, predict: Predict, rank: int, world_size: int) -> int:
        """Plan batch `index` and some after it, unless they are; the number of the first that is not planned."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What was planned: tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        ...


class ValidationData(Protocol):
    """A finite set of samples."""

    def batches(self, rank: int, world_size: int) -> Iterable[Any]:
        """This rank's part; over the ranks, every sample comes once."""
        ...
