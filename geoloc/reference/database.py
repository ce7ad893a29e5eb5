"""A reference database on disk: rows with embeddings, in immutable segments that a manifest lists.

    refs/
      manifest.json                    the only file that changes, by one atomic rename
      segments/0000/rows.parquet       see `geoloc.reference.segments`
      segments/0000/embeddings.safetensors
      tombstones/0003.safetensors      places of deleted rows: a tensor for each segment that has some
      .lock                            held by the writer while it writes

    database = ReferenceDatabase.create("refs", model=model, dtype="int8")
    database.add_aerial("tiles/", cell_size_m=30)           # a resumable job, see `geoloc.reference.adding`
    database.append(ReferenceRows(latlon_deg, source="aerial", key=names), vectors)
    database.delete(bounds_deg=(42.2, -71.2, 42.4, -70.9))
    database.compact()

`append` adds segments, `delete` replaces the tombstones, `compact` merges all segments into one without them.
Each becomes visible when the manifest that lists its files takes its name; a process killed before that has
changed nothing, and what it left is removed by the next writer. A row keeps its id for ever. The manifest has
the form of `geoloc.files`, so `verify_manifest` works on the folder, too. Knows nothing about models, images
or search.
"""

import fcntl
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from geoloc.errors import (
    ConfigError,
    FingerprintMismatchError,
    IntegrityError,
    NotFoundError,
    OutputMismatchError,
)
from geoloc.files import (
    MANIFEST_NAME,
    MANIFEST_SCHEMA_VERSION,
    _canonical,
    _digest,
    _read_manifest,
    atomic_write,
    replace_folder,
    safe_join,
    sha256_of,
)
from geoloc.reference.adding import Adding
from geoloc.reference.embedder import ReferenceEmbedder
from geoloc.reference.rows import SCHEMA, SOURCES, ReferenceRows
from geoloc.reference.segments import (
    EMBEDDINGS_NAME,
    ROWS_NAME,
    Block,
    Dtype,
    Part,
    Segment,
    TensorSpecs,
    VectorFormat,
    map_tensors,
    merged_blocks,
    open_segment,
    sorted_blocks,
    tensor_header,
    to_arrow,
    write_segment,
)
from quadtree.morton import MAX_DEPTH, IntArray, encode
from quadtree.tree import parse_paths

KIND: Final = "geoloc reference database"
SORT_BYTES: Final = 2**29  # what an append collects before it sorts and writes a segment

_PIECE_ROWS: Final = 2**16  # rows that are encoded at once
_ROW_BYTES: Final = (
    256  # a guess at a row's size in memory beside its vector: texts, and an order to sort it by
)

_NO_IDS: Final = np.zeros(0, dtype=np.int64)

_SEGMENTS, _TOMBSTONES, _LOCK = "segments", "tombstones", ".lock"
_NUMBER: Final = re.compile(r"[0-9]{4,9}")
# What a writer of ours may have left in the two folders, dead or alive.
_OURS: Final = re.compile(r"[0-9]{4,9}|[0-9]{4,9}\.safetensors|\.[0-9]{4,9}\..*(new|tmp|old)")
_REMEDY: Final = "fetch or build the database again"


