"""Immutable segments of a reference database: rows and vectors in one Z-order, mapped from the disk.

    NNNN/rows.parquet             all that is known of each row (`geoloc.reference.rows`)
    NNNN/embeddings.safetensors   morton (n,) uint64, row_id (n,) int64, latlon_deg (n, 2) float64,
                                  vectors (n, dim) float32 | float16 | int8, for int8 scales (n,) float32,
                                  source (n,) uint8

Both are sorted by Morton code, and rows with equal codes by row id, so the rows of a cell at any level are
one slice. The four columns beside the vectors repeat what the Parquet file says: a search maps them, and
touches no more of them than of the vectors. Knows nothing about manifests: which segments there are is the
business of the database.
"""

import hashlib
import json
import mmap
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import ConfigError, IntegrityError
from geoloc.reference.rows import SCHEMA, SOURCES
from quadtree.morton import IntArray, encode
from quadtree.sphere import FloatArray

Dtype = Literal["float32", "float16", "int8"]

DTYPES: Final = ("float32", "float16", "int8")
ROWS_NAME: Final = "rows.parquet"
EMBEDDINGS_NAME: Final = "embeddings.safetensors"
BLOCK_ROWS: Final = 2048  # rows that are moved at once, and a row group: one key costs the reading of so many

_CACHED_GROUPS: Final = 32  # decoded row groups that a segment remembers; some hundred kB each

_PLACES: Final = ("morton", "row_id", "latitude", "longitude")

_SAFETENSORS_NAMES: Final = {
    np.dtype(np.float64): "F64",
    np.dtype(np.int64): "I64",
    np.dtype(np.uint64): "U64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",
}

TensorSpecs = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]  # name -> dtype and shape, in file order


# --- Vectors ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VectorFormat:
    """How vectors are stored: as float32, as float16, or as int8 with one float32 scale for each row.

    A value v of an int8 row is stored as round(v / scale) with scale = max|v| / 127, so it comes back with an
    error of at most scale / 2.

    Raises:
        ConfigError: the width is not positive, or the dtype is none of the three.
    """

    dim: int
    dtype: Dtype

    def __post_init__(self) -> None:
        if type(self.dim) is not int or self.dim < 1:
            raise ConfigError(
                f"dim must be a positive integer, the width of an embedding; found {self.dim!r}"
            )
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}; found {self.dtype!r}")

    @property
    def bytes_per_row(self) -> int:
        """Size of a stored vector with its scale."""
        return self.dim * np.dtype(self.dtype).itemsize + (4 if self.dtype == "int8" else 0)

    def encode(self, vectors: ArrayLike) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Vectors (n, dim) as they are stored, and scales: (n,) for int8, else (0,).

        Raises:
            ConfigError: another shape, or a value that is not finite, or too large for float16.
        """
        with np.errstate(over="ignore"):
            values = np.asarray(vectors, dtype=np.float32)
        if values.ndim != 2 or values.shape[1] != self.dim:
            raise ConfigError(
                f"vectors have shape {values.shape}, and this database holds rows of {self.dim} values: "
                "embed with the model that it was made for"
            )
        scales = np.zeros(0, dtype=np.float32)
        if self.dtype == "int8":
            largest = np.maximum(values.max(axis=1), -values.min(axis=1))
            scales = largest / np.float32(127)
            # Below the smallest normal number a scale has lost its digits; such a row is zero to anyone.
            scales[scales < np.finfo(np.float32).tiny] = 0.0
            divisors = np.where(scales == 0.0, np.float32(np.inf), scales)
            if np.isfinite(scales).all():  # a NaN or an infinity in a row is in its scale, too
                return np.rint(values / divisors[:, None]).astype(np.int8), scales
        else:
            with np.errstate(over="ignore"):
                stored = values.astype(self.dtype)
            if np.isfinite(stored).all():
                return stored, scales
        raise ConfigError(
            f"a vector has a value that is not finite, or too large for {self.dtype}: drop or repair that row"
        )

    def decode(self, stored: NDArray[Any], scales: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Stored vectors (n, dim) with their scales (n,), None but for int8, as float32."""
        vectors: NDArray[np.float32] = stored.astype(np.float32)
        if scales is not None:
            vectors *= scales[:, None]
        return vectors


# --- Tensors in a file ------------------------------------------------------------------------------------


