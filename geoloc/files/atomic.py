"""Atomic file writes: temporary file, fsync, rename."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, Literal, overload


@overload
def atomic_write(path: str | Path, mode: Literal["w"]) -> AbstractContextManager[IO[str]]: ...
@overload
def atomic_write(path: str | Path, mode: Literal["wb"]) -> AbstractContextManager[IO[bytes]]: ...
def atomic_write(path: str | Path, mode: Literal["w", "wb"]) -> AbstractContextManager[IO[Any]]:
    """File that replaces `path` when the block succeeds; on an exception the old file stays.

    The bytes go to `.NAME.tmp` in the same folder, which must exist; a leftover of a killed process is reused. A
    second writer of the path waits. Symbolic links are followed. Text is UTF-8 with plain line feeds.
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
    fsync_folder(target.parent)


def _open_locked(temporary: Path) -> int:
    """Descriptor of a locked, emptied temporary file; the lock ends with the descriptor or process."""
    while True:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        lock(descriptor, wait=True)
        # The previous holder of the lock may have renamed the file.
        if is_at(descriptor, temporary):
            os.ftruncate(descriptor, 0)
            return descriptor
        os.close(descriptor)


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file or folder; false if another process holds the lock and `wait` is false."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return wait  # no locks on this file system: nothing counts as abandoned
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder still has this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # not supported by some network file systems
            raise
    finally:
        os.close(descriptor)


def files_in(folder: Path) -> list[str]:
    """Sorted relative POSIX names of files and links, without leftovers of atomic_write."""
    names = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        kept = [name for name in files if not (name.startswith(".") and name.endswith(".tmp"))]
        names += [Path(parent, name).relative_to(folder).as_posix() for name in kept + links]
    return sorted(names)