@dataclass(frozen=True)
class _Manifest:
    """What `manifest.json` says; it keeps the digests of files, so a change does not read old ones again.

    Attributes:
        version: how often the database was changed.
        next_row_id: no row has had this id or a larger one.
        next_segment: no segment has had this number or a larger one.
        segments: name -> number of rows.
        tombstones: segment name -> number of deleted rows, where there are some.
        shards: name of an append -> its first row id and number of rows.
        files: as in `geoloc.files.write_manifest`.
    """

    dim: int
    dtype: Dtype
    model_fingerprint: str
    quadtree_fingerprint: str | None
    version: int = 0
    next_row_id: int = 0
    next_segment: int = 0
    segments: Mapping[str, int] = field(default_factory=dict)
    tombstones: Mapping[str, int] = field(default_factory=dict)
    shards: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def vector_format(self) -> VectorFormat:
        return VectorFormat(self.dim, self.dtype)

    @property
    def tombstones_name(self) -> str | None:
        """Relative name of the tombstone file."""
        return next((name for name in self.files if name.startswith(f"{_TOMBSTONES}/")), None)

    def _facts(self) -> dict[str, Any]:
        return {"schema_version": MANIFEST_SCHEMA_VERSION, "kind": KIND, **asdict(self)}

    @property
    def digest(self) -> str:
        """Of all that the manifest says."""
        return _digest(self._facts())

    def write(self, folder: Path) -> None:
        """Make this the state of the database, at once."""
        with atomic_write(folder / MANIFEST_NAME, "wb") as file:
            file.write(_canonical({**self._facts(), "digest": self.digest}))

    @staticmethod
    def read(folder: Path) -> "_Manifest":
        if not folder.is_dir():
            raise NotFoundError(
                f"there is no reference database {folder}: check the path, or create it first"
            )
        facts = _read_manifest(folder)
        if facts.get("kind") != KIND:
            raise IntegrityError(f"{folder} is no reference database: its manifest is of another kind")
        try:
            manifest = _Manifest(
                **{name: facts[name] for name in _Manifest.__dataclass_fields__ if name != "shards"},
                shards={name: (first, num) for name, (first, num) in facts["shards"].items()},
            )
            manifest._check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(
                f"{folder / MANIFEST_NAME} does not describe a reference database ({error}): {_REMEDY}"
            ) from None
        return manifest

    def _check(self) -> None:
        """Refuse what could lead a reader astray: the digest shows damage, not malice."""
        self.vector_format  # noqa: B018  (the width and dtype check themselves)
        texts = (self.model_fingerprint, self.quadtree_fingerprint or "none")
        counts = (self.version, self.next_row_id, self.next_segment)
        shards = [number for pair in self.shards.values() for number in pair]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a fingerprint is no text")
        if not all(type(count) is int and 0 <= count < 2**62 for count in (*counts, *shards)):
            raise ValueError("a counter is no counter")
        expected = set()
        for name, num_rows in self.segments.items():
            if not _NUMBER.fullmatch(name) or type(num_rows) is not int or not 0 < num_rows < 2**40:
                raise ValueError(f"segment {name!r} with {num_rows!r} rows")
            expected |= {f"{_SEGMENTS}/{name}/{file}" for file in (ROWS_NAME, EMBEDDINGS_NAME)}
        for name, num_deleted in self.tombstones.items():
            if type(num_deleted) is not int or not 0 < num_deleted <= self.segments.get(name, 0):
                raise ValueError(f"{num_deleted!r} deleted rows in segment {name!r}")
        if self.tombstones:
            expected.add(str(self.tombstones_name))
        if difference := self.files.keys() ^ expected:
            raise ValueError(f"{min(difference)!r} is listed without need, or needed and not listed")

    def tombstone_tensors(self) -> TensorSpecs:
        """What the tombstone file holds: for each segment the places of its deleted rows, ascending."""
        return {name: (np.dtype(np.int64), (num,)) for name, num in sorted(self.tombstones.items())}


