"""Files that are whole or absent: atomic writes, folders that are swapped at once, manifests, safe paths.

A process killed at any moment leaves the old file or folder or the new one, never a mixture; so does a power
cut, because contents reach the disk before the name does. A manifest lists the size and sha256 of each file
beside it: it is the only thing that notices a flipped bit in a tensor. POSIX only. Knows nothing about what
the files contain.
"""

import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, overload

from geoloc.errors import IntegrityError, NotFoundError, OutputMismatchError

MANIFEST_NAME = "manifest.json"
MANIFEST_SCHEMA_VERSION = 1

MAX_MANIFEST_BYTES = 64 * 2**20  # half a million files; more is not ours, and would only fill the memory
_OWN_KEYS = {"schema_version", "files", "digest"}


def sha256_of(path: str | Path) -> str:
    """Return the sha256 of a file's bytes, 64 lower-case hex digits; reads in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


# --- One file ---------------------------------------------------------------------------------------------


@overload
def atomic_write(path: str | Path, mode: Literal["w"]) -> AbstractContextManager[IO[str]]: ...
@overload
def atomic_write(path: str | Path, mode: Literal["wb"]) -> AbstractContextManager[IO[bytes]]: ...
def atomic_write(path: str | Path, mode: Literal["w", "wb"]) -> AbstractContextManager[IO[Any]]:
    """Open a file that takes its name only when the block ends well; on any exception the old file stays.

    The bytes go to `.NAME.tmp` in the same folder, which must exist. A killed process leaves that file
    behind, and the next write to the same path takes it over. Of two processes that write one path, the
    second waits. A symbolic link is written through. Text is UTF-8 with plain line feeds.
    """
    return _atomic_write(Path(os.path.realpath(path)), mode)


@contextmanager
def _atomic_write(target: Path, mode: Literal["w", "wb"]) -> Iterator[IO[Any]]:
    temporary = target.with_name(f".{target.name}.tmp")
    text = {"encoding": "utf-8", "newline": "\n"} if mode == "w" else {}
    with open(_open_locked(temporary), mode, **text) as file:  # type: ignore[call-overload]
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _fsync_folder(target.parent)


def _open_locked(temporary: Path) -> int:
    """Open a temporary file for ourselves alone, emptied; the lock ends with the descriptor or process."""
    while True:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        _lock(descriptor, wait=True)
        # Whoever held the lock before us may have renamed the file: then it is finished, and not ours to
        # empty.
        if _is_at(descriptor, temporary):
            os.ftruncate(descriptor, 0)
            return descriptor
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file or folder against other savers; false if one of them holds it and we do not wait."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return wait  # no locks on this file system: write on, but take nothing for abandoned
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems do not let themselves be asked
            raise
    finally:
        os.close(descriptor)


# --- One folder -------------------------------------------------------------------------------------------


@contextmanager
def replace_folder(folder: str | Path, *, resume: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill, beside `folder`; when the block ends well, it takes that name at once.

    On any exception, or a kill at any moment, `folder` is what it was (or absent, if it was). What a killed
    save left behind is removed by the next one. Folders above are made. Of two processes that save to one
    place at once, the later swap wins.

    Args:
        folder: where to.
        resume: what a failed or killed block has filled in stays, and the next one is given it. Of two processes that
            fill one place, the second waits for the first.

    Raises:
        OutputMismatchError: `folder` holds something that its manifest does not list. All of the old folder
            is deleted after the swap, so nothing may be in it that we did not write.
    """
    target = Path(os.path.realpath(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(target)
    _refuse_strangers(target)
    _remove_abandoned(target)
    temporary, descriptor = _open_locked_part(target) if resume else _make_locked_sibling(target)
    is_kept = resume
    try:
        yield temporary
        _fsync_tree(temporary)
        _refuse_strangers(target)  # again: the block may have run for hours
        if resume:
            # After the swap the old folder has this name: whoever waits must not take it for work to go on with.
            temporary = temporary.rename(_new_name(target))
            is_kept = False
        _swap(temporary, target)
        _fsync_folder(target.parent)
    finally:
        if not is_kept:
            shutil.rmtree(temporary, ignore_errors=True)  # now the old folder, or our failed one
        os.close(descriptor)


def recover_folder(folder: str | Path) -> None:
    """Put back the old folder if a save was killed between its two renames.

    Only where the file system cannot swap two folders in one step; otherwise there is nothing to do. Every
    reader calls this first (`verify_manifest` does it).
    """
    target = Path(os.path.realpath(folder))
    if not target.exists():
        with suppress(FileNotFoundError):  # no old one either, or another reader was quicker
            os.rename(_old_name(target), target)


def _old_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _make_locked_sibling(target: Path) -> tuple[Path, int]:
    while True:
        temporary = _new_name(target)
        temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
        _lock(descriptor, wait=True)
        if _is_at(descriptor, temporary):  # else another save took it for abandoned before we had the lock
            return temporary, descriptor
        os.close(descriptor)


def _new_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")


def _open_locked_part(target: Path) -> tuple[Path, int]:
    temporary = target.with_name(f".{target.name}.part")
    while True:
        temporary.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # between the two steps another process finished it
            descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            _lock(descriptor, wait=True)
            if _is_at(descriptor, temporary):
                return temporary, descriptor
            os.close(descriptor)


def _remove_abandoned(target: Path) -> None:
    """Remove what killed saves left: temporary folders that no living process has locked, and the old one."""
    for abandoned in target.parent.glob(f".{glob.escape(target.name)}.*.new"):
        with suppress(FileNotFoundError):
            descriptor = os.open(abandoned, os.O_RDONLY | os.O_DIRECTORY)
            if _lock(descriptor, wait=False):
                shutil.rmtree(abandoned, ignore_errors=True)
            os.close(descriptor)
    shutil.rmtree(_old_name(target), ignore_errors=True)


def _refuse_strangers(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputMismatchError(f"{target} is a file, where a folder was to be saved: choose another name")
    found = set(_files_in(target))
    try:
        listed = set(json.loads((target / MANIFEST_NAME).read_bytes())["files"]) | {MANIFEST_NAME}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        listed = set()
    if strangers := sorted(found - listed):
        raise OutputMismatchError(
            f"{target} holds {strangers[0]!r}, which no manifest there lists ({len(strangers)} such in all); "
            "saving replaces the whole folder, so choose another one, or move away what you want to keep"
        )


def _fsync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _fsync_folder(Path(parent))


def _swap(temporary: Path, target: Path) -> None:
    """Give `temporary` the name `target`; an old folder ends up under the name `temporary`."""
    if not target.exists():
        os.rename(temporary, target)
        return
    if _exchange(temporary, target):
        return
    old = _old_name(target)
    os.rename(target, old)
    # Killed here, the target is missing: recover_folder() puts the old one back. If a reader does so while we
    # live, the next rename finds the place taken and fails, and the old folder stays: nothing is lost.
    try:
        os.rename(temporary, target)
    except BaseException:
        recover_folder(target)
        raise
    os.rename(old, temporary)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; false if this system or file system cannot.

    Linux: renameat2(2) with RENAME_EXCHANGE = 2, -100 being AT_FDCWD. macOS: renamex_np(2) with RENAME_SWAP =
    2.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if sys.platform == "darwin":
            failed = libc.renamex_np(os.fsencode(a), os.fsencode(b), 2)
        else:
            failed = libc.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), 2)
    except AttributeError:  # a C library without that function
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(a), None, str(b))


