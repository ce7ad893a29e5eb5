"""A repository on the Hub at one commit: its manifest, and each file that the manifest lists, verified.

    found = find("me/my-geolocator", "model", revision="v1")     # the commit; the cached one if offline
    published = read(found)                                      # its manifest
    published.fetch(folder)                                      # the listed files only

A repository is not trusted. Only files of its manifest are downloaded: their names must stay inside the folder
and be of a published kind, and sizes and checksums must match. Other files are never requested.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

from geoloc.errors import ConfigError, IntegrityError, NotFoundError
from geoloc.files import MANIFEST_NAME, MAX_MANIFEST_BYTES, parse_manifest, sha256_of
from geoloc.hub.receive import explaining, receive, size_of

Kind = Literal["model", "dataset"]

REPO_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)

# Kinds of published files: data and text. A pickle is rejected by its name, although nothing here would load it.
SUFFIXES: Final = (".json", ".md", ".onnx", ".parquet", ".safetensors")
MAX_TEXT_BYTES: Final = MAX_MANIFEST_BYTES  # of a .json or .md file, which are read into memory
MAX_MODEL_BYTES: Final = 64 * 2**30  # no limit for a database

_NAME: Final = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,99}/){0,7}[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_REVISION: Final = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)*", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class NotOursError(NotFoundError):
    """A repository without a manifest, so not published by geoloc."""


@dataclass(frozen=True)
class Found:
    """One commit of a repository, or of a folder in it.

    Attributes:
        repo_id: "org/name".
        kind: of the repository.
        revision: as requested; "main" if none was given.
        commit: 40 hex digits.
        subfolder: relative POSIX name, "" for the repository itself.
    """

    repo_id: str
    kind: Kind
    revision: str
    commit: str
    subfolder: str = ""

    def __str__(self) -> str:
        within = f"/{self.subfolder}" if self.subfolder else ""
        return f"the {self.kind} {self.repo_id}{within} at {self.commit[:8]}"

    def url(self, name: str) -> str:
        """URL of a file."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(
            self.repo_id, name, subfolder=self.subfolder, repo_type=self.kind, revision=self.commit
        )


@dataclass(frozen=True)
class Published:
    """A manifest on the Hub, and the download of its files.

    Attributes:
        found: the commit.
        manifest: its contents, checked against its own digest.
        data: its bytes.
    """

    found: Found
    manifest: Mapping[str, Any]
    data: bytes

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """Relative POSIX name -> {"bytes": size, "sha256": 64 hex digits}."""
        files: Mapping[str, Mapping[str, Any]] = self.manifest["files"]
        return files

    def fetch(self, folder: Path, names: Iterable[str] | None = None, *, known: Iterable[Path] = ()) -> None:
        """Download files into a folder and verify them; correct files that exist are kept.

        An interrupted file resumes at its last byte, in this process or a later one: until it is complete and verified,
        its name is `.NAME.part`.

        Args:
            folder: destination; no other process may write to it.
            names: of `files`; None means all, and the manifest last.
            known: folders with a manifest; a file with the same checksum is linked from there instead of downloaded.

        Raises:
            IntegrityError: a file differs from the manifest; the message names the file.
            NotFoundError: the Hub cannot be reached, or the repository no longer exists.
            OSError: the disk is full.
        """
        from huggingface_hub.utils import tqdm

        wanted = sorted(self.files if names is None else names)
        here = _by_checksum(known)
        missing = [name for name in wanted if not self._is_here(folder / name, self.files[name], here)]
        num_bytes = sum(self.files[name]["bytes"] for name in missing)
        received = sum(size_of(_part(folder / name)) for name in missing)
        _check_room(folder, num_bytes - received, self.found)
        title = f"{self.found.repo_id} {self.found.commit[:8]}"
        # disable=None: no bar if the output is not a terminal.
        with tqdm(
            total=num_bytes, initial=received, unit="B", unit_scale=True, desc=title, disable=None
        ) as bar:
            for name in missing:
                self._fetch_file(name, folder / name, bar.update)
        if names is None:
            _remove_others(folder, wanted)
            (folder / MANIFEST_NAME).write_bytes(self.data)

    def _is_here(self, path: Path, promised: Mapping[str, Any], here: Mapping[str, Path]) -> bool:
        if path.is_file() and _agrees(path, promised):
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        other = here.get(promised["sha256"])
        if other is None or not _agrees(other, promised):
            return False
        try:
            os.link(other, path)  # a hard link is safe: files in the cache are never changed in place
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(other, path)
        return True

    def _fetch_file(self, name: str, path: Path, progress: Callable[[int], object]) -> None:
        promised, part = self.files[name], _part(path)
        if size_of(part) > promised["bytes"]:
            part.unlink()
        was_continued = size_of(part) > 0
        while True:
            with self._explaining(name):
                receive(self.found.url(name), part, promised["bytes"], str(self.found), name, progress)
            if _agrees(part, promised):
                os.replace(part, path)
                return
            size = size_of(part)
            digest = sha256_of(part)
            part.unlink()
            if not was_continued:
                break
            was_continued = False  # the bytes of an earlier attempt may be wrong: start again once
            progress(-size)
        raise IntegrityError(
            f"{self.found} sent {name!r} with {size} bytes and sha256 {digest[:12]}…, but its manifest lists "
            f"{promised['bytes']} and {promised['sha256'][:12]}…: it was changed without geoloc, so ask its owner to "
            "push it again, or use an older revision"
        )

    @contextmanager
    def _explaining(self, name: str) -> Iterator[None]:
        from huggingface_hub.errors import EntryNotFoundError

        with explaining(f"get {name!r} of {self.found}"):
            try:
                yield
            except EntryNotFoundError as error:
                raise IntegrityError(
                    f"{self.found} does not hold {name!r}, which its manifest lists: the push was incomplete, so ask "
                    "its owner to push it again, or use an older revision"
                ) from error


