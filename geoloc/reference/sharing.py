"""Push a database to the Hugging Face Hub and pull it from there, whole or by region.

A region brings the `rows.parquet` of all segments, which state where the rows are, and the vectors, some ten times as
large, of those segments only that have rows there. So a large database is cut along the Z-curve before it is published,
`compact(segment_rows=…)`; a single segment comes as a whole.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geoloc.files import replace_folder
from geoloc.hub.card import database_card
from geoloc.hub.pull import pull
from geoloc.hub.push import Pushed, PushOptions, push
from geoloc.hub.repository import Published, find, read
from geoloc.reference.choosing import criterion
from geoloc.reference.manifest import SEGMENTS, Manifest
from geoloc.reference.opening import open_some, read_tombstones
from geoloc.reference.segments import ROWS_NAME, open_rows
from geoloc.reference.store import SegmentStore
from geoloc.reference.writing import LOCK

_SOURCE, _CUT = "source", "cut"  # folders while a region is received


def push_database(
    folder: Path, info: Mapping[str, Any], repo_id: str, licence: str, options: PushOptions
) -> Pushed:
    """See `ReferenceDatabase.push_to_hub`; `info` are the facts of the database."""
    sources = ", ".join(f"{num:,} {source}" for source, num in info["rows_by_source"].items())
    facts = {
        "references": f"{info['num_rows']:,} ({sources or 'none'}) in {info['num_segments']} segments",
        "vectors": f"{info['dim']} x {info['dtype']}",
        "embedded by": f"the model {info['model_fingerprint'][:12]}; queries of another one are refused",
        "bound to": f"the quadtree {(info['quadtree_fingerprint'] or 'none')[:12]}",
    }
    card = database_card(repo_id, facts, info["rows_by_licence"], licence)
    return push(folder, repo_id, "dataset", card, options)


def pull_database(
    repo_id: str,
    folder: Path,
    revision: str | None,
    bounds_deg: Sequence[float] | None,
    paths: Sequence[str] | None,
    model_fingerprint: str | None,
) -> None:
    """See `ReferenceDatabase.from_hub`."""
    found = find(repo_id, "dataset", revision)
    published = read(found)
    manifest = Manifest.of(published.manifest, str(found))
    SegmentStore(folder, manifest, ()).check_fingerprints(model=model_fingerprint)  # before a byte comes
    if bounds_deg is None and paths is None:
        pull(published, folder, lambda fresh: SegmentStore.open(fresh).verify())
    else:
        criterion(None, None, bounds_deg, paths, manifest.next_row_id)  # refuses nonsense before a byte comes
        _pull_region(published, manifest, folder, bounds_deg, paths)


def _pull_region(
    published: Published,
    manifest: Manifest,
    folder: Path,
    bounds_deg: Sequence[float] | None,
    paths: Sequence[str] | None,
) -> None:
    with replace_folder(folder, resume=True) as fresh:
        source, cut = fresh / _SOURCE, fresh / _CUT
        for path in fresh.iterdir():
            if path != source:  # of a process that was killed while it cut
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        source.mkdir(exist_ok=True)
        tombstones = [] if manifest.tombstones_name is None else [manifest.tombstones_name]
        rows = [f"{SEGMENTS}/{name}/{ROWS_NAME}" for name in manifest.segments]
        published.fetch(source, [*rows, *tombstones])
        needed = _segments_there(source, manifest, bounds_deg, paths)
        published.fetch(source, [file for file in manifest.files if Path(file).parts[1] in needed])
        received = SegmentStore(source, manifest, open_some(source, manifest, needed))
        received.slice(cut, bounds_deg=bounds_deg, paths=paths).verify()
        (cut / LOCK).unlink()  # the first writer makes it; a later pull would take it for someone else's
        for path in list(cut.iterdir()):
            path.rename(fresh / path.name)
        cut.rmdir()
        shutil.rmtree(source)


def _segments_there(
    source: Path, manifest: Manifest, bounds_deg: Sequence[float] | None, paths: Sequence[str] | None
) -> set[str]:
    """The segments that have rows in a region."""
    chooses = criterion(None, None, bounds_deg, paths, manifest.next_row_id)
    deleted = read_tombstones(source, manifest)
    needed = set()
    for name, num_rows in manifest.segments.items():
        places = open_rows(
            source / SEGMENTS / name, name, manifest.vector_format, num_rows, deleted.get(name)
        )
        if (chooses(places) & ~places.deleted).any():
            needed.add(name)
    return needed
