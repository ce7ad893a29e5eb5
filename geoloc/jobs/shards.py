"""A long job as a list of shards: each is done whole or not at all, on one machine or many, and none twice.

    job = ShardJob("embeddings/", shards, identity={"task": "embed", "model": "3fa9…"})
    job.run(work, engine="local", num_workers=8)      # or engine="ray"
    job.finish()                                       # manifest.json over all that was written

`work(payload, output)` writes one file, atomically, and the same bytes for the same payload. A file that is there is
a shard that is done: a job that was killed at any moment, or lost any worker, continues with those that are missing.
The folder:

    job.json            what the job is: its identity and its shards; another job is refused
    00000.parquet, …    one file for each shard
    manifest.json       sizes and checksums; written last, so it says that the job is complete

Knows nothing about what shards hold.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias

from geoloc.errors import ConfigError, JobError, OutputMismatchError
from geoloc.files import MANIFEST_NAME, atomic_write, verify_manifest, write_manifest
from geoloc.jobs.journal import describe_differences

Engine: TypeAlias = Literal["local", "ray"]
ENGINES: Final = ("local", "ray")
JOB_NAME: Final = "job.json"


class Work(Protocol):
    """What is done with a shard: any picklable callable. A process gets it once, and keeps what it has loaded."""

    def __call__(self, payload: Any, output: Path) -> None:
        """Write one file, atomically (`geoloc.files`), with bytes that depend on the payload alone."""
        ...


@dataclass(frozen=True)
class Shard:
    """A piece of work.

    Attributes:
        name: of its output, unique in the job, no path.
        payload: plain JSON values that say what is to be done.
    """

    name: str
    payload: Any


class ShardJob:
    """A job in its folder.

    Args:
        folder: made if it is not there; its parent must exist.
        shards: in the order in which they are begun.
        identity: plain JSON values, all that decides the outputs beside the payloads: task, model, options, versions.

    Raises:
        OutputMismatchError: the folder holds another job, or files and no job.
        ConfigError: two shards have one name, or a name is no plain file name.
    """

    def __init__(self, folder: str | Path, shards: Sequence[Shard], identity: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.shards = list(shards)
        self._check_names()
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(json.dumps([shard.name, shard.payload], sort_keys=True).encode() + b"\n")
        described = {**identity, "num_shards": len(self.shards), "shards": digest.hexdigest()}
        self.identity: dict[str, Any] = json.loads(json.dumps(described))
        self._begin_or_continue()

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
                raise ConfigError(f"{shard.name!r} is no name for a shard: expected a plain file name")
            seen.add(shard.name)

    def _begin_or_continue(self) -> None:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / JOB_NAME
        if path.is_file():
            found = json.loads(path.read_bytes())
            if found != self.identity:
                same_inputs = found.get("shards") == self.identity["shards"]
                of_inputs = " (a digest of the inputs: some are new, gone, changed or called by another path)"
                raise OutputMismatchError(
                    f"{self.folder} holds another job: {describe_differences(found, self.identity)}"
                    f"{'' if same_inputs else of_inputs}; repeat the old values to continue it, choose another folder, "
                    "or delete this one"
                )
        elif strangers := sorted(p.name for p in self.folder.iterdir() if not p.name.startswith(".")):
            raise OutputMismatchError(
                f"{self.folder} holds {strangers[0]!r} and no {JOB_NAME}, so it is no job's folder: choose another one"
            )
        else:
            with atomic_write(path, "w") as file:
                file.write(json.dumps(self.identity, indent=2, sort_keys=True) + "\n")

    def output(self, shard: Shard) -> Path:
        """Where a shard's file is, or will be."""
        return self.folder / shard.name

    @property
    def pending(self) -> list[Shard]:
        """The shards without a file."""
        done = {entry.name for entry in os.scandir(self.folder)}
        return [shard for shard in self.shards if shard.name not in done]

    @property
    def is_complete(self) -> bool:
        """The manifest is there: nothing is left to do."""
        return (self.folder / MANIFEST_NAME).is_file()

    def run(
        self,
        work: Work,
        *,
        engine: Engine = "local",
        num_workers: int = 1,
        num_gpus_per_worker: float = 0.0,
        on_done: Callable[[Shard], None] = lambda shard: None,
    ) -> None:
        """Do the shards that are not done yet.

        Args:
            work: done once for each of them; see `Work`.
            engine: "local" are processes of this machine (with 0 workers, this process itself); "ray" are actors of the
                cluster at RAY_ADDRESS, or of a new one on this machine. On a cluster the folder must be one that all
                its machines share.
            num_workers: processes or actors, each with its own copy of the work.
            num_gpus_per_worker: reserved for each actor of Ray.
            on_done: called for each shard whose file is there.

        Raises:
            JobError: a shard's work raised an error, or killed three workers; the others are done all the same.
            OutputMismatchError: another process is at work in this folder.
            MissingDependencyError: engine "ray" without Ray.
        """
        with _locked(self.folder):
            pending = self.pending
            tasks = [(shard.payload, self.output(shard)) for shard in pending]
            failures: list[tuple[Shard, str]] = []
            for index, error in _start(engine, work, tasks, num_workers, num_gpus_per_worker):
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
        """Write the manifest over all outputs, or check it if it is there; returns what it says.

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
        with _locked(self.folder):
            for left in self.folder.glob(".*.tmp"):  # of workers that were killed
                left.unlink(missing_ok=True)
            return write_manifest(self.folder, job=self.identity)


def _start(
    engine: Engine, work: Work, tasks: list[tuple[Any, Path]], num_workers: int, num_gpus: float
) -> Iterator[tuple[int, str | None]]:
    """Index and error (None for none) of each task as it ends."""
    if engine == "ray":
        from geoloc.jobs.ray_engine import run_on_ray

        return run_on_ray(work, tasks, num_workers, num_gpus)
    if engine != "local":
        raise ConfigError(f"there is no engine {engine!r}; known are {', '.join(ENGINES)}")
    from geoloc.jobs.local_engine import run_here, run_local

    return run_local(work, tasks, num_workers) if num_workers > 0 else run_here(work, tasks)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One driver at a time; the lock ends with the process, however that ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputMismatchError(
                f"another process is at work on the job in {folder}; wait for it, or choose another folder"
            ) from None
        except OSError:
            pass  # no locks on this file system: two drivers would do work twice, and write the same bytes
        yield
    finally:
        os.close(descriptor)
