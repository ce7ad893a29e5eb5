"""Positives for contrastive losses: for each photo another one of the same region or city."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from geoloc.data.samplers import InOrder, draw_positives
from geoloc.data.stream import Batch, SampleStream
from geoloc.train.ranks import seed_of


class WithPositives:
    """Batches with "positive": for each image another image of its label, or a second view of itself.

    Args:
        stream: source of the batches.
        label_ids: (n,) label of each row of the stream's table, -1 unknown.
    """

    def __init__(self, stream: SampleStream, label_ids: NDArray[np.int64]) -> None:
        self.stream, self.label_ids = stream, label_ids

    def batch(self, index: int, rank: int, world_size: int) -> Batch:
        """This rank's part of batch `index`.

        Raises:
            BadImageError, ConfigError: as `SampleStream.batch`.
        """
        batch = self.stream.batch(index, rank, world_size)
        rows = self._of_epoch(index // len(self.stream))[batch["row"].numpy()]
        partners = SampleStream(
            self.stream.table,
            self.stream.load,
            InOrder(rows),
            batch_size=len(rows),
            seed=seed_of(self.stream.seed, index, rank),
        )
        batch["positive"] = partners.batch(0)["image"]
        return batch

    def _of_epoch(self, epoch: int) -> NDArray[np.int64]:
        return _positives(self, epoch)


@lru_cache(maxsize=4)
def _positives(data: WithPositives, epoch: int) -> NDArray[np.int64]:
    return draw_positives(data.label_ids, data.stream.seed, epoch)[0]
