"""Pull from the Hub, into a cache (`cached`) or a given folder (`pull`).

The Hub's own cache consists of symbolic links, which a manifest rejects. Our cache has one folder of plain files per
commit, written atomically; files shared with an older commit are hard links. Concurrent processes download a commit
once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from geoloc.errors import IntegrityError, NotFoundError
from geoloc.files import MANIFEST_NAME, replace_folder, verify_manifest
from geoloc.hub.receive import explaining
from geoloc.hub.repository import Kind, Published, cache_of, find, read


def cached(repo_id: str, kind: Kind, *, revision: str | None = None, subfolder: str = "") -> Path:
    """Verified local folder of a repository's commit, downloaded if necessary.

    Args:
        repo_id: "org/name".
        kind: of the repository.
        revision: a branch, tag, commit or "refs/pr/N"; None is the main branch.
        subfolder: the folder of the repository that holds the manifest.

    Raises:
        ConfigError: the name is not a valid repository name.
        NotFoundError: the repository or revision does not exist, or the Hub cannot be reached and it is not cached.
        IntegrityError: the repository's files differ from its manifest, or geoloc did not write it.
    """
    found = find(repo_id, kind, revision, subfolder)
    snapshots = cache_of(repo_id, kind) / "snapshots"
    folder = snapshots / "--".join([found.commit, *subfolder.split("/")]).rstrip("-")
    if not is_whole(folder):
        published = read(found)
        others = [path.parent for path in snapshots.glob(f"*/{MANIFEST_NAME}")]
        with replace_folder(folder, resume=True, is_cache=True) as fresh:
            # Intact files are linked: those of a damaged folder, and all that another process completed meanwhile.
            published.fetch(fresh, known=[folder, *others])
    return folder


def pull(published: Published, folder: str | Path, check: Callable[[Path], object]) -> None:
    """Download what `read` has returned into a folder, all files or none; an interrupted download resumes.

    A folder with an older commit is replaced in one step, and only changed files are downloaded.

    Args:
        published: a commit and its manifest.
        folder: destination; created if missing, else it may contain only the files of a manifest in it.
        check: called with the temporary folder before it is renamed; raises an exception to reject it.

    Raises:
        NotFoundError: the Hub cannot be reached.
        IntegrityError: the repository's files differ from its manifest.
        OutputMismatchError: the folder has other contents.
    """
    with replace_folder(folder, resume=True) as fresh:
        published.fetch(fresh, known=[Path(folder)])
        check(fresh)


def kind_of(repo_id: str, revision: str | None = None) -> Kind:
    """Whether a name is a model repository or a dataset repository; a model has priority.

    Raises:
        NotFoundError: there is no such repository, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    kinds: tuple[Kind, ...] = ("model", "dataset")
    with explaining(f"get {repo_id!r}"):
        for kind in kinds:
            try:
                HfApi().repo_info(repo_id, repo_type=kind, revision=revision)
            except RepositoryNotFoundError:
                if kind == kinds[-1]:
                    raise
            else:
                return kind
    raise AssertionError("unreachable")


def is_whole(folder: Path) -> bool:
    """Whether a cached folder agrees with its manifest."""
    with suppress(NotFoundError, IntegrityError):
        verify_manifest(folder)
        return True
    return False
