"""Files published by others: a Hub repository that geoloc did not write, or one file at a pinned URL.

Such a repository has no manifest. The Hub lists the files of a commit with sizes and checksums (sha256 for large files,
git's hash for small ones). From these a manifest is written, and then the folder in the cache is verified like any
other. Only named files are downloaded, and their contents are not parsed here.
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from geoloc.errors import IntegrityError, NotFoundError
from geoloc.files import (
    MANIFEST_NAME,
    MANIFEST_SCHEMA_VERSION,
    atomic_write,
    manifest_bytes,
    parse_manifest,
    replace_folder,
    sha256_of,
)
from geoloc.hub.pull import is_whole
from geoloc.hub.receive import explaining, receive
from geoloc.hub.repository import MAX_MODEL_BYTES, Found, Published, cache_of, find, is_plain_name

FOREIGN: Final = "foreign"  # the manifest's fact that says so

_MAX_PINNED_BYTES: Final = 64 * 2**20


def foreign(
    repo_id: str, patterns: Sequence[str], *, revision: str | None = None, subfolder: str = ""
) -> Path:
    """The folder with some files of a repository's commit; missing files are downloaded.

    Args:
        repo_id: "org/name" of a model repository.
        patterns: of the names of files to download, such as "*.json"; a name with a folder needs a pattern with one.
        revision: a branch, tag, commit or "refs/pr/N"; None is the main branch.
        subfolder: folder in the repository.

    Raises:
        ConfigError: the name is not a valid repository name.
        NotFoundError: the repository or a file does not exist, or the Hub cannot be reached.
        IntegrityError: a downloaded file differs from the Hub's listing of the commit.
    """
    found = find(repo_id, "model", revision, subfolder)
    what = hashlib.sha256("\n".join([subfolder, *patterns]).encode()).hexdigest()[:16]
    folder = cache_of(repo_id, "model") / FOREIGN / f"{found.commit}-{what}"
    if not is_whole(folder):
        listed = _listed(found, patterns)
        with replace_folder(folder, resume=True, is_cache=True) as fresh:
            promised = {name: _promise(found, name, entry, fresh) for name, entry in listed.items()}
            facts = {"schema_version": MANIFEST_SCHEMA_VERSION, "kind": FOREIGN, "files": promised}
            data = manifest_bytes(facts)
            Published(found, parse_manifest(data, MANIFEST_NAME), data).fetch(fresh, known=[folder])
    return folder


def is_foreign(folder: Path) -> bool:
    """Whether a folder was not written by geoloc: it has no manifest, or one that `foreign` wrote."""
    path = folder / MANIFEST_NAME
    return not path.is_file() or parse_manifest(path.read_bytes(), path).get("kind") == FOREIGN


def pinned(url: str, sha256: str) -> Path:
    """One file with a known checksum at a URL; downloaded if it is not in the cache.

    Raises:
        NotFoundError: the URL cannot be reached, or offline mode is on.
        IntegrityError: the file at the URL has another checksum.
    """
    from huggingface_hub import is_offline_mode

    name = Path(urlsplit(url).path).name
    path = cache_for("pinned", sha256[:16]) / name
    if path.is_file() and sha256_of(path) == sha256:
        return path
    if is_offline_mode():
        raise NotFoundError(
            f"{url} is not in the cache, and offline mode is on (HF_HUB_OFFLINE): "
            "unset that, or give the path of the file"
        )
    try:
        with urllib.request.urlopen(url, timeout=30) as response:  # never with the Hub's token
            data = response.read(_MAX_PINNED_BYTES)
    except (OSError, urllib.error.URLError) as error:
        raise NotFoundError(
            f"could not get {url}: {error}; check the network, or give the path of the file"
        ) from error
    if (digest := hashlib.sha256(data).hexdigest()) != sha256:
        raise IntegrityError(
            f"{url} has sha256 {digest[:12]}…, but {sha256[:12]}… was published: "
            "do not trust it; give the path of the file"
        )
    with atomic_write(path, "wb") as file:
        file.write(data)
    return path


def cache_for(*names: str) -> Path:
    """A folder of the cache for files derived from downloads; created if it does not exist."""
    from huggingface_hub import cached_assets_path, constants

    return cached_assets_path("geoloc", *names, assets_dir=constants.HF_ASSETS_CACHE)


def _listed(found: Found, patterns: Sequence[str]) -> dict[str, Any]:
    from huggingface_hub import HfApi

    with explaining(f"list {found}"):
        info = HfApi().model_info(found.repo_id, revision=found.commit, files_metadata=True)
    prefix = f"{found.subfolder}/" if found.subfolder else ""
    names = {
        sibling.rfilename.removeprefix(prefix): sibling
        for sibling in info.siblings or ()
        if sibling.rfilename.startswith(prefix)
    }
    listed = {name: entry for name, entry in names.items() if _is_wanted(name, patterns)}
    if not listed:
        raise NotFoundError(
            f"{found} holds none of {', '.join(patterns)}: geoloc cannot read it as a model; it has "
            f"{', '.join(sorted(names)[:8]) or 'no files'}"
        )
    if (total := sum(entry.size or 0 for entry in listed.values())) > MAX_MODEL_BYTES:
        raise IntegrityError(
            f"{found} has {total / 2**30:,.0f} GiB, too much for a model: do not trust its source"
        )
    return listed


def _is_wanted(name: str, patterns: Sequence[str]) -> bool:
    return (
        is_plain_name(name)
        and name != MANIFEST_NAME
        and any(fnmatch(name, p) and name.count("/") == p.count("/") for p in patterns)
    )


def _promise(found: Found, name: str, entry: Any, fresh: Path) -> dict[str, Any]:
    """Size and sha256; those of a small file are computed after its download, once git's hash has been verified."""
    if entry.lfs is not None:
        return {"bytes": int(entry.lfs.size), "sha256": str(entry.lfs.sha256)}
    path = fresh / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        os.unlink(path)
    size = int(entry.size or 0)
    if size:
        with explaining(f"get {name!r} of {found}"):
            receive(found.url(name), path, size, str(found), name)
    else:
        path.touch()
    data = path.read_bytes()
    git_hash = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    if len(data) != size or git_hash != entry.blob_id:
        raise IntegrityError(f"{found} sent {name!r} with other bytes than its commit holds: try again later")
    return {"bytes": size, "sha256": sha256_of(path)}