# --- Manifests --------------------------------------------------------------------------------------------


def safe_join(root: str | Path, name: str) -> Path:
    """Return `root/name` for a relative POSIX name that stays inside `root`, symbolic links included.

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
    """Write `manifest.json` over every file in `folder`, and return what it says.

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
    for name in _files_in(folder):
        if name != MANIFEST_NAME:
            path = safe_join(folder, name)
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    return save_manifest(folder, {"schema_version": MANIFEST_SCHEMA_VERSION, **facts, "files": files})


def save_manifest(folder: str | Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Write `manifest.json` with all of the keys of `write_manifest` but its digest, which is added and returned, too.

    For whoever knows the files' sizes and digests already.
    """
    data = manifest_bytes(values)
    with atomic_write(Path(folder) / MANIFEST_NAME, "wb") as file:
        file.write(data)
    manifest: dict[str, Any] = json.loads(data)
    return manifest


def manifest_bytes(values: Mapping[str, Any]) -> bytes:
    """What `save_manifest` writes; a digest among the values is made anew."""
    # Through JSON once, so that keys that are not strings are sorted as the strings that they become.
    manifest: dict[str, Any] = json.loads(_canonical(values))
    return _canonical({**manifest, "digest": manifest_digest(manifest)})


def verify_manifest(folder: str | Path, *, strict: bool = False) -> dict[str, Any]:
    """Check each listed file's size and sha256, and the manifest against its own digest; return the manifest.

    Args:
        folder: holds `manifest.json` and the files that it lists.
        strict: refuse files that the manifest does not list, too.

    Raises:
        NotFoundError: there is no such folder.
        IntegrityError: anything differs; the message names the file and what to do.
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
    if strict and (unlisted := set(_files_in(folder)) - manifest["files"].keys() - {MANIFEST_NAME}):
        raise IntegrityError(
            f"{folder / min(unlisted)} is not listed in the manifest: remove it, or {_REMEDY}"
        )
    return manifest


_REMEDY = "fetch or save the folder again"


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `manifest.json` says, checked against its own digest, but not against the files.

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
    """What the bytes of a manifest say, checked against its own digest; `path` is what an error calls it.

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
    """Whether these are the very bytes that write_manifest would write, with a well-formed table of files."""
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
    """The sha256 of the canonical form of all that a manifest says but its digest."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(_canonical(rest)).hexdigest()


def _canonical(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _files_in(folder: Path) -> list[str]:
    """Relative POSIX names of all that is no folder, sorted; without what a killed atomic_write left."""
    names = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        kept = [name for name in files if not (name.startswith(".") and name.endswith(".tmp"))]
        names += [Path(parent, name).relative_to(folder).as_posix() for name in kept + links]
    return sorted(names)
