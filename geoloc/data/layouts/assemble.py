"""Checks that all layouts share: from columns to a `SampleTable`.

Unusable rows are left out and become findings.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from geoloc.data.layouts.findings import Findings, Where
from geoloc.data.sample import NUMBERS, SampleTable
from geoloc.errors import BadTableError
from geoloc.files.tables import NULL_TEXTS, PointTable, where_rows_are

# Our name of a column -> its names in data sets; the first that exists is taken.
ALIASES: Final[Mapping[str, Sequence[str]]] = {
    "heading_deg": ("heading_deg", "heading", "compass_angle"),
    "captured_at": ("captured_at", "timestamp"),
    "place_id": ("place_id",),
    "sequence": ("sequence", "sequence_id"),
    "country": ("unique_country", "country"),
    "region": ("unique_region", "region"),
    "sub_region": ("unique_sub-region", "sub-region", "sub_region"),
    "city": ("unique_city", "city"),
}
TARGETS: Final = (
    *("land_cover", "road_index", "drive_side", "climate", "soil", "dist_sea"),  # OSV-5M's
    *("is_night", "is_sideways"),  # MSLS's, 1 or 0; used by weighted mining
)
KNOWN_COLUMNS: Final = (*(name for names in ALIASES.values() for name in names), *TARGETS)

_LEAST_MS: Final = 1e11  # larger times are in milliseconds: in seconds this is the year 5138


def assemble(
    root: str | Path,
    points: PointTable,
    image_files: pa.Array,
    findings: Findings,
    *,
    stretches: Mapping[str, Any] | None = None,
    where: Where | None = None,
    remedy: Callable[[int], str] = lambda row: "",
) -> SampleTable:
    """Check the rows of a layout, and make a table of the usable ones.

    Args:
        root: folder of the data set.
        points: ids, locations and further columns.
        image_files: (n,) paths below the root, null if there is no file.
        findings: receives a finding for every row that is left out.
        stretches: `image_offset` and `image_num_bytes`, for members of tars.
        where: describes rows; None names the lines of the points' file.
        remedy: text that is added to the finding of a row without image.

    Raises:
        BadTableError: a numeric column contains something else; names the line.
    """
    where = where or (lambda rows: [f"{points.path} {line}" for line in where_rows_are(points.path, rows)])
    good = np.ones(len(points), np.bool_)

    def leave_out(kind: Any, bad: NDArray[np.bool_], what: Callable[[int], str]) -> None:
        findings.add_rows(kind, np.flatnonzero(bad), where, what)
        good[:] &= ~bad

    latitude, longitude = points.latlon_deg.T
    with np.errstate(invalid="ignore"):
        leave_out(
            "bad coordinate",
            ~((np.abs(latitude) <= 90) & np.isfinite(longitude)),
            lambda row: f"({latitude[row]}, {longitude[row]}) is no place on Earth",
        )
    ids = pa.array(points.ids, pa.string())
    first = pc.index_in(ids, value_set=ids).to_numpy(zero_copy_only=False)
    leave_out(
        "duplicate id",
        first != np.arange(len(points)),
        lambda row: f"the id {points.ids[row]!r} was there before, in {where([int(first[row])])[0]}",
    )
    leave_out(
        "missing image",
        image_files.is_null().to_numpy(zero_copy_only=False),
        lambda row: f"there is no image file for the id {points.ids[row]!r} in {root}{remedy(row)}",
    )
    columns = {"key": ids, "image_file": image_files, **(stretches or {}), **_described(points)}
    table = pa.table(columns).filter(pa.array(good))
    return SampleTable(root, table, points.latlon_deg[good])


def _described(points: PointTable) -> dict[str, Any]:
    """Metadata columns under our names."""
    found: dict[str, Any] = {}
    for ours, names in ALIASES.items():
        name = next((name for name in names if name in points.others), None)
        if name is None:
            continue
        if ours == "captured_at":
            found[ours] = _seconds(points, name)
        elif ours in NUMBERS:
            found[ours] = _or_null(points.numbers(name))
        else:
            found[ours] = _null_where_unknown(points.others[name]).dictionary_encode()
    for name in TARGETS:
        if name in points.others:
            found[name] = _or_null(points.numbers(name))
    return found


def _seconds(points: PointTable, name: str) -> pa.Array:
    """Seconds since 1970 of a column in seconds, milliseconds or ISO 8601."""
    column = points.others[name]
    if not pa.types.is_timestamp(column.type):
        try:
            numbers = points.numbers(name)
            with np.errstate(invalid="ignore"):
                return _or_null(np.where(np.abs(numbers) >= _LEAST_MS, numbers / 1000, numbers))
        except BadTableError:
            pass
    texts = column if pa.types.is_timestamp(column.type) else _null_where_unknown(column)
    try:
        moments = texts.cast(pa.timestamp("ms", "UTC"))
    except pa.ArrowInvalid:
        try:
            moments = texts.cast(pa.timestamp("ms"))  # without a time zone: UTC
        except pa.ArrowInvalid as error:
            raise BadTableError(
                f"{points.path}: the column {name!r} has no times in seconds, milliseconds or ISO 8601: {error}"
            ) from error
    return pc.divide(moments.cast(pa.int64()).cast(pa.float64()), 1000.0)


def _null_where_unknown(column: pa.ChunkedArray) -> pa.ChunkedArray:
    texts = column.cast(pa.string())
    return pc.if_else(pc.is_in(texts, value_set=pa.array(NULL_TEXTS)), pa.scalar(None, pa.string()), texts)


def _or_null(numbers: NDArray[np.float64]) -> pa.Array:
    return pa.array(numbers, from_pandas=True)  # NaN becomes null
