"""How a database goes to the Hub and comes from it, whole or by region; a part of `ReferenceDatabase`.

A region brings the `rows.parquet` of all segments, which say where the rows are, and the vectors, some ten times as
large, of those segments only that have rows there. So whoever publishes a large database cuts it along the Z-curve
first, `compact(segment_rows=…)`; a single segment comes as a whole.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from geoloc.files import replace_folder
from geoloc.hub.card import database_card
from geoloc.hub.pull import pull
from geoloc.hub.push import Pushed, PushOptions, push
from geoloc.hub.repository import Published, find, read
from geoloc.reference.choosing import criterion
from geoloc.reference.manifest import SEGMENTS, Manifest
from geoloc.reference.opening import open_some, read_tombstones
from geoloc.reference.segments import ROWS_NAME, open_rows
from geoloc.reference.writing import LOCK

if TYPE_CHECKING:
    from geoloc.reference.database import ReferenceDatabase
    from geoloc.reference.embedder import ReferenceEmbedder

_SOURCE, _CUT = "source", "cut"  # folders while a region comes


class Sharing:
    """The methods that reach the Hub."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        licence: str = "unknown",
    ) -> Pushed:
        """Publish the database as a dataset on the Hugging Face Hub, in one commit; cut, it goes on when called again.

        Log in first: `hf auth login`.

        Args:
            repo_id: "org/name"; the repository is made if there is none.
            private: whether a repository that is made now is private; None leaves it to the account.
            revision: branch; it is made if there is none.
            create_pr: open a pull request instead of changing the branch.
            commit_message: None says what was pushed.
            licence: of the whole, by the Hub's names, such as "cc-by-4.0"; the card lists those of the rows, too.

        Returns:
            The commit, which `revision=` pins, and its address.

        Raises:
            ConfigError: a name that no repository can have.
            IntegrityError: a file differs from the manifest.
            NotFoundError: the Hub cannot be reached or does not let us.
            JobError: an upload was cut; the same call goes on.
        """
        database = cast("ReferenceDatabase", self)
        database.refresh()
        info = database.info()
        sources = ", ".join(f"{num:,} {source}" for source, num in info["rows_by_source"].items())
        facts = {
            "references": f"{info['num_rows']:,} ({sources or 'none'}) in {info['num_segments']} segments",
            "vectors": f"{info['dim']} x {info['dtype']}",
            "embedded by": f"the model {database.model_fingerprint[:12]}; another one's queries are refused",
            "bound to": f"the quadtree {(database.quadtree_fingerprint or 'none')[:12]}",
        }
        card = database_card(repo_id, facts, info["rows_by_licence"], licence)
        options = PushOptions(private, revision, create_pr, commit_message)
        return push(database.folder, repo_id, "dataset", card, options)

    @staticmethod
    def from_hub(
        repo_id: str,
        folder: str | Path,
        *,
        revision: str | None = None,
        bounds_deg: Sequence[float] | None = None,
        paths: Sequence[str] | None = None,
        model: "ReferenceEmbedder | None" = None,
    ) -> "ReferenceDatabase":
        """Bring a database from the Hub into a folder, verified, and open it; cut, it goes on when called again.

        Args:
            repo_id: "org/name", a dataset.
            folder: where to; an older state of the database there is replaced, and only what is new is received.
            revision: a branch, tag, commit or "refs/pr/N"; None is the main branch.
            bounds_deg: bring the rows in this box only, as `slice` takes it.
            paths: bring the rows in these cells of the quadtree over the whole Earth only, such as "0312".
            model: what embeds further references, as `open` takes it.

        Raises:
            NotFoundError: there is no such dataset, or the Hub cannot be reached.
            IntegrityError: it is no database of ours, or not what its manifest promises.
            FingerprintMismatchError: it was made with another model.
            ConfigError: a name or a region that is none.
            OutputMismatchError: the folder holds something else.
        """
        from geoloc.reference.database import ReferenceDatabase

        found = find(repo_id, "dataset", revision)
        published = read(found)
        manifest = Manifest.of(published.manifest, str(found))
        if model is not None:  # before a byte of it comes
            there = ReferenceDatabase(Path(folder), manifest, ())
            there.check_fingerprints(model=model.embedding_fingerprint)
        if bounds_deg is None and paths is None:
            pull(published, folder, lambda fresh: ReferenceDatabase.open(fresh).verify())
        else:
            criterion(
                None, None, bounds_deg, paths, manifest.next_row_id
            )  # refuses nonsense before a byte comes
            _pull_region(published, manifest, Path(folder), bounds_deg, paths)
        return ReferenceDatabase.open(folder, model=model)


def _pull_region(
    published: Published,
    manifest: Manifest,
    folder: Path,
    bounds_deg: Sequence[float] | None,
    paths: Sequence[str] | None,
) -> None:
    from geoloc.reference.database import ReferenceDatabase

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
        there = ReferenceDatabase(source, manifest, open_some(source, manifest, needed))
        there.slice(cut, bounds_deg=bounds_deg, paths=paths).verify()
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
