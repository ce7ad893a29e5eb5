"""Training batches with exact random access, independent of the numbers of ranks and workers.

    stream = SampleStream(table, LoadImage(preprocess), Shuffled(len(table), seed=1), batch_size=64,
                          labels={"cell_id": table.cells_of(tree)})
    batch = stream.batch(index=1200, rank=0, world_size=2)     # any batch of any epoch, in any order
    batch["image"], batch["latlon_deg"], batch["cell_id"], batch["row"]

A batch and the random numbers of its samples depend on its number only, so that a killed run resumes exactly, with any
number of workers and ranks. Images in shards are read at their byte ranges.
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
class LoadImage:
    """Loader from a sample to {"image": (3, S, S) float32}.

    Attributes:
        preprocess: preprocessing of the network.
        augment: function of the decoded image, (h, w, 3) uint8, and a random generator.
    """

    preprocess: Preprocess
    augment: Callable[[Rgb, np.random.Generator], Rgb] | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Tensor]:
        """Read, decode, augment and preprocess an image.

        Raises:
            BadImageError: the image is missing or broken.
        """
        image = decode_image(sample.image.read(), min_side_px=self.preprocess.decode_min_side_px)
        if self.augment is not None:
            image = self.augment(image, rng)
        return {"image": self.preprocess(image)}


class SampleStream:
    """Batches by number; the trainer's `TrainingData` and `ValidationData`.

    A batch has the stacked results of `load`, "row" (B,), "latlon_deg" (B, 2) float64 and the labels.

    Args:
        table: samples.
        load: from a sample to named tensors; its random numbers depend on seed, epoch and position in the order.
        order: rows of an epoch, see `geoloc.data.samplers`.
        batch_size: batch size over all ranks; only the last batch of an epoch differs, see `RankBatches`.
        labels: name -> (n, ...) numbers, one row per sample, that are added to batches.
        resampling_weights: (n,) weights of OSV-5M's density-aware batches, see `RankBatches`.
        seed: seed of the random numbers of `load`.
        num_workers: loader processes of `batches`; 0 loads in this process.

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
                raise ConfigError(f"the label name {name!r} is reserved: choose another name")
            if len(values) != len(table):
                raise ConfigError(
                    f"the label {name!r} has {len(values):,} rows, and there are {len(table):,} samples"
                )

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self._batches_of(0, 1))

    def batch(self, index: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's part of a batch; numbers continue over epochs.

        Raises:
            BadImageError: an image cannot be read; names the sample and its file.
            ConfigError: the ranks cannot share a batch evenly.
        """
        batches = self._batches_of(rank, world_size)
        epoch, number = divmod(index, len(batches))
        rows = batches.indices(epoch, number)
        # Ranks take rows in turn, so position i of a rank is position i * world_size + rank of the batch.
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
        """This rank's part of the first epoch; over the ranks, every sample comes once.

        Raises:
            BadImageError, ConfigError: as `batch`.
        """
        part = _Part(self, rank, world_size)
        # `yield from`, because the type of a DataLoader's iterator is unknown.
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
    """Map-style dataset of a rank's batches in the first epoch."""

    def __init__(self, stream: SampleStream, rank: int, world_size: int) -> None:
        self._stream, self._rank, self._world_size = stream, rank, world_size

    def __len__(self) -> int:
        return len(self._stream._batches_of(self._rank, self._world_size))

    def __getitem__(self, index: int) -> Batch:
        return self._stream.batch(index, self._rank, self._world_size)
