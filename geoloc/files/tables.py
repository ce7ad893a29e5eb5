"""Tables of points (predictions or truth) from CSV or Parquet; a malformed line is an error with its number.

A table has a column of ids and two of degrees; other columns are kept. An empty or NaN coordinate is valid here.
"""

import csv
import gzip
import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import BadTableError, NotFoundError

if TYPE_CHECKING:
    import pyarrow as pa

Strings = NDArray[np.object_]

_SEPARATORS: Final = {",": "commas", ";": "semicolons", "\t": "tabs"}
NULL_TEXTS: Final = ("", "nan", "NaN", "NAN", "null", "NULL", "None", "N/A")  # of a coordinate


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Column names of a table.

    Attributes:
        id: names of images, compared as text.
        latitude: WGS84 degrees.
        longitude: WGS84 degrees.
    """

    id: str = "id"
    latitude: str = "latitude"
    longitude: str = "longitude"


@dataclass(frozen=True)
class PointTable:
    """Rows of a table of points, in the order of the file.

    Attributes:
        path: of the file.
        ids: (n,) text.
        latlon_deg: (n, 2) float64 as written, out-of-range values included; NaN if empty.
        others: the other columns by name, Arrow arrays of n values.
    """

    path: Path
    ids: Strings
    latlon_deg: NDArray[np.float64]
    others: Mapping[str, "pa.ChunkedArray"] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64]) -> "PointTable":
        """Table of the given rows (m,), in that order."""
        others = {name: column.take(rows) for name, column in self.others.items()}
        return PointTable(self.path, self.ids[rows], self.latlon_deg[rows], others)

    def digest(self) -> str:
        """sha256 of the content without the path, 64 hex digits."""
        import pyarrow as pa

        columns = {
            "id": pa.array(self.ids, pa.string()),
            "latitude": self.latlon_deg[:, 0],
            "longitude": self.latlon_deg[:, 1],
            **{f"other {name}": column for name, column in self.others.items()},
        }
        sink = pa.BufferOutputStream()
        table = pa.table(columns).combine_chunks()  # independent of row groups
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return hashlib.sha256(sink.getvalue()).hexdigest()

    def text(self, name: str) -> Strings:
        """A column as text, "" where empty; (n,). Equal strings are one object."""
        import pyarrow as pa

        column = self.others[name].cast(pa.string()).combine_chunks().fill_null("").dictionary_encode()
        words: Strings = np.array([*column.dictionary.to_pylist(), ""], dtype=np.object_)
        return np.asarray(words[np.asarray(column.indices.to_numpy(zero_copy_only=False))], dtype=np.object_)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column as float64, NaN where empty; (n,).

        Raises:
            BadTableError: a value is no number; names the line.
        """
        return _as_floats(self.path, name, self.others[name])


def read_points(
    path: str | Path,
    columns: Columns | None = None,
    others: Collection[str] | None = None,
    *,
    remedy: str = "rename the right one",
) -> PointTable:
    """Read a table of points.

    Args:
        path: ends in .csv, .csv.gz, .tsv or .parquet.
        columns: what its columns are called.
        others: names of other columns to read if they exist; None reads all.
        remedy: advice of the error for a missing column; "{}" in it becomes id, latitude or longitude.

    Raises:
        NotFoundError: there is no such file.
        BadTableError: a malformed line, a missing or duplicate column, or text for a number.
    """
    path, columns = Path(path), columns or Columns()
    if not path.is_file():
        raise NotFoundError(f"there is no table {path}; check the path")
    names = column_names(path)
    for option in ("id", "latitude", "longitude"):
        name = getattr(columns, option)
        if (num := names.count(name)) != 1:
            raise BadTableError(
                f"{path} has {num if num else 'no'} column {name!r} of {option}s; its columns are "
                f"{', '.join(names)}; {remedy.format(option)}"
            )
    needed = (columns.id, columns.latitude, columns.longitude)
    kept = names if others is None else [name for name in names if name in needed or name in others]
    table = read_columns(path, kept)
    latlon_deg = np.stack(
        [_as_floats(path, name, table[name]) for name in (columns.latitude, columns.longitude)], axis=1
    )
    others = {name: table[name] for name in table.column_names if name not in needed}
    return PointTable(path, _ids(path, columns.id, table[columns.id]), latlon_deg, others)


def read_columns(path: str | Path, names: Sequence[str] | None = None) -> "pa.Table":
    """Columns of a table in the order of the file: of a CSV as text, of a Parquet file in its types.

    Args:
        path: ends in .csv, .csv.gz, .tsv or .parquet.
        names: of the columns; None reads all.

    Raises:
        NotFoundError: there is no such file.
        BadTableError: a broken line; names it.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"there is no table {path}; check the path")
    header = column_names(path)
    kept = header if names is None else [name for name in header if name in names]
    return _read_parquet(path, kept) if _is_parquet(path) else _read_csv(path, header, kept)


def read_texts(path: str | Path, needed: Sequence[str]) -> "pa.Table":
    """Columns of a CSV as unparsed text.

    Raises:
        NotFoundError: there is no such file.
        BadTableError: a malformed line, or a missing or duplicate column.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"there is no table {path}; check the path")
    names = _header(path)
    for name in needed:
        if (num := names.count(name)) != 1:
            raise BadTableError(
                f"{path} has {num if num else 'no'} column {name!r}; its columns are {', '.join(names)}, and it "
                f"should have {', '.join(needed)}"
            )
    return _read_csv(path, names, needed)


