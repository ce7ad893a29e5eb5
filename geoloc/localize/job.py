"""Localise any number of images into one table; killed at any moment, the job continues where it was.

    work = LocalizeWork("earthview", SessionOptions(top_k=3))
    with LocalizeJob(work, ["photos/"], "out.csv", resume=True) as job:
        job.run(engine="local", num_workers=0)
        job.finish()

The images are cut into shards of about 64, each a file of rows in a folder beside the output. At the end the output is
written from them in one step, and a receipt of what made it takes the folder's place. Batches are fixed slices of the
list of images, because the last digits of a network's output depend on the rest of the batch: a continued job computes
exactly the batches that it would have computed anyway, on any engine.

What must be the same to continue a job: geoloc's version, the model, the options, the names of the images in their
order, and the sizes and modification times of the images that are done (their bytes are not read again: a million
photos would take hours). Device, engine, number of workers and number of threads may change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from geoloc.errors import ConfigError, NotFoundError, OutputMismatchError
from geoloc.jobs.identity import REMEDY
from geoloc.jobs.receipt import check_receipt, write_receipt
from geoloc.jobs.shards import Engine, Shard, ShardJob, remove_job
from geoloc.localize.rows import LocalizeWork, read_shard
from geoloc.localize.table import Row, check_suffix, read_rows, write_rows
from geoloc.photos.sources import Payload, SourceImage, num_images_of, read_images, stamp_of

IMAGES_PER_SHARD = 64  # at most this much is lost by a kill


def images_per_shard(batch_size: int, images: int = IMAGES_PER_SHARD) -> int:
    """Whole batches, so that the batches do not depend on the shards."""
    return max(1, images // batch_size) * batch_size


class LocalizeJob:
    """One job: it is opened, run and finished, and may be killed at any moment of that.

    Attributes:
        num_images: of the job; None where an input is a stream, whose images are not counted before.
        num_done: images whose rows are on the disk.
        is_complete: the output exists already and is this job's; there is nothing to run.

    Args:
        work: model and options.
        shards: of the images, from `geoloc.photos.sources.plan_shards`, in the order of the rows.
        output: .csv, .geojson or .parquet; None keeps the rows only until the job is closed.
        resume: continue the unfinished job of this output, or begin it; a finished one is complete.
        overwrite: begin anew. The old output stays until the new one is whole.

    Raises:
        ConfigError: an unknown suffix; resume and overwrite at once.
        NotFoundError: the output's folder does not exist.
        OutputMismatchError: the output, or the unfinished job beside it, belongs to another job, or exists without
            resume or overwrite; or another process works on it.
    """

    def __init__(
        self,
        work: LocalizeWork,
        shards: Sequence[Shard],
        output: str | Path | None,
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self._work = work
        self._output = None if output is None else Path(output)
        self._shards = [_named(number, shard) for number, shard in enumerate(shards)]
        self._identity = {
            **work.identity(),
            "num_images": self.num_images,
            "image_names": _digest(name for shard in self._shards for name in _names_of(shard)),
        }
        self._job: ShardJob | None = None
        self._closing = ExitStack()
        self.is_complete = False
        if self._output is None:
            folder = Path(self._closing.enter_context(TemporaryDirectory(prefix="geoloc-")), "job")
        else:
            check_output(self._output, resume=resume, overwrite=overwrite)
            folder = job_folder(self._output)
            if overwrite:
                remove_job(folder)
            elif resume and self._output.exists() and not folder.exists():
                check_receipt(self._output, self._identity | {"image_sizes_and_times": self._stamps_now()})
                self.is_complete = True
                return
        self._job = ShardJob(folder, self._shards, self._identity, remedy=REMEDY)
        self._closing.enter_context(self._job)
        self._refuse_changed_images()

    @property
    def num_images(self) -> int | None:
        """Images of the job; None where an input is a stream."""
        numbers = [num_images_of(shard.payload) for shard in self._shards]
        return None if None in numbers else sum(number or 0 for number in numbers)

    @property
    def num_done(self) -> int:
        """Images whose rows are on the disk."""
        if self._job is None:
            return self.num_images or sum(1 for _ in self.rows())
        return sum(read_shard(self._job.output(shard)).num_rows for shard in self._done())

    def _done(self) -> list[Shard]:
        assert self._job is not None
        pending = {shard.name for shard in self._job.pending}
        return [shard for shard in self._shards if shard.name not in pending]

    def _refuse_changed_images(self) -> None:
        assert self._job is not None
        for shard in self._done():
            for path, stamp in read_shard(self._job.output(shard)).stamps:
                if list(stamp_of(path)) != stamp:
                    self.close()
                    raise OutputMismatchError(
                        f"{path} has changed since it was localised (its size or its modification time differs); start "
                        "again with --overwrite"
                    )

    def _stamps_now(self) -> str:
        paths = (entry[1] for shard in self._shards for entry in shard.payload.get("files", ()))
        return _digest([path, list(stamp_of(path))] for path in paths)

    def run(
        self,
        progress: Callable[[int], object] = lambda num_images: None,
        *,
        on_done: Callable[[int], object] = lambda num_images: None,
        engine: Engine = "local",
        num_workers: int = 0,
        num_gpus_per_worker: float = 0.0,
    ) -> None:
        """Localise the images that are not done yet.

        Args:
            progress: called with the number of images of each batch that is localised; with workers, of each shard.
            on_done: called with the number of images of each shard whose rows are on the disk.
            engine: see `ShardJob.run`.
            num_workers: 0 works in this process, with the model that is loaded here.
            num_gpus_per_worker: reserved for each actor of Ray.

        Raises:
            JobError: a shard failed in a worker; the others are done.
        """
        job = self._job
        if job is None:
            return
        here = engine == "local" and num_workers == 0

        def done(shard: Shard) -> None:
            num_images = read_shard(job.output(shard)).num_rows
            on_done(num_images)
            if not here:
                progress(num_images)

        self._work.on_batch = progress if here else None
        try:
            job.run(
                self._work,
                engine=engine,
                num_workers=num_workers,
                num_gpus_per_worker=num_gpus_per_worker,
                on_done=done,
                keep_errors=here,
            )
        finally:
            self._work.close()

    def rows(self) -> Iterator[Row]:
        """The rows that are done, in the order of the images, read from the disk shard by shard."""
        if self._job is not None:
            for shard in self._done():
                yield from read_shard(self._job.output(shard)).rows()
        elif self._output is not None:
            yield from read_rows(self._output)

    def images(self) -> Iterator[SourceImage]:
        """The images in the order of the rows, each read when it is asked for."""
        for shard in self._shards:
            yield from read_images(shard.payload)

    def finish(self) -> None:
        """Write the output in one step, then its receipt, and only then remove the shards.

        Raises:
            RuntimeError: images are not done yet.
        """
        if self._job is None:
            return
        if pending := self._job.pending:
            total = self.num_images
            of_all = "some" if total is None else f"{self.num_done} of {total}"
            raise RuntimeError(f"{of_all} images are done, and {len(pending)} shards are not: call run first")
        if self._output is not None:
            write_rows(self._output, self.rows(), truth=self._work.truth_from_exif)
            stamps = (pair for shard in self._shards for pair in read_shard(self._job.output(shard)).stamps)
            write_receipt(self._output, self._identity | {"image_sizes_and_times": _digest(stamps)})
            folder = self._job.folder
            self._closing.close()
            remove_job(folder)
            self._job, self.is_complete = None, True

    def close(self) -> None:
        """Release the job; an unfinished one stays for the next run, one without rows is removed."""
        folder = None
        if self._job is not None and self._output is not None and not self._done():
            folder = self._job.folder
        self._closing.close()
        if folder is not None:
            remove_job(folder)

    def __enter__(self) -> LocalizeJob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def job_folder(output: str | Path) -> Path:
    """Folder of the unfinished job of an output: beside it, `.NAME.job`."""
    output = Path(output)
    return output.with_name(f".{output.name}.job")


def num_done_on_disk(output: str | Path) -> int:
    """Images of an output's unfinished job whose rows are on the disk."""
    return sum(read_shard(path).num_rows for path in job_folder(output).glob("*.jsonl"))


