"""Splits into training and held-out samples.

In `split_osv5m`, the published rule, held-out photos have neighbours in training; the other rules separate them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoloc.data.samplers import density_weights
from geoloc.errors import ConfigError
from quadtree.sphere import EARTH_MEAN_RADIUS_KM, latlon_to_unit, validate_latlon_deg


@dataclass(frozen=True)
class Split:
    """Disjoint rows of a table, each ascending.

    Attributes:
        train: training samples.
        held_out: validation or test samples.
        buffer: samples that are left out because they are near to a held-out one.
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    buffer: NDArray[np.int64]


def split_osv5m(latlon_deg: ArrayLike, share: float = 0.1, seed: int = 42) -> Split:
    """OSV-5M's validation split: sampled without replacement, with higher probability where photos are rare.

    Weights are 1 / count^0.75 over 99 x 99 bins of longitude and latitude. The sample equals that of pandas'
    `DataFrame.sample(frac=share, weights=…, random_state=seed)`.

    Args:
        latlon_deg: (n, 2) locations.
        share: share that is held out.
        seed: random seed.

    Raises:
        ConfigError: the share is not in (0, 1).
    """
    _check_share(share)
    weights = density_weights(latlon_deg)
    num = len(weights)
    draw = np.random.RandomState(seed).choice(num, round(share * num), replace=False, p=weights)
    return _split(num, draw)


def split_by_cells(
    latlon_deg: ArrayLike, cell_ids: ArrayLike, *, share: float = 0.1, buffer_km: float = 1.0, seed: int = 42
) -> Split:
    """Hold out whole cells, and leave out samples within a buffer around held-out ones.

    Args:
        latlon_deg: (n, 2) locations.
        cell_ids: (n,) cells of any partition; samples with negative ids are never held out.
        share: share of the samples that is held out, rounded up to whole cells.
        buffer_km: smallest great-circle distance between training and held-out samples.
        seed: random seed.

    Raises:
        ConfigError: the share is not in (0, 1), or the buffer is negative.
        InvalidCoordinateError: a coordinate is invalid.
    """
    _check_share(share)
    if not buffer_km >= 0:
        raise ConfigError(f"the buffer is {buffer_km} km; it must be at least 0")
    points, cells = validate_latlon_deg(latlon_deg), np.asarray(cell_ids, np.int64)
    is_held_out = _whole_groups(cells, share, seed)
    is_near = ~is_held_out & within_km(points, points[is_held_out], buffer_km)
    return Split(
        np.flatnonzero(~is_held_out & ~is_near), np.flatnonzero(is_held_out), np.flatnonzero(is_near)
    )


def split_by_sequence(sequence_codes: ArrayLike, share: float = 0.1, seed: int = 42) -> Split:
    """Hold out whole sequences, so that neighbouring frames stay together.

    Args:
        sequence_codes: (n,) codes of `SampleTable.codes("sequence")`; a sample without one (-1) is its own sequence.
        share: share of the samples that is held out, rounded up to whole sequences.
        seed: random seed.

    Raises:
        ConfigError: the share is not in (0, 1).
    """
    _check_share(share)
    codes = np.array(sequence_codes, np.int64)
    alone = np.flatnonzero(codes < 0)
    codes[alone] = codes.max(initial=-1) + 1 + np.arange(len(alone))
    return _split(len(codes), np.flatnonzero(_whole_groups(codes, share, seed)))


def within_km(latlon_deg: ArrayLike, others_latlon_deg: ArrayLike, distance_km: float) -> NDArray[np.bool_]:
    """Whether points lie nearer than a distance to any of the others, (n, 2) and (m, 2) -> (n,) bool."""
    from scipy.spatial import cKDTree

    points, others = np.asarray(latlon_deg), np.asarray(others_latlon_deg)
    if not len(points) or not len(others):
        return np.zeros(len(points), np.bool_)
    angle = distance_km / EARTH_MEAN_RADIUS_KM
    if angle > np.pi:  # more than half the circumference
        return np.ones(len(points), np.bool_)
    # The chord grows with the great-circle distance up to half the circumference.
    chord = 2 * np.sin(angle / 2)
    nearest, _ = cKDTree(latlon_to_unit(others)).query(latlon_to_unit(points), distance_upper_bound=chord)
    return np.asarray(nearest < chord)


def _whole_groups(codes: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Rows of random groups that together hold the share; at least one group stays out."""
    groups, counts = np.unique(codes[codes >= 0], return_counts=True)
    if len(groups) < 2:
        raise ConfigError(
            f"nothing can be held out of {len(groups)} group: at least two groups are needed for a split"
        )
    order = np.random.default_rng(seed).permutation(len(groups))
    num = int(np.searchsorted(np.cumsum(counts[order]), share * len(codes))) + 1
    return np.isin(codes, groups[order[: min(num, len(groups) - 1)]])


def _split(num: int, held_out: NDArray[np.int64] | Sequence[int]) -> Split:
    is_held_out = np.zeros(num, np.bool_)
    is_held_out[held_out] = True
    return Split(np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out), np.empty(0, np.int64))


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise ConfigError(f"the held-out share is {share}; it must be between 0 and 1")
