"""Batches for training: every sample once an epoch, in one order for any number of ranks and workers.

    stream = SampleStream(table, LoadImage(preprocess), Shuffled(len(table), seed=1), batch_size=64,
                          labels={"cell_id": table.cells_of(tree)})
    loader = DataLoader(stream, batch_size=None, num_workers=4)       # it makes the batches itself
    stream.start_at(epoch=3, step=1200)                               # where a killed run goes on
    for batch in loader: batch["image"], batch["latlon_deg"], batch["cell_id"], batch["row"]

The order is computed, not collected: it depends on seed and epoch alone, step k of all ranks together takes the next
`batch_size * num_ranks` rows of it, and workers take steps in turn. So the batches of a run, and the random numbers
of each sample, are the same for any number of workers, two ranks see what one sees with twice the batch, and any
step can be the first. Shards are read in place: a table knows where in its tar each picture begins, so nothing is
buffered, and nothing in a shard but a picture is ever decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from geoloc.data.sample import Sample, SampleTable
from geoloc.errors import BadImageError, ConfigError
from geoloc.images.decode import decode_image
from geoloc.images.preprocess import Preprocess

Rgb: TypeAlias = NDArray[np.uint8]
Order: TypeAlias = Callable[
    [int], NDArray[np.int64]
]  # epoch -> rows of the table, in the order they are seen
Load: TypeAlias = Callable[[Sample, np.random.Generator], Mapping[str, Tensor]]
Batch: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class InOrder:
    """All rows from the first to the last, in every epoch."""

    num_samples: int

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """(num_samples,) rows."""
        return np.arange(self.num_samples)


@dataclass(frozen=True)
class Shuffled:
    """All rows once, in another order in every epoch.

    Attributes:
        num_samples: of the table.
        seed: another seed, other orders.
        window: None shuffles everything with everything: right for memory and flash. Else only about so many rows are
            mixed at a time, made of stretches of `block` rows that lie together: for disks that seek slowly.
        block: rows of a stretch, about a shard.
    """

    num_samples: int
    seed: int = 0
    window: int | None = None
    block: int = 1024

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """(num_samples,) rows."""
        rng = np.random.default_rng((self.seed, epoch))
        if self.window is None:
            return rng.permutation(self.num_samples)
        starts = rng.permutation(np.arange(0, self.num_samples, self.block))
        rows = (starts[:, None] + np.arange(self.block)).ravel()
        rows = rows[rows < self.num_samples]
        for start in range(0, len(rows), self.window):
            rng.shuffle(rows[start : start + self.window])
        return rows


@dataclass(frozen=True)
class LoadImage:
    """The usual way from a sample to what a network sees: {"image": (3, S, S) float32}.

    Attributes:
        preprocess: the network's own.
        augment: what is done to the decoded picture, (h, w, 3) uint8, with random numbers of its own.
    """

    preprocess: Preprocess
    augment: Callable[[Rgb, np.random.Generator], Rgb] | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        """Read, decode, augment, preprocess.

        Raises:
            BadImageError: there is no usable picture.
        """
        image = decode_image(sample.image.read(), min_side_px=self.preprocess.decode_min_side_px)
        if self.augment is not None:
            image = self.augment(image, rng)
        return {"image": self.preprocess(image)}


class SampleStream(IterableDataset[Batch]):
    """Batches of one rank; see the module.

    A batch is what `load` gives, stacked, and `row` (B,), `latlon_deg` (B, 2) float64 and each of the labels.

    Args:
        table: the samples.
        load: from a sample to tensors by name; called with random numbers that depend on seed, epoch and place in the
            order only.
        order: which rows are seen in an epoch.
        batch_size: of this rank.
        labels: name -> (n, ...) numbers, one row a sample, that come along.
        rank: of this process.
        num_ranks: processes that train together.
        seed: of the random numbers that `load` gets.
        drop_last: leave out the last step of an epoch if it is not full. Otherwise its rows are shared out, and where
            there are fewer of them than ranks, some ranks have one step less.

    Raises:
        ConfigError: an impossible rank or size, or labels of another length or with a reserved name.
    """

    def __init__(
        self,
        table: SampleTable,
        load: Load,
        order: Order,
        *,
        batch_size: int,
        labels: Mapping[str, NDArray[Any]] | None = None,
        rank: int = 0,
        num_ranks: int = 1,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < num_ranks:
            raise ConfigError(
                f"a stream needs batch_size >= 1 and 0 <= rank < num_ranks; found batch_size {batch_size}, rank "
                f"{rank} of {num_ranks}"
            )
        self.table, self.load, self.order, self.batch_size = table, load, order, batch_size
        self.rank, self.num_ranks, self.seed, self.drop_last = rank, num_ranks, seed, drop_last
        self.labels = {"latlon_deg": table.latlon_deg, **(labels or {})}
        for name, values in self.labels.items():
            if len(values) != len(table) or name in ("row", "image"):
                raise ConfigError(
                    f"the label {name!r} has {len(values):,} rows, and there are {len(table):,} samples"
                    if len(values) != len(table)
                    else f"no label can be called {name!r}: a batch has that already"
                )
        # Shared, so that workers that live on from one epoch to the next see where to start.
        self._start = torch.zeros(2, dtype=torch.int64).share_memory_()

    def start_at(self, epoch: int, step: int = 0) -> None:
        """What the next iteration begins with: a step of an epoch, both counted from 0."""
        self._start[:] = torch.tensor([epoch, step])

    @property
    def start(self) -> tuple[int, int]:
        """Epoch and step that the next iteration begins with."""
        epoch, step = self._start.tolist()
        return int(epoch), int(step)

    def num_steps(self, epoch: int) -> int:
        """Steps of a whole epoch, the same for all ranks."""
        global_batch = self.batch_size * self.num_ranks
        num_rows = len(self.order(epoch))
        return num_rows // global_batch if self.drop_last else -(-num_rows // global_batch)

    def __len__(self) -> int:
        epoch, step = self.start
        return max(0, self.num_steps(epoch) - step)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        epoch, start = self.start
        rows = self.order(epoch)
        for step in range(start + first, self.num_steps(epoch), stride):
            places = step_places(len(rows), step, self.batch_size, self.rank, self.num_ranks)
            if places:
                yield self.batch_of(rows[places.start : places.stop], [(epoch, place) for place in places])

    def batch_of(self, rows: NDArray[np.int64], draws: Sequence[tuple[int, int]]) -> Batch:
        """A batch of any rows, (B,).

        Args:
            rows: of the table.
            draws: (epoch, place) of each, which its random numbers depend on.

        Raises:
            BadImageError: a picture is unusable; names the sample.
        """
        loaded = [self._load(*draw, row) for draw, row in zip(draws, rows.tolist(), strict=True)]
        batch: Batch = default_collate(loaded)
        batch["row"] = torch.from_numpy(rows.copy())
        for name, values in self.labels.items():
            batch[name] = torch.from_numpy(values[rows])
        return batch

    def _load(self, epoch: int, place: int, row: int) -> dict[str, Tensor]:
        sample = self.table[row]
        try:
            return dict(self.load(sample, np.random.default_rng((self.seed, epoch, place))))
        except BadImageError as error:
            raise BadImageError(
                f"sample {sample.key!r} ({sample.image}): {error.reason}; `geoloc data verify --decode` finds all such "
                "samples, and `geoloc data shard --drop-bad` leaves them out"
            ) from error


def step_places(num_rows: int, step: int, batch_size: int, rank: int, num_ranks: int) -> range:
    """Which places of an epoch's order a rank takes in a step; the ranks' ranges together are the next rows.

    >>> [step_places(10, 1, 2, rank, 3) for rank in range(3)]
    [range(6, 7), range(7, 8), range(8, 10)]
    """
    first = step * batch_size * num_ranks
    num = min(batch_size * num_ranks, num_rows - first)
    return range(first + num * rank // num_ranks, first + num * (rank + 1) // num_ranks)
