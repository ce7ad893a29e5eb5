"""Batches for training: every sample once an epoch, in one order for any number of ranks and workers.

    stream = SampleStream(table, LoadImage(preprocess), Shuffled(len(table), seed=1), batch_size=64,
                          labels={"cell_id": table.cells_of(tree)})
    batch = stream.batch(index=1200, rank=0, world_size=2)     # any batch of any epoch, in any order
    batch["image"], batch["latlon_deg"], batch["cell_id"], batch["row"]

The order is computed, not collected: a batch and the random numbers of its samples depend on its number alone. So
they are the same for any number of workers and ranks, and a killed run goes on with any of them. Shards are read in
place: a table knows where in its tar each picture begins, so nothing is buffered, and nothing in a shard but a
picture is ever decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from geoloc.data.sample import Sample, SampleTable
from geoloc.data.samplers import Order, RankBatches
from geoloc.errors import BadImageError, ConfigError
from geoloc.images.decode import decode_image
from geoloc.images.preprocess import Preprocess

Rgb: TypeAlias = NDArray[np.uint8]
Load: TypeAlias = Callable[[Sample, np.random.Generator], Mapping[str, Tensor]]
Batch: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class ShuffledNearby:
    """Each of `num` samples once, mixed with about `window` others only: for disks that seek slowly.

    A window is made of stretches that lie together; which ones, and the order inside, is new in every epoch.

    Attributes:
        num: of samples.
        seed: another seed, other orders.
        window: samples that are mixed.
        block: samples of a stretch, about a shard.
    """

    num: int
    seed: int
    window: int = 16_384
    block: int = 1024

    def __len__(self) -> int:
        return self.num

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """The rows of this epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        starts = rng.permutation(np.arange(0, self.num, self.block))
        rows = (starts[:, None] + np.arange(self.block)).ravel()
        rows = rows[rows < self.num]
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


class SampleStream:
    """Batches by their number; see the module. The trainer's `TrainingData`, and its `ValidationData`.

    A batch is what `load` gives, stacked, and `row` (B,), `latlon_deg` (B, 2) float64 and each of the labels.

    Args:
        table: the samples.
        load: from a sample to tensors by name; its random numbers depend on seed, epoch and place in the order only.
        order: which rows an epoch shows, see `geoloc.data.samplers`.
        batch_size: of all ranks together; only the last batch of an epoch differs, see `RankBatches`.
        labels: name -> (n, ...) numbers, one row a sample, that come along.
        resampling_weights: (n,), of OSV-5M's density-aware batches, see `RankBatches`.
        seed: of the random numbers that `load` gets.
        num_workers: processes that make the batches of `batches` ahead; 0 makes them in this one.

    Raises:
        ConfigError: labels of another length or with a reserved name.
    """

    def __init__(
        self,
        table: SampleTable,
        load: Load,
        order: Order,
        *,
        batch_size: int,
        labels: Mapping[str, ArrayLike] | None = None,
        resampling_weights: ArrayLike | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        self.table, self.load, self.order, self.batch_size = table, load, order, batch_size
        self.resampling_weights, self.seed, self.num_workers = resampling_weights, seed, num_workers
        self._made: dict[tuple[int, int], RankBatches] = {}  # by rank and world size
        self.labels = {name: np.asarray(values) for name, values in (labels or {}).items()}
        for name, values in self.labels.items():
            if name in ("row", "image", "latlon_deg"):
                raise ConfigError(f"no label can be called {name!r}: a batch has that already")
            if len(values) != len(table):
                raise ConfigError(
                    f"the label {name!r} has {len(values):,} rows, and there are {len(table):,} samples"
                )

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._batches_of(0, 1))

    def batch(self, index: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's part of a batch; batches are counted through all epochs.

        Raises:
            BadImageError: a picture cannot be read; names the sample, its file and the remedy.
            ConfigError: the ranks cannot share a batch evenly.
        """
        batches = self._batches_of(rank, world_size)
        epoch, number = divmod(index, len(batches))
        rows = batches.indices(epoch, number)
        # The ranks deal a batch out in turn, so place i of a rank is place i * world_size + rank of the whole.
        loaded = [
            self._load(row, (self.seed, epoch, number, i * world_size + rank)) for i, row in enumerate(rows)
        ]
        batch: Batch = default_collate(loaded)
        batch["row"] = torch.tensor(rows)
        batch["latlon_deg"] = torch.from_numpy(self.table.latlon_deg[rows])
        for name, values in self.labels.items():
            batch[name] = torch.from_numpy(values[rows])
        return batch

    def batches(self, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """This rank's part of the first epoch, batch by batch; over the ranks, every sample comes once.

        Raises:
            BadImageError, ConfigError: as `batch`.
        """
        part = _Part(self, rank, world_size)
        # An iterator of its own, since DataLoader's says nothing about its type.
        yield from DataLoader(part, batch_size=None, num_workers=self.num_workers)

    def _batches_of(self, rank: int, world_size: int) -> RankBatches:
        if (rank, world_size) not in self._made:
            if self.batch_size % world_size:
                raise ConfigError(
                    f"{world_size} processes cannot share a batch of {self.batch_size} evenly: choose a multiple of "
                    f"{world_size} as batch_size"
                )
            self._made[rank, world_size] = RankBatches(
                self.order,
                self.batch_size // world_size,
                rank=rank,
                num_ranks=world_size,
                resampling_weights=self.resampling_weights,
                seed=self.seed,
            )
        return self._made[rank, world_size]

    def _load(self, row: int, seed: tuple[int, ...]) -> dict[str, Tensor]:
        sample = self.table[row]
        try:
            return dict(self.load(sample, np.random.default_rng(seed)))
        except BadImageError as error:
            raise BadImageError(
                f"sample {sample.key!r} ({sample.image}): {error.reason}; `geoloc data verify --decode` finds all such "
                "samples, and `geoloc data shard --drop-bad` leaves them out"
            ) from error


class _Part(Dataset[Batch]):
    """The batches of a rank in an epoch, as a DataLoader wants them."""

    def __init__(self, stream: SampleStream, rank: int, world_size: int) -> None:
        self._stream, self._rank, self._world_size = stream, rank, world_size

    def __len__(self) -> int:
        return len(self._stream._batches_of(self._rank, self._world_size))

    def __getitem__(self, index: int) -> Batch:
        return self._stream.batch(index, self._rank, self._world_size)
