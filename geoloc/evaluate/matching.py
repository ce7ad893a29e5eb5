"""Matching of predictions with the truth by id; unmatched rows are counted and listed in the report.

Each row of the truth with valid coordinates is one image.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import BadTableError
from geoloc.files.tables import PointTable, Strings
from geoloc.geo.near import rows_within_m
from geoloc.metrics.protocols import VPR_RADIUS_M, Protocol
from quadtree.sphere import wrap_longitude_deg

NUM_EXAMPLES: Final = 10

# Description of each problem, in the order of the report
PROBLEMS: Final = {
    "truth_without_position": "rows of the truth with an empty or NaN coordinate; not evaluated",
    "truth_out_of_range": "rows of the truth with a latitude outside [-90, 90] or an infinite value; not evaluated",
    "truth_duplicated": "further rows of the truth with an earlier id; not evaluated",
    "without_positive": "queries without a reference of the database within the protocol's radius; not evaluated",
    "missing": "images of the truth without a row in the predictions; no prediction",
    "nan": "predictions with an empty or NaN coordinate; no prediction",
    "out_of_range": "predictions with a latitude outside [-90, 90] or an infinite value; no prediction",
    "duplicated": "further rows of the predictions with an earlier id; the first row counts",
    "extra": "predictions for images that the truth does not have; not evaluated",
    "outside_subset": "images of the truth outside the requested subset; not evaluated",
}


@dataclass
class Problems:
    """Count and first ids of each problem.

    Attributes:
        counts: problem -> number of rows.
        examples: problem -> up to ten ids, in the order of the table.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, problem: str, ids: Iterable[Any]) -> None:
        """Add rows by their ids."""
        named = [str(name) for name in ids]
        if named:
            self.counts[problem] = self.counts.get(problem, 0) + len(named)
            first = self.examples.setdefault(problem, [])
            first += named[: NUM_EXAMPLES - len(first)]

    def to_dict(self) -> dict[str, Any]:
        """Count, meaning and example ids of each problem."""
        return {
            name: {"count": self.counts[name], "meaning": meaning, "examples": self.examples[name]}
            for name, meaning in PROBLEMS.items()
            if name in self.counts
        }


@dataclass(frozen=True)
class Matched:
    """Evaluated images, in the order of the truth.

    Attributes:
        ids: (n,) text.
        truth_latlon_deg: (n, 2).
        predicted_latlon_deg: (n, 2), NaN without a usable prediction.
        truth: table of the truth.
        truth_row: (n,) int64 rows of `truth`.
        predictions: table of the predictions.
        prediction_row: (n,) int64 rows of `predictions`; -1 for none.
        problems: unmatched and invalid rows.
    """

    ids: Strings
    truth_latlon_deg: NDArray[np.float64]
    predicted_latlon_deg: NDArray[np.float64]
    truth: PointTable
    truth_row: NDArray[np.int64]
    predictions: PointTable
    prediction_row: NDArray[np.int64]
    problems: Problems

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, rows: slice) -> "Matched":
        """A slice of the images with their rows of the tables, without problems."""
        prediction_row = self.prediction_row[rows]
        has_row = prediction_row >= 0
        return Matched(
            self.ids[rows],
            self.truth_latlon_deg[rows],
            self.predicted_latlon_deg[rows],
            self.truth.take(self.truth_row[rows]),
            np.arange(len(has_row)),
            self.predictions.take(prediction_row[has_row]),
            np.where(has_row, np.cumsum(has_row) - 1, -1),
            Problems(),
        )

    def distance_km(self, protocol: Protocol) -> NDArray[np.floating]:
        """Errors by the distance of a protocol, (n,); NaN without a prediction."""
        return protocol.distance.km(self.predicted_latlon_deg, self.truth_latlon_deg)

    def truth_text(self, name: str) -> Strings:
        """A column of the truth as text, (n,)."""
        return np.asarray(self.truth.text(name)[self.truth_row], dtype=np.object_)

    def predicted_numbers(self, name: str) -> NDArray[np.float64]:
        """A column of the predictions as numbers, (n,); NaN without a row."""
        values = np.append(self.predictions.numbers(name), np.nan)
        return np.asarray(values[self.prediction_row])

    def predicted_text(self, name: str) -> Strings:
        """A column of the predictions as text, (n,); "" without a row."""
        values = np.append(self.predictions.text(name), "")
        return np.asarray(values[self.prediction_row], dtype=np.object_)