class ReferenceDatabase(Adding):
    """A snapshot of a database on disk: what was there when it was opened, refreshed or last changed here.

    Any number of processes read while one writes; a second writer is refused. What a reader has open stays
    readable when a writer compacts it away. Made by `create` and `open`.

    Attributes:
        folder: where it is.
    """

    def __init__(self, folder: Path, manifest: _Manifest, segments: tuple[Segment, ...]) -> None:
        self.folder = folder
        self._manifest = manifest
        self._segments = segments

    # --- Make and open ---

    @staticmethod
    def create(
        folder: str | Path,
        *,
        model: ReferenceEmbedder | None = None,
        dim: int | None = None,
        dtype: Dtype = "float32",
        model_fingerprint: str | None = None,
        quadtree_fingerprint: str | None = None,
    ) -> "ReferenceDatabase":
        """Make an empty database; a kill leaves it whole or absent.

        Args:
            folder: new, or an empty folder.
            model: what embeds the references, a `Geolocalizer`; None if its width and fingerprint are given.
            dim: width of an embedding; None takes the model's.
            dtype: how vectors are stored: "float32", "float16", or "int8" with a scale for each row.
            model_fingerprint: of the model that embeds the references; only its queries may be compared. None
                takes the model's.
            quadtree_fingerprint: of the partition whose cells a search goes through, if it is bound to one.

        Raises:
            OutputMismatchError: there is something in the folder.
            ConfigError: the width, the dtype or a fingerprint is impossible.
        """
        if model is not None:
            dim = model.embedding_dim if dim is None else dim
            model_fingerprint = model_fingerprint or model.embedding_fingerprint
        if dim is None:
            raise ConfigError(
                "a database needs the width of its embeddings: give model, or dim and model_fingerprint"
            )
        if not isinstance(model_fingerprint, str) or not model_fingerprint or quadtree_fingerprint == "":
            raise ConfigError("a fingerprint is a text of at least one character")
        vector_format = VectorFormat(dim, dtype)
        manifest = _Manifest(vector_format.dim, vector_format.dtype, model_fingerprint, quadtree_fingerprint)
        with _new_folder(Path(folder)) as temporary:
            manifest.write(temporary)
        return ReferenceDatabase.open(folder, model=model)

    @staticmethod
    def open(
        folder: str | Path,
        *,
        model: ReferenceEmbedder | None = None,
        model_fingerprint: str | None = None,
        quadtree_fingerprint: str | None = None,
    ) -> "ReferenceDatabase":
        """Open a database: maps its files, and checks the manifest, sizes and headers, but not all bytes.

        Use `verify` after a download. Each segment takes two file descriptors.

        Args:
            folder: where it is.
            model: what embeds further references; must be the one that the database was made with.
            model_fingerprint: that the references must be embedded with, if it matters.
            quadtree_fingerprint: that the database must be bound to, if it is bound to one.

        Raises:
            NotFoundError: there is no such folder.
            IntegrityError: a file is missing or is not what the manifest says.
            FingerprintMismatchError: it was made with another model or quadtree.
        """
        folder = Path(folder)
        database = ReferenceDatabase(folder, *_load(folder))
        database.check_fingerprints(model=model_fingerprint, quadtree=quadtree_fingerprint)
        if model is not None:
            database.check_fingerprints(model=model.embedding_fingerprint)
            database.model = model
        return database

    def refresh(self) -> bool:
        """Show what is on the disk now; whether that is something new."""
        before = self._manifest.version
        self._manifest, self._segments = _load(self.folder, self._manifest, self._segments)
        return self._manifest.version != before

    def check_fingerprints(self, *, model: str | None = None, quadtree: str | None = None) -> None:
        """Check that a model or a quadtree is the one that this database was made with; None is not checked.

        Raises:
            FingerprintMismatchError: it is another one; a database that is bound to no quadtree fits all.
        """
        for what, here, there in (
            ("model", model, self.model_fingerprint),
            ("quadtree", quadtree, self.quadtree_fingerprint),
        ):
            if here is not None and there is not None and here != there:
                raise FingerprintMismatchError(
                    f"{self.folder} was made with the {what} {_short(there)}, and {_short(here)} was to use "
                    f"it: take the database of that {what}, or build one with it"
                )

    # --- What there is ---

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The open segments; their deleted rows are for the caller to leave out."""
        return self._segments

    @property
    def vector_format(self) -> VectorFormat:
        """Width and stored type of the vectors."""
        return self._manifest.vector_format

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self._manifest.dim

    @property
    def model_fingerprint(self) -> str:
        """Of the model that embedded the references."""
        return self._manifest.model_fingerprint

    @property
    def quadtree_fingerprint(self) -> str | None:
        """Of the partition that the database is bound to."""
        return self._manifest.quadtree_fingerprint

    @property
    def identity(self) -> str:
        """Digest of the manifest: two databases with the same one hold the same rows and vectors."""
        return self._manifest.digest

    @property
    def version(self) -> int:
        """Goes up by one with every change."""
        return self._manifest.version

    @property
    def shards(self) -> dict[str, range]:
        """Row ids that each named append was given."""
        return {name: range(first, first + num) for name, (first, num) in self._manifest.shards.items()}

    def rows(
        self, row_ids: ArrayLike, latlon_deg: ArrayLike, columns: Sequence[str] = tuple(SCHEMA.names)
    ) -> Any:
        """What is known of rows that a search has found: a pyarrow Table in their order.

        Args:
            row_ids: (m,) ids.
            latlon_deg: (m, 2) where they are. Rows are sorted by place and id, so both together find a row in
                a few steps, without an index of ids.
            columns: of `geoloc.reference.rows.SCHEMA`; the fewer, the faster.

        Raises:
            NotFoundError: a row is not here, or is deleted.
        """
        ids = np.asarray(row_ids, dtype=np.int64)
        codes = encode(np.asarray(latlon_deg, dtype=np.float64).reshape(-1, 2))
        is_missing = np.ones(len(ids), dtype=np.bool_)
        tables, places = [SCHEMA.empty_table().select(columns)], [_NO_IDS]
        for segment in self._segments:
            positions = segment.find(codes, ids)
            here = np.flatnonzero((positions >= 0) & ~segment.deleted[positions])
            is_missing[here] = False
            tables.append(segment.rows(positions[here], columns))
            places.append(here)
        if is_missing.any():
            raise NotFoundError(
                f"{self.folder} has no row {ids[is_missing][0]} at that place: it was deleted, or the "
                "ids come from another database"
            )
        back = np.argsort(np.concatenate(places))
        return pa.concat_tables(tables).combine_chunks().take(to_arrow(back))

    def __len__(self) -> int:
        """How many rows there are, without the deleted ones."""
        return sum(segment.num_rows - segment.num_deleted for segment in self._segments)

    def __repr__(self) -> str:
        return (
            f"ReferenceDatabase({str(self.folder)!r}, {len(self)} rows of {self.dim} x "
            f"{self._manifest.dtype}, {len(self._segments)} segments, model {_short(self.model_fingerprint)})"
        )

    def info(self) -> dict[str, Any]:
        """Facts for people, as plain JSON values; it counts licences, so it reads a part of every row."""
        sources, licences = np.zeros(len(SOURCES), dtype=np.int64), Counter[str]()
        for segment in self._segments:
            live = ~segment.deleted
            sources += np.bincount(segment.source[live], minlength=len(SOURCES))
            start = 0
            for column in segment.column("licence"):
                counted = pc.value_counts(column.filter(pa.array(live[start : start + len(column)])))
                licences.update({pair["values"]: pair["counts"] for pair in counted.to_pylist()})
                start += len(column)
        return {
            "folder": str(self.folder),
            "version": self.version,
            "dim": self.dim,
            "dtype": self._manifest.dtype,
            "model_fingerprint": self.model_fingerprint,
            "quadtree_fingerprint": self.quadtree_fingerprint,
            "num_rows": len(self),
            "num_deleted": sum(segment.num_deleted for segment in self._segments),
            "num_segments": len(self._segments),
            "num_shards": len(self._manifest.shards),
            "num_bytes": sum(entry["bytes"] for entry in self._manifest.files.values()),
            "rows_by_source": {name: int(n) for name, n in zip(SOURCES, sources, strict=True) if n},
            "rows_by_licence": dict(sorted(licences.items())),
        }

    def verify(self) -> None:
        """Read everything that is shown here and check it: checksums, order, agreement of files, row ids.

        Raises:
            IntegrityError: something is wrong; the message says what, where, and what to do.
        """
        for segment in self._segments:
            for name, digest in segment.digests().items():
                _check_digest(self.folder, self._manifest, f"{_SEGMENTS}/{segment.name}/{name}", digest)
            segment.check_contents()
        row_ids = np.sort(np.concatenate([_NO_IDS, *(segment.row_id for segment in self._segments)]))
        twice = row_ids[1:][row_ids[1:] == row_ids[:-1]]
        if len(twice):
            raise IntegrityError(f"{self.folder} holds row id {twice[0]} twice: {_REMEDY}")
        strange = row_ids[(row_ids < 0) | (row_ids >= self._manifest.next_row_id)]
        if len(strange):
            raise IntegrityError(f"{self.folder} holds row id {strange[0]}, which it never gave: {_REMEDY}")

    # --- Change ---

    def append(self, rows: ReferenceRows, vectors: ArrayLike, *, shard: str | None = None) -> range:
        """Add rows with their vectors, (n, dim): `append_batches` with one batch."""
        return self.append_batches([(rows, vectors)], shard=shard)

    def append_batches(
        self,
        batches: Iterable[tuple[ReferenceRows, ArrayLike]],
        *,
        shard: str | None = None,
        sort_bytes: int = SORT_BYTES,
    ) -> range:
        """Add rows from a stream of any length; all of them become visible at once, when it has ended.

        If the stream raises an exception, or the process is killed, none of it has happened.

        Args:
            batches: rows with their vectors, (n, dim) finite numbers, stored as they are: a cosine search
                wants them at unit length. Of a memory-mapped array only a piece is read at a time.
            shard: a name for all of this. If it was appended before, the stream is not touched and nothing
                is added, so that a job which was interrupted can just do all of its shards again.
            sort_bytes: what is held in memory before it is sorted and written as a segment; sorting takes as
                much again.

        Returns:
            The ids of the rows in the order in which they came.

        Raises:
            ConfigError: vectors of another width or number, or not finite.
            OutputMismatchError: another process is writing.
        """
        with self._writing():
            manifest = self._manifest
            if shard is not None and shard in self.shards:
                return self.shards[shard]
            limit = max(1, sort_bytes // (self.vector_format.bytes_per_row + _ROW_BYTES))
            next_row_id = manifest.next_row_id
            for collected in _collect(batches, self.vector_format, next_row_id, limit):
                num_rows = collected.rows.num_rows
                manifest = _add_segment(self.folder, manifest, num_rows, sorted_blocks(collected))
                next_row_id += num_rows
            row_ids = range(manifest.next_row_id, next_row_id)
            if shard is not None:
                manifest = replace(manifest, shards={**manifest.shards, shard: (row_ids.start, len(row_ids))})
            self._commit(replace(manifest, next_row_id=next_row_id))
            return row_ids

    def delete(
        self,
        *,
        row_ids: ArrayLike | None = None,
        keys: Iterable[str] | None = None,
        bounds_deg: Sequence[float] | None = None,
        paths: Sequence[str] | None = None,
    ) -> int:
        """Delete the rows that one criterion names; they are gone for whoever opens or refreshes from now on.

        The bytes stay until `compact`. Rows that are gone already are no error, so a delete can be repeated.

        Args:
            row_ids: (m,) ids.
            keys: all rows with one of these keys.
            bounds_deg: all rows in the box south, west, north, east, see `slice`.
            paths: all rows in cells of the quadtree over the whole Earth, such as "0312", at any level.

        Returns:
            How many rows were deleted.

        Raises:
            NotFoundError: a row id was never given.
            ConfigError: not exactly one criterion is given, or it makes no sense.
            OutputMismatchError: another process is writing.
        """
        with self._writing():
            chooses = _criterion(row_ids, keys, bounds_deg, paths, self._manifest.next_row_id)
            deleted: dict[str, IntArray] = {}
            for segment in self._segments:
                positions = np.flatnonzero(chooses(segment) | segment.deleted)
                if len(positions):
                    deleted[segment.name] = positions
            num_deleted = sum(map(len, deleted.values())) - sum(self._manifest.tombstones.values())
            if num_deleted:
                self._commit(_with_tombstones(self.folder, self._manifest, deleted))
            return num_deleted

    def compact(self) -> None:
        """Merge all segments into one, without the deleted rows; does nothing where there is nothing to do.

        Row ids stay. Holds about 50 bytes a row in memory; needs the space of the new segment on the disk
        beside the old ones, which stay readable for those who have them open.

        Raises:
            OutputMismatchError: another process is writing.
        """
        with self._writing():
            if len(self._segments) > 1 or self._manifest.tombstones:
                parts = [Part(segment, np.flatnonzero(~segment.deleted)) for segment in self._segments]
                bare = replace(self._manifest, segments={}, tombstones={}, files={})
                self._commit(_add_merged(self.folder, bare, parts))

    def slice(
        self,
        destination: str | Path,
        *,
        bounds_deg: Sequence[float] | None = None,
        paths: Sequence[str] | None = None,
    ) -> "ReferenceDatabase":
        """Copy the rows of a region into a new database; they keep their ids.

        Args:
            destination: a new or empty folder; a kill leaves it whole or absent.
            bounds_deg: south, west, north, east. Half-open like cells, so boxes that tile the Earth share no
                row: a row on the northern or eastern edge is outside, but +90 is inside of a box that ends
                there. West > east means that the box crosses the antimeridian.
            paths: of cells of the quadtree over the whole Earth, such as "0312", at any level.

        Raises:
            ConfigError: not exactly one of the two is given, or it makes no sense.
            OutputMismatchError: there is something at the destination.
        """
        chooses = _criterion(None, None, bounds_deg, paths, self._manifest.next_row_id)
        parts = [
            Part(segment, np.flatnonzero(chooses(segment) & ~segment.deleted)) for segment in self._segments
        ]
        return self._write_new(destination, parts, self._manifest.next_row_id)

    def copy_to(self, destination: str | Path) -> "ReferenceDatabase":
        """Copy what is shown here into a new folder, byte for byte; a kill leaves it whole or absent.

        Raises:
            OutputMismatchError: there is something in the folder.
        """
        with _new_folder(Path(destination)) as temporary:
            for name in self._manifest.files:
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(safe_join(self.folder, name), target)
            (temporary / _LOCK).unlink()  # the first writer makes it; a checkpoint would list it
            self._manifest.write(temporary)
        return ReferenceDatabase.open(destination)

    def merge(self, other: "ReferenceDatabase", destination: str | Path) -> "ReferenceDatabase":
        """Write the rows of both databases into a new one.

        Rows from here keep their ids; those of `other` go up by our number of ids ever given. The names of
        shards stay behind: they belong to the job that fills one database.

        Raises:
            FingerprintMismatchError: the two were made with different models or quadtrees.
            ConfigError: their vectors differ in width or stored type.
            OutputMismatchError: there is something at the destination.
        """
        for what, here, there in (
            ("model", self.model_fingerprint, other.model_fingerprint),
            ("quadtree", self.quadtree_fingerprint, other.quadtree_fingerprint),
        ):
            if here != there:
                raise FingerprintMismatchError(
                    f"{self.folder} was made with the {what} {_short(here)}, and {other.folder} with "
                    f"{_short(there)}: only databases of one {what} can be merged; build one of them anew"
                )
        if self.vector_format != other.vector_format:
            raise ConfigError(
                f"{self.folder} holds {self.vector_format}, and {other.folder} {other.vector_format}: build "
                "one of them anew to merge them"
            )
        offset = self._manifest.next_row_id
        parts = [
            Part(segment, np.flatnonzero(~segment.deleted), row_id_offset)
            for database, row_id_offset in ((self, 0), (other, offset))
            for segment in database._segments
        ]
        return self._write_new(destination, parts, offset + other._manifest.next_row_id)

    def _write_new(
        self, destination: str | Path, parts: Sequence[Part], next_row_id: int
    ) -> "ReferenceDatabase":
        like = self._manifest
        manifest = _Manifest(like.dim, like.dtype, like.model_fingerprint, like.quadtree_fingerprint)
        with _new_folder(Path(destination)) as temporary:
            manifest = _add_merged(temporary, manifest, parts)
            replace(manifest, next_row_id=next_row_id).write(temporary)
        return ReferenceDatabase.open(destination)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Be the only writer, on what is on the disk now; leave nothing behind that no manifest lists."""
        with _writer_lock(self.folder):
            self.refresh()
            _remove_leftovers(self.folder)
            try:
                yield
            finally:
                _remove_leftovers(self.folder)

    def _commit(self, manifest: _Manifest) -> None:
        if manifest != self._manifest:
            replace(manifest, version=self._manifest.version + 1).write(self.folder)
            self.refresh()


