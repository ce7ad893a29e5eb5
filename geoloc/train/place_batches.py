"""Batches of place recognition that one stream cannot give: a group at a time, and photos of another domain beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from geoloc.data.stream import Batch, SampleStream
from geoloc.errors import ConfigError
from geoloc.train.ranks import Predict
from geoloc.train.task import PlannedData, TrainingData


class GroupBatches:
    """So many batches of one group, then of the next, round and round (CosPlace). A batch also has "group".

    Args:
        streams: of each group, whose batches go on where its last turn ended.
        batches_per_group: of a turn.
    """

    def __init__(self, streams: Sequence[SampleStream], batches_per_group: int) -> None:
        self._streams, self._batches_per_group = streams, batches_per_group

    def batch(self, index: int, rank: int, world_size: int) -> Batch:
        """This rank's part of a batch.

        Raises:
            BadImageError, ConfigError: as `SampleStream.batch`.
        """
        turn, number = divmod(index, self._batches_per_group)
        past_turns, group = divmod(turn, len(self._streams))
        batch = self._streams[group].batch(past_turns * self._batches_per_group + number, rank, world_size)
        return batch | {"group": group}


class WithTarget:
    """Batches that also have "target": photos of another domain without labels.

    Args:
        data: the batches.
        target: of the other domain.
    """

    def __init__(self, data: TrainingData, target: SampleStream) -> None:
        self._data, self._target = data, target

    def batch(self, index: int, rank: int, world_size: int) -> Batch:
        """This rank's part of a batch."""
        batch: Batch = self._data.batch(index, rank, world_size)
        return batch | {"target": self._target.batch(index, rank, world_size)["image"]}


class PlannedWithTarget(WithTarget):
    """The same of batches that are planned."""

    def __init__(self, data: PlannedData, target: SampleStream) -> None:
        super().__init__(data, target)  # type: ignore[arg-type]
        self._planned = data

    def plan(self, index: int, predict: Predict, rank: int, world_size: int) -> int:
        """As the batches' own."""
        return self._planned.plan(index, predict, rank, world_size)

    def state_dict(self) -> dict[str, Any]:
        """As the batches' own."""
        return self._planned.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As the batches' own."""
        self._planned.load_state_dict(state)


def with_target(data: TrainingData, target: SampleStream) -> WithTarget:
    """Batches with those of another domain beside them.

    Raises:
        ConfigError: the target has too few photos for a batch.
    """
    if len(target.table) < target.batch_size:
        raise ConfigError(
            f"the adaptation target has {len(target.table)} photos, and domains.images={target.batch_size} are in "
            "every batch: bring more, or ask for fewer"
        )
    return PlannedWithTarget(data, target) if isinstance(data, PlannedData) else WithTarget(data, target)
