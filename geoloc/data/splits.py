"""Which samples are trained on and which are held out.

`split_osv5m` is the published rule, whose held-out photos have neighbours in training; the other two keep them apart.
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
    """Rows of a table, ascending; no row is in two of them.

    Attributes:
        train: to train on.
        held_out: to validate or test with.
        buffer: in neither: too near to a held-out sample.
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    buffer: NDArray[np.int64]


def split_osv5m(latlon_deg: ArrayLike, share: float = 0.1, seed: int = 42) -> Split:
    """OSV-5M's validation: drawn without replacement, the rarer the photos around the likelier.

    Weights are 1 / count^0.75 over 99 x 99 bins of the range of longitudes and latitudes; the draw is that of pandas'
    `DataFrame.sample(frac=share, weights=…, random_state=seed)`, sample by sample.

    Args:
        latlon_deg: (n, 2) of all photos.
        share: that is held out.
        seed: of the draw.

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
    """Whole cells are held out, and no sample within a distance of a held-out one is trained on.

    Args:
        latlon_deg: (n, 2) of all samples.
        cell_ids: (n,) of any partition, such as `SampleTable.cells_of`; negative ones are never held out.
        share: of the samples that is held out, reached with the cell that is drawn last.
        buffer_km: least great-circle distance of a training sample to a held-out one.
        seed: of the choice of cells.

    Raises:
        ConfigError: the share is not in (0, 1), or the buffer is negative.
        InvalidCoordinateError: a position is no place on Earth.
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
    """Whole sequences are held out, so that no frame has its neighbour on the other side.

    Args:
        sequence_codes: (n,) as `SampleTable.codes("sequence")` gives them; a sample without one (-1) stands alone.
        share: of the samples that is held out, reached with the sequence that is drawn last.
        seed: of the choice.

    Raises:
        ConfigError: the share is not in (0, 1).
    """
    _check_share(share)
    codes = np.array(sequence_codes, np.int64)
    alone = np.flatnonzero(codes < 0)
    codes[alone] = codes.max(initial=-1) + 1 + np.arange(len(alone))
    return _split(len(codes), np.flatnonzero(_whole_groups(codes, share, seed)))


def within_km(latlon_deg: ArrayLike, others_latlon_deg: ArrayLike, distance_km: float) -> NDArray[np.bool_]:
    """Which points lie nearer than a distance to any of the others, (n, 2) and (m, 2) -> (n,)."""
    from scipy.spatial import cKDTree

    points, others = np.asarray(latlon_deg), np.asarray(others_latlon_deg)
    if not len(points) or not len(others):
        return np.zeros(len(points), np.bool_)
    angle = distance_km / EARTH_MEAN_RADIUS_KM
    if angle > np.pi:  # nothing is farther than the other end of the Earth
        return np.ones(len(points), np.bool_)
    # Through the Earth: up to there, the straight line grows with the great circle.
    chord = 2 * np.sin(angle / 2)
    nearest, _ = cKDTree(latlon_to_unit(others)).query(latlon_to_unit(points), distance_upper_bound=chord)
    return np.asarray(nearest < chord)


def _whole_groups(codes: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Which rows belong to groups drawn at random until they hold the share; one group is always left."""
    groups, counts = np.unique(codes[codes >= 0], return_counts=True)
    if len(groups) < 2:
        raise ConfigError(
            f"nothing can be held out of {len(groups)} group: whole ones go to one side or the other"
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
        raise ConfigError(f"the share that is held out is {share}; it must be between 0 and 1")