def find(repo_id: str, kind: Kind, revision: str | None = None, subfolder: str = "") -> Found:
    """The commit of a revision. If the Hub cannot be reached, the commit that the cache last recorded for it.

    Args:
        repo_id: "org/name".
        kind: of the repository.
        revision: a branch, tag, commit or "refs/pr/N"; None is the main branch. A full commit hash needs no request.
        subfolder: a folder of the repository.

    Raises:
        ConfigError: the name of the repository, revision or folder is invalid.
        NotFoundError: the repository or revision does not exist or is private, or the Hub cannot be reached.
        IntegrityError: the server's answer is not that of a Hub.
    """
    from huggingface_hub import HfApi

    check_names(repo_id, revision, subfolder)
    with explaining(f"get the {kind} {repo_id!r} (revision {revision or 'main'})"):
        commit = (
            HfApi()
            .resolve_revision(
                repo_id, repo_type=kind, revision=revision, cache_dir=cache_of(repo_id, kind).parent
            )
            .resolved
        )
    if not _COMMIT.fullmatch(commit):
        raise IntegrityError(
            f"the Hub says that the {kind} {repo_id!r} is at {commit[:50]!r}, which is not a commit: check HF_ENDPOINT"
        )
    return Found(repo_id, kind, revision or "main", commit, subfolder)


def read(found: Found) -> Published:
    """The manifest of a commit, checked as far as possible without its files.

    Raises:
        NotOursError: there is no manifest, so geoloc did not publish it.
        NotFoundError: the Hub cannot be reached.
        IntegrityError: the manifest is not geoloc's, or lists a file that may not be downloaded, with the reason.
    """
    from huggingface_hub.errors import EntryNotFoundError

    with TemporaryDirectory() as folder, explaining(f"get {found}"):
        path = Path(folder) / MANIFEST_NAME
        try:
            receive(found.url(MANIFEST_NAME), path, MAX_MANIFEST_BYTES, str(found), MANIFEST_NAME)
        except EntryNotFoundError as error:
            raise NotOursError(
                f"{found} has no {MANIFEST_NAME}, so geoloc did not publish it: check the name, the "
                "revision and the subfolder; to publish your own, push it with geoloc"
            ) from error
        data = path.read_bytes()
    manifest = parse_manifest(data, f"{MANIFEST_NAME} of {found}")
    check_files(str(found), found.kind, manifest["files"])
    return Published(found, manifest, data)


