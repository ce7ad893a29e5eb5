"""Batches of coordinates from CSV and Parquet tables of any length."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from quadtree.errors import InvalidPointTableError
from quadtree.sphere import FloatArray

if TYPE_CHECKING:
    import pyarrow as pa

_CSV_BLOCK_BYTES: Final = 1 << 23
_PARQUET_BATCH_ROWS: Final = 1 << 17


class PointTable:
    """Re-iterable table of coordinates: each iteration reads the files and yields float64 (n, 2) batches.

    The suffix decides the format: `.parquet`, `.csv` or a compressed CSV such as `.csv.gz`. An empty field
    becomes NaN.

    Args:
        paths: one or more files.
        latitude_column: name of the column of latitudes, degrees.
        longitude_column: name of the column of longitudes, degrees.

    Raises:
        InvalidPointTableError: (on iteration) a column is missing or is text, or the format is unknown.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        latitude_column: str = "latitude",
        longitude_column: str = "longitude",
    ) -> None:
        self.paths = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        self.latitude_column = latitude_column
        self.longitude_column = longitude_column

    def __iter__(self) -> Iterator[FloatArray]:
        """Batches of (n, 2) latitude and longitude, not validated."""
        import pyarrow as pa

        for path in self.paths:
            if not path.is_file():
                raise FileNotFoundError(f"no table of points at {path}")
            try:
                for batch in self._record_batches(path):
                    columns = [
                        batch.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)
                        for name in (self.latitude_column, self.longitude_column)
                    ]
                    yield np.stack(columns, axis=-1)
            except pa.ArrowException as error:
                raise InvalidPointTableError(
                    f"{path} cannot be read as a table of points: {error}; {self.latitude_column!r} and "
                    f"{self.longitude_column!r} must be columns of numbers; a .csv needs commas between columns "
                    "and decimal points"
                ) from error

    def _record_batches(self, path: Path) -> "Iterator[pa.RecordBatch]":
        columns = [self.latitude_column, self.longitude_column]
        suffixes = [suffix.lower() for suffix in path.suffixes]
        if suffixes[-1:] == [".parquet"]:
            import pyarrow.parquet as pq

            with pq.ParquetFile(path) as file:
                self._check_columns(path, file.schema_arrow.names)
                yield from file.iter_batches(_PARQUET_BATCH_ROWS, columns=columns, use_threads=False)
        elif ".csv" in suffixes[-2:]:
            import pyarrow as pa
            import pyarrow.csv as pc

            # One thread: the parallel reader buffers many blocks, and parsing is not the bottleneck.
            read_options = pc.ReadOptions(block_size=_CSV_BLOCK_BYTES, use_threads=False)
            parse_options = pc.ParseOptions(newlines_in_values=True)
            with pc.open_csv(path, read_options, parse_options) as reader:
                self._check_columns(path, reader.schema.names)
            types = {name: pa.float64() for name in columns}
            convert_options = pc.ConvertOptions(include_columns=columns, column_types=types)
            with pc.open_csv(path, read_options, parse_options, convert_options) as reader:
                yield from reader
        else:
            raise InvalidPointTableError(f"{path} must end in .parquet, .csv or a compressed .csv.gz")

    def _check_columns(self, path: Path, found: list[str]) -> None:
        missing = [name for name in (self.latitude_column, self.longitude_column) if name not in found]
        if missing:
            raise InvalidPointTableError(
                f"{path} has no column {' and '.join(map(repr, missing))}; its columns are {found}; "
                "set latitude_column and longitude_column"
            )
