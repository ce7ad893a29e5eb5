"""Metadata of photos: a table with positions, headings, provenance and licences, and how a position is read from it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from geoloc.errors import BadImageError, BadTableError, ConfigError, NotFoundError
from geoloc.files.tables import NULL_TEXTS, read_columns
from quadtree import InvalidCoordinateError, validate_latlon_deg

# Name of a field here -> its names in tables.
FIELDS: Final = {
    "id": ("id",),
    "latitude": ("latitude",),
    "longitude": ("longitude",),
    "heading_deg": ("heading_deg",),
    "provenance": ("provenance", "source"),
    "licence": ("licence", "license"),
}


def read_metadata(
    path: str | Path, columns: Mapping[str, str] | None = None, *, with_id: bool = True
) -> dict[str, list[Any]]:
    """The columns of a CSV or Parquet table that describe photos or locations, under the names of `FIELDS`.

    Args:
        path: .csv, .tsv or .parquet.
        columns: name of a field -> the table's name, where the two differ.
        with_id: whether an id is needed.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it cannot be read, lacks a column or has no rows.
    """
    path, names = Path(path), field_names(columns)
    if not path.is_file():
        raise NotFoundError(f"there is no table of metadata {path}: check the path")
    try:
        table = read_columns(path)
    except BadTableError as error:
        raise ConfigError(f"the table of metadata cannot be read: {error}") from None
    found = {ours: next((n for n in given if n in table.column_names), None) for ours, given in names.items()}
    needed = ("id", "latitude", "longitude") if with_id else ("latitude", "longitude")
    if missing := [name for name in needed if found[name] is None]:
        raise ConfigError(
            f"{path} has no column {names[missing[0]][0]!r}; its columns are {', '.join(table.column_names)}"
        )
    if not len(table):
        raise ConfigError(f"{path} has no rows")
    known = {ours: table[name].to_pylist() for ours, name in found.items() if name is not None}
    if with_id:
        known["id"] = ["" if key is None else str(key) for key in known["id"]]
    return known


def field_names(columns: Mapping[str, str] | None) -> dict[str, tuple[str, ...]]:
    """Name of a field -> its names in a table.

    Raises:
        ConfigError: there is no such field.
    """
    columns = columns or {}
    if unknown := [name for name in columns if name not in FIELDS]:
        raise ConfigError(f"there is no field {unknown[0]!r} of a photo; known are {', '.join(FIELDS)}")
    return {ours: (columns[ours],) if ours in columns else given for ours, given in FIELDS.items()}


def position_of(known: Mapping[str, Any]) -> tuple[float, float] | None:
    """The position in metadata; None where there is none.

    Raises:
        BadImageError: it is not a number, or not on Earth.
    """
    latitude, longitude = (_degrees(known, name) for name in ("latitude", "longitude"))
    if latitude is None or longitude is None:
        return None
    try:
        lat, lon = validate_latlon_deg((latitude, longitude)).tolist()
    except InvalidCoordinateError:
        raise BadImageError(f"its position ({latitude}, {longitude}) is not on Earth") from None
    return lat, lon


def _degrees(known: Mapping[str, Any], name: str) -> float | None:
    value = known.get(name)
    number = number_or_none(value)
    if number is None and isinstance(value, str) and value.strip() not in NULL_TEXTS:
        # An error, not a missing value: for that the photo's EXIF would be taken.
        raise BadImageError(f"its {name} is {value!r}, which is not a number")
    return number


def number_or_none(value: Any) -> float | None:
    """A value as a finite number; None where it is not one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
