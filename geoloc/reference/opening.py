"""Open the files of a manifest: sizes and headers are checked, and the bytes of the files that are read at once."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geoloc.errors import IntegrityError
from geoloc.files import safe_join
from geoloc.reference.manifest import REMEDY, SEGMENTS, Manifest
from geoloc.reference.segments import EMBEDDINGS_NAME, ROWS_NAME, Segment, map_tensors, open_segment


def load(
    folder: Path, known: Manifest | None = None, open_segments: Sequence[Segment] = ()
) -> tuple[Manifest, tuple[Segment, ...]]:
    """The manifest and its segments; segments that are open already are reused."""
    manifest = Manifest.read(folder)
    while True:
        try:
            return manifest, open_some(folder, manifest, manifest.segments, known, open_segments)
        except IntegrityError:
            # A writer may have compacted away what we were about to open; then there is a newer manifest.
            newer = Manifest.read(folder)
            if newer == manifest:
                raise
            manifest = newer


def open_some(
    folder: Path,
    manifest: Manifest,
    names: Iterable[str],
    known: Manifest | None = None,
    open_segments: Sequence[Segment] = (),
) -> tuple[Segment, ...]:
    """Segments of a manifest by their names; the files of the others need not exist."""
    deleted = read_tombstones(folder, manifest)
    reusable = {segment.name: segment for segment in open_segments}
    segments = []
    for name in sorted(names, key=int):
        files = [f"{SEGMENTS}/{name}/{file}" for file in (ROWS_NAME, EMBEDDINGS_NAME)]
        positions = deleted.get(name)
        if known and name in reusable and all(manifest.files[f] == known.files.get(f) for f in files):
            segments.append(reusable[name].with_deleted(positions))
            continue
        for file in files:
            _check_size(folder, manifest, file)
        segments.append(
            open_segment(
                folder / SEGMENTS / name, name, manifest.vector_format, manifest.segments[name], positions
            )
        )
    return tuple(segments)


def read_tombstones(folder: Path, manifest: Manifest) -> dict[str, NDArray[np.int64]]:
    """Segment name -> positions of its deleted rows; the whole file is checked."""
    name = manifest.tombstones_name
    if name is None:
        return {}
    path = _check_size(folder, manifest, name)
    positions, mapped = map_tensors(path, manifest.tombstone_tensors())
    check_digest(folder, manifest, name, sha256(mapped).hexdigest())
    for segment, places in positions.items():
        if places[0] < 0 or places[-1] >= manifest.segments[segment] or (np.diff(places) <= 0).any():
            raise IntegrityError(f"{path} names rows that segment {segment} does not have: {REMEDY}")
    return positions


def _check_size(folder: Path, manifest: Manifest, name: str) -> Path:
    path = safe_join(folder, name)
    try:
        size = path.stat().st_size
    except OSError:
        raise IntegrityError(f"{path} is missing, but the manifest lists it: {REMEDY}") from None
    if size != (promised := manifest.files[name]["bytes"]):
        raise IntegrityError(f"{path} has {size} bytes, but its manifest promises {promised}: {REMEDY}")
    return path


def check_digest(folder: Path, manifest: Manifest, name: str, digest: str) -> None:
    """Refuse a file whose bytes have another digest than the manifest promises."""
    if digest != (promised := manifest.files[name]["sha256"]):
        raise IntegrityError(
            f"{folder / name} has sha256 {digest[:12]}…, but its manifest promises {promised[:12]}…: {REMEDY}"
        )
