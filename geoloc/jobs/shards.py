"""A resumable job as a list of shards: each is done whole or not at all, and none twice.

    job = ShardJob("embeddings/", shards, identity={"task": "embed", "model": "3fa9…"})
    job.run(work, engine="local", num_workers=8)      # or engine="ray"
    job.finish()                                       # writes manifest.json over all outputs

`work(payload, output)` writes one file atomically, with the same bytes for the same payload. A shard whose file exists
is done: a job that was killed at any moment, or lost any worker, continues with the missing shards. The folder:

    job.json            identity and digest of the shards; a job with another one is refused
    00000.parquet, …    one file for each shard
    manifest.json       sizes and checksums; written last, so it marks the job as complete

Localising, embedding, evaluation, reference builds and the writing of training shards all run on this class.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, TypeAlias

from geoloc.errors import ConfigError, JobError, OutputMismatchError
from geoloc.files import MANIFEST_NAME, atomic_write, verify_manifest, write_manifest
from geoloc.jobs.identity import as_json, describe_differences
from geoloc.jobs.work import Task, Work, attempt

Engine: TypeAlias = Literal["local", "ray"]
ENGINES: Final = ("local", "ray")
JOB_NAME: Final = "job.json"
_REMEDY: Final = "repeat the old values to continue it, choose another folder, or delete this one"


@dataclass(frozen=True)
class Shard:
    """One unit of work.

    Attributes:
        name: file name of its output, unique in the job.
        payload: plain JSON values that the work reads.
        described_by: what identifies the shard in the job's digest; None is the payload.
    """

    name: str
    payload: Any
    described_by: Any = None


class ShardJob:
    """A job in its folder. As a context manager it keeps the folder locked until it is left.

    Args:
        folder: made if it does not exist; its parent must exist.
        shards: in the order in which they are begun.
        identity: plain JSON values, all that decides the outputs besides the payloads: task, model, options, versions.
        remedy: what the error about another job tells the user to do.

    Raises:
        OutputMismatchError: the folder holds another job, or files without a job.
        ConfigError: two shards have one name, or a name is not a plain file name.
    """

    def __init__(
        self,
        folder: str | Path,
        shards: Sequence[Shard],
        identity: Mapping[str, Any],
        *,
        remedy: str = _REMEDY,
    ) -> None:
        self.folder = Path(folder)
        self.shards = list(shards)
        self._check_names()
        digest = hashlib.sha256()
        for shard in self.shards:
            described = shard.payload if shard.described_by is None else shard.described_by
            digest.update(json.dumps([shard.name, described], sort_keys=True).encode() + b"\n")
        self.identity = as_json({**identity, "num_shards": len(self.shards), "shards": digest.hexdigest()})
        self._lock: int | None = None
        self._begin_or_continue(remedy)

    def _check_names(self) -> None:
        seen: set[str] = set()
        for shard in self.shards:
            if shard.name in seen:
                raise ConfigError(f"two shards are called {shard.name!r}; each needs a name of its own")
            if (
                shard.name != Path(shard.name).name
                or shard.name.startswith(".")
                or shard.name in (JOB_NAME, MANIFEST_NAME)
            ):
                raise ConfigError(f"{shard.name!r} cannot name a shard: expected a plain file name")
            seen.add(shard.name)

    def _begin_or_continue(self, remedy: str) -> None:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / JOB_NAME
        if path.is_file():
            found = json.loads(path.read_bytes())
            if found != self.identity:
                same_inputs = found.get("shards") == self.identity["shards"]
                of_inputs = " (a digest of the inputs: some are new, gone, changed or called by another path)"
                raise OutputMismatchError(
                    f"{self.folder} holds another job: {describe_differences(found, self.identity)}"
                    f"{'' if same_inputs else of_inputs}; {remedy}"
                )
        elif strangers := sorted(p.name for p in self.folder.iterdir() if not p.name.startswith(".")):
            raise OutputMismatchError(
                f"{self.folder} holds {strangers[0]!r} and no {JOB_NAME}, so it is not a job's folder: choose another "
                "one"
            )
        else:
            with atomic_write(path, "w") as file:
                file.write(json.dumps(self.identity, indent=2, sort_keys=True) + "\n")

    def output(self, shard: Shard) -> Path:
        """Path of a shard's file."""
        return self.folder / shard.name

    @property
    def pending(self) -> list[Shard]:
        """The shards without a file."""
        done = {entry.name for entry in os.scandir(self.folder)}
        return [shard for shard in self.shards if shard.name not in done]

    @property
    def is_complete(self) -> bool:
        """Whether the manifest exists: nothing is left to do."""
        return (self.folder / MANIFEST_NAME).is_file()

    def run(
        self,
        work: Work,
        *,
        engine: Engine = "local",
        num_workers: int = 1,
        num_gpus_per_worker: float = 0.0,
        on_done: Callable[[Shard], object] = lambda shard: None,
        keep_errors: bool = False,
    ) -> None:
        """Do the shards that are not done yet.

        Args:
            work: called once for each of them; see `Work`.
            engine: "local" are processes of this machine (with 0 workers, this process itself); "ray" are actors of the
                cluster at RAY_ADDRESS, or of a new one on this machine. On a cluster the folder must be one that all
                its machines share.
            num_workers: processes or actors, each with its own copy of the work.
            num_gpus_per_worker: reserved for each actor of Ray.
            on_done: called for each shard whose file is there.
            keep_errors: with 0 workers, let the first exception of the work pass through as it is.

        Raises:
            JobError: a shard's work raised an error, or killed three workers; the others are done all the same.
            OutputMismatchError: another process works in this folder.
            MissingDependencyError: engine "ray" without Ray.
        """
        with self._locked():
            pending = self.pending
            tasks = [(shard.payload, self.output(shard)) for shard in pending]
            failures: list[tuple[Shard, str]] = []
            for index, error in _start(engine, work, tasks, num_workers, num_gpus_per_worker, keep_errors):
                if error is None and not self.output(pending[index]).is_file():
                    error = "its work ended without a file"
                if error is None:
                    on_done(pending[index])
                else:
                    failures.append((pending[index], error))
        if failures:
            shard, error = failures[0]
            raise JobError(
                f"{len(failures)} of {len(self.shards)} shards failed, {shard.name} first: {error.strip()}; the others "
                "are done, and running the job again tries only those that failed"
            )

    def finish(self) -> dict[str, Any]:
        """Write the manifest over all outputs, or check it if it exists; returns its values.

        Raises:
            JobError: shards are missing.
            IntegrityError: an output was changed after the job had finished.
        """
        if self.is_complete:
            return verify_manifest(self.folder)
        if pending := self.pending:
            raise JobError(
                f"{len(pending)} of {len(self.shards)} shards are not done, {pending[0].name} first: run the job"
            )
        with self._locked():
            for left in self.folder.glob(".*.tmp"):  # of workers that were killed
                left.unlink(missing_ok=True)
            return write_manifest(self.folder, job=self.identity)

    def remove(self) -> None:
        """Delete the folder with all outputs. A kill in between leaves a hidden folder that `remove_job` deletes."""
        remove_job(self.folder)

    def close(self) -> None:
        """Release the lock, if this job holds it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "ShardJob":
        self._lock = _lock(self.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One driver at a time; the lock ends with the process, however that ends."""
        descriptor = None if self._lock is not None else _lock(self.folder)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)


