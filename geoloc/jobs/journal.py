"""The journal of a long job: each finished piece of work is a record on the disk before the next one begins.

    with Journal.open(".out.csv.journal", {"model": "3fa9…", "batch_size": 16}) as journal:
        for batch in batches[journal.num_records :]:
            journal.append(work_on(batch))
        write_output(journal.records())
        journal.remove()

A file of lines: 16 hex digits of the sha256 over the line's number and text, a space, one JSON object. The
first line is the job's identity: whoever opens the journal must state the same one, so that two different
jobs never share an output. A process killed while it appends leaves half a last line, which the next one
drops; any other line that does not agree with its checksum is an error. Knows nothing about what the records
mean.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from geoloc.errors import IntegrityError, OutputMismatchError
from geoloc.files import fsync_folder

# How every command that leaves an output names the ways out.
REMEDY = "repeat the old values to continue it, choose another output, or start anew with --overwrite"

_CHECKSUM_DIGITS = 16


class Journal:
    """An open journal, locked against other processes; made by `Journal.open`.

    Attributes:
        path: of the file.
        num_records: how many records are safely on the disk.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.num_records = 0
        self._descriptor = descriptor
        self._num_bytes = 0  # of whole lines; behind them there may be a torn one

    @classmethod
    def open(cls, path: str | Path, identity: Mapping[str, Any], *, afresh: bool = False) -> "Journal":
        """Begin a journal, or continue the one that is there.

        Args:
            path: of the file; its folder must exist.
            identity: plain JSON values, all that decides the records: options, versions, digests of inputs.
            afresh: forget the records of a journal that is there, whatever job it belongs to.

        Raises:
            OutputMismatchError: the journal belongs to a job with another identity, or another process has it
                open.
            IntegrityError: a line other than the last one was changed.
        """
        path = Path(path)
        journal = cls(path, _open_locked(path))
        try:
            if afresh:
                os.ftruncate(journal._descriptor, 0)
            journal._begin_or_continue(json.loads(_json(identity)))
        except BaseException:
            journal.close()
            raise
        return journal

    def _begin_or_continue(self, identity: dict[str, Any]) -> None:
        found: dict[str, Any] | None = None
        for number, (record, num_bytes) in enumerate(_read_lines(self.path)):
            if number == 0:
                found = record
            self.num_records = number
            self._num_bytes += num_bytes
        os.ftruncate(self._descriptor, self._num_bytes)
        if found is None:
            self._write_line(0, identity)
            fsync_folder(self.path.parent)
        elif found != identity:
            raise OutputMismatchError(
                f"{self.path} is the journal of another job: {describe_differences(found, identity)}; {REMEDY}"
            )

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record of plain JSON values; when this returns, it is on the disk."""
        self._write_line(self.num_records + 1, record)
        self.num_records += 1

    def _write_line(self, number: int, value: Mapping[str, Any]) -> None:
        text = _json(value)
        line = memoryview(_checksum(number, text) + b" " + text + b"\n")
        written = 0
        while written < len(line):
            # At its place, not at the end: after a failed write (a full disk) the next one begins here again.
            written += os.pwrite(self._descriptor, line[written:], self._num_bytes + written)
        os.fsync(self._descriptor)
        self._num_bytes += len(line)

    def records(self) -> Iterator[dict[str, Any]]:
        """All records in their order, read from the disk one at a time."""
        lines = _read_lines(self.path)
        next(lines)  # the identity
        for _ in range(self.num_records):
            yield next(lines)[0]

    def remove(self) -> None:
        """Delete the file: the job's output is in its place."""
        os.unlink(self.path)

    def close(self) -> None:
        """Let another process have the journal; the file stays. A second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def describe_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The values in which two identities differ, "batch_size is 16 there and 8 here; …"."""
    return "; ".join(
        f"{key} is {_short(there, key)} there and {_short(here, key)} here"
        for key in sorted(there.keys() | here.keys())
        if key not in there or key not in here or there[key] != here[key]
    )


def _short(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "absent"
    value = values[key]
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def _read_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each line's value and size in bytes; ends before a torn last line."""
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            checksum, _, text = line.removesuffix(b"\n").partition(b" ")
            if not line.endswith(b"\n") or checksum != _checksum(number, text):
                # A torn header has no line feed: it fits into one block of any disk.
                if file.read(1) or (number == 0 and line.endswith(b"\n")):
                    raise IntegrityError(
                        f"{path} is damaged in line {number + 1}: its text does not agree with its checksum; "
                        "start the job anew with --overwrite"
                    )
                return
            yield json.loads(text), len(line)


def _checksum(number: int, text: bytes) -> bytes:
    return hashlib.sha256(b"%d %s" % (number, text)).hexdigest()[:_CHECKSUM_DIGITS].encode()


def _json(value: Mapping[str, Any]) -> bytes:
    # ASCII, so that no text is too odd to be stored; floats are the shortest that read back as the same.
    return json.dumps(dict(value), allow_nan=False, separators=(",", ":")).encode("ascii")


def _open_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise OutputMismatchError(
                f"another process is at work on this job (it holds {path}); wait for it, or choose another output"
            ) from None
        except OSError:
            return descriptor  # no locks on this file system
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # between our two steps another process finished the job and removed its journal