def check_output(output: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse an output that a job could not write or should not replace, before a model is loaded for it.

    Raises:
        ConfigError: an unknown suffix; resume and overwrite at once.
        NotFoundError: its folder does not exist.
        OutputMismatchError: it exists, finished or not, and neither resume nor overwrite was asked for.
    """
    output = Path(output)
    check_suffix(output)
    if resume and overwrite:
        raise ConfigError("--resume continues and --overwrite starts again: choose one of them")
    if not output.parent.is_dir():
        raise NotFoundError(f"there is no folder {output.parent} for {output.name}; create it first")
    if output.is_dir():
        raise OutputMismatchError(f"{output} is a folder: name a file in it")
    if resume or overwrite:
        return
    if job_folder(output).exists():
        raise OutputMismatchError(
            f"an earlier run of {output} is not finished: continue it with --resume, or start again with --overwrite"
        )
    if output.exists():
        raise OutputMismatchError(
            f"{output} exists already: choose another output, replace it with --overwrite, or continue its "
            "job with --resume"
        )


def _named(number: int, shard: Shard) -> Shard:
    """A shard for rows, identified by the names of its images: files may move, and change before their turn."""
    payload: Payload = shard.payload
    entries = payload.get("files") or payload.get("members") or []
    names = [entry[0] for entry in entries]
    return replace(
        shard, name=f"{number:06}.jsonl", described_by=names or [json.dumps(payload, sort_keys=True)]
    )


def _names_of(shard: Shard) -> list[str]:
    names: list[str] = shard.described_by
    return names


def _digest(values: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{value!r}\n".encode())
    return digest.hexdigest()