def column_names(path: str | Path) -> list[str]:
    """Column names of a CSV or Parquet table, in order.

    Raises:
        BadTableError: there is no header, or it is no Parquet file.
    """
    path = Path(path)
    if not _is_parquet(path):
        return _header(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise BadTableError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from error


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _read_parquet(path: Path, kept: Sequence[str]) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=list(kept), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise BadTableError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from error


def _read_csv(path: Path, header: Sequence[str], kept: Sequence[str]) -> "pa.Table":
    """Columns as text; `PointTable.numbers` converts."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    try:
        return arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(use_threads=False),
            parse_options=arrow_csv.ParseOptions(delimiter=_delimiter(path), newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()),
                strings_can_be_null=False,
                include_columns=[] if list(kept) == list(header) else list(kept),
            ),
        )
    except pa.ArrowException as error:
        raise BadTableError(
            _first_broken_line(path, header) or f"{path}: {str(error).splitlines()[0]}"
        ) from error


def _delimiter(path: Path) -> str:
    return "\t" if ".tsv" in path.suffixes else ","


@contextmanager
def _rows(path: Path) -> Iterator[Any]:
    """Reader of the csv module; its `line_num` is the last line of the last row."""
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield csv.reader(file, delimiter=_delimiter(path), strict=True)
    else:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield csv.reader(file, delimiter=_delimiter(path), strict=True)


def _header(path: Path) -> list[str]:
    with _rows(path) as rows:
        try:
            header = list(next(rows, []))
        except (csv.Error, UnicodeDecodeError, OSError) as error:
            raise BadTableError(f"{path} line 1 is no header: {error}") from error
    if not header:
        raise BadTableError(f"{path} is empty: expected a header such as id,latitude,longitude")
    if len(header) == 1 and (found := next((sign for sign in ";\t," if sign in header[0]), None)):
        raise BadTableError(
            f"{path} has {_SEPARATORS[found]} between its columns: save it with {_SEPARATORS[_delimiter(path)]} there, "
            "and with points in numbers; a .csv has commas, a .tsv has tabs"
        )
    return header


def _first_broken_line(path: Path, header: Sequence[str]) -> str | None:
    with _rows(path) as rows:
        line = 1
        try:
            for row in rows:
                if row and len(row) != len(header):
                    return (
                        f"{path} line {line}: {len(row)} fields, but the header has {len(header)}; quote a field that "
                        "holds the delimiter, or repair the line"
                    )
                line = rows.line_num + 1
        except csv.Error as error:
            return f"{path} line {rows.line_num}: {error}; a quote may be missing"
        except UnicodeDecodeError as error:
            return f"{path} line {rows.line_num + 1} or after it: not UTF-8 ({error.reason}); save the table as UTF-8"
    return None


def _ids(path: Path, name: str, column: "pa.ChunkedArray") -> Strings:
    import pyarrow as pa

    if column.null_count:
        raise BadTableError(
            f"{path}: the column {name!r} of ids is empty in {column.null_count} rows; give each a name"
        )
    return np.asarray(column.cast(pa.string()).to_numpy(zero_copy_only=False), dtype=np.object_)


def _as_floats(path: Path, name: str, column: "pa.ChunkedArray") -> NDArray[np.float64]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        trimmed = pc.utf8_trim_whitespace(column)
        empty = pc.is_in(trimmed, value_set=pa.array(NULL_TEXTS))
        column = pc.if_else(empty, pa.scalar(None, trimmed.type), trimmed)
    try:
        floats = column.cast(pa.float64()).combine_chunks().fill_null(math.nan)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise BadTableError(_first_word(path, name, column)) from error
    return np.array(floats.to_numpy(zero_copy_only=False), np.float64)


def _first_word(path: Path, name: str, column: "pa.ChunkedArray") -> str:
    """Error text that locates the first value that is no number."""
    for row, value in enumerate(column.to_pylist()):
        try:
            float("nan" if value is None else value)
        except (TypeError, ValueError):
            (where,) = where_rows_are(path, [row])
            return (
                f"{path} {where}: {name} is {value!r}, which is no number; leave it empty if it is not known"
            )
    return f"{path}: the column {name!r} holds no numbers"


def where_rows_are(path: str | Path, rows: Sequence[int]) -> list[str]:
    """Locations of rows in a file: "line 17" of a CSV, "row 16" of another table.

    Args:
        path: of the table.
        rows: counted from 0, ascending.
    """
    path = Path(path)
    if not {".csv", ".tsv"} & {suffix.lower() for suffix in path.suffixes}:
        return [f"row {row + 1}" for row in rows]
    lines, wanted = [], iter(rows)
    row = next(wanted, None)
    with _rows(path) as fields_of_rows:
        next(fields_of_rows)
        seen, line = 0, int(fields_of_rows.line_num) + 1
        for fields in fields_of_rows:
            if row is None:
                break
            if fields:  # Arrow leaves out empty lines, too
                if seen == row:
                    lines.append(f"line {line}")
                    row = next(wanted, None)
                seen += 1
            line = int(fields_of_rows.line_num) + 1
    return lines