# --- Reading a folder -------------------------------------------------------------------------------------


def _load(
    folder: Path, known: _Manifest | None = None, open_segments: Sequence[Segment] = ()
) -> tuple[_Manifest, tuple[Segment, ...]]:
    """The manifest and its segments; those that are open already stay so."""
    manifest = _Manifest.read(folder)
    while True:
        try:
            return manifest, _open_segments(folder, manifest, known, open_segments)
        except IntegrityError:
            # A writer may have compacted away what we were about to open; then there is a newer manifest.
            newer = _Manifest.read(folder)
            if newer == manifest:
                raise
            manifest = newer


def _open_segments(
    folder: Path, manifest: _Manifest, known: _Manifest | None, open_segments: Sequence[Segment]
) -> tuple[Segment, ...]:
    deleted = _read_tombstones(folder, manifest)
    reusable = {segment.name: segment for segment in open_segments}
    segments = []
    for name in sorted(manifest.segments, key=int):
        files = [f"{_SEGMENTS}/{name}/{file}" for file in (ROWS_NAME, EMBEDDINGS_NAME)]
        positions = deleted.get(name)
        if known and name in reusable and all(manifest.files[f] == known.files.get(f) for f in files):
            segments.append(reusable[name].with_deleted(positions))
            continue
        for file in files:
            _check_size(folder, manifest, file)
        segments.append(
            open_segment(
                folder / _SEGMENTS / name, name, manifest.vector_format, manifest.segments[name], positions
            )
        )
    return tuple(segments)


