"""Tables of predictions: one row for each image, as CSV, GeoJSON or Parquet, written and read row by row.

    id                          the image, unique in its table
    latitude, longitude         degrees on WGS84; empty for an image that failed
    place, country_code         the nearest city, "Lund, Skane, SE", and its ISO 3166-1 alpha-2 code
    cell_path, probability      of the most probable cell; see `Prediction` for models without cells
    radius_50_km, radius_90_km  radii that hold the truth so often; empty without calibration
    abstained                   the 90 % radius exceeds the user's limit: do not rely on the point
    error                       why there is no prediction; empty for an image that did not fail
    candidates                  the most probable places, best first: lat, lon, probability, source,
                                similarity, key; as JSON in CSV and Parquet
    truth_latitude, truth_longitude, distance_km
                                position in the photo's EXIF, and its distance to the prediction; only where
                                the job was asked for them

GeoJSON has the same names as properties; a failed image is a feature without geometry.

A row of an unfinished job also has `posterior`, the kernels for a map as [lat, lon, weight, scale_km]; a table leaves
them out.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

from geoloc.errors import ConfigError
from geoloc.files import atomic_write
from geoloc.posterior.prediction import COORDINATE_DIGITS, Prediction
from quadtree.sphere import haversine_km

if TYPE_CHECKING:
    import pyarrow as pa

Row: TypeAlias = dict[str, Any]  # plain JSON values by the names of the columns

_KINDS: dict[str, type] = {
    "id": str,
    "latitude": float,
    "longitude": float,
    "place": str,
    "country_code": str,
    "cell_path": str,
    "probability": float,
    "radius_50_km": float,
    "radius_90_km": float,
    "abstained": bool,
    "error": str,
    "candidates": list,
}
_TRUTH_KINDS: dict[str, type] = {"truth_latitude": float, "truth_longitude": float, "distance_km": float}

COLUMNS = tuple(_KINDS)
TRUTH_COLUMNS = tuple(_TRUTH_KINDS)

_ROWS_PER_GROUP = 10_000  # of a Parquet file, held in memory


def make_row(image_id: str, prediction: Prediction | None, error: str | None = None) -> Row:
    """The row of an image: its prediction, or the error."""
    row: Row = dict.fromkeys(COLUMNS)
    row["id"], row["candidates"] = image_id, []
    if error is not None:  # it may quote bytes of the file that are not text
        row["error"] = error.encode("utf-8", "backslashreplace").decode()
    if prediction is not None:
        values = prediction.to_dict()
        row |= {
            "latitude": values["lat"],
            "longitude": values["lon"],
            "radius_50_km": values["radius_km"].get("50"),
            "radius_90_km": values["radius_km"].get("90"),
            **{name: values[name] for name in ("cell_path", "probability", "abstained", "candidates")},
        }
        if prediction.place is not None:
            row |= {"place": prediction.place.label, "country_code": prediction.place.country_code}
        if prediction.posterior:
            row["posterior"] = [list(atom) for atom in prediction.posterior]
    return row


def with_truth(row: Row, truth_latlon_deg: tuple[float, float] | None) -> Row:
    """A row with the columns of the truth, empty where it is unknown."""
    if truth_latlon_deg is None:
        return row | dict.fromkeys(TRUTH_COLUMNS)
    latitude, longitude = (round(degrees, COORDINATE_DIGITS) for degrees in truth_latlon_deg)
    distance_km = None
    if row["error"] is None:
        predicted = (row["latitude"], row["longitude"])
        distance_km = round(float(haversine_km(predicted, (latitude, longitude))), 3)
    return row | dict(zip(TRUTH_COLUMNS, (latitude, longitude, distance_km), strict=True))


def check_suffix(path: str | Path) -> None:
    """Refuse an output whose suffix names no format.

    Raises:
        ConfigError: the suffix is unknown; names those that are known.
    """
    _format_of(path)


def write_rows(path: str | Path, rows: Iterable[Row], *, truth: bool = False) -> None:
    """Write a table in the format of the path's suffix; the file is replaced in one step when it is whole.

    Args:
        path: ends in .csv, .geojson or .parquet; its folder must exist.
        rows: read one at a time, or ten thousand for Parquet.
        truth: write the columns of the truth.

    Raises:
        ConfigError: an unknown suffix.
    """
    kinds = _KINDS | _TRUTH_KINDS if truth else _KINDS
    table_format = _format_of(path)
    with atomic_write(path, "wb") as file:
        table_format.write(file, rows, kinds)


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a table that `write_rows` wrote, equal to those that it was given.

    Raises:
        ConfigError: an unknown suffix.
    """
    return _format_of(path).read(Path(path))


