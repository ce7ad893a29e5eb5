"""Write segments and tombstones into the folder of a database; a manifest then makes them visible.

Readers see no change before that. Files that no manifest lists are removed by the next writer.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from geoloc.errors import ConfigError, OutputMismatchError
from geoloc.files import atomic_write, replace_folder, sha256_of
from geoloc.reference.manifest import SEGMENTS, TOMBSTONES, Manifest
from geoloc.reference.rows import ReferenceRows
from geoloc.reference.segments import (
    EMBEDDINGS_NAME,
    ROWS_NAME,
    Block,
    Part,
    VectorFormat,
    merged_blocks,
    tensor_header,
    write_segment,
)
from quadtree.morton import IntArray

LOCK: Final = ".lock"

_PIECE_ROWS: Final = 2**16  # rows that are encoded at once
# Files of writers in the two folders, finished or not.
_OURS: Final = re.compile(r"[0-9]{4,9}|[0-9]{4,9}\.safetensors|\.[0-9]{4,9}\..*(new|tmp|old)")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to build a database in, which takes its name when the block ends well."""
    _refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replace_folder(folder) as temporary:
        (temporary / SEGMENTS).mkdir()
        (temporary / TOMBSTONES).mkdir()
        (temporary / LOCK).touch()
        yield temporary
        _refuse_existing(folder)  # again: the block may have run for hours


def _refuse_existing(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputMismatchError(
            f"{folder} exists and is not empty: open the database that is there, or choose another folder"
        )


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold the writer's lock of a database; the lock ends with the process."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
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


def remove_leftovers(folder: Path) -> None:
    """Remove files that no manifest lists: of killed writers, and those that a change has replaced."""
    # From the disk: if a commit failed after its rename, the files that it lists must stay.
    manifest = Manifest.read(folder)
    kept = {Path(name).parts[1] for name in manifest.files}
    for parent in (folder / SEGMENTS, folder / TOMBSTONES):
        parent.mkdir(exist_ok=True)
        for path in sorted(parent.iterdir()):
            if path.name not in kept and _OURS.fullmatch(path.name):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def collect(
    batches: Iterable[tuple[ReferenceRows, ArrayLike]],
    vector_format: VectorFormat,
    next_row_id: int,
    limit: int,
) -> Iterator[Block]:
    """Rows of a stream, numbered and encoded, in blocks of `limit` rows; the last block has the rest."""
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


def add_merged(folder: Path, manifest: Manifest, parts: Sequence[Part]) -> Manifest:
    """Write parts of segments as one segment, if they have rows; returns the manifest that makes it visible."""
    parts = [part for part in parts if len(part.positions)]
    num_rows = sum(len(part.positions) for part in parts)
    return add_segment(folder, manifest, num_rows, merged_blocks(parts)) if num_rows else manifest


def add_segment(folder: Path, manifest: Manifest, num_rows: int, blocks: Iterable[Block]) -> Manifest:
    """Write a segment; returns the manifest that makes it visible."""
    name = f"{manifest.next_segment:04d}"
    path = folder / SEGMENTS / name
    with replace_folder(path) as temporary:
        write_segment(temporary, manifest.vector_format, num_rows, blocks)
    files = {f"{SEGMENTS}/{name}/{file}": _describe(path / file) for file in (ROWS_NAME, EMBEDDINGS_NAME)}
    return replace(
        manifest,
        next_segment=manifest.next_segment + 1,
        segments={**manifest.segments, name: num_rows},
        files={**manifest.files, **files},
    )


def with_tombstones(folder: Path, manifest: Manifest, deleted: Mapping[str, IntArray]) -> Manifest:
    """Write the tombstones of all deleted rows; returns the manifest that makes them visible."""
    files = {name: entry for name, entry in manifest.files.items() if name != manifest.tombstones_name}
    manifest = replace(manifest, tombstones={name: len(places) for name, places in deleted.items()})
    name = f"{TOMBSTONES}/{manifest.version + 1:04d}.safetensors"
    tensors = manifest.tombstone_tensors()
    with atomic_write(folder / name, "wb") as file:
        file.write(tensor_header(tensors))
        for segment in tensors:
            file.write(deleted[segment].data)
    return replace(manifest, files={**files, name: _describe(folder / name)})


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
