"""Rows with embeddings on disk, in immutable segments that a manifest lists.

    refs/
      manifest.json                    the only file that changes, by one atomic rename
      segments/0000/rows.parquet       see `geoloc.reference.segments`
      segments/0000/embeddings.safetensors
      tombstones/0003.safetensors      positions of deleted rows: a tensor for each segment that has some
      .lock                            held by the writer while it writes

`append` adds segments, `delete` replaces the tombstones, `compact` merges all segments into one without them. Each
becomes visible when the manifest that lists its files takes its name; a process killed before that has changed nothing,
and what it left is removed by the next writer. A row keeps its id for ever. The manifest has the form of
`geoloc.files`, so `verify_manifest` works on the folder, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from geoloc.errors import ConfigError, FingerprintMismatchError, NotFoundError
from geoloc.files import safe_join
from geoloc.reference import inspecting, rewriting
from geoloc.reference.choosing import criterion
from geoloc.reference.manifest import Manifest, ModelOrigin
from geoloc.reference.opening import load
from geoloc.reference.rows import SCHEMA, ReferenceRows
from geoloc.reference.segments import Part, Segment, VectorFormat, to_arrow
from geoloc.reference.writing import LOCK, new_folder, remove_leftovers, writer_lock
from quadtree.morton import encode

if TYPE_CHECKING:
    from typing_extensions import Self

SORT_BYTES: Final = 2**29  # collected by an append before it sorts and writes a segment


class SegmentStore:
    """A snapshot of a database on disk: its state when it was opened, refreshed or last changed here.

    Any number of processes read while one writes; a second writer is refused. Files that a reader has open stay
    readable when a writer compacts them away. `ReferenceDatabase` adds the model.

    Attributes:
        folder: of the database.
    """

    def __init__(self, folder: Path, manifest: Manifest, segments: tuple[Segment, ...]) -> None:
        self.folder = folder
        self._manifest, self._segments = manifest, segments

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a database: maps its files, and checks the manifest, sizes and headers, but not all bytes.

        Use `verify` after a download. Each segment takes two file descriptors.

        Raises:
            NotFoundError: there is no such folder.
            IntegrityError: a file is missing or is not what the manifest says.
        """
        return cls(Path(folder), *load(Path(folder)))

    def refresh(self) -> bool:
        """Read the state on the disk again; returns whether it has changed."""
        before = self._manifest.version
        self._manifest, self._segments = load(self.folder, self._manifest, self._segments)
        return self._manifest.version != before

    def check_fingerprints(
        self, *, model: str | None = None, quadtree: str | None = None, model_name: str = ""
    ) -> None:
        """Check that a model or a quadtree is the one that this database was made with; None is not checked.

        Args:
            model: its embedding fingerprint.
            quadtree: its fingerprint.
            model_name: of the model, for the message.

        Raises:
            FingerprintMismatchError: it is another one. A database that is bound to no quadtree fits all.
        """
        origin = "" if self.model_origin is None else self.model_origin.name
        for what, here, there, names in (
            ("model", model, self.model_fingerprint, (model_name, origin)),
            ("quadtree", quadtree, self.quadtree_fingerprint, ("", "")),
        ):
            if here is not None and there is not None and here != there:
                given, made_with = (
                    f"{name} ({_short(digest)})" if name else _short(digest)
                    for name, digest in zip(names, (here, there), strict=True)
                )
                options = ", or give the options (--model-option) that it was built with" * (what == "model")
                raise FingerprintMismatchError(
                    f"{self.folder} was made with the {what} {made_with}, and {given} was to use "
                    f"it: take the database of that {what}, or build one with it{options}"
                )

    # --- Content -----------------------------------------------------------------------------------------------

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The open segments; the caller leaves out their deleted rows."""
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
        """Fingerprint of the model that embedded the references."""
        return self._manifest.model_fingerprint

    @property
    def model_origin(self) -> ModelOrigin | None:
        """How the model that embedded the references is loaded, if known."""
        return self._manifest.model

    @property
    def quadtree_fingerprint(self) -> str | None:
        """Fingerprint of the quadtree that the database is bound to, if it is."""
        return self._manifest.quadtree_fingerprint

    @property
    def identity(self) -> str:
        """Digest of the manifest: two databases with the same one hold the same rows and vectors."""
        return self._manifest.digest

    @property
    def version(self) -> int:
        """Number of the state; every change adds one."""
        return self._manifest.version

    @property
    def shards(self) -> dict[str, range]:
        """Row ids that each named append was given."""
        return {name: range(first, first + num) for name, (first, num) in self._manifest.shards.items()}

    def rows(
        self, row_ids: ArrayLike, latlon_deg: ArrayLike, columns: Sequence[str] = tuple(SCHEMA.names)
    ) -> Any:
        """Data of rows that a search has found: a pyarrow Table in their order.

        Args:
            row_ids: (m,) ids.
            latlon_deg: (m, 2) positions. Rows are sorted by Morton code and id, so both together find a row in a few
                steps, without an index of ids.
            columns: of `geoloc.reference.rows.SCHEMA`; the fewer, the faster.

        Raises:
            NotFoundError: a row is not here, or is deleted.
        """
        ids = np.asarray(row_ids, dtype=np.int64)
        codes = encode(np.asarray(latlon_deg, dtype=np.float64).reshape(-1, 2))
        is_missing = np.ones(len(ids), dtype=np.bool_)
        tables, places = [SCHEMA.empty_table().select(columns)], [np.zeros(0, np.int64)]
        for segment in self._segments:
            positions = segment.find(codes, ids)
            here = np.flatnonzero((positions >= 0) & ~segment.deleted[positions])
            is_missing[here] = False
            tables.append(segment.rows(positions[here], columns))
            places.append(here)
        if is_missing.any():
            raise NotFoundError(
                f"{self.folder} has no row {ids[is_missing][0]} at that location: it was deleted, or the "
                "ids come from another database"
            )
        back = np.argsort(np.concatenate(places))
        return pa.concat_tables(tables).combine_chunks().take(to_arrow(back))

    def __len__(self) -> int:
        """Number of rows, without the deleted ones."""
        return sum(segment.num_rows - segment.num_deleted for segment in self._segments)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({str(self.folder)!r}, {len(self)} rows of {self.dim} x "
            f"{self._manifest.dtype}, {len(self._segments)} segments, model {_short(self.model_fingerprint)})"
        )

    def info(self) -> dict[str, Any]:
        """Facts for people, as plain JSON values; it counts licences, so it reads a part of every row."""
        return inspecting.facts_of(self.folder, self._manifest, self._segments)

    def verify(self) -> None:
        """Read everything and check it: checksums, order, agreement of files, row ids.

        Raises:
            IntegrityError: something is wrong; the message says what, where, and what to do.
        """
        inspecting.check_contents(self.folder, self._manifest, self._segments)

    # --- Change -----------------------------------------------------------------------------------------------

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
            batches: rows with their vectors, (n, dim) finite numbers, stored as they are; a cosine search needs unit
                vectors. A memory-mapped array is read in pieces.
            shard: a name for these rows. If it was appended before, nothing is added, so that an interrupted job can
                repeat all of its shards.
            sort_bytes: memory of the rows that are sorted and written as one segment; sorting takes as much again.

        Returns:
            The ids of the rows in the order in which they came.

        Raises:
            ConfigError: vectors of another width or number, or not finite.
            OutputMismatchError: another process is writing.
        """
        with self._writing():
            if shard is not None and shard in self.shards:
                return self.shards[shard]
            manifest, row_ids = rewriting.appended(self.folder, self._manifest, batches, shard, sort_bytes)
            self._commit(manifest)
            return row_ids

    def delete(
        self,
        *,
        row_ids: ArrayLike | None = None,
        keys: Iterable[str] | None = None,
        bounds_deg: Sequence[float] | None = None,
        paths: Sequence[str] | None = None,
    ) -> int:
        """Delete the rows that one criterion chooses; readers that open or refresh from now on do not see them.

        The bytes stay until `compact`. Deleting a row again is not an error.

        Args:
            row_ids: (m,) ids.
            keys: all rows with one of these keys.
            bounds_deg: all rows in the box south, west, north, east, see `slice`.
            paths: all rows in cells of the quadtree over the whole Earth, such as "0312", at any level.

        Returns:
            Number of rows deleted.

        Raises:
            NotFoundError: a row id was never given.
            ConfigError: not exactly one criterion is given, or it is invalid.
            OutputMismatchError: another process is writing.
        """
        with self._writing():
            chooses = criterion(row_ids, keys, bounds_deg, paths, self._manifest.next_row_id)
            manifest, num_deleted = rewriting.with_deleted(
                self.folder, self._manifest, self._segments, chooses
            )
            self._commit(manifest)
            return num_deleted

    def compact(self, *, segment_rows: int | None = None) -> None:
        """Merge all segments into one, without the deleted rows.

        Row ids stay. Takes about 50 bytes a row in memory, and the space of the new segments on the disk beside the old
        ones, which stay readable for processes that have them open.

        Args:
            segment_rows: make several segments of about so many rows that follow each other along the Z-curve, so that
                a region can be pulled from the Hub alone; rows of one location stay together.

        Raises:
            ConfigError: segment_rows is not positive.
            OutputMismatchError: another process is writing.
        """
        with self._writing():
            self._commit(rewriting.compacted(self.folder, self._manifest, self._segments, segment_rows))

    def slice(
        self,
        destination: str | Path,
        *,
        bounds_deg: Sequence[float] | None = None,
        paths: Sequence[str] | None = None,
    ) -> Self:
        """Copy the rows of a region into a new database; they keep their ids.

        Args:
            destination: a new or empty folder; a kill leaves it whole or absent.
            bounds_deg: south, west, north, east. Half-open like cells, so boxes that tile the Earth share no
                row: a row on the northern or eastern edge is outside, but +90 is inside of a box that ends
                there. West > east means that the box crosses the antimeridian.
            paths: of cells of the quadtree over the whole Earth, such as "0312", at any level.

        Raises:
            ConfigError: not exactly one of the two is given, or it is invalid.
            OutputMismatchError: the destination exists and is not empty.
        """
        chooses = criterion(None, None, bounds_deg, paths, self._manifest.next_row_id)
        rewriting.write_chosen(Path(destination), self._manifest, self._segments, chooses)
        return type(self).open(destination)

    def copy_to(self, destination: str | Path) -> Self:
        """Copy this state into a new folder, byte for byte; a kill leaves it whole or absent.

        Raises:
            OutputMismatchError: the folder is not empty.
        """
        with new_folder(Path(destination)) as temporary:
            for name in self._manifest.files:
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(safe_join(self.folder, name), target)
            (
                temporary / LOCK
            ).unlink()  # the first writer makes it; the manifest of a checkpoint would list it
            self._manifest.write(temporary)
        return type(self).open(destination)

    def merge(self, other: SegmentStore, destination: str | Path) -> Self:
        """Write the rows of both databases into a new one.

        Rows of this database keep their ids; those of `other` go up by the number of ids given here. Names of shards
        are not
        copied: they belong to the job that fills one database.

        Raises:
            FingerprintMismatchError: the two were made with different models or quadtrees.
            ConfigError: their vectors differ in width or stored type.
            OutputMismatchError: the destination exists and is not empty.
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
        next_row_id = offset + other._manifest.next_row_id
        rewriting.write_parts(Path(destination), self._manifest, parts, next_row_id)
        return type(self).open(destination)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the writer's lock on the current state; files that no manifest lists are removed."""
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
