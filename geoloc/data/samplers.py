"""Samplers: order of sample indices per epoch and rank.

An *order* maps an epoch to an array of indices, the same on every machine for the same seed. `RankBatches` cuts it into
batches and gives each rank its part:

    order = SpatialBuckets(latlon_deg, seed=1)
    batches = RankBatches(order, batch_size=15, rank=0, num_ranks=2)
    batches.indices(epoch=3, number=120)

All results depend on epoch and number only, so that a resumed run has the same batches.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, validate_latlon_deg

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class Order(Protocol):
    """Indices of an epoch; `len` is their number, the same in every epoch."""

    def __len__(self) -> int: ...

    def __call__(self, epoch: int) -> IntArray:
        """Indices of an epoch."""
        ...


# --- Orders -------------------------------------------------------------------------------------------------


class InOrder:
    """The given indices in their order, in every epoch."""

    def __init__(self, indices: ArrayLike) -> None:
        self._indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def __call__(self, epoch: int) -> IntArray:
        """Indices of an epoch."""
        return self._indices


class Shuffled:
    """Each of `num` indices once, shuffled in every epoch."""

    def __init__(self, num: int, seed: int) -> None:
        self._num, self._seed = num, seed

    def __len__(self) -> int:
        return self._num

    def __call__(self, epoch: int) -> IntArray:
        """Indices of an epoch."""
        return np.random.default_rng([self._seed, epoch]).permutation(self._num)


class SpatialBuckets:
    """One photo of every bucket of ground per epoch (Statewide, Fervers et al., ECCV 2024).

    Places with many photos count as much as places with one. All photos of a bucket are used before one is repeated, in
    a new order each time. Buckets are shuffled in every epoch.

    Args:
        latlon_deg: (n, 2) locations.
        seed: random seed.
        bucket_size_m: side of a bucket; see `ground_buckets`.

    Raises:
        InvalidCoordinateError: a coordinate is invalid.
    """

    def __init__(self, latlon_deg: ArrayLike, seed: int, bucket_size_m: float = 5.0) -> None:
        self._bucket_of_photo = ground_buckets(latlon_deg, bucket_size_m)
        self._num_photos = np.bincount(self._bucket_of_photo)
        self._starts = np.cumsum(self._num_photos) - self._num_photos
        self._seed = seed

    def __len__(self) -> int:
        return len(self._num_photos)

    def __call__(self, epoch: int) -> IntArray:
        """Indices of an epoch."""
        # Epochs k c … k c + c - 1 use each of a bucket's c photos once, ordered by their k-th random numbers.
        rounds, turns = np.divmod(epoch, self._num_photos)
        photos = np.arange(len(self._bucket_of_photo))
        numbers = _scrambled(self._seed, rounds[self._bucket_of_photo], photos)
        by_bucket = np.lexsort((numbers, self._bucket_of_photo))
        shown = by_bucket[self._starts + turns]
        return np.random.default_rng([self._seed, epoch]).permutation(shown)


def ground_buckets(latlon_deg: ArrayLike, bucket_size_m: float) -> IntArray:
    """Bucket of each photo, (n, 2) -> (n,), counted from 0 without gaps.

    Buckets are squares in rows of latitude; the columns of a row are cut at its southern edge, where they are as wide
    as high. The last column ends at the antimeridian.
    """
    latitude, longitude = np.radians(validate_latlon_deg(latlon_deg)).T
    radius_m = EARTH_MEAN_RADIUS_KM * 1000
    rows = np.floor(latitude * radius_m / bucket_size_m).astype(np.int64)
    columns = np.floor(longitude * np.cos(rows * bucket_size_m / radius_m) * radius_m / bucket_size_m)
    _, buckets = np.unique((rows << 32) + columns.astype(np.int64), return_inverse=True)
    return buckets.astype(np.int64)


def _scrambled(*numbers: int | IntArray) -> NDArray[np.uint64]:
    """A random number for each combination of numbers, by the finaliser of SplitMix64 (Steele et al. 2014)."""
    state = np.zeros(1, np.uint64)
    for number in numbers:
        state = state ^ np.asarray(number, np.int64).view(np.uint64)
        state = state + np.uint64(0x9E3779B97F4A7C15)  # wraps around
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


# --- Weights and positives ----------------------------------------------------------------------------------


def density_weights(latlon_deg: ArrayLike, exponent: float = 0.75, num_edges: int = 100) -> FloatArray:
    """Sampling weights 1 / count^exponent over a grid of degrees, with sum 1 (OSV-5M).

    Args:
        latlon_deg: (n, 2) locations, n at least 1.
        exponent: 0 is uniform over photos, 1 uniform over cells.
        num_edges: number of edges of the grid on each axis, from the smallest to the largest value.

    Returns:
        (n,) weights.

    Raises:
        InvalidCoordinateError: a coordinate is invalid.
    """
    latitude, longitude = validate_latlon_deg(latlon_deg).T
    cell = _bins(latitude, num_edges) * num_edges + _bins(longitude, num_edges)
    weights = np.bincount(cell)[cell] ** -float(exponent)
    return np.asarray(weights / weights.sum())


def _bins(values: FloatArray, num_edges: int) -> IntArray:
    edges = np.linspace(values.min(), values.max(), num_edges)
    # The last bin includes its upper edge.
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, num_edges - 2)


def draw_positives(label_ids: ArrayLike, seed: int, epoch: int) -> tuple[IntArray, BoolArray]:
    """For every photo another photo of the same label, uniformly at random, with replacement.

    Args:
        label_ids: (n,) labels, such as regions; -1 is unknown.
        seed: random seed.
        epoch: each epoch has other positives.

    Returns:
        (n,) indices of the positives, and (n,) bool, true where a photo is its own positive because no other photo has
        its label or the label is unknown.
    """
    labels = np.asarray(label_ids)
    by_label = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[by_label], return_index=True, return_counts=True)
    starts, counts = np.repeat(starts, counts), np.repeat(counts, counts)
    others = np.random.default_rng([seed, epoch]).integers(0, np.maximum(counts - 1, 1))
    others += others >= np.arange(len(labels)) - starts  # skip the photo itself
    alone = (counts == 1) | (labels[by_label] < 0)
    positives, is_alone = np.empty(len(labels), np.int64), np.empty(len(labels), np.bool_)
    positives[by_label] = by_label[np.where(alone, np.arange(len(labels)), starts + others)]
    is_alone[by_label] = alone
    return positives, is_alone


# --- Batches ------------------------------------------------------------------------------------------------


class RankBatches:
    """Batches of one rank, as lists of indices.

    Every index of the order goes to exactly one rank, and all ranks have the same number of batches. Batch i over all
    ranks is the same for any number of ranks that divides it. The last batch may be smaller; if it has fewer indices
    than ranks, the batch before takes them.

    Args:
        order: indices of an epoch.
        batch_size: batch size per rank.
        rank: rank of this process, from 0.
        num_ranks: number of processes.
        resampling_weights: (n,) by index: every batch over all ranks is resampled from itself, with replacement and in
            proportion to these weights (OSV-5M's density-aware batches).
        seed: seed of the resampling.

    Raises:
        ConfigError: invalid rank or batch size, or fewer indices than ranks.
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
                f"{num_ranks} ranks cannot share {len(order)} samples: start fewer processes, or add data"
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
        self._ordered: tuple[int, IntArray] = (-1, np.empty(0, np.int64))  # the latest epoch and its order

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self._stops)

    def indices(self, epoch: int, number: int) -> list[int]:
        """Indices of batch `number` of an epoch."""
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
