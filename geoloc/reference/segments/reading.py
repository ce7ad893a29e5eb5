"""An open segment: arrays and rows on mapped files, read on demand."""

import hashlib
import mmap
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import IntegrityError
from geoloc.reference.rows import SCHEMA, SOURCES
from geoloc.reference.segments.layout import (
    BLOCK_ROWS,
    EMBEDDINGS_NAME,
    ROWS_NAME,
    block_sizes,
    embedding_tensors,
    source_codes,
    to_arrow,
)
from geoloc.reference.segments.tensors import map_file, map_tensors
from geoloc.reference.segments.vectors import VectorFormat
from quadtree.morton import IntArray, encode
from quadtree.sphere import FloatArray

_CACHED_GROUPS: Final = 32  # decoded row groups that a segment caches; some hundred kB each

_PLACES: Final = ("morton", "row_id", "latitude", "longitude")


class _MappedRows:
    """`rows.parquet` on a mapped file; row groups are decoded on demand, and a few are cached."""

    def __init__(self, path: Path, num_rows: int) -> None:
        self._path, self._lock = path, threading.Lock()
        self._groups: dict[tuple[int, tuple[str, ...]], Any] = {}
        self.mapped = map_file(path)
        try:
            self._file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(self.mapped)))
            metadata, schema = self._file.metadata, self._file.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(error) from None
        if not schema.equals(SCHEMA) or metadata.num_rows != num_rows:
            raise self._damaged(f"{metadata.num_rows} rows of {', '.join(schema.names)}")
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if sizes != block_sizes(num_rows):
            raise self._damaged(f"row groups of {sorted(set(sizes))} rows")

    def group(self, number: int, columns: tuple[str, ...]) -> Any:
        """Rows number * BLOCK_ROWS up to the next group, a pyarrow Table."""
        with self._lock:
            if (number, columns) not in self._groups:
                while len(self._groups) >= _CACHED_GROUPS:
                    del self._groups[next(iter(self._groups))]
                self._groups[number, columns] = self._read(number, columns)
            return self._groups[number, columns]

    def column(self, name: str) -> Iterator[Any]:
        """One column, row group by row group, as pyarrow arrays."""
        for number in range(self._file.metadata.num_row_groups):
            with self._lock:
                table = self._read(number, (name,))
            yield table.column(0)

    def _read(self, number: int, columns: tuple[str, ...]) -> Any:
        try:
            return self._file.read_row_group(number, columns=list(columns), use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: object) -> IntegrityError:
        found = " ".join(str(error).split())  # pyarrow's messages may have several lines
        return IntegrityError(
            f"{self._path} is no table of references as the manifest implies it ({found}): fetch or build "
            "the database again"
        )


