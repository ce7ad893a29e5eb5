"""Which photos an epoch shows, in which order, and to whom.

An *order* gives the photos of an epoch: `order(epoch)` is an array of indices, the same on every machine for
the same seed. `RankBatches` cuts it into batches and hands every rank its part:

    order = SpatialBuckets(latlon_deg, seed=1)
    batches = RankBatches(order, batch_size=15, rank=0, num_ranks=2)
    batches.resume(epoch=3, position=120)      # as if 120 batches of epoch 3 had been taken

Nothing has a state but the epoch and the position, so a resumed run sees what an unkilled one would have seen.
Knows nothing about images, files or torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, validate_latlon_deg

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class Order(Protocol):
    """The indices of an epoch; `len` is how many, the same in every epoch."""

    def __len__(self) -> int: ...

    def __call__(self, epoch: int) -> IntArray:
        """The indices of this epoch."""
        ...


# --- Orders -------------------------------------------------------------------------------------------------


class InOrder:
    """The given indices as they come, in every epoch: for evaluation, and for clusters of hard examples."""

    def __init__(self, indices: ArrayLike) -> None:
        self._indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def __call__(self, epoch: int) -> IntArray:
        """The indices of this epoch."""
        return self._indices


class Shuffled:
    """Each of `num` photos once, in an order that is new in every epoch."""

    def __init__(self, num: int, seed: int) -> None:
        self._num, self._seed = num, seed

    def __len__(self) -> int:
        return self._num

    def __call__(self, epoch: int) -> IntArray:
        """The indices of this epoch."""
        return np.random.default_rng([self._seed, epoch]).permutation(self._num)


class Weighted:
    """Photos drawn with replacement in proportion to their weights.

    Args:
        weights: (n,) not negative, such as `density_weights`.
        num_draws: in an epoch; n by default.
        seed: of the draws.

    Raises:
        ConfigError: a weight is negative or not finite, or all are 0.
    """

    def __init__(self, weights: ArrayLike, seed: int, num_draws: int | None = None) -> None:
        self._probabilities = _as_probabilities(weights)
        self._num_draws = len(self._probabilities) if num_draws is None else num_draws
        self._seed = seed

    def __len__(self) -> int:
        return self._num_draws

    def __call__(self, epoch: int) -> IntArray:
        """The indices of this epoch."""
        generator = np.random.default_rng([self._seed, epoch])
        return generator.choice(len(self._probabilities), self._num_draws, p=self._probabilities)


class SpatialBuckets:
    """One photo of every bucket of ground in every epoch (Statewide's sampling, Fervers et al., ECCV 2024).

    A place that was photographed a thousand times counts as much as one that was photographed once. A bucket
    shows all of its photos before it shows one again, then in a new order. Buckets come in a new order in
    every epoch.

    Args:
        latlon_deg: (n, 2) of the photos.
        seed: of both orders.
        bucket_size_m: side of a bucket; see `ground_buckets`.

    Raises:
        InvalidCoordinateError: a latitude is outside [-90, 90] or a value is not finite.
    """

    def __init__(self, latlon_deg: ArrayLike, seed: int, bucket_size_m: float = 5.0) -> None:
        self._bucket_of_photo = ground_buckets(latlon_deg, bucket_size_m)
        self._num_photos = np.bincount(self._bucket_of_photo)
        self._starts = np.cumsum(self._num_photos) - self._num_photos
        self._seed = seed

    def __len__(self) -> int:
        return len(self._num_photos)

    def __call__(self, epoch: int) -> IntArray:
        """The indices of this epoch."""
        # Of a bucket's c photos, epochs k c … k c + c - 1 show each once, in the order of their k-th numbers.
        rounds, turns = np.divmod(epoch, self._num_photos)
        photos = np.arange(len(self._bucket_of_photo))
        numbers = _scrambled(self._seed, rounds[self._bucket_of_photo], photos)
        by_bucket = np.lexsort((numbers, self._bucket_of_photo))
        shown = by_bucket[self._starts + turns]
        return np.random.default_rng([self._seed, epoch]).permutation(shown)


def ground_buckets(latlon_deg: ArrayLike, bucket_size_m: float) -> IntArray:
    """The bucket of each photo, (n, 2) -> (n,), counted from 0 without gaps.

    Buckets are squares on the ground in rows of latitude; a row's columns are cut at its southern edge, so they
    are as wide as they are high, up to the row's height. The last column ends at the antimeridian.
    """
    latitude, longitude = np.radians(validate_latlon_deg(latlon_deg)).T
    radius_m = EARTH_MEAN_RADIUS_KM * 1000
    rows = np.floor(latitude * radius_m / bucket_size_m).astype(np.int64)
    columns = np.floor(longitude * np.cos(rows * bucket_size_m / radius_m) * radius_m / bucket_size_m)
    _, buckets = np.unique((rows << 32) + columns.astype(np.int64), return_inverse=True)
    return buckets.astype(np.int64)


def _scrambled(*numbers: int | IntArray) -> NDArray[np.uint64]:
    """A random number for every combination of numbers, by the finaliser of SplitMix64 (Steele et al. 2014)."""
    state = np.zeros(1, np.uint64)
    for number in numbers:
        state = state ^ np.asarray(number, np.int64).view(np.uint64)
        state = state + np.uint64(0x9E3779B97F4A7C15)  # wraps around, as it should
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


# --- Weights and positives ----------------------------------------------------------------------------------


def density_weights(latlon_deg: ArrayLike, exponent: float = 0.75, num_edges: int = 100) -> FloatArray:
    """The rarer the photos around, the heavier: 1 / count^exponent in a grid of degrees, sum 1 (OSV-5M).

    Args:
        latlon_deg: (n, 2) of the photos, n at least 1.
        exponent: 0 is uniform over photos, 1 uniform over the grid's cells.
        num_edges: of the grid on either axis, from the smallest value to the largest: one cell fewer.

    Returns:
        (n,) weights.

    Raises:
        InvalidCoordinateError: a latitude is outside [-90, 90] or a value is not finite.
    """
    latitude, longitude = validate_latlon_deg(latlon_deg).T
    cell = _bins(latitude, num_edges) * num_edges + _bins(longitude, num_edges)
    weights = np.bincount(cell)[cell] ** -float(exponent)
    return np.asarray(weights / weights.sum())


def _bins(values: FloatArray, num_edges: int) -> IntArray:
    edges = np.linspace(values.min(), values.max(), num_edges)
    # The last bin holds its upper edge, too.
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, num_edges - 2)


def draw_positives(label_ids: ArrayLike, seed: int, epoch: int) -> tuple[IntArray, BoolArray]:
    """For every photo another one of the same label, all equally likely.

    No label ever runs dry: an epoch's positives are drawn with replacement and independently of each other.

    Args:
        label_ids: (n,) region, or another kind of place; -1 is unknown.
        seed: of the draw.
        epoch: has its own draw.

    Returns:
        (n,) indices of the positives, and (n,) bool, true where a photo is alone with its label or the label is
        unknown. Then it is its own positive: show it in another way.
    """
    labels = np.asarray(label_ids)
    by_label = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[by_label], return_index=True, return_counts=True)
    starts, counts = np.repeat(starts, counts), np.repeat(counts, counts)
    others = np.random.default_rng([seed, epoch]).integers(0, np.maximum(counts - 1, 1))
    others += others >= np.arange(len(labels)) - starts  # step over the photo itself
    alone = (counts == 1) | (labels[by_label] < 0)
    positives, is_alone = np.empty(len(labels), np.int64), np.empty(len(labels), np.bool_)
    positives[by_label] = by_label[np.where(alone, np.arange(len(labels)), starts + others)]
    is_alone[by_label] = alone
    return positives, is_alone


# --- Batches ------------------------------------------------------------------------------------------------


class RankBatches:
    """The batches of one rank: an iterable over lists of indices, one pass is one epoch.

    Every index of the order goes to exactly one rank, and all ranks have equally many batches. Batch i of all
    ranks together is the same for any number of ranks that share it evenly, so two processes train as one does.
    The last batch may be smaller; if it were too small for every rank to get something, the one before takes
    it in.

    Args:
        order: what an epoch shows.
        batch_size: indices a rank and batch.
        rank: of this process, from 0.
        num_ranks: how many processes share the order.
        resampling_weights: by index, if given: every batch, of all ranks together, is drawn anew from itself,
            with replacement and in proportion to these weights (OSV-5M's density-aware batches). Then an index
            may come twice or never.
        seed: of the resampling.

    Attributes:
        epoch: the next pass is of this epoch.
        position: and starts with this batch.

    Raises:
        ConfigError: no such rank, no batch, or fewer indices than ranks.
    """

    def __init__(
        self,
        order: Order,
        batch_size: int,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        resampling_weights: ArrayLike | None = None,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be positive")
        if not 0 <= rank < num_ranks:
            raise ConfigError(f"rank is {rank} of {num_ranks}; ranks count from 0 to {num_ranks - 1}")
        if len(order) < num_ranks:
            raise ConfigError(
                f"{num_ranks} ranks cannot share {len(order)} samples: start fewer processes, or bring more data"
            )
        self._order = order
        self._rank, self._num_ranks = rank, num_ranks
        self._weights = None if resampling_weights is None else np.asarray(resampling_weights, np.float64)
        self._seed = seed
        size = batch_size * num_ranks
        stops = [*range(size, len(order), size), len(order)]
        if len(stops) > 1 and stops[-1] - stops[-2] < num_ranks:
            del stops[-2]
        self._stops = stops
        self._ordered: tuple[int, IntArray] = (
            -1,
            np.empty(0, np.int64),
        )  # of the epoch that was asked for last
        self.epoch = self.position = 0

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self._stops)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of another epoch; nothing changes if it is the present one."""
        if epoch != self.epoch:
            self.resume(epoch, 0)

    def resume(self, epoch: int, position: int) -> None:
        """Let the next pass be of `epoch` and start with batch `position`: as many have been taken before.

        Raises:
            ConfigError: an epoch has no such position.
        """
        if not 0 <= position <= len(self):
            raise ConfigError(
                f"asked to resume at batch {position}, but an epoch has {len(self)}: the data, the batch size or "
                "the number of processes differ from those of the interrupted run"
            )
        self.epoch, self.position = epoch, position

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first = self.epoch, self.position
        self.position = 0
        for number in range(first, len(self)):
            yield self.indices(epoch, number)

    def indices(self, epoch: int, number: int) -> list[int]:
        """Batch `number` of an epoch, whatever was taken before."""
        if epoch != self._ordered[0]:
            self._ordered = epoch, self._order(epoch)
        batch = self._ordered[1][self._stops[number - 1] if number else 0 : self._stops[number]]
        if self._weights is not None:
            generator = np.random.default_rng([self._seed, epoch, number])
            batch = generator.choice(batch, len(batch), p=_as_probabilities(self._weights[batch]))
        chosen: list[int] = batch[self._rank :: self._num_ranks].tolist()
        return chosen


def _as_probabilities(weights: ArrayLike) -> FloatArray:
    checked = np.asarray(weights, np.float64)
    total = checked.sum()
    if not (np.isfinite(total) and total > 0 and checked.min() >= 0):
        raise ConfigError(
            f"weights must be finite, not negative and not all 0; found {checked.size} from "
            f"{checked.min(initial=np.inf)} to {checked.max(initial=-np.inf)}"
        )
    return np.asarray(checked / total)
