"""Batches for place recognition: groups in turn (CosPlace), and unlabelled photos of a target domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from geoloc.data.stream import Batch, SampleStream
from geoloc.errors import ConfigError
from geoloc.train.ranks import Predict
from geoloc.train.task import PlannedData, TrainingData


class GroupBatches:
    """Batches of one group after another, round-robin (CosPlace). A batch has the additional key "group".

    Args:
        streams: one per group; each resumes where its last turn ended.
        batches_per_group: number of batches in a turn.
    """

    def __init__(self, streams: Sequence[SampleStream], batches_per_group: int) -> None:
        self._streams, self._batches_per_group = streams, batches_per_group

    def batch(self, index: int, rank: int, world_size: int) -> Batch:
        """This rank's part of batch `index`.

        Raises:
            BadImageError, ConfigError: as `SampleStream.batch`.
        """
        turn, number = divmod(index, self._batches_per_group)
        past_turns, group = divmod(turn, len(self._streams))
        batch = self._streams[group].batch(past_turns * self._batches_per_group + number, rank, world_size)
        return batch | {"group": group}


class WithTarget:
    """Batches with "target": unlabelled photos of another domain.

    Args:
        data: source of the batches.
        target: stream of the other domain.
    """

    def __init__(self, data: TrainingData, target: SampleStream) -> None:
        self._data, self._target = data, target

    def batch(self, index: int, rank: int, world_size: int) -> Batch:
        """This rank's part of a batch."""
        batch: Batch = self._data.batch(index, rank, world_size)
        return batch | {"target": self._target.batch(index, rank, world_size)["image"]}


class PlannedWithTarget(WithTarget):
    """`WithTarget` over planned batches."""

    def __init__(self, data: PlannedData, target: SampleStream) -> None:
        super().__init__(data, target)  # type: ignore[arg-type]
        self._planned = data

    def plan(self, index: int, predict: Predict, rank: int, world_size: int) -> int:
        """Plan the wrapped batches."""
        return self._planned.plan(index, predict, rank, world_size)

    def state_dict(self) -> dict[str, Any]:
        """State of the wrapped batches."""
        return self._planned.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of the wrapped batches."""
        self._planned.load_state_dict(state)


def with_target(data: TrainingData, target: SampleStream) -> WithTarget:
    """Batches with photos of a target domain in each.

    Raises:
        ConfigError: the target has too few photos for a batch.
    """
    if len(target.table) < target.batch_size:
        raise ConfigError(
            f"the adaptation target has {len(target.table)} photos, and domains.images={target.batch_size} are in "
            "every batch: add photos, or lower domains.images"
        )
    return PlannedWithTarget(data, target) if isinstance(data, PlannedData) else WithTarget(data, target)
