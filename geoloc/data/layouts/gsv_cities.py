"""GSV-Cities' layout: a table per city, and photos whose names repeat its values to the last digit.

    Dataframes/London.csv     place_id, year, month, northdeg, city_id, lat, lon, panoid
    Images/London/London_0000012_2015_06_312_51.5_-0.12_PANOID.JPG

A split is a city, several cities separated by commas, or "" for all. Place ids are "London/0000012".
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from geoloc.data.layouts.assemble import assemble
from geoloc.data.layouts.findings import Findings
from geoloc.data.layouts.image_tree import ImageTree
from geoloc.data.sample import SampleTable
from geoloc.errors import BadTableError, NotFoundError
from geoloc.files.tables import PointTable, read_texts, where_rows_are

SPLITS: Final = ("", "*")
COLUMNS: Final = ("place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid")
_LATLON: Final = re.compile(r"^(.*?_\d{7,}_\d{4}_\d{2}_\d{3,}_)[^_]*_[^_]*_")


def gsv_cities_stem(
    city: str, place: int, year: int, month: int, heading_deg: int, lat: str, lon: str, panoid: str
) -> str:
    """File name of a photo without suffix; latitude and longitude as written in the table.

    >>> gsv_cities_stem("London", 12, 2015, 6, 7, "51.50", "-0.12", "a_b")
    'London_0000012_2015_06_007_51.50_-0.12_a_b'
    """
    return f"{city}_{place:07}_{year:04}_{month:02}_{heading_deg:03}_{lat}_{lon}_{panoid}"


def read(folder: Path, split: str, findings: Findings) -> SampleTable:
    """The samples of the cities of a split.

    Raises:
        NotFoundError: there are no tables, or no table of a city.
        BadTableError: a table is broken; names the line.
    """
    paths = _tables(folder, split)
    cities = [_read_city(path) for path in paths]
    points = PointTable(
        folder / "Dataframes",
        np.concatenate([city.ids for city in cities]),
        np.concatenate([city.latlon_deg for city in cities]),
        {
            name: pa.chunked_array([chunk for city in cities for chunk in city.others[name].chunks])
            for name in cities[0].others
        },
    )
    stops = np.cumsum([len(city) for city in cities])

    def where(rows: Sequence[int]) -> list[str]:
        lines = []
        for path, start, stop in zip(paths, [0, *stops[:-1].tolist()], stops.tolist(), strict=True):
            own = [row - start for row in rows if start <= row < stop]
            lines += [f"{path} {line}" for line in where_rows_are(path, own)]
        return lines

    tree = ImageTree(folder, "Images")
    files = tree.find(pa.array(points.ids, pa.string()))

    @cache
    def by_all_but_location() -> dict[str, str]:
        return {_LATLON.sub(r"\1", Path(name).stem): name for name in tree.files.to_pylist()}

    def remedy(row: int) -> str:
        name = by_all_but_location().get(_LATLON.sub(r"\1", points.ids[row]))
        if name is None:
            return ": add it, or remove the row from the table"
        return (
            f", but there is {name}: its name has other digits of latitude or longitude than the table; use the "
            "original table"
        )

    return assemble(folder, points, files, findings, where=where, remedy=remedy)


def _tables(folder: Path, split: str) -> list[Path]:
    there = {path.stem: path for path in sorted((folder / "Dataframes").glob("*.csv"))}
    if not there:
        raise NotFoundError(f"{folder} has no Dataframes/*.csv: name the folder with Dataframes and Images")
    wanted = [city.strip() for city in split.split(",")] if split else list(there)
    for city in wanted:
        if city not in there:
            raise NotFoundError(f"{folder / 'Dataframes'} has no {city}.csv; it has {', '.join(there)}")
    return [there[city] for city in wanted]


def _read_city(path: Path) -> PointTable:
    """The rows of one city, with file name stems as ids."""
    table = read_texts(path, COLUMNS)
    columns = {name: table[name] for name in COLUMNS}
    ids = np.array(columns["panoid"].to_pylist(), np.object_)
    raw = PointTable(path, ids, np.full((len(ids), 2), np.nan), columns)
    latlon_deg = np.stack([raw.numbers("lat"), raw.numbers("lon")], -1)
    place, year, month, heading = (_integers(raw, name) for name in ("place_id", "year", "month", "northdeg"))
    stems = map(
        gsv_cities_stem,
        columns["city_id"].to_pylist(),
        *(values.tolist() for values in (place, year, month, heading)),
        *(columns[name].to_pylist() for name in ("lat", "lon", "panoid")),
    )
    others = {
        "place_id": pa.array([f"{path.stem}/{number:07}" for number in place.tolist()], pa.string()),
        "heading_deg": pa.array((heading % 360).astype(np.float64)),
        "captured_at": _first_of_month(year, month),
        "city": pa.array([path.stem] * len(ids), pa.string()),
    }
    return PointTable(
        path,
        np.array(list(stems), np.object_),
        latlon_deg,
        {name: pa.chunked_array([column]) for name, column in others.items()},
    )


def _integers(points: PointTable, name: str) -> NDArray[np.int64]:
    values = points.numbers(name)
    bad = np.flatnonzero(~(np.isfinite(values) & (values == np.floor(values)) & (values >= 0)))
    if len(bad):
        (line,) = where_rows_are(points.path, [int(bad[0])])
        found = points.others[name][int(bad[0])].as_py()
        raise BadTableError(f"{points.path} {line}: {name} is {found!r}, and must be a whole number from 0")
    return values.astype(np.int64)


def _first_of_month(year: NDArray[np.int64], month: NDArray[np.int64]) -> pa.Array:
    """Seconds since 1970 (UTC) of the first of a month, null for invalid months."""
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    seconds = pa.array(months.astype("datetime64[s]").astype(np.float64))
    is_known = (year >= 1800) & (month >= 1) & (month <= 12)
    return pc.if_else(pa.array(is_known), seconds, pa.scalar(None, pa.float64()))
