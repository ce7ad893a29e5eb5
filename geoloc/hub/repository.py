"""A repository on the Hub at one commit: its manifest, and each file that the manifest lists, verified.

    found = find("me/my-geolocator", "model", revision="v1")     # the commit; from the cache if the Hub is not reached
    published = read(found)                                      # its manifest
    published.fetch(folder)                                      # what it lists, and nothing else

A repository is not trusted. Its manifest decides what is received: names that stay inside the folder, of the kinds
that we write, no more bytes than promised, and in the end the promised checksum. Whatever else a repository holds is
never asked for. Knows nothing about models or databases.
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

# What we publish: data and text. A pickle is refused by its name, though nothing here would open it.
SUFFIXES: Final = (".json", ".md", ".onnx", ".parquet", ".safetensors")
MAX_TEXT_BYTES: Final = MAX_MANIFEST_BYTES  # of a .json or .md, which are read at once
MAX_MODEL_BYTES: Final = 64 * 2**30  # a database may have any size that the disk has room for

_NAME: Final = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,99}/){0,7}[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_REVISION: Final = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)*", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class NotOursError(NotFoundError):
    """A repository without a manifest: nothing that geoloc has published."""


@dataclass(frozen=True)
class Found:
    """One commit of a repository, or of a folder in it.

    Attributes:
        repo_id: "org/name".
        kind: of the repository.
        revision: as it was asked for, "main" without.
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
        """The address of one of its files."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(
            self.repo_id, name, subfolder=self.subfolder, repo_type=self.kind, revision=self.commit
        )


@dataclass(frozen=True)
class Published:
    """What a manifest on the Hub promises, and how to get it.

    Attributes:
        found: where.
        manifest: what it says, checked against its own digest.
        data: its very bytes.
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
        """Bring files into a folder, verified; what is there already is kept if it is right.

        A file that was cut goes on from its last byte, in this process or a later one: until it is whole and has its
        promised checksum, it is called `.NAME.part`.

        Args:
            folder: where to; no other process may be at work in it.
            names: of `files`; all of them, and the manifest at last, if None.
            known: folders with a manifest, from which a file of the same checksum is linked instead of received.

        Raises:
            IntegrityError: the repository does not hold what its manifest promises; the message names the file.
            NotFoundError: the Hub cannot be reached, or the repository has vanished.
            OSError: the disk has no room for it.
        """
        from huggingface_hub.utils import tqdm

        wanted = sorted(self.files if names is None else names)
        here = _by_checksum(known)
        missing = [name for name in wanted if not self._is_here(folder / name, self.files[name], here)]
        num_bytes = sum(self.files[name]["bytes"] for name in missing)
        received = sum(size_of(_part(folder / name)) for name in missing)
        _check_room(folder, num_bytes - received, self.found)
        title = f"{self.found.repo_id} {self.found.commit[:8]}"
        # disable=None: no bar where nobody looks at a terminal.
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
            os.link(other, path)  # no file of ours is ever changed in place
        except OSError:  # another disk, or one without links
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
            was_continued = False  # the bytes from the last time may be wrong: once more from the first
            progress(-size)
        raise IntegrityError(
            f"{self.found} sent {name!r} with {size} bytes and sha256 {digest[:12]}…, but its manifest promises "
            f"{promised['bytes']} and {promised['sha256'][:12]}…: it was changed without geoloc, so ask its owner to "
            "push it again, or take an older revision"
        )

    @contextmanager
    def _explaining(self, name: str) -> Iterator[None]:
        from huggingface_hub.errors import EntryNotFoundError

        with explaining(f"get {name!r} of {self.found}"):
            try:
                yield
            except EntryNotFoundError as error:
                raise IntegrityError(
                    f"{self.found} does not hold {name!r}, which its manifest lists: the push was not whole, so ask "
                    "its owner to push it again, or take an older revision"
                ) from error