def _read_tombstones(folder: Path, manifest: _Manifest) -> dict[str, NDArray[np.int64]]:
    """Segment name -> places of its deleted rows. All of the file is needed, so all of it is checked."""
    name = manifest.tombstones_name
    if name is None:
        return {}
    path = _check_size(folder, manifest, name)
    positions, mapped = map_tensors(path, manifest.tombstone_tensors())
    _check_digest(folder, manifest, name, sha256(mapped).hexdigest())
    for segment, places in positions.items():
        if places[0] < 0 or places[-1] >= manifest.segments[segment] or (np.diff(places) <= 0).any():
            raise IntegrityError(f"{path} names rows that segment {segment} does not have: {_REMEDY}")
    return positions


def _check_size(folder: Path, manifest: _Manifest, name: str) -> Path:
    path = safe_join(folder, name)
    try:
        size = path.stat().st_size
    except OSError:
        raise IntegrityError(f"{path} is missing, but the manifest lists it: {_REMEDY}") from None
    if size != (promised := manifest.files[name]["bytes"]):
        raise IntegrityError(f"{path} has {size} bytes, but its manifest promises {promised}: {_REMEDY}")
    return path


def _check_digest(folder: Path, manifest: _Manifest, name: str, digest: str) -> None:
    if digest != (promised := manifest.files[name]["sha256"]):
        raise IntegrityError(
            f"{folder / name} has sha256 {digest[:12]}…, but its manifest promises {promised[:12]}…: "
            f"{_REMEDY}"
        )


