"""Manifests: size and sha256 of each file in a folder, and a digest of the manifest itself."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from geoloc.errors import IntegrityError, NotFoundError
from geoloc.files.atomic import atomic_write, files_in
from geoloc.files.folders import MANIFEST_NAME, recover_folder

MANIFEST_SCHEMA_VERSION = 1

MAX_MANIFEST_BYTES = 64 * 2**20  # half a million files
_OWN_KEYS = {"schema_version", "files", "digest"}


def sha256_of(path: str | Path) -> str:
    """sha256 of a file, 64 lower-case hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def safe_join(root: str | Path, name: str) -> Path:
    """Path `root/name` of a relative POSIX name that stays inside `root`, symbolic links included.

    Raises:
        IntegrityError: the name is absolute, not in its plain form (`..`, `./`, `//`, backslashes), or leads
            out of `root` through a symbolic link.
    """
    plain = PurePosixPath(name)
    if (
        name in ("", ".")
        or "\\" in name
        or "\0" in name
        or plain.is_absolute()
        or ".." in plain.parts
        or str(plain) != name
    ):
        raise IntegrityError(f"{name!r} is no plain relative file name; do not trust the source of {root}")
    path = Path(root, name)
    if not path.resolve().is_relative_to(Path(root).resolve()):
        raise IntegrityError(f"{name!r} is a link that leads out of {root}; do not trust the source of that")
    return path


def write_manifest(folder: str | Path, **facts: Any) -> dict[str, Any]:
    """Write `manifest.json` of every file in `folder`, and return it.

    ```
    schema_version  1
    …               the facts: plain JSON values
    files           relative POSIX name -> {"bytes": size, "sha256": 64 hex digits}
    digest          sha256 of the canonical form of all the above
    ```
    """
    if clash := _OWN_KEYS & facts.keys():
        raise ValueError(f"a manifest has its own {', '.join(sorted(clash))}: give the fact another name")
    folder = Path(folder)
    files = {}
    for name in files_in(folder):
        if name != MANIFEST_NAME:
            path = safe_join(folder, name)
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    return save_manifest(folder, {"schema_version": MANIFEST_SCHEMA_VERSION, **facts, "files": files})


def save_manifest(folder: str | Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Write `manifest.json` from all keys of `write_manifest` but the digest; return it with the digest."""
    data = manifest_bytes(values)
    with atomic_write(Path(folder) / MANIFEST_NAME, "wb") as file:
        file.write(data)
    manifest: dict[str, Any] = json.loads(data)
    return manifest


def manifest_bytes(values: Mapping[str, Any]) -> bytes:
    """Bytes that `save_manifest` writes; the digest is recomputed."""
    # Through JSON, so that non-string keys are sorted as strings.
    manifest: dict[str, Any] = json.loads(_canonical(values))
    return _canonical({**manifest, "digest": manifest_digest(manifest)})


def verify_manifest(folder: str | Path, *, strict: bool = False) -> dict[str, Any]:
    """Check each listed file's size and sha256, and the manifest against its own digest; return the manifest.

    Args:
        folder: holds `manifest.json` and the files that it lists.
        strict: also reject unlisted files.

    Raises:
        NotFoundError: there is no such folder.
        IntegrityError: a file or the manifest differs.
    """
    folder = Path(folder)
    recover_folder(folder)
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}: check the path, or fetch it first")
    manifest = read_manifest(folder)
    for name, promised in manifest["files"].items():
        path = safe_join(folder, name)
        if not path.is_file():
            raise IntegrityError(f"{path} is missing, but the manifest beside it lists it: {_REMEDY}")
        if (size := path.stat().st_size) != promised["bytes"]:
            raise IntegrityError(
                f"{path} has {size} bytes, but its manifest promises {promised['bytes']}: {_REMEDY}"
            )
        if (digest := sha256_of(path)) != promised["sha256"]:
            raise IntegrityError(
                f"{path} has sha256 {digest[:12]}…, but its manifest promises {promised['sha256'][:12]}…: {_REMEDY}"
            )
    if strict and (unlisted := set(files_in(folder)) - manifest["files"].keys() - {MANIFEST_NAME}):
        raise IntegrityError(
            f"{folder / min(unlisted)} is not listed in the manifest: remove it, or {_REMEDY}"
        )
    return manifest


_REMEDY = "fetch or save the folder again"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Manifest of a folder, checked against its digest, not against the files.

    Raises:
        IntegrityError: it is missing, is no manifest of ours, or was changed.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise IntegrityError(f"{path} is missing, so nothing vouches for the files there: {_REMEDY}")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise IntegrityError(f"{path} has more than {MAX_MANIFEST_BYTES} bytes: {_REMEDY}")
    return parse_manifest(path.read_bytes(), path)


def parse_manifest(data: bytes, path: str | Path) -> dict[str, Any]:
    """Manifest from bytes, checked against its digest; `path` is its name in errors.

    Raises:
        IntegrityError: they are no manifest of ours, or were changed.
    """
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError):
        raise IntegrityError(f"{path} is not JSON: {_REMEDY}") from None
    if not isinstance(manifest, dict) or type(version := manifest.get("schema_version")) is not int:
        raise IntegrityError(f"{path} names no schema version: {_REMEDY}")
    if version > MANIFEST_SCHEMA_VERSION:
        raise IntegrityError(
            f"{path} has schema version {version}, and this geoloc reads up to {MANIFEST_SCHEMA_VERSION}: "
            f"upgrade geoloc-vision, or {_REMEDY}"
        )
    digest = manifest.get("digest")
    if not _is_ours(data, manifest) or digest != manifest_digest(manifest):
        raise IntegrityError(f"{path} does not agree with its own digest, so it was changed: {_REMEDY}")
    return manifest


def _is_ours(data: bytes, manifest: dict[str, Any]) -> bool:
    """Whether the bytes are canonical and the table of files is well formed."""
    files = manifest.get("files")
    try:
        return (
            data == _canonical(manifest)
            and isinstance(files, dict)
            and all(
                entry.keys() == {"bytes", "sha256"}
                and type(entry["bytes"]) is int
                and isinstance(entry["sha256"], str)
                for entry in files.values()
            )
        )
    except (ValueError, AttributeError):  # NaN or a lone surrogate; an entry that is no table
        return False


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of the canonical form of a manifest without its digest."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(_canonical(rest)).hexdigest()


def _canonical(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()
