"""Atomic replacement of a folder with a manifest."""

import ctypes
import errno
import glob
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from geoloc.errors import OutputMismatchError
from geoloc.files.atomic import files_in, fsync_folder, is_at, lock

MANIFEST_NAME = "manifest.json"


@contextmanager
def replace_folder(folder: str | Path, *, resume: bool = False, is_cache: bool = False) -> Iterator[Path]:
    """Empty temporary folder that replaces `folder` when the block succeeds.

    After an exception or a kill, `folder` is unchanged. The next call removes leftovers. Parent folders are created.
    Of two concurrent calls, the later swap wins.

    Args:
        folder: to replace.
        resume: keep the content of a failed or killed block for the next call; a concurrent call waits.
        is_cache: nobody else writes to `folder`, so files that its manifest does not list are deleted.

    Raises:
        OutputMismatchError: `folder` holds a file that its manifest does not list; it would be deleted.
    """
    target = Path(os.path.realpath(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(target)
    if not is_cache:
        _refuse_strangers(target)
    _remove_abandoned(target)
    temporary, descriptor = _open_locked_part(target) if resume else _make_locked_sibling(target)
    is_kept = resume
    try:
        yield temporary
        _fsync_tree(temporary)
        if not is_cache:
            _refuse_strangers(target)  # again: the block may have run for hours
        if resume:
            # After the swap the old folder has this name; a waiting process must not resume from it.
            temporary = temporary.rename(_new_name(target))
            is_kept = False
        _swap(temporary, target)
        fsync_folder(target.parent)
    finally:
        if not is_kept:
            shutil.rmtree(temporary, ignore_errors=True)  # now the old folder, or our failed one
        os.close(descriptor)


def recover_folder(folder: str | Path) -> None:
    """Restore the old folder if a save was killed between its two renames.

    Needed on file systems without an atomic exchange; every reader calls it first, as `verify_manifest` does.
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
        lock(descriptor, wait=True)
        if is_at(descriptor, temporary):  # else another save took it for abandoned before we had the lock
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
            lock(descriptor, wait=True)
            if is_at(descriptor, temporary):
                return temporary, descriptor
            os.close(descriptor)


def _remove_abandoned(target: Path) -> None:
    """Remove unlocked temporary folders of killed saves, and the old folder."""
    for abandoned in target.parent.glob(f".{glob.escape(target.name)}.*.new"):
        with suppress(FileNotFoundError):
            descriptor = os.open(abandoned, os.O_RDONLY | os.O_DIRECTORY)
            if lock(descriptor, wait=False):
                shutil.rmtree(abandoned, ignore_errors=True)
            os.close(descriptor)
    shutil.rmtree(_old_name(target), ignore_errors=True)


def _refuse_strangers(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputMismatchError(f"{target} is a file, where a folder was to be saved: choose another name")
    found = set(files_in(target))
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
        fsync_folder(Path(parent))


def _swap(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; an old folder gets the name `temporary`."""
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
    """Exchange two names atomically; false if not supported.

    Linux: renameat2(2), RENAME_EXCHANGE = 2, AT_FDCWD = -100. macOS: renamex_np(2), RENAME_SWAP = 2.
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