def remove_job(folder: str | Path) -> None:
    """Delete a job's folder, and what an earlier call that was killed has left; does nothing where there is none.

    Raises:
        OutputMismatchError: another process works in it.
    """
    folder = Path(folder)
    removed = folder.with_name(f".{folder.name.lstrip('.')}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    if folder.is_dir():
        os.close(_lock(folder))
        os.rename(folder, removed)  # in one step, so that no half of a job is ever continued
        shutil.rmtree(removed)


def _start(
    engine: Engine, work: Work, tasks: list[Task], num_workers: int, num_gpus: float, keep_errors: bool
) -> Iterator[tuple[int, str | None]]:
    """Index and error (None without one) of each task as it ends."""
    if engine == "ray":
        from geoloc.jobs.ray_engine import run_on_ray

        return run_on_ray(work, tasks, num_workers, num_gpus)
    if engine != "local":
        raise ConfigError(f"there is no engine {engine!r}; known are {', '.join(ENGINES)}")
    if num_workers == 0:
        return _run_here(work, tasks, keep_errors)
    from geoloc.jobs.local_engine import run_local

    return run_local(work, tasks, num_workers)


def _run_here(work: Work, tasks: list[Task], keep_errors: bool) -> Iterator[tuple[int, str | None]]:
    """The tasks one after the other in this process."""
    prefetch = getattr(work, "prefetch", None)
    for index, task in enumerate(tasks):
        if prefetch is not None and index + 1 < len(tasks):
            prefetch(tasks[index + 1][0])
        if keep_errors:
            work(*task)
            yield index, None
        else:
            yield index, attempt(work, task)


def _lock(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OutputMismatchError(
            f"another process is at work on the job in {folder}; wait for it, or choose another folder"
        ) from None
    except OSError:
        pass  # no locks on this file system: two drivers would do work twice, and write the same bytes
    return descriptor
