"""Facts of a database for people, and the check of all its bytes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geoloc.errors import IntegrityError
from geoloc.reference.manifest import REMEDY, SEGMENTS, Manifest
from geoloc.reference.opening import check_digest
from geoloc.reference.rows import SOURCES
from geoloc.reference.segments import Segment


def facts_of(folder: Path, manifest: Manifest, segments: Sequence[Segment]) -> dict[str, Any]:
    """Facts of a database as plain JSON values; counts licences, so it reads a part of every row."""
    sources, licences = np.zeros(len(SOURCES), dtype=np.int64), Counter[str]()
    for segment in segments:
        live = ~segment.deleted
        sources += np.bincount(segment.source[live], minlength=len(SOURCES))
        start = 0
        for column in segment.column("licence"):
            counted = pc.value_counts(column.filter(pa.array(live[start : start + len(column)])))
            licences.update({pair["values"]: pair["counts"] for pair in counted.to_pylist()})
            start += len(column)
    num_deleted = sum(segment.num_deleted for segment in segments)
    return {
        "folder": str(folder),
        "version": manifest.version,
        "dim": manifest.dim,
        "dtype": manifest.dtype,
        "model_fingerprint": manifest.model_fingerprint,
        "quadtree_fingerprint": manifest.quadtree_fingerprint,
        "num_rows": sum(segment.num_rows for segment in segments) - num_deleted,
        "num_deleted": num_deleted,
        "num_segments": len(segments),
        "num_shards": len(manifest.shards),
        "num_bytes": sum(entry["bytes"] for entry in manifest.files.values()),
        "rows_by_source": {name: int(n) for name, n in zip(SOURCES, sources, strict=True) if n},
        "rows_by_licence": dict(sorted(licences.items())),
    }


def check_contents(folder: Path, manifest: Manifest, segments: Sequence[Segment]) -> None:
    """Read everything and check it: checksums, order, agreement of files, row ids.

    Raises:
        IntegrityError: something is wrong; the message says what, where, and what to do.
    """
    for segment in segments:
        for name, digest in segment.digests().items():
            check_digest(folder, manifest, f"{SEGMENTS}/{segment.name}/{name}", digest)
        segment.check_contents()
    no_ids = np.zeros(0, dtype=np.int64)
    row_ids = np.sort(np.concatenate([no_ids, *(segment.row_id for segment in segments)]))
    twice = row_ids[1:][row_ids[1:] == row_ids[:-1]]
    if len(twice):
        raise IntegrityError(f"{folder} holds row id {twice[0]} twice: {REMEDY}")
    strange = row_ids[(row_ids < 0) | (row_ids >= manifest.next_row_id)]
    if len(strange):
        raise IntegrityError(f"{folder} holds row id {strange[0]}, which it never gave: {REMEDY}")
