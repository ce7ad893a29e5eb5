"""New manifests and databases from open segments: appended, deleted, compacted, sliced and merged rows.

Functions of a folder, its manifest and its open segments. They write new files and return the manifest that would make
them visible; the caller holds the writer's lock and commits it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from geoloc.errors import ConfigError
from geoloc.reference.choosing import Criterion
from geoloc.reference.manifest import Manifest
from geoloc.reference.rows import ReferenceRows
from geoloc.reference.segments import Part, Segment, sorted_blocks
from geoloc.reference.writing import add_merged, add_segment, collect, new_folder, with_tombstones
from quadtree.morton import IntArray

_ROW_BYTES: Final = (
    256  # estimate of a row's size in memory beside its vector: texts, and an order to sort it by
)
_NO_CODES: Final = np.zeros(0, dtype=np.uint64)


def appended(
    folder: Path,
    manifest: Manifest,
    batches: Iterable[tuple[ReferenceRows, ArrayLike]],
    shard: str | None,
    sort_bytes: int,
) -> tuple[Manifest, range]:
    """The manifest with the rows of a stream in new segments, and the ids of these rows."""
    first = next_row_id = manifest.next_row_id
    limit = max(1, sort_bytes // (manifest.vector_format.bytes_per_row + _ROW_BYTES))
    for collected in collect(batches, manifest.vector_format, next_row_id, limit):
        num_rows = collected.rows.num_rows
        manifest = add_segment(folder, manifest, num_rows, sorted_blocks(collected))
        next_row_id += num_rows
    row_ids = range(first, next_row_id)
    if shard is not None:
        manifest = replace(manifest, shards={**manifest.shards, shard: (row_ids.start, len(row_ids))})
    return replace(manifest, next_row_id=next_row_id), row_ids


def with_deleted(
    folder: Path, manifest: Manifest, segments: Sequence[Segment], chooses: Criterion
) -> tuple[Manifest, int]:
    """The manifest without the chosen rows, and how many are newly deleted."""
    deleted: dict[str, IntArray] = {}
    for segment in segments:
        positions = np.flatnonzero(chooses(segment) | segment.deleted)
        if len(positions):
            deleted[segment.name] = positions
    num_deleted = sum(map(len, deleted.values())) - sum(manifest.tombstones.values())
    return (with_tombstones(folder, manifest, deleted) if num_deleted else manifest), num_deleted


def compacted(
    folder: Path, manifest: Manifest, segments: Sequence[Segment], segment_rows: int | None
) -> Manifest:
    """The manifest with all live rows in new segments; the given one where nothing would change.

    Raises:
        ConfigError: segment_rows is not positive.
    """
    if segment_rows is not None and segment_rows < 1:
        raise ConfigError(f"segment_rows is {segment_rows}; a segment has at least one row")
    live = [np.flatnonzero(~segment.deleted) for segment in segments]
    codes = np.concatenate([_NO_CODES, *(s.morton[rows] for s, rows in zip(segments, live, strict=True))])
    codes.sort()
    firsts = np.unique(codes[:: segment_rows or max(len(codes), 1)])
    lasts = codes[np.searchsorted(codes, firsts[1:]) - 1].tolist() + codes[-1:].tolist()
    ranges = list(zip(firsts.tolist(), lasts, strict=True))
    present = [(int(segment.morton[0]), int(segment.morton[-1])) for segment in segments]
    if not manifest.tombstones and ranges == present:
        return manifest
    manifest = replace(manifest, segments={}, tombstones={}, files={})
    for first, last in ranges:
        edges = np.array([first, last + 1], dtype=np.uint64)
        parts = [
            Part(segment, rows[slice(*np.searchsorted(segment.morton[rows], edges))])
            for segment, rows in zip(segments, live, strict=True)
        ]
        manifest = add_merged(folder, manifest, parts)
    return manifest


def write_chosen(
    destination: Path, manifest: Manifest, segments: Sequence[Segment], chooses: Criterion
) -> None:
    """Write the live rows that a criterion chooses as a new database; they keep their ids.

    Raises:
        OutputMismatchError: the destination exists and is not empty.
    """
    parts = [Part(segment, np.flatnonzero(chooses(segment) & ~segment.deleted)) for segment in segments]
    write_parts(destination, manifest, parts, manifest.next_row_id)


def write_parts(destination: Path, like: Manifest, parts: Sequence[Part], next_row_id: int) -> None:
    """Write parts of segments as a new database of the same model and format.

    Raises:
        OutputMismatchError: the destination exists and is not empty.
    """
    manifest = Manifest(
        like.dim, like.dtype, like.model_fingerprint, like.quadtree_fingerprint, model=like.model
    )
    with new_folder(destination) as temporary:
        manifest = add_merged(temporary, manifest, parts)
        replace(manifest, next_row_id=next_row_id).write(temporary)