# --- CSV --------------------------------------------------------------------------------------------------


def _write_csv(file: IO[bytes], rows: Iterable[Row], kinds: dict[str, type]) -> None:
    file.write(f"{','.join(kinds)}\n".encode())
    for row in rows:
        texts = (_csv_text(row[name], kind) for name, kind in kinds.items())
        file.write(f"{','.join(texts)}\n".encode())


def _csv_text(value: Any, kind: type) -> str:
    """A field by RFC 4180; csv.writer does not quote a carriage return, which csv.reader takes for a line end."""
    if value is None:
        return ""
    if kind is bool:
        return "true" if value else "false"
    text = _compact_json(value) if kind is list else str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text


def _read_csv(path: Path) -> Iterator[Row]:
    with open(path, newline="", encoding="utf-8") as file:
        for texts in csv.DictReader(file):
            row = {name: _csv_value(text, _kind_of(name)) for name, text in texts.items()}
            if row["error"] is None and row["cell_path"] is None:
                row["cell_path"] = ""  # the root of the tree, not a missing value
            yield row


def _csv_value(text: str, kind: type) -> Any:
    if text == "":
        return None
    if kind is bool:
        return text == "true"
    return json.loads(text) if kind is list else kind(text)


# --- GeoJSON ----------------------------------------------------------------------------------------------

_GEOJSON_HEAD, _GEOJSON_TAIL = b'{"type": "FeatureCollection", "features": [\n', b"\n]}\n"


def _write_geojson(file: IO[bytes], rows: Iterable[Row], kinds: dict[str, type]) -> None:
    """RFC 7946, one feature a line, so that a table of any length can be written and read in pieces."""
    file.write(_GEOJSON_HEAD)
    for number, row in enumerate(rows):
        point = None
        if row["error"] is None:
            point = {"type": "Point", "coordinates": [row["longitude"], row["latitude"]]}
        feature = {"type": "Feature", "geometry": point, "properties": {name: row[name] for name in kinds}}
        file.write(b",\n" * (number > 0) + _compact_json(feature).encode())
    file.write(_GEOJSON_TAIL)


def _read_geojson(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8", newline="\n") as file:
        next(file)
        for line in file:
            if line.startswith("{"):
                yield json.loads(line.rstrip(",\n"))["properties"]


# --- Parquet ----------------------------------------------------------------------------------------------


def _write_parquet(file: IO[bytes], rows: Iterable[Row], kinds: dict[str, type]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {str: pa.string(), float: pa.float64(), bool: pa.bool_(), list: pa.string()}
    schema = pa.schema([pa.field(name, types[kind], nullable=name != "id") for name, kind in kinds.items()])
    rows = iter(rows)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(islice(rows, _ROWS_PER_GROUP)):
            writer.write_table(_arrow_table(group, kinds, schema))


def _arrow_table(rows: list[Row], kinds: dict[str, type], schema: "pa.Schema") -> "pa.Table":
    import pyarrow as pa

    columns = {
        name: [_compact_json(row[name]) if kind is list else row[name] for row in rows]
        for name, kind in kinds.items()
    }
    return pa.table(columns, schema=schema)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS_PER_GROUP):
            for row in batch.to_pylist():
                yield row | {"candidates": json.loads(row["candidates"])}


# --- Formats -------------------------------------------------------------------------------


class _Format(NamedTuple):
    write: Callable[[IO[bytes], Iterable[Row], dict[str, type]], None]
    read: Callable[[Path], Iterator[Row]]


_FORMATS = {
    ".csv": _Format(_write_csv, _read_csv),
    ".geojson": _Format(_write_geojson, _read_geojson),
    ".parquet": _Format(_write_parquet, _read_parquet),
}


def _format_of(path: str | Path) -> _Format:
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise ConfigError(
            f"the suffix of {str(path)!r} names no format of tables; known are {', '.join(sorted(_FORMATS))}"
        )
    return _FORMATS[suffix]


def _kind_of(column: str) -> type:
    return _KINDS.get(column) or _TRUTH_KINDS[column]


def _compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
