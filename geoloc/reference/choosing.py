"""Criteria that choose rows of a database: ids, keys, a box, or quadtree cells."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError, NotFoundError
from geoloc.reference.segments import Segment
from quadtree.morton import MAX_DEPTH, IntArray, parse_paths

Criterion = Callable[[Segment], NDArray[np.bool_]]  # marks rows of a segment


def criterion(
    row_ids: ArrayLike | None,
    keys: Iterable[str] | None,
    bounds_deg: Sequence[float] | None,
    paths: Sequence[str] | None,
    next_row_id: int,
) -> Criterion:
    """The one given criterion as a function that marks the rows of a segment."""
    given = [value for value in (row_ids, keys, bounds_deg, paths) if value is not None]
    if len(given) != 1:
        raise ConfigError(f"choose rows by exactly one of ids, keys, bounds and paths; found {len(given)}")
    if row_ids is not None:
        ids = np.asarray(row_ids, dtype=np.int64).ravel()
        if len(ids) and not 0 <= ids.min() <= ids.max() < next_row_id:
            bad = ids[(ids < 0) | (ids >= next_row_id)][0]
            raise NotFoundError(f"there is no row {bad}: its ids are 0 to {next_row_id - 1}")
        return lambda segment: np.isin(segment.row_id, ids)
    if keys is not None:
        if isinstance(keys, str):
            raise ConfigError(f"keys is the single string {keys!r}; give a list")
        names = pa.array(list(keys), pa.string())
        return lambda segment: np.concatenate(
            [pc.is_in(column, value_set=names).to_numpy() for column in segment.column("key")]
        )
    if paths is not None:
        if isinstance(paths, str):
            raise ConfigError(f"paths is the single string {paths!r}; give a list")
        starts, depths = parse_paths(paths)
        ranges = np.stack([starts, starts + (np.int64(1) << 2 * (MAX_DEPTH - depths))], axis=1)
        return lambda segment: _in_slices(segment.num_rows, segment.positions_of(ranges))
    south, west, north, east = _checked_bounds(given[0])
    return lambda segment: _in_box(segment.latlon_deg, south, west, north, east)


def _in_slices(num_rows: int, slices: IntArray) -> NDArray[np.bool_]:
    mask = np.zeros(num_rows, dtype=np.bool_)
    for start, stop in slices.tolist():
        mask[start:stop] = True
    return mask


def _checked_bounds(bounds_deg: Any) -> tuple[float, float, float, float]:
    south, west, north, east = np.asarray(bounds_deg, dtype=np.float64).reshape(4).tolist()
    in_range = -90 <= south < north <= 90 and -180 <= west <= 180 and -180 <= east <= 180
    if not in_range or west == east:
        raise ConfigError(
            "bounds are south, west, north, east with south < north in [-90, 90] and two longitudes in "
            f"[-180, 180]; found {[south, west, north, east]}"
        )
    return south, west, north, east


def _in_box(
    latlon_deg: NDArray[np.float64], south: float, west: float, north: float, east: float
) -> NDArray[np.bool_]:
    latitude, longitude = latlon_deg[:, 0], latlon_deg[:, 1]
    above, below = latitude >= south, latitude < north if north < 90 else latitude <= north
    after, before = longitude >= west, longitude < east
    return above & below & (after & before if west < east else after | before)
