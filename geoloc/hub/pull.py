"""Pull from the Hub, into a cache (`cached`) or a given folder (`pull`).

The Hub's own cache consists of symbolic links, which a manifest rejects. Our cache has one folder of plain files per
commit, written atomically; files shared with an older commit are hard links. Concurrent processes download a commit
once.
"""

from __future__ import annotations

import shutil
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
        ConfigError: a name that nothing on the Hub can have.
        NotFoundError: there is no such thing, or it is not here and the Hub cannot be reached.
        IntegrityError: the repository does not hold what its manifest promises, or nothing that we publish.
    """
    found = find(repo_id, kind, revision, subfolder)
    snapshots = cache_of(repo_id, kind) / "snapshots"
    folder = snapshots / "--".join([found.commit, *subfolder.split("/")]).rstrip("-")
    if not is_whole(folder):
        published = read(found)
        shutil.rmtree(folder, ignore_errors=True)  # damaged: its good files come again
        others = [path.parent for path in snapshots.glob(f"*/{MANIFEST_NAME}")]
        with replace_folder(folder, resume=True) as fresh:
            published.fetch(fresh, known=[folder, *others])
    return folder


def pull(published: Published, folder: str | Path, check: Callable[[Path], object]) -> None:
    """Bring what `read` has found into a folder, whole or not at all; called again, it goes on where it was cut.

    A folder that holds an older commit of it is replaced in one step, and only what is new is received.

    Args:
        published: a commit and its manifest.
        folder: where to; it is made, or must hold nothing but what a manifest there lists.
        check: is shown the files before they take the folder's name, and raises an exception if they must not.

    Raises:
        NotFoundError: the Hub cannot be reached.
        IntegrityError: the repository does not hold what its manifest promises.
        OutputMismatchError: the folder holds something else.
    """
    with replace_folder(folder, resume=True) as fresh:
        published.fetch(fresh, known=[Path(folder)])
        check(fresh)


def kind_of(repo_id: str, revision: str | None = None) -> Kind:
    """Whether a name is that of a model's repository or of a dataset's; a model comes first.

    Raises:
        NotFoundError: it is neither, or the Hub cannot be reached.
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
