"""Hard example mining (HEM, Statewide): batches of pairs that the current model confuses.

The next pairs are embedded and clustered greedily (`geoloc.data.hard_clusters`); each cluster is a batch, with the same
views that were embedded. The plan is part of the run's state, so that a resumed run has the same batches.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoloc.data.hard_clusters import hard_clusters, scan_sizes
from geoloc.data.sample import Sample
from geoloc.data.samplers import InOrder
from geoloc.data.stream import Batch, Load, SampleStream
from geoloc.errors import ConfigError
from geoloc.train.ranks import Predict


@dataclass(frozen=True)
class HardExamplesConfig:
    """Number of pairs that are embedded and clustered together (a scan); defaults are Statewide's.

    Attributes:
        first_scan_batches: size of the first scan, in batches.
        factor: growth of the scan size.
        raise_after_samples: the size grows each time that this many pairs were trained.
        max_scan_batches: largest size of a scan.
    """

    first_scan_batches: int = 1
    factor: float = 2.0
    raise_after_samples: int = 5000
    max_scan_batches: int = 16384

    def __post_init__(self) -> None:
        if self.first_scan_batches < 1 or self.factor < 1 or self.raise_after_samples < 1:
            raise ConfigError(f"{self}: sizes must be at least 1, and the factor at least 1")


@dataclass(frozen=True)
class _SeededLoad:
    """A load whose random numbers depend on scan and sample, so that embedded and trained views are the same."""

    load: Load
    seed: int
    scan: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Mapping[str, Tensor]:
        """Load a sample with its own random numbers."""
        own = np.random.default_rng((self.seed, self.scan, zlib.crc32(sample.key.encode())))
        return self.load(sample, own)


class HardExamples:
    """A planned stream whose batches are clusters of similar pairs.

    The task's predictions must have "query" and "aerial" (b, D), "aerial_deg" (b, 2), and "row" of the batch.

    Args:
        stream: stream of the pairs in their usual order.
        config: sizes of the scans.
        min_distance_m: smallest distance between aerial centres in a cluster.
    """

    def __init__(self, stream: SampleStream, config: HardExamplesConfig, min_distance_m: float) -> None:
        self.stream, self.config, self.min_distance_m = stream, config, min_distance_m
        self._scan, self._first, self._stop = -1, 0, 0
        self._rows: NDArray[np.int64] = np.zeros(0, np.int64)

    def plan(self, index: int, predict: Predict, rank: int, world_size: int) -> int:
        """Plan batch `index` and those after it if needed; return the first batch number not planned."""
        if self._first <= index < self._stop:
            return self._stop
        self._scan += 1
        c, size = self.config, self.stream.batch_size
        sizes = scan_sizes(size, c.first_scan_batches, c.factor, c.raise_after_samples, c.max_scan_batches)
        num_batches = next(islice(sizes, self._scan, None))
        rows = self._next_rows(index * size, num_batches * size)
        scanned = SampleStream(
            self.stream.table.take(rows),
            self._load(),
            InOrder(np.arange(len(rows))),
            batch_size=size,
            num_workers=self.stream.num_workers,
        )
        found = predict(scanned.batches(rank, world_size))
        by_row = found["row"].argsort()
        query, aerial, centres_deg = (found[name][by_row] for name in ("query", "aerial", "aerial_deg"))
        order = hard_clusters(query.float(), aerial.float(), centres_deg.numpy(), size, self.min_distance_m)
        self._rows, self._first, self._stop = rows[order], index, index + num_batches
        return self._stop

    def batch(self, index: int, rank: int, world_size: int) -> Batch:
        """This rank's part of a planned batch."""
        planned = SampleStream(
            self.stream.table, self._load(), InOrder(self._rows), batch_size=self.stream.batch_size
        )
        return planned.batch(index - self._first, rank, world_size)

    def state_dict(self) -> dict[str, Any]:
        """The current plan."""
        return {
            "scan": self._scan,
            "first": self._first,
            "stop": self._stop,
            "rows": torch.from_numpy(self._rows),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a plan."""
        self._scan, self._first, self._stop = state["scan"], state["first"], state["stop"]
        self._rows = state["rows"].numpy()

    def _load(self) -> _SeededLoad:
        return _SeededLoad(self.stream.load, self.stream.seed, self._scan)

    def _next_rows(self, start: int, num: int) -> NDArray[np.int64]:
        """Rows of the stream's order from position `start`, continued over epochs."""
        length, parts = len(self.stream.order), []
        while num:
            epoch, offset = divmod(start, length)
            parts.append(self.stream.order(epoch)[offset : offset + num])
            start, num = start + len(parts[-1]), num - len(parts[-1])
        return np.concatenate(parts)