def tensor_header(tensors: TensorSpecs) -> bytes:
    """The header of a safetensors file: 8 bytes of length, then JSON, padded to a multiple of 64 bytes.

    Whoever knows what a file must contain knows these bytes, so reading compares them and parses nothing.
    """
    table, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = offset + _num_bytes(dtype, shape)
        table[name] = {
            "dtype": _SAFETENSORS_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text


def _num_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    size = dtype.itemsize
    for length in shape:
        size *= length
    return size


def map_tensors(path: Path, tensors: TensorSpecs) -> tuple[dict[str, NDArray[Any]], mmap.mmap]:
    """Read-only arrays on a mapped safetensors file, and the map, which outlives the file's name.

    Raises:
        IntegrityError: the file is missing, or its size or header is not that of these tensors.
    """
    header = tensor_header(tensors)
    mapped = map_file(path)
    size = len(header) + sum(_num_bytes(dtype, shape) for dtype, shape in tensors.values())
    if len(mapped) != size or mapped[: len(header)] != header:
        raise IntegrityError(
            f"{path} has another size or header than the manifest implies: fetch or build the database again"
        )
    arrays, offset = {}, len(header)
    for name, (dtype, shape) in tensors.items():
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(mapped, dtype, count, offset).reshape(shape)
        offset += _num_bytes(dtype, shape)
    return arrays, mapped


def map_file(path: Path) -> mmap.mmap:
    """Map a file for reading.

    Raises:
        IntegrityError: it is missing or empty.
    """
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: there is nothing to map
        raise IntegrityError(
            f"{path} is missing or empty, but the manifest lists it: fetch or build the database again"
        ) from None


def embedding_tensors(vector_format: VectorFormat, num_rows: int) -> TensorSpecs:
    """What `embeddings.safetensors` holds; wide types first, so that every array is aligned."""
    tensors: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        "morton": (np.dtype(np.uint64), (num_rows,)),
        "row_id": (np.dtype(np.int64), (num_rows,)),
        "latlon_deg": (np.dtype(np.float64), (num_rows, 2)),
    }
    if vector_format.dtype == "int8":
        tensors["scales"] = (np.dtype(np.float32), (num_rows,))
    tensors["vectors"] = (np.dtype(vector_format.dtype), (num_rows, vector_format.dim))
    tensors["source"] = (np.dtype(np.uint8), (num_rows,))
    return tensors


# --- Reading ----------------------------------------------------------------------------------------------


class _MappedRows:
    """`rows.parquet` on a mapped file; row groups are decoded when asked for, and a few remembered."""

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
        found = " ".join(str(error).split())  # pyarrow's texts may have several lines
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
        source: (n,) uint8, the place in `geoloc.reference.rows.SOURCES`.
        vectors: (n, dim) in the stored type, mapped.
        scales: (n,) float32 for int8, else None; a row's vector is its scale times what is stored.
        deleted: (n,) bool; such a row does not exist for anyone any more.
        num_deleted: how many of them there are.
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
        """How many rows are stored, deleted ones among them."""
        return len(self.morton)

    def with_deleted(self, positions: IntArray | None) -> "Segment":
        """The same segment on the same maps, in which the rows at these places are deleted, and no others."""
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
        """What is known of some rows: a pyarrow Table in the order of the (m,) positions.

        Args:
            positions: places in this segment.
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
        """Check what checksums cannot: order, codes, values, and that both files tell the same story.

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
            # One row more, so that the end of the block is compared with the beginning of the next one.
            morton, row_id = (column[start : start + BLOCK_ROWS + 1] for column in (self.morton, self.row_id))
            is_after = (morton[1:] > morton[:-1]) | ((morton[1:] == morton[:-1]) & (row_id[1:] > row_id[:-1]))
            refuse(~is_after, "is not before the next one in Morton order")
            refuse(~np.isfinite(self.embeddings(block)).all(axis=1), "has a vector that is not finite")


def open_segment(
    folder: Path, name: str, vector_format: VectorFormat, num_rows: int, deleted_positions: IntArray | None
) -> Segment:
    """Map the segment in `folder`; checks sizes and headers, and reads none of the rows.

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
    """The segment in `folder` without its vectors, from `rows.parquet` alone: enough to see where its rows are.

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


def to_arrow(numbers: IntArray) -> Any:
    """As a pyarrow array; pyarrow's own conversion of a NumPy array imports pandas, which takes a second."""
    return pa.Array.from_buffers(
        pa.int64(), len(numbers), [None, pa.py_buffer(np.ascontiguousarray(numbers))]
    )


def _marked(num_rows: int, positions: IntArray | None) -> NDArray[np.bool_]:
    marks = np.zeros(num_rows, dtype=np.bool_)
    if positions is not None:
        marks[positions] = True
    marks.flags.writeable = False
    return marks


