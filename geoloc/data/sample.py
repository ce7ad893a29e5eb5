"""Samples of training and query data, and a columnar table of them.

    table = open_layout("osv5m", "datasets/osv5m", "train").with_cells(tree)
    table.latlon_deg                  # (n, 2), valid
    table.cells_of(tree)              # (n,) cell of each sample; cells of another quadtree are an error
    table[7].image.read()             # encoded bytes of one image
    table.write("train.parquet"); SampleTable.read("train.parquet")

All layouts give a `SampleTable`. It holds no images: about 100 bytes per row.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import BadTableError, ConfigError, FingerprintMismatchError, NotFoundError
from geoloc.files import atomic_write
from geoloc.photos.encoded import EncodedImage
from quadtree.sphere import validate_latlon_deg

if TYPE_CHECKING:
    from typing import Self

    from quadtree import Quadtree

TEXTS: Final = ("place_id", "sequence", "country", "region", "sub_region", "city")
NUMBERS: Final = ("heading_deg", "captured_at")
_BYTE_RANGE: Final = ("image_file", "image_offset", "image_num_bytes")
_COORDINATES: Final = ("latitude", "longitude")
_RESERVED: Final = ("key", *_BYTE_RANGE, "cell_id", *NUMBERS, *TEXTS, *_COORDINATES)

_ROOT_KEY, _FINGERPRINT_KEY = b"geoloc.root", b"geoloc.quadtree"


@dataclass(frozen=True, slots=True)
class Sample:
    """One photo with its metadata.

    Attributes:
        key: its name, unique in its table.
        image: location of its encoded bytes.
        latlon_deg: latitude in [-90, 90] and longitude in [-180, 180), WGS84.
        cell_id: cell of the quadtree whose fingerprint the table has; None without labels.
        heading_deg: clockwise from true north, None if unknown.
        place_id: name of the place, shared by photos that show the same place.
        captured_at: seconds since 1970 (UTC), None if unknown.
        country: name or code as in the data set; also for `region`, `sub_region` and `city`.
        sequence: name of its drive or walk.
        targets: further numeric targets, NaN if unknown.
    """

    key: str
    image: EncodedImage
    latlon_deg: tuple[float, float]
    cell_id: int | None = None
    heading_deg: float | None = None
    place_id: str | None = None
    captured_at: float | None = None
    country: str | None = None
    region: str | None = None
    sub_region: str | None = None
    city: str | None = None
    sequence: str | None = None
    targets: Mapping[str, float] = field(default_factory=dict)


class SampleTable:
    """Samples as columns. Immutable; `table[row]` is one `Sample`.

    Args:
        root: folder that image files are relative to.
        columns: one row per sample. `key` (text) and `image_file` (text, relative to the root) are required. Optional:
            `image_offset` and `image_num_bytes` (integers, for members of tars), `cell_id` (integers), `heading_deg`
            and `captured_at` (numbers), the texts of `TEXTS`. Any other column is a numeric target.
        latlon_deg: (n, 2) locations; longitudes are wrapped.
        fingerprint: fingerprint of the quadtree of `cell_id`; required with that column, and only then.

    Raises:
        ConfigError: a column is missing, has another type, or leads out of the root.
        InvalidCoordinateError: a coordinate is invalid; names the row.
    """

    def __init__(
        self,
        root: str | Path,
        columns: Mapping[str, Any] | pa.Table,
        latlon_deg: ArrayLike,
        fingerprint: str | None = None,
    ) -> None:
        self.root = os.path.abspath(root)
        table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
        self.columns: pa.Table = _as_our_types(table).combine_chunks()
        self.latlon_deg: NDArray[np.float64] = validate_latlon_deg(latlon_deg)
        self.fingerprint = fingerprint
        if self.latlon_deg.shape != (len(self.columns), 2):
            raise ConfigError(
                f"{len(self.columns)} samples need locations of shape ({len(self.columns)}, 2); found "
                f"{self.latlon_deg.shape}"
            )
        if ("cell_id" in self.columns.column_names) != (fingerprint is not None):
            raise ConfigError(
                "cell_id and the fingerprint of its quadtree go together; use SampleTable.with_cells"
            )

    def __len__(self) -> int:
        return len(self.latlon_deg)

    def __repr__(self) -> str:
        return f"SampleTable({len(self):,} samples in {self.root}, columns {', '.join(self.columns.column_names)})"

    def __getitem__(self, row: int) -> Sample:
        row = range(len(self))[row]
        values = {name: array[row].as_py() for name, array in self._arrays.items()}
        targets = {name: _nan_for_none(values[name]) for name in self.targets}
        latitude, longitude = self.latlon_deg[row].tolist()
        return Sample(
            key=values["key"],
            image=self.encoded(row),
            latlon_deg=(latitude, longitude),
            cell_id=values.get("cell_id"),
            targets=targets,
            **{name: values.get(name) for name in (*NUMBERS, *TEXTS)},
        )

    @cached_property
    def _arrays(self) -> dict[str, pa.Array]:
        return {
            name: _one_chunk(self.columns[name])
            for name in self.columns.column_names
            if name not in _BYTE_RANGE
        }

    @cached_property
    def _encoded_columns(self) -> list[pa.Array]:
        return [_one_chunk(self.columns[name]) for name in _BYTE_RANGE if name in self.columns.column_names]

    def encoded(self, row: int) -> EncodedImage:
        """The encoded image of a row, not read yet."""
        name, *byte_range = (array[row].as_py() for array in self._encoded_columns)
        return EncodedImage(os.path.join(self.root, name), *byte_range)

    @property
    def keys(self) -> pa.Array:
        """(n,) names of the samples."""
        return self._arrays["key"]

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the numeric targets."""
        return tuple(name for name in self.columns.column_names if name not in _RESERVED)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A target, `heading_deg` or `captured_at`, (n,); NaN if unknown.

        Raises:
            ConfigError: there is no such column.
        """
        self._check_has(name, (*NUMBERS, *self.targets))
        return np.asarray(
            self._arrays[name].fill_null(float("nan")).to_numpy(zero_copy_only=False), np.float64
        )

    def codes(self, name: str) -> tuple[NDArray[np.int64], list[str]]:
        """A text column as codes: (n,) positions in the sorted list of its distinct texts, -1 if unknown.

        Raises:
            ConfigError: there is no such column.
        """
        self._check_has(name, TEXTS)
        column = self._arrays[name]
        found = column.dictionary.take(
            column.indices.drop_null().unique()
        )  # `take` on a table leaves texts in the dictionary that no row has
        names = sorted(found.to_pylist())
        rank = pc.index_in(column.dictionary, value_set=pa.array(names, pa.string())).cast(pa.int64())
        codes = rank.take(column.indices).fill_null(-1)
        return np.asarray(codes.to_numpy(zero_copy_only=False), np.int64), names

    def _check_has(self, name: str, kinds: tuple[str, ...]) -> None:
        if name not in kinds or name not in self.columns.column_names:
            there = [known for known in kinds if known in self.columns.column_names]
            raise ConfigError(
                f"the samples in {self.root} have no column {name!r}; found {', '.join(there) or 'none'}"
            )

    def take(self, rows: ArrayLike) -> Self:
        """The given rows, (m,), in that order."""
        rows = np.asarray(rows, np.int64)
        return type(self)(
            self.root, self.columns.take(pa.array(rows)), self.latlon_deg[rows], self.fingerprint
        )

    @classmethod
    def joined(cls, tables: Sequence[Self]) -> Self:
        """Concatenation of tables, without cells; columns that a table lacks are null there."""
        root = os.path.commonpath([table.root for table in tables])
        parts = []
        for table in tables:
            columns = table.columns
            if "cell_id" in columns.column_names:
                columns = columns.drop_columns(["cell_id"])
            column, prefix = columns.column_names.index("image_file"), os.path.relpath(table.root, root)
            files = pc.binary_join_element_wise(prefix, columns["image_file"].cast(pa.string()), "/")
            parts.append(columns.set_column(column, "image_file", files))
        plain = [part.cast(pa.schema([(f.name, _plain(f.type)) for f in part.schema])) for part in parts]
        return cls(
            root,
            pa.concat_tables(plain, promote_options="default"),
            np.concatenate([table.latlon_deg for table in tables]),
        )

    # Labels

    def with_cells(self, tree: Quadtree) -> Self:
        """The samples labelled with the cells of a quadtree."""
        cells = pa.array(tree.assign(self.latlon_deg), pa.int64())
        columns = self.columns
        if "cell_id" in columns.column_names:
            columns = columns.drop_columns(["cell_id"])
        return type(self)(
            self.root, columns.append_column("cell_id", cells), self.latlon_deg, tree.fingerprint
        )

    def cells_of(self, tree: Quadtree) -> NDArray[np.int64]:
        """Cell of each sample, (n,).

        Raises:
            ConfigError: the samples have no cells.
            FingerprintMismatchError: they have cells of another quadtree; names both.
        """
        if self.fingerprint is None:
            raise ConfigError(
                f"the samples in {self.root} have no cells: label them with SampleTable.with_cells"
            )
        if self.fingerprint != tree.fingerprint:
            raise FingerprintMismatchError(
                f"the samples in {self.root} are labelled with the quadtree {self.fingerprint[:12]}, not with "
                f"{tree.fingerprint[:12]}: use the first quadtree, or label them again with SampleTable.with_cells"
            )
        return np.asarray(self._arrays["cell_id"].to_numpy(zero_copy_only=False), np.int64)

    # Files

    def write(self, path: str | Path) -> None:
        """Write the table as Parquet, atomically; image files are not copied.

        The root is stored relative to the file's folder, so that the data set and its table can be moved together.
        """
        path = Path(path)
        table = self.columns
        for axis, name in enumerate(_COORDINATES):
            table = table.append_column(name, pa.array(self.latlon_deg[:, axis]))
        facts = {_ROOT_KEY: os.path.relpath(self.root, os.path.abspath(path.parent)).encode()}
        if self.fingerprint is not None:
            facts[_FINGERPRINT_KEY] = self.fingerprint.encode()
        with atomic_write(path, "wb") as file:
            pq.write_table(table.replace_schema_metadata(facts), file, compression="zstd")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a table that `write` wrote.

        Raises:
            NotFoundError: there is no such file.
            BadTableError: it is no table of samples.
        """
        path = Path(path)
        if not path.is_file():
            raise NotFoundError(f"there is no table of samples {path}; check the path")
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise BadTableError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from error
        facts = table.schema.metadata or {}
        if _ROOT_KEY not in facts or not set(_COORDINATES) <= set(table.column_names):
            raise BadTableError(f"{path} is no table of samples: expected one that SampleTable.write wrote")
        latlon_deg = np.stack([table[name].to_numpy() for name in _COORDINATES], -1)
        fingerprint = facts.get(_FINGERPRINT_KEY)
        try:
            return cls(
                path.parent / facts[_ROOT_KEY].decode(),
                table.drop_columns(list(_COORDINATES)),
                latlon_deg,
                None if fingerprint is None else fingerprint.decode(),
            )
        except (ConfigError, ValueError) as error:
            raise BadTableError(f"{path}: {error}") from error


