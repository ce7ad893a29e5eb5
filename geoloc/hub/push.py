"""Push of a folder with a manifest to the Hub, in one commit; a repeated push skips files that are uploaded already."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from geoloc.errors import IntegrityError, JobError, NotFoundError
from geoloc.files import MANIFEST_NAME, manifest_bytes, safe_join, verify_manifest
from geoloc.hub.receive import explaining, one_line
from geoloc.hub.repository import Kind, check_files, check_names, find, read

CARD_NAME: Final = "README.md"


@dataclass(frozen=True)
class Pushed:
    """Result of a push.

    Attributes:
        repo_id: "org/name".
        commit: 40 hex digits: what `revision=` pins.
        url: of the commit, or of the pull request.
    """

    repo_id: str
    commit: str
    url: str


@dataclass(frozen=True)
class PushOptions:
    """Options of a push.

    Attributes:
        private: whether a newly created repository is private; None uses the account's default. An existing
            repository keeps its setting.
        revision: branch; created if it does not exist. None is the main branch.
        create_pr: open a pull request instead of changing the branch.
        commit_message: first line of the commit message; None generates one.
    """

    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None


TO_MAIN: Final = PushOptions()


def push(folder: Path, repo_id: str, kind: Kind, card: str, options: PushOptions = TO_MAIN) -> Pushed:
    """Push what a folder's manifest lists, with a card, to a repository; it is created if it does not exist.

    Files that only the repository's previous manifest lists are deleted; files that no manifest lists are kept.

    Args:
        folder: with a manifest.
        repo_id: "org/name".
        kind: of the repository.
        card: text of its README.md; it replaces the folder's own in the manifest, too.
        options: privacy, branch, pull request and message.

    Raises:
        ConfigError: the name is not a valid repository name, or the branch is a commit.
        IntegrityError: the folder's files differ from its manifest.
        NotFoundError: the Hub cannot be reached or denies access.
        JobError: an upload was interrupted; the same call resumes it.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    check_names(repo_id, options.revision)
    manifest = verify_manifest(folder)
    check_files(str(folder), kind, manifest["files"])  # reject here what a pull would reject
    text = card.encode()
    if CARD_NAME in manifest["files"]:
        entry = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
        manifest = json.loads(manifest_bytes({**manifest, "files": {**manifest["files"], CARD_NAME: entry}}))
    contents: dict[str, Path | bytes] = {name: safe_join(folder, name) for name in manifest["files"]}
    contents |= {CARD_NAME: text, MANIFEST_NAME: manifest_bytes(manifest)}
    api = HfApi(library_name="geoloc")
    with _explaining(f"push {folder} to the {kind} {repo_id!r}"):
        api.create_repo(repo_id, repo_type=kind, private=options.private, exist_ok=True)
        if options.revision is not None and not options.create_pr:
            api.create_branch(repo_id, branch=options.revision, repo_type=kind, exist_ok=True)
        stale = _listed_there(repo_id, kind, options.revision) - contents.keys()
        info = api.create_commit(
            repo_id,
            [CommitOperationDelete(name, is_folder=False) for name in sorted(stale)]
            + [CommitOperationAdd(name, content) for name, content in sorted(contents.items())],
            commit_message=options.commit_message or f"Push {manifest['digest'][:12]} with geoloc",
            repo_type=kind,
            revision=options.revision,
            create_pr=options.create_pr,
        )
    return Pushed(repo_id, info.oid, info.pr_url or info.commit_url)


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    with explaining(what, "and push again: what was uploaded stays there"), warnings.catch_warnings():
        # The client advises against data files in a model; here the model's cells are a Parquet file.
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
        try:
            yield
        except RuntimeError as error:  # exceptions of the client for an interrupted upload
            raise JobError(
                f"could not {what}: {one_line(error)} ({one_line(error.__cause__)}); "
                "push again: what was uploaded stays there"
            ) from error


def _listed_there(repo_id: str, kind: Kind, revision: str | None) -> set[str]:
    """Files that the repository's manifest lists now; empty without a manifest."""
    with suppress(NotFoundError, IntegrityError):
        return set(read(find(repo_id, kind, revision)).files)
    return set()