def _short(fingerprint: str | None) -> str:
    return (
        "none" if fingerprint is None else fingerprint if len(fingerprint) <= 16 else f"{fingerprint[:12]}…"
    )


# --- Writing into a folder --------------------------------------------------------------------------------


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to build a database in, which takes its name when the block ends well."""
    _refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replace_folder(folder) as temporary:
        (temporary / _SEGMENTS).mkdir()
        (temporary / _TOMBSTONES).mkdir()
        (temporary / _LOCK).touch()
        yield temporary
        _refuse_existing(folder)  # again: the block may have run for hours


def _refuse_existing(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputMismatchError(
            f"{folder} exists and is not empty: open the database that is there, or choose another folder"
        )


@contextmanager
def _writer_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a database; it ends with the process, so no dead one can hold it."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputMismatchError(
                f"another process is writing to {folder}, and a database takes one writer at a time: wait "
                "for it, or build a database of your own and merge the two"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """Remove what no manifest lists: work of killed writers, and what a change has replaced."""
    # From the disk: if a commit has failed after its rename, what it lists is not ours to remove.
    manifest = _Manifest.read(folder)
    kept = {Path(name).parts[1] for name in manifest.files}
    for parent in (folder / _SEGMENTS, folder / _TOMBSTONES):
        parent.mkdir(exist_ok=True)
        for path in sorted(parent.iterdir()):
            if path.name not in kept and _OURS.fullmatch(path.name):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _collect(
    batches: Iterable[tuple[ReferenceRows, ArrayLike]],
    vector_format: VectorFormat,
    next_row_id: int,
    limit: int,
) -> Iterator[Block]:
    """Rows as they come, numbered and encoded, in blocks of `limit` rows; the last has what is left."""
    pieces: list[Block] = []
    room = limit
    for rows, vectors in batches:
        given = np.asarray(vectors)
        if given.shape != (len(rows), vector_format.dim):
            raise ConfigError(
                f"vectors have shape {given.shape}, and {len(rows)} rows of this database need "
                f"({len(rows)}, {vector_format.dim}): give one vector for each row, of the model that "
                "it was made for"
            )
        start = 0
        while start < len(rows):
            stop = min(start + min(_PIECE_ROWS, room), len(rows))
            stored, scales = vector_format.encode(given[start:stop])
            pieces.append(Block(rows.to_table(start, stop, first_row_id=next_row_id), stored, scales))
            next_row_id, room, start = next_row_id + stop - start, room - (stop - start), stop
            if room == 0:
                yield _joined(pieces)
                pieces, room = [], limit
    if pieces:
        yield _joined(pieces)


def _joined(pieces: list[Block]) -> Block:
    return Block(
        pa.concat_tables([piece.rows for piece in pieces]),
        np.concatenate([piece.vectors for piece in pieces]),
        np.concatenate([piece.scales for piece in pieces]),
    )


def _add_merged(folder: Path, manifest: _Manifest, parts: Sequence[Part]) -> _Manifest:
    parts = [part for part in parts if len(part.positions)]
    num_rows = sum(len(part.positions) for part in parts)
    return _add_segment(folder, manifest, num_rows, merged_blocks(parts)) if num_rows else manifest


def _add_segment(folder: Path, manifest: _Manifest, num_rows: int, blocks: Iterable[Block]) -> _Manifest:
    """Write a segment, and return the manifest that would make it visible."""
    name = f"{manifest.next_segment:04d}"
    path = folder / _SEGMENTS / name
    with replace_folder(path) as temporary:
        write_segment(temporary, manifest.vector_format, num_rows, blocks)
    files = {f"{_SEGMENTS}/{name}/{file}": _describe(path / file) for file in (ROWS_NAME, EMBEDDINGS_NAME)}
    return replace(
        manifest,
        next_segment=manifest.next_segment + 1,
        segments={**manifest.segments, name: num_rows},
        files={**manifest.files, **files},
    )


def _with_tombstones(folder: Path, manifest: _Manifest, deleted: Mapping[str, IntArray]) -> _Manifest:
    """Write the tombstones of all deleted rows, and return the manifest that would make them visible."""
    files = {name: entry for name, entry in manifest.files.items() if name != manifest.tombstones_name}
    manifest = replace(manifest, tombstones={name: len(places) for name, places in deleted.items()})
    name = f"{_TOMBSTONES}/{manifest.version + 1:04d}.safetensors"
    tensors = manifest.tombstone_tensors()
    with atomic_write(folder / name, "wb") as file:
        file.write(tensor_header(tensors))
        for segment in tensors:
            file.write(deleted[segment].data)
    return replace(manifest, files={**files, name: _describe(folder / name)})


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


# --- Choosing rows ----------------------------------------------------------------------------------------


def _criterion(
    row_ids: ArrayLike | None,
    keys: Iterable[str] | None,
    bounds_deg: Sequence[float] | None,
    paths: Sequence[str] | None,
    next_row_id: int,
) -> Callable[[Segment], NDArray[np.bool_]]:
    """A function that marks the rows of a segment that the one given criterion names."""
    given = [value for value in (row_ids, keys, bounds_deg, paths) if value is not None]
    if len(given) != 1:
        raise ConfigError(
            f"say in one way which rows are meant, by ids, keys, bounds or paths; found {len(given)}"
        )
    if row_ids is not None:
        ids = np.asarray(row_ids, dtype=np.int64).ravel()
        if len(ids) and not 0 <= ids.min() <= ids.max() < next_row_id:
            bad = ids[(ids < 0) | (ids >= next_row_id)][0]
            raise NotFoundError(f"there is no row {bad}: the ids given so far are 0 to {next_row_id - 1}")
        return lambda segment: np.isin(segment.row_id, ids)
    if keys is not None:
        if isinstance(keys, str):
            raise ConfigError(f"keys is the one text {keys!r}; give a list")
        names = pa.array(list(keys), pa.string())
        return lambda segment: np.concatenate(
            [pc.is_in(column, value_set=names).to_numpy() for column in segment.column("key")]
        )
    if paths is not None:
        if isinstance(paths, str):
            raise ConfigError(f"paths is the one text {paths!r}; give a list")
        starts, depths = parse_paths(paths)
        ranges = np.stack([starts, starts + (np.int64(1) << 2 * (MAX_DEPTH - depths))], axis=1)
        return lambda segment: _in_slices(segment.num_rows, segment.positions_of(ranges))
    south, west, north, east = _checked_bounds(given[0])
    return lambda segment: _in_box(segment.latlon_deg, south, west, north, east)


def _in_slices(num_rows: int, slices: IntArray) -> NDArray[np.bool_]:
    mask = np.zeros(num_rows, dtype=np.bool_)
    for start, stop in slices.tolist():
        mask[start:stop] = True
    return mask


def _checked_bounds(bounds_deg: Any) -> tuple[float, float, float, float]:
    south, west, north, east = np.asarray(bounds_deg, dtype=np.float64).reshape(4).tolist()
    in_range = -90 <= south < north <= 90 and -180 <= west <= 180 and -180 <= east <= 180
    if not in_range or west == east:
        raise ConfigError(
            "bounds are south, west, north, east with south < north in [-90, 90] and two longitudes in "
            f"[-180, 180]; found {[south, west, north, east]}"
        )
    return south, west, north, east


def _in_box(
    latlon_deg: NDArray[np.float64], south: float, west: float, north: float, east: float
) -> NDArray[np.bool_]:
    latitude, longitude = latlon_deg[:, 0], latlon_deg[:, 1]
    above, below = latitude >= south, latitude < north if north < 90 else latitude <= north
    after, before = longitude >= west, longitude < east
    return above & below & (after & before if west < east else after | before)