def _as_our_types(table: pa.Table) -> pa.Table:
    """The columns in our types: repeated texts as dictionaries, numbers as int64 or float64."""
    names = table.column_names
    if missing := [name for name in ("key", "image_file") if name not in names]:
        raise ConfigError(f"samples need the column {missing[0]!r}; found {', '.join(names)}")
    if ("image_offset" in names) != ("image_num_bytes" in names):
        raise ConfigError("samples need image_offset and image_num_bytes together, or neither")
    table = pa.table({name: _cast(name, table[name]) for name in names})
    for name in ("key", "image_file"):
        if empty := table[name].null_count:
            raise ConfigError(f"the column {name!r} of the samples is empty in {empty:,} rows")
    for chunk in table["image_file"].chunks:
        outside = pc.match_substring_regex(chunk.dictionary, r"^/|(^|/)\.\.(/|$)")
        if pc.any(outside).as_py():
            name = chunk.dictionary.filter(outside)[0].as_py()
            raise ConfigError(
                f"the image file {name!r} leads out of the samples' folder: do not trust its source"
            )
    return table


def _cast(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    wanted = _type_of(name)
    try:
        if pa.types.is_dictionary(wanted) and not pa.types.is_dictionary(column.type):
            column = column.cast(pa.string()).dictionary_encode()
        return column.cast(wanted)
    except pa.ArrowException as error:
        raise ConfigError(
            f"the column {name!r} of the samples must be {wanted}, not {column.type}: {error}"
        ) from error


def _type_of(name: str) -> pa.DataType:
    if name in TEXTS or name == "image_file":
        return pa.dictionary(pa.int32(), pa.string())
    if name == "key":
        return pa.string()
    return pa.int64() if name in ("image_offset", "image_num_bytes", "cell_id") else pa.float64()


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _nan_for_none(value: float | None) -> float:
    return float("nan") if value is None else value
