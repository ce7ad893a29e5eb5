"""Tables of data set folders: their paths, and their names of columns."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from geoloc.errors import BadTableError, NotFoundError
from geoloc.files.tables import Columns, PointTable, column_names

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")


def find_table(folder: Path, *names: str) -> Path:
    """The first of these files in a folder or in a folder directly below it.

    Raises:
        NotFoundError: none exists.
    """
    for name in names:
        for path in (folder / name, *sorted(folder.glob(f"*/{name}"))):
            if path.is_file():
                return path
    raise NotFoundError(f"{folder} has none of {', '.join(names)}: check that the data set is unpacked there")


def only_table(folder: Path) -> Path | None:
    """The only table directly in a folder; None if there is none.

    Raises:
        NotFoundError: there are several.
    """
    tables = sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in TABLE_SUFFIXES)
    if len(tables) > 1:
        raise NotFoundError(f"{folder} has {len(tables)} tables; name the one with the truth")
    return tables[0] if tables else None


def usual_columns(path: Path) -> Columns:
    """Names of the id, latitude and longitude columns of a table, among the usual ones."""
    names = column_names(path)
    wanted = {
        "id": ("id", "IMG_ID", "image_id", "img_id", "image", "filename", "name", "path"),
        "latitude": ("latitude", "LAT", "lat", "Latitude"),
        "longitude": ("longitude", "LON", "lon", "lng", "Longitude"),
    }
    return Columns(
        **{column: next((n for n in usual if n in names), column) for column, usual in wanted.items()}
    )


def points_of(path: Path, rows: Iterator[tuple[str, str, str]]) -> PointTable:
    """A table of ids, latitudes and longitudes given as text.

    Raises:
        BadTableError: a text is not a number; names the entry.
    """
    ids, latlon_deg = [], []
    for number, (name, latitude, longitude) in enumerate(rows, start=1):
        try:
            latlon_deg.append((float(latitude), float(longitude)))
        except ValueError as error:
            raise BadTableError(f"{path} entry {number} ({name}): {error}") from error
        ids.append(name)
    return PointTable(path, np.array(ids, np.object_), np.array(latlon_deg, np.float64).reshape(-1, 2))