@dataclass(frozen=True, eq=False)
class Segment:
    """One open segment: n rows in the order of their Morton codes; all arrays are read-only.

    Attributes:
        name: of its folder.
        vector_format: how `vectors` are stored.
        morton: (n,) uint64, ascending; codes of depth 24 with the whole Earth as the root.
        row_id: (n,) int64.
        latlon_deg: (n, 2) float64.
        source: (n,) uint8, index in `geoloc.reference.rows.SOURCES`.
        vectors: (n, dim) in the stored type, mapped.
        scales: (n,) float32 for int8, else None; a row's vector is its scale times the stored values.
        deleted: (n,) bool, rows that are deleted.
        num_deleted: number of deleted rows.
    """

    name: str
    vector_format: VectorFormat
    morton: NDArray[np.uint64]
    row_id: NDArray[np.int64]
    latlon_deg: FloatArray
    source: NDArray[np.uint8]
    vectors: NDArray[Any]
    scales: NDArray[np.float32] | None
    deleted: NDArray[np.bool_]
    num_deleted: int
    _rows: _MappedRows
    _embeddings: mmap.mmap

    @property
    def num_rows(self) -> int:
        """Number of stored rows, deleted ones included."""
        return len(self.morton)

    def with_deleted(self, positions: IntArray | None) -> "Segment":
        """The same segment with exactly the rows at these positions deleted."""
        deleted = _marked(self.num_rows, positions)
        return replace(self, deleted=deleted, num_deleted=0 if positions is None else len(positions))

    def positions_of(self, morton_ranges: ArrayLike) -> IntArray:
        """Slices of rows that lie in ranges of codes, (m, 2) first code and code after the last -> (m, 2).

        `Quadtree.morton_ranges` of a tree that covers the whole Earth are such ranges.
        """
        # As uint64: a search with signed integers would convert, and so read, the whole column.
        ranges = np.asarray(morton_ranges, dtype=np.int64).astype(np.uint64)
        return np.searchsorted(self.morton, ranges)

    def find(self, codes: IntArray, row_ids: IntArray) -> IntArray:
        """Positions of rows, given their Morton codes and ids, (m,) and (m,) -> (m,); -1 where there is none."""
        positions = np.full(len(row_ids), -1, dtype=np.int64)
        slices = self.positions_of(np.stack([codes, codes + 1], axis=1))
        for number, (start, stop) in enumerate(slices.tolist()):
            place = start + int(np.searchsorted(self.row_id[start:stop], row_ids[number]))
            if place < stop and self.row_id[place] == row_ids[number]:
                positions[number] = place
        return positions

    def embeddings(self, positions: IntArray | slice) -> NDArray[np.float32]:
        """Vectors of some rows as float32, (m, dim)."""
        scales = None if self.scales is None else self.scales[positions]
        return self.vector_format.decode(self.vectors[positions], scales)

    def rows(self, positions: ArrayLike, columns: Sequence[str] = tuple(SCHEMA.names)) -> Any:
        """Data of some rows: a pyarrow Table in the order of the (m,) positions.

        Args:
            positions: of rows in this segment.
            columns: of `SCHEMA`; the fewer, the faster.
        """
        wanted, names = np.asarray(positions, dtype=np.int64), tuple(columns)
        groups = wanted // BLOCK_ROWS
        found = [
            self._rows.group(int(group), names).take(to_arrow(wanted[groups == group] - group * BLOCK_ROWS))
            for group in np.unique(groups)
        ]
        if len(found) <= 1:
            return found[0] if found else SCHEMA.empty_table().select(names)
        back = np.empty(len(wanted), dtype=np.int64)
        back[np.argsort(groups, kind="stable")] = np.arange(len(wanted))
        return pa.concat_tables(found).combine_chunks().take(to_arrow(back))

    def column(self, name: str) -> Iterator[Any]:
        """One column of `SCHEMA` of all rows, deleted ones too, as pyarrow arrays one after the other."""
        return self._rows.column(name)

    def digests(self) -> dict[str, str]:
        """File name -> sha256 of its bytes as they are mapped now."""
        return {
            ROWS_NAME: hashlib.sha256(self._rows.mapped).hexdigest(),
            EMBEDDINGS_NAME: hashlib.sha256(self._embeddings).hexdigest(),
        }

    def check_contents(self) -> None:
        """Check what checksums cannot: order, codes, values, and the agreement of both files.

        Raises:
            IntegrityError: something is wrong; the message names the first row.
        """
        for start in range(0, self.num_rows, BLOCK_ROWS):

            def refuse(bad: NDArray[np.bool_] | np.bool_, what: str, start: int = start) -> None:
                if bad.any():
                    raise IntegrityError(
                        f"row {start + int(np.argmax(bad))} of segment {self.name} {what}, though its "
                        "checksum is right: it was not written by this library, so do not trust its source"
                    )

            block = slice(start, start + BLOCK_ROWS)
            rows = self._rows.group(start // BLOCK_ROWS, tuple(SCHEMA.names))
            latlon_deg = np.stack([rows["latitude"].to_numpy(), rows["longitude"].to_numpy()], axis=1)
            differs = "differs between its two files"
            refuse(rows["row_id"].to_numpy() != self.row_id[block], differs)
            refuse(rows["morton"].to_numpy() != self.morton[block], differs)
            refuse((latlon_deg != self.latlon_deg[block]).any(axis=1), differs)
            refuse(source_codes(rows["source"]) != self.source[block], differs)
            refuse(self.source[block] >= len(SOURCES), "has no known source")
            refuse((np.abs(latlon_deg) > np.array([90.0, 180.0])).any(axis=1), "is no place on Earth")
            refuse(encode(latlon_deg) != self.morton[block], "has the Morton code of another place")
            # One row more, so that the end of a block is compared with the start of the next one.
            morton, row_id = (column[start : start + BLOCK_ROWS + 1] for column in (self.morton, self.row_id))
            is_after = (morton[1:] > morton[:-1]) | ((morton[1:] == morton[:-1]) & (row_id[1:] > row_id[:-1]))
            refuse(~is_after, "is not before the next one in Morton order")
            refuse(~np.isfinite(self.embeddings(block)).all(axis=1), "has a vector that is not finite")


def open_segment(
    folder: Path, name: str, vector_format: VectorFormat, num_rows: int, deleted_positions: IntArray | None
) -> Segment:
    """Map the segment in `folder`; checks sizes and headers, and reads no rows.

    Raises:
        IntegrityError: a file is missing, or is not one of `num_rows` rows in this format.
    """
    arrays, mapped = map_tensors(folder / EMBEDDINGS_NAME, embedding_tensors(vector_format, num_rows))
    return Segment(
        name=name,
        vector_format=vector_format,
        morton=arrays["morton"],
        row_id=arrays["row_id"],
        latlon_deg=arrays["latlon_deg"],
        source=arrays["source"],
        vectors=arrays["vectors"],
        scales=arrays.get("scales"),
        deleted=_marked(num_rows, deleted_positions),
        num_deleted=0 if deleted_positions is None else len(deleted_positions),
        _rows=_MappedRows(folder / ROWS_NAME, num_rows),
        _embeddings=mapped,
    )


def open_rows(
    folder: Path, name: str, vector_format: VectorFormat, num_rows: int, deleted_positions: IntArray | None
) -> Segment:
    """The segment in `folder` without its vectors, from `rows.parquet` alone: the positions of its rows.

    Raises:
        IntegrityError: the file is missing, or is not one of `num_rows` rows.
    """
    rows = _MappedRows(folder / ROWS_NAME, num_rows)
    table = {name: np.concatenate([part.to_numpy() for part in rows.column(name)]) for name in _PLACES}
    return Segment(
        name=name,
        vector_format=vector_format,
        morton=table["morton"],
        row_id=table["row_id"],
        latlon_deg=np.stack([table["latitude"], table["longitude"]], axis=1),
        source=np.zeros(num_rows, dtype=np.uint8),
        vectors=np.zeros((0, vector_format.dim), dtype=vector_format.dtype),
        scales=None,
        deleted=_marked(num_rows, deleted_positions),
        num_deleted=0 if deleted_positions is None else len(deleted_positions),
        _rows=rows,
        _embeddings=rows.mapped,
    )


def _marked(num_rows: int, positions: IntArray | None) -> NDArray[np.bool_]:
    marks = np.zeros(num_rows, dtype=np.bool_)
    if positions is not None:
        marks[positions] = True
    marks.flags.writeable = False
    return marks