# --- Writing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows on their way into a segment.

    Attributes:
        rows: a pyarrow Table of `SCHEMA`.
        vectors: (n, dim) in the stored type.
        scales: (n,) float32 for int8, else (0,).
    """

    rows: Any
    vectors: NDArray[Any]
    scales: NDArray[np.float32]


def block_sizes(num_rows: int) -> list[int]:
    """How many rows each block of a segment has: all BLOCK_ROWS but the last."""
    return [min(BLOCK_ROWS, num_rows - start) for start in range(0, num_rows, BLOCK_ROWS)]


def write_segment(folder: Path, vector_format: VectorFormat, num_rows: int, blocks: Iterable[Block]) -> None:
    """Write sorted blocks, of the sizes of `block_sizes`, as the two files of a segment into a folder.

    The same rows give the same bytes (with one version of pyarrow). Holds one block and 41 bytes a row.
    """
    tensors = embedding_tensors(vector_format, num_rows)
    columns = {name: np.empty(shape, dtype) for name, (dtype, shape) in tensors.items() if name != "vectors"}
    start = 0
    with (
        open(folder / EMBEDDINGS_NAME, "wb") as embeddings_file,
        open(folder / ROWS_NAME, "wb") as rows_file,
        pq.ParquetWriter(
            rows_file,
            SCHEMA,
            compression="zstd",
            use_dictionary=["source", "provenance", "licence"],
        ) as rows_writer,
    ):
        header = tensor_header(tensors)
        before = list(tensors)[: list(tensors).index("vectors")]
        embeddings_file.seek(len(header) + sum(columns[name].nbytes for name in before))
        for block in blocks:
            stop = start + block.rows.num_rows
            columns["morton"][start:stop] = block.rows["morton"].to_numpy()
            columns["row_id"][start:stop] = block.rows["row_id"].to_numpy()
            columns["latlon_deg"][start:stop, 0] = block.rows["latitude"].to_numpy()
            columns["latlon_deg"][start:stop, 1] = block.rows["longitude"].to_numpy()
            columns["source"][start:stop] = source_codes(block.rows["source"])
            if "scales" in columns:
                columns["scales"][start:stop] = block.scales
            embeddings_file.write(np.ascontiguousarray(block.vectors).data)
            rows_writer.write_table(block.rows, row_group_size=BLOCK_ROWS)
            start = stop
        embeddings_file.write(columns["source"].data)
        embeddings_file.seek(0)
        embeddings_file.write(header)
        for name in before:
            embeddings_file.write(columns[name].data)


def source_codes(sources: Any) -> NDArray[np.uint8]:
    """Places in SOURCES of a pyarrow column of their names; 255 for other texts."""
    codes: NDArray[np.uint8] = (
        pc.index_in(sources, pa.array(SOURCES)).fill_null(255).to_numpy().astype(np.uint8)
    )
    return codes


def sorted_blocks(pending: Block) -> Iterator[Block]:
    """Blocks in Morton order of rows that came in the order of their ids."""
    order = np.argsort(pending.rows["morton"].to_numpy(), kind="stable")
    rows = pending.rows.combine_chunks()
    for start in range(0, len(order), BLOCK_ROWS):
        chosen = order[start : start + BLOCK_ROWS]
        scales = pending.scales[chosen] if len(pending.scales) else pending.scales
        yield Block(rows.take(to_arrow(chosen)), pending.vectors[chosen], scales)


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of an open segment that go into another one.

    Attributes:
        segment: where they are.
        positions: (m,) int64, ascending.
        row_id_offset: added to their row ids.
    """

    segment: Segment
    positions: IntArray
    row_id_offset: int = 0


def merged_blocks(parts: Sequence[Part]) -> Iterator[Block]:
    """Blocks in Morton order of several parts; holds one block and about 40 bytes a row."""
    codes = np.concatenate([part.segment.morton[part.positions] for part in parts])
    row_ids = np.concatenate([part.segment.row_id[part.positions] + part.row_id_offset for part in parts])
    owners = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.positions) for part in parts])
    owners = owners[np.lexsort((row_ids, codes))]
    del codes, row_ids
    cursors = [0] * len(parts)
    for start in range(0, len(owners), BLOCK_ROWS):
        owner = owners[start : start + BLOCK_ROWS]
        back = np.empty(len(owner), dtype=np.int64)
        tables, vectors, scales, filled = [], [], [], 0
        for number in np.unique(owner).tolist():
            # A part is sorted itself, so its rows come in their own order: it only has to be read onwards.
            part, places = parts[number], np.flatnonzero(owner == number)
            positions = part.positions[cursors[number] : cursors[number] + len(places)]
            cursors[number] += len(places)
            back[places] = np.arange(filled, filled + len(places))
            filled += len(places)
            tables.append(_renumbered(part.segment.rows(positions), part.row_id_offset))
            vectors.append(part.segment.vectors[positions])
            if part.segment.scales is not None:
                scales.append(part.segment.scales[positions])
        yield Block(
            pa.concat_tables(tables).combine_chunks().take(to_arrow(back)),
            np.concatenate(vectors)[back],
            np.concatenate(scales)[back] if scales else np.zeros(0, dtype=np.float32),
        )


def _renumbered(rows: Any, offset: int) -> Any:
    if not offset:
        return rows
    place = SCHEMA.get_field_index("row_id")
    return rows.set_column(place, SCHEMA.field(place), to_arrow(rows["row_id"].to_numpy() + offset))