def match(
    truth: PointTable,
    predictions: PointTable,
    subset: Iterable[str] | None = None,
    *,
    database_latlon_deg: NDArray[np.float64] | None = None,
    within_m: float = VPR_RADIUS_M,
) -> Matched:
    """Predictions matched with the images of the truth.

    Longitudes are wrapped; a latitude beyond 90 is a problem.

    Args:
        truth: table of the images.
        predictions: in any order.
        subset: ids to evaluate; None is all.
        database_latlon_deg: (m, 2) locations of the references; images without one within `within_m` are left out.
            None leaves none out.
        within_m: metres on WGS84, the radius included.

    Raises:
        BadTableError: no image of the truth can be evaluated, an id of the subset is not in it, or no prediction has
            an id of the truth.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    problems = Problems()
    truth_row = _usable_truth(truth, problems)
    true_ids = pa.array(truth.ids[truth_row], pa.string())
    if subset is not None:
        wanted = pa.array(list(subset), pa.string())
        if num := len(absent := wanted.filter(pc.invert(pc.is_in(wanted, value_set=true_ids)))):
            raise BadTableError(
                f"{num} ids of the subset are not in {truth.path}, {absent[0].as_py()!r} among them; check that both "
                "name images in the same way"
            )
        inside = _bools(pc.is_in(true_ids, value_set=wanted))
        problems.add("outside_subset", truth.ids[truth_row[~inside]])
        truth_row = truth_row[inside]
        true_ids = pa.array(truth.ids[truth_row], pa.string())
    if database_latlon_deg is not None:
        near = rows_within_m(truth.latlon_deg[truth_row], database_latlon_deg, within_m)
        has_positive = np.array([len(rows) > 0 for rows in near], bool)
        problems.add("without_positive", truth.ids[truth_row[~has_positive]])
        truth_row = truth_row[has_positive]
        true_ids = pa.array(truth.ids[truth_row], pa.string())
        if not len(truth_row):
            raise BadTableError(
                f"no image of {truth.path} has one of the {len(database_latlon_deg):,} references within "
                f"{within_m:g} m: check that queries and database are of the same area"
            )
    if not len(truth_row):
        raise BadTableError(f"{truth.path} has no image that can be evaluated among {len(truth)} rows")
    predicted_row = _first_rows(predictions.ids)
    problems.add("duplicated", np.delete(predictions.ids, predicted_row))
    predicted_ids = pa.array(predictions.ids[predicted_row], pa.string())
    position = pc.index_in(true_ids, value_set=predicted_ids).fill_null(-1).to_numpy(zero_copy_only=False)
    prediction_row = np.append(predicted_row, -1)[position.astype(np.int64)]
    problems.add("missing", truth.ids[truth_row[prediction_row < 0]])
    extra = ~_bools(pc.is_in(predicted_ids, value_set=pa.array(truth.ids, pa.string())))
    if len(extra) and extra.all():
        raise BadTableError(
            f"no id of {predictions.path} is in {truth.path}: ids are like {predictions.ids[0]!r} there and "
            f"{truth.ids[0]!r} here; name images in the same way in both"
        )
    problems.add("extra", predictions.ids[predicted_row[extra]])

    predicted = np.append(predictions.latlon_deg, [[np.nan, np.nan]], axis=0)[prediction_row]
    has_nan = np.isnan(predicted).any(axis=1)
    bad = ~has_nan & ~_on_earth(predicted)
    ids = truth.ids[truth_row]
    problems.add("nan", ids[has_nan & (prediction_row >= 0)])
    problems.add("out_of_range", ids[bad])
    predicted[has_nan | bad] = np.nan
    return Matched(
        ids,
        _wrapped(truth.latlon_deg[truth_row]),
        _wrapped(predicted),
        truth,
        truth_row,
        predictions,
        prediction_row,
        problems,
    )


def _usable_truth(truth: PointTable, problems: Problems) -> NDArray[np.int64]:
    has_nan = np.isnan(truth.latlon_deg).any(axis=1)
    bad = ~has_nan & ~_on_earth(truth.latlon_deg)
    first = np.zeros(len(truth), bool)
    first[_first_rows(truth.ids)] = True
    problems.add("truth_duplicated", truth.ids[~first])
    problems.add("truth_without_position", truth.ids[first & has_nan])
    problems.add("truth_out_of_range", truth.ids[first & bad])
    return np.flatnonzero(first & ~has_nan & ~bad)


def _first_rows(ids: Strings) -> NDArray[np.int64]:
    """First row of each id, ascending."""
    import pyarrow as pa

    codes = pa.array(ids, pa.string()).dictionary_encode().indices.to_numpy(zero_copy_only=False)
    # Codes are in the order of first appearance: a first row has a new maximum.
    if not len(codes):
        return np.empty(0, np.int64)
    highest_before = np.append(-1, np.maximum.accumulate(codes)[:-1])
    return np.flatnonzero(codes > highest_before)


def _on_earth(latlon_deg: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray((np.abs(latlon_deg[:, 0]) <= 90) & np.isfinite(latlon_deg[:, 1]))


def _wrapped(latlon_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([latlon_deg[:, 0], wrap_longitude_deg(latlon_deg[:, 1])], axis=1)


def _bools(array: Any) -> NDArray[np.bool_]:
    return np.asarray(array.to_numpy(zero_copy_only=False), bool)