def find(repo_id: str, kind: Kind, revision: str | None = None, subfolder: str = "") -> Found:
    """The commit of a revision. Where the Hub cannot be reached, the one that it last was, if we know it.

    Args:
        repo_id: "org/name".
        kind: of the repository.
        revision: a branch, tag, commit or "refs/pr/N"; None is the main branch. A whole commit asks nobody.
        subfolder: a folder of the repository.

    Raises:
        ConfigError: a name that no repository, revision or folder can have.
        NotFoundError: there is no such repository or revision, it is private, or the Hub cannot be reached.
        IntegrityError: what answers is no Hub.
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
            f"the Hub says that the {kind} {repo_id!r} is at {commit[:50]!r}, which is no commit: check HF_ENDPOINT"
        )
    return Found(repo_id, kind, revision or "main", commit, subfolder)


def read(found: Found) -> Published:
    """The manifest of a commit; what it promises is checked as far as that goes without the files.

    Raises:
        NotOursError: there is none, so it was not published by geoloc.
        NotFoundError: the Hub cannot be reached.
        IntegrityError: it is none of ours, or names a file that we do not fetch; the message says which and why.
    """
    from huggingface_hub.errors import EntryNotFoundError

    with TemporaryDirectory() as folder, explaining(f"get {found}"):
        path = Path(folder) / MANIFEST_NAME
        try:
            receive(found.url(MANIFEST_NAME), path, MAX_MANIFEST_BYTES, str(found), MANIFEST_NAME)
        except EntryNotFoundError as error:
            raise NotOursError(
                f"{found} has no {MANIFEST_NAME}, so it is nothing that geoloc has published: check the name, the "
                "revision and the subfolder; to publish your own, push it with geoloc"
            ) from error
        data = path.read_bytes()
    manifest = parse_manifest(data, f"{MANIFEST_NAME} of {found}")
    check_files(str(found), found.kind, manifest["files"])
    return Published(found, manifest, data)


def check_names(repo_id: str, revision: str | None = None, subfolder: str = "") -> None:
    """Refuse what cannot be a repository, a revision or a folder in one, before it becomes an address or a path.

    Raises:
        ConfigError: says which and what it should look like.
    """
    if not REPO_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id:
        raise ConfigError(f"{repo_id!r} is no repository of the Hub: it is called org/name")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise ConfigError(f"{revision!r} is no revision: give a branch, a tag, a commit or refs/pr/N")
    if subfolder and not _NAME.fullmatch(subfolder):
        raise ConfigError(f"{subfolder!r} is no folder of a repository: give a relative name such as a/b")


def is_plain_name(name: str) -> bool:
    """Whether a file's name is a relative one that stays inside its folder."""
    return _NAME.fullmatch(name) is not None


def cache_of(repo_id: str, kind: Kind) -> Path:
    """Our folder for a repository, where the Hub's own tools look for what libraries cache; it is made."""
    from huggingface_hub import cached_assets_path, constants

    name = f"{kind}s--{repo_id.replace('/', '--')}"  # as `resolve_revision` calls it
    return cached_assets_path("geoloc", "hub", name, assets_dir=constants.HF_ASSETS_CACHE)


def check_files(origin: str, kind: Kind, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a manifest's table of files if a pull must not follow it.

    Args:
        origin: what an error calls the folder or repository.
        kind: of the repository.
        files: as in `geoloc.files.write_manifest`.

    Raises:
        IntegrityError: a name leads elsewhere, or is no kind of file that we publish, or something is too large.
    """

    def refuse(name: str, why: str) -> None:
        raise IntegrityError(
            f"the manifest of {origin} lists {name[:200]!r}, {why}: "
            "geoloc publishes no such thing, so do not trust its source"
        )

    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    for name, promised in files.items():
        suffix = PurePosixPath(name).suffix
        if not is_plain_name(name):
            refuse(name, "which is no plain name inside the folder")
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
    """sha256 -> file, by what the folders' manifests say; whoever takes one checks it."""
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
        raise OSError(errno.ENOSPC, f"{needs}: make room, or pull to another disk", str(folder))


def _remove_others(folder: Path, wanted: Iterable[str]) -> None:
    """Remove what an interrupted pull of another commit has left in a folder that is ours alone."""
    kept = set(wanted)
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent, name)
            if path.relative_to(folder).as_posix() not in kept:
                path.unlink()
        with suppress(OSError):  # not empty
            if Path(parent) != folder:
                os.rmdir(parent)
