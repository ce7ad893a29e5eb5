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

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from geoloc.errors import ConfigError, FingerprintMismatchError, IntegrityError, NotFoundError
from geoloc.files import safe_join
from geoloc.reference.adding import Adding
from geoloc.reference.choosing import criterion
from geoloc.reference.embedder import ReferenceEmbedder
from geoloc.reference.manifest import REMEDY, SEGMENTS, Manifest
from geoloc.reference.opening import check_digest, load
from geoloc.reference.rows import SCHEMA, SOURCES, ReferenceRows
from geoloc.reference.segments import Dtype, Part, Segment, VectorFormat, sorted_blocks, to_arrow
from geoloc.reference.sharing import Sharing
from geoloc.reference.writing import (
    LOCK,
    add_merged,
    add_segment,
    collect,
    new_folder,
    remove_leftovers,
    with_tombstones,
    writer_lock,
)
from quadtree.morton import IntArray, encode

SORT_BYTES: Final = 2**29  # what an append collects before it sorts and writes a segment

# A guess at a row's size in memory beside its vector: texts, and an order to sort it by.
_ROW_BYTES: Final = 256
_NO_IDS: Final = np.zeros(0, dtype=np.int64)
_NO_CODES: Final = np.zeros(0, dtype=np.uint64)


class ReferenceDatabase(Adding, Sharing):
    """A snapshot of a database on disk: what was there when it was opened, refreshed or last changed here.

    Any number of processes read while one writes; a second writer is refused. What a reader has open stays
    readable when a writer compacts it away. Made by `create` and `open`.

    Attributes:
        folder: where it is.
    """

    def __init__(self, folder: Path, manifest: Manifest, segments: tuple[Segment, ...]) -> None:
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
        manifest = Manifest(vector_format.dim, vector_format.dtype, model_fingerprint, quadtree_fingerprint)
        with new_folder(Path(folder)) as temporary:
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
        database = ReferenceDatabase(folder, *load(folder))
        database.check_fingerprints(model=model_fingerprint, quadtree=quadtree_fingerprint)
        if model is not None:
            database.check_fingerprints(model=model.embedding_fingerprint)
            database.model = model
        return database

    def refresh(self) -> bool:
        """Show what is on the disk now; whether that is something new."""
        before = self._manifest.version
        self._manifest, self._segments = load(self.folder, self._manifest, self._segments)
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
                so_said = ", or say the options (--model-option) that it was built with" * (what == "model")
                raise FingerprintMismatchError(
                    f"{self.folder} was made with the {what} {_short(there)}, and {_short(here)} was to use "
                    f"it: take the database of that {what}, or build one with it{so_said}"
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
                check_digest(self.folder, self._manifest, f"{SEGMENTS}/{segment.name}/{name}", digest)
            segment.check_contents()
        row_ids = np.sort(np.concatenate([_NO_IDS, *(segment.row_id for segment in self._segments)]))
        twice = row_ids[1:][row_ids[1:] == row_ids[:-1]]
        if len(twice):
            raise IntegrityError(f"{self.folder} holds row id {twice[0]} twice: {REMEDY}")
        strange = row_ids[(row_ids < 0) | (row_ids >= self._manifest.next_row_id)]
        if len(strange):
            raise IntegrityError(f"{self.folder} holds row id {strange[0]}, which it never gave: {REMEDY}")

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
            for collected in collect(batches, self.vector_format, next_row_id, limit):
                num_rows = collected.rows.num_rows
                manifest = add_segment(self.folder, manifest, num_rows, sorted_blocks(collected))
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
            chooses = criterion(row_ids, keys, bounds_deg, paths, self._manifest.next_row_id)
            deleted: dict[str, IntArray] = {}
            for segment in self._segments:
                positions = np.flatnonzero(chooses(segment) | segment.deleted)
                if len(positions):
                    deleted[segment.name] = positions
            num_deleted = sum(map(len, deleted.values())) - sum(self._manifest.tombstones.values())
            if num_deleted:
                self._commit(with_tombstones(self.folder, self._manifest, deleted))
            return num_deleted

    def compact(self, *, segment_rows: int | None = None) -> None:
        """Merge all segments into one, without the deleted rows; does nothing where there is nothing to do.

        Row ids stay. Holds about 50 bytes a row in memory; needs the space of the new segments on the disk
        beside the old ones, which stay readable for those who have them open.

        Args:
            segment_rows: make several segments of about so many rows that follow each other along the Z-curve,
                so that a region can be pulled from the Hub without the rest; rows of one place stay together.

        Raises:
            ConfigError: segment_rows is not positive.
            OutputMismatchError: another process is writing.
        """
        if segment_rows is not None and segment_rows < 1:
            raise ConfigError(f"segment_rows is {segment_rows}; a segment has at least one row")
        with self._writing():
            live = [np.flatnonzero(~segment.deleted) for segment in self._segments]
            codes = np.sort(
                np.concatenate(
                    [_NO_CODES, *(s.morton[rows] for s, rows in zip(self._segments, live, strict=True))]
                )
            )
            firsts = np.unique(codes[:: segment_rows or max(len(codes), 1)])
            lasts = codes[np.searchsorted(codes, firsts[1:]) - 1].tolist() + codes[-1:].tolist()
            ranges = list(zip(firsts.tolist(), lasts, strict=True))
            if not self._manifest.tombstones and ranges == [
                (int(segment.morton[0]), int(segment.morton[-1])) for segment in self._segments
            ]:
                return
            manifest = replace(self._manifest, segments={}, tombstones={}, files={})
            for first, last in ranges:
                edges = np.array([first, last + 1], dtype=np.uint64)
                parts = [
                    Part(segment, rows[slice(*np.searchsorted(segment.morton[rows], edges))])
                    for segment, rows in zip(self._segments, live, strict=True)
                ]
                manifest = add_merged(self.folder, manifest, parts)
            self._commit(manifest)

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
        chooses = criterion(None, None, bounds_deg, paths, self._manifest.next_row_id)
        parts = [
            Part(segment, np.flatnonzero(chooses(segment) & ~segment.deleted)) for segment in self._segments
        ]
        return self._write_new(destination, parts, self._manifest.next_row_id)

    def copy_to(self, destination: str | Path) -> "ReferenceDatabase":
        """Copy what is shown here into a new folder, byte for byte; a kill leaves it whole or absent.

        Raises:
            OutputMismatchError: there is something in the folder.
        """
        with new_folder(Path(destination)) as temporary:
            for name in self._manifest.files:
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(safe_join(self.folder, name), target)
            (temporary / LOCK).unlink()  # the first writer makes it; a checkpoint would list it
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
        manifest = Manifest(like.dim, like.dtype, like.model_fingerprint, like.quadtree_fingerprint)
        with new_folder(Path(destination)) as temporary:
            manifest = add_merged(temporary, manifest, parts)
            replace(manifest, next_row_id=next_row_id).write(temporary)
        return ReferenceDatabase.open(destination)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Be the only writer, on what is on the disk now; leave nothing behind that no manifest lists."""
        with writer_lock(self.folder):
            self.refresh()
            remove_leftovers(self.folder)
            try:
                yield
            finally:
                remove_leftovers(self.folder)

    def _commit(self, manifest: Manifest) -> None:
        if manifest != self._manifest:
            replace(manifest, version=self._manifest.version + 1).write(self.folder)
            self.refresh()


def _short(fingerprint: str | None) -> str:
    return (
        "none" if fingerprint is None else fingerprint if len(fingerprint) <= 16 else f"{fingerprint[:12]}…"
    )