def check_names(repo_id: str, revision: str | None = None, subfolder: str = "") -> None:
    """Check the names of a repository, a revision and a folder before they become part of a URL or a path.

    Raises:
        ConfigError: a name is invalid; the message shows the expected form.
    """
    if not REPO_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id:
        raise ConfigError(f"{repo_id!r} is not the name of a Hub repository: the form is org/name")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise ConfigError(f"{revision!r} is not a revision: give a branch, a tag, a commit or refs/pr/N")
    if subfolder and not _NAME.fullmatch(subfolder):
        raise ConfigError(f"{subfolder!r} is not a folder of a repository: give a relative name such as a/b")


def is_plain_name(name: str) -> bool:
    """Whether a file's name is a relative one that stays inside its folder."""
    return _NAME.fullmatch(name) is not None


def cache_of(repo_id: str, kind: Kind) -> Path:
    """Geoloc's cache folder of a repository, inside the Hub's cache of assets; created if it does not exist."""
    from huggingface_hub import cached_assets_path, constants

    name = f"{kind}s--{repo_id.replace('/', '--')}"  # the name that `resolve_revision` uses
    return cached_assets_path("geoloc", "hub", name, assets_dir=constants.HF_ASSETS_CACHE)


def check_files(origin: str, kind: Kind, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Check a manifest's table of files before a download.

    Args:
        origin: what an error calls the folder or repository.
        kind: of the repository.
        files: as in `geoloc.files.write_manifest`.

    Raises:
        IntegrityError: a name leaves the folder or is not of a published kind, or a file is too large.
    """

    def refuse(name: str, why: str) -> None:
        raise IntegrityError(
            f"the manifest of {origin} lists {name[:200]!r}, {why}: "
            "geoloc does not publish such files, so do not trust its source"
        )

    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    for name, promised in files.items():
        suffix = PurePosixPath(name).suffix
        if not is_plain_name(name):
            refuse(name, "which is not a plain name inside the folder")
        if name == MANIFEST_NAME or name in folders:
            refuse(name, "which is the manifest itself or a folder of other files")
        if suffix not in SUFFIXES:
            refuse(name, f"which is no {', '.join(SUFFIXES)}")
        if promised["bytes"] < 0 or not _SHA256.fullmatch(promised["sha256"]):
            refuse(name, "whose size or checksum is none")
        if suffix in (".json", ".md") and promised["bytes"] > MAX_TEXT_BYTES:
            refuse(name, f"a text of {promised['bytes']} bytes (at most {MAX_TEXT_BYTES})")
    total = sum(promised["bytes"] for promised in files.values())
    if kind == "model" and total > MAX_MODEL_BYTES:
        raise IntegrityError(
            f"the manifest of {origin} promises {total / 2**30:,.0f} GiB, and a model has at most "
            f"{MAX_MODEL_BYTES / 2**30:.0f}: do not trust its source"
        )


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _agrees(path: Path, promised: Mapping[str, Any]) -> bool:
    return bool(size_of(path) == promised["bytes"] and sha256_of(path) == promised["sha256"])


def _by_checksum(folders: Iterable[Path]) -> dict[str, Path]:
    """sha256 -> file according to the folders' manifests; the caller verifies the file."""
    found: dict[str, Path] = {}
    for folder in folders:
        with suppress(OSError, IntegrityError):
            files = parse_manifest((folder / MANIFEST_NAME).read_bytes(), folder)["files"]
            found |= {
                entry["sha256"]: folder / name for name, entry in files.items() if _NAME.fullmatch(name)
            }
    return {digest: path for digest, path in found.items() if path.is_file() and not path.is_symlink()}


def _check_room(folder: Path, num_bytes: int, found: Found) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        needs = f"{found} needs {num_bytes / 1e9:,.1f} GB more and {free / 1e9:,.1f} GB are free"
        raise OSError(errno.ENOSPC, f"{needs}: free some space, or pull to another disk", str(folder))


def _remove_others(folder: Path, wanted: Iterable[str]) -> None:
    """Remove the files of an interrupted pull of another commit from a cache folder."""
    kept = set(wanted)
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent, name)
            if path.relative_to(folder).as_posix() not in kept:
                path.unlink()
        with suppress(OSError):  # not empty
            if Path(parent) != folder:
                os.rmdir(parent)
