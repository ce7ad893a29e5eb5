"""Localise any number of images into one table; killed at any moment, the job continues where it was.

    with LocalizeJob(model, find_images(["photos/"]), "out.csv", resume=True) as job:
        job.run()
        job.finish()

Each batch's rows go into a journal beside the output before the next batch begins; at the end the output is
written from the journal in one step, and a receipt of what made it takes the journal's place. Batches are
fixed slices of the list of images, because the last digits of a network's output depend on what else is in
the batch: a continued job computes exactly the batches that it would have computed anyway.

What must be the same to continue a job: geoloc's version, the model, the options, the names of the images in
their order, and the sizes and modification times of the images that are done (their bytes are not read again:
a million photos would take hours). Device and number of threads may change.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from geoloc import __version__
from geoloc.errors import BadImageError, ConfigError, NotFoundError, OutputMismatchError
from geoloc.images.exif import read_exif_latlon_deg
from geoloc.jobs.journal import Journal
from geoloc.jobs.receipt import check_receipt, write_receipt
from geoloc.localize.asking import BatchLocalizer
from geoloc.localize.coarse import CoarseGrid
from geoloc.localize.inputs import ImageFile
from geoloc.localize.output import Row, check_suffix, make_row, read_rows, with_truth, write_rows
from geoloc.localize.posterior import Utility
from geoloc.localize.prediction import Prediction

if TYPE_CHECKING:
    from torch import Tensor


MAX_TOP_K = 1000
MAX_DECODING_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class LocalizeOptions:
    """What decides the rows of a table, beside the model and the images.

    Attributes:
        batch_size: images that go through the network together.
        top_k: number of candidates in a row.
        utility: what the point should be good at: "geoscore", "median" or "within:25km"; None is the model's default.
        abstain_above_km: a larger 90 % radius makes the prediction abstain.
        max_precision_km: no place in a row is more exact than this, see `geoloc.localize.coarse`.
        truth_from_exif: add where the photo's EXIF says it was taken. The model never sees it.

    Raises:
        ConfigError: an impossible value.
    """

    batch_size: int = 16
    top_k: int = 5
    utility: str | None = None
    abstain_above_km: float | None = None
    max_precision_km: float | None = None
    truth_from_exif: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; expected 1 or more")
        if not 1 <= self.top_k <= MAX_TOP_K:
            raise ConfigError(f"top_k is {self.top_k}; expected 1 to {MAX_TOP_K}")
        if self.abstain_above_km is not None and not self.abstain_above_km > 0:
            raise ConfigError(f"abstain_above_km is {self.abstain_above_km}; expected a positive number")
        if self.utility is not None:
            Utility.parse(self.utility)
        if self.max_precision_km is not None:
            CoarseGrid(self.max_precision_km)
            if self.truth_from_exif:
                raise ConfigError(
                    "asked for max_precision_km and for the true places from the photos' EXIF, which are exact: "
                    "choose one of them"
                )


class _Decoded(NamedTuple):
    """An image on its way to the network."""

    image_id: str
    stamp: list[int]
    tensor: "Tensor | None"
    error: str | None
    truth_latlon_deg: tuple[float, float] | None


class LocalizeJob:
    """One job: it is opened, run and finished, and may be killed at any moment of that.

    Attributes:
        images: the job's list.
        num_done: how many of them have their rows on the disk.
        is_complete: the output is there already and is this job's; there is nothing to run.

    Args:
        model: a `Geolocalizer`.
        images: in the order of the rows; ids are unique.
        output: .csv, .geojson or .parquet; None keeps the rows only until the job is closed.
        options: see `LocalizeOptions`.
        resume: continue the unfinished job of this output, or begin it; a finished one is complete.
        overwrite: begin anew, whatever is there. The old output stays until the new one is whole.
        num_threads: threads that decode images while the network works on the batch before; None is one for
            each core, up to eight.

    Raises:
        ConfigError: an unknown suffix; resume and overwrite at once.
        NotFoundError: the output's folder does not exist.
        OutputMismatchError: the output, or the journal beside it, belongs to another job, or exists without
            resume or overwrite.
        IntegrityError: the journal was changed.
    """

    def __init__(
        self,
        model: BatchLocalizer,
        images: Sequence[ImageFile],
        output: str | Path | None,
        options: LocalizeOptions | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
        num_threads: int | None = None,
    ) -> None:
        self.images = images
        self._model = model
        self._options = options or LocalizeOptions()
        self._output = None if output is None else Path(output)
        self._num_threads = num_threads or min(MAX_DECODING_THREADS, os.cpu_count() or 1)
        self._identity = self._describe()
        self._journal: Journal | None = None
        self._temporary: TemporaryDirectory[str] | None = None
        self.is_complete = False
        if self._output is None:
            self._temporary = TemporaryDirectory(prefix="geoloc-")
            self._journal = Journal.open(Path(self._temporary.name, "journal"), self._identity)
            return
        check_output(self._output, resume=resume, overwrite=overwrite)
        path = journal_path(self._output)
        if resume and self._output.exists() and not path.exists():
            check_receipt(
                self._output, self._identity | {"image_sizes_and_times": _digest(map(_stamp_of, images))}
            )
            self.is_complete = True
        else:
            self._journal = Journal.open(path, self._identity, afresh=overwrite)
            self._refuse_changed_images(self._journal)

    def _describe(self) -> dict[str, Any]:
        return {
            "task": "localize",
            "geoloc": __version__,
            "model": self._model.identity,
            "num_images": len(self.images),
            "image_names": _digest(image.id for image in self.images),
            **asdict(self._options),
        }

    def _refuse_changed_images(self, journal: Journal) -> None:
        images = iter(self.images)
        for record in journal.records():
            for stamp, image in zip(record["stamps"], images, strict=False):
                if stamp != _stamp_of(image):
                    journal.close()
                    raise OutputMismatchError(
                        f"{image.path} has changed since it was localised (its size or its modification time "
                        "differs); start anew with --overwrite"
                    )

    @property
    def num_done(self) -> int:
        """How many images have their rows on the disk."""
        if self._journal is None:
            return len(self.images)
        return min(len(self.images), self._journal.num_records * self._options.batch_size)

    def run(self, on_batch: Callable[[int], None] = lambda num_images: None) -> None:
        """Localise the images that are not done yet.

        Args:
            on_batch: called with the number of images of each batch whose rows are on the disk.
        """
        if self._journal is None:
            return
        pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="decode")
        try:
            for batch in self._decoded_batches(pool):
                self._journal.append({"stamps": [item.stamp for item in batch], "rows": self._rows_of(batch)})
                on_batch(len(batch))
        finally:
            pool.shutdown(cancel_futures=True)

    def _decoded_batches(self, pool: ThreadPoolExecutor) -> Iterator[list[_Decoded]]:
        """The batches that are not done; while the caller works on one, the next is decoded, and no more."""
        ahead: list[Future[_Decoded]] = []
        for start in range(self.num_done, len(self.images), self._options.batch_size):
            current = ahead
            stop = min(start + self._options.batch_size, len(self.images))
            ahead = [pool.submit(self._decode, self.images[index]) for index in range(start, stop)]
            if current:
                yield [future.result() for future in current]
        if ahead:
            yield [future.result() for future in ahead]

    def _decode(self, image: ImageFile) -> _Decoded:
        stamp = _stamp_of(image)  # before it is read: a change from now on is noticed when the job continues
        tensor, error, truth = None, None, None
        try:
            tensor = self._model.load(image.path)
        except BadImageError as bad:
            error = bad.reason
        if self._options.truth_from_exif:
            truth = read_exif_latlon_deg(image.path)
        return _Decoded(image.id, stamp, tensor, error, truth)

    def _rows_of(self, batch: list[_Decoded]) -> list[Row]:
        tensors = [item.tensor for item in batch if item.tensor is not None]
        predictions: list[Prediction] = []
        if tensors:
            predictions = self._model.localize_batch(
                tensors,
                utility=self._options.utility,
                top_k=self._options.top_k,
                abstain_above_km=self._options.abstain_above_km,
                max_precision_km=self._options.max_precision_km,
            )
        if len(predictions) != len(tensors):
            raise RuntimeError(f"the model gave {len(predictions)} predictions for {len(tensors)} images")
        following = iter(predictions)
        rows = [
            make_row(item.image_id, None if item.tensor is None else next(following), item.error)
            for item in batch
        ]
        if self._options.truth_from_exif:
            rows = [with_truth(row, item.truth_latlon_deg) for row, item in zip(rows, batch, strict=True)]
        return rows

    def rows(self) -> Iterator[Row]:
        """The rows that are done, in the order of the images, read from the disk one at a time."""
        if self._journal is not None:
            for record in self._journal.records():
                yield from record["rows"]
        elif self._output is not None:
            yield from read_rows(self._output)

    def finish(self) -> None:
        """Write the output in one step, then its receipt, and only then remove the journal."""
        if self._journal is None:
            return
        if self.num_done < len(self.images):
            raise RuntimeError(f"{self.num_done} of {len(self.images)} images are done: call run first")
        if self._output is not None:
            write_rows(self._output, self.rows(), truth=self._options.truth_from_exif)
            stamps = (stamp for record in self._journal.records() for stamp in record["stamps"])
            write_receipt(self._output, self._identity | {"image_sizes_and_times": _digest(stamps)})
            self._journal.remove()
            self._journal.close()
            self._journal, self.is_complete = None, True

    def close(self) -> None:
        """Let go of the journal; an unfinished one stays for the next run, an empty one is removed."""
        if self._journal is not None:
            if self._journal.num_records == 0 and self._journal.path.exists():
                self._journal.remove()
            self._journal.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> "LocalizeJob":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def journal_path(output: str | Path) -> Path:
    """Where the journal of an unfinished output lies: beside it, as `.NAME.journal`."""
    output = Path(output)
    return output.with_name(f".{output.name}.journal")


def check_output(output: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse an output that a job could not write or should not replace; before a model is loaded for it.

    Raises:
        ConfigError: an unknown suffix; resume and overwrite at once.
        NotFoundError: its folder does not exist.
        OutputMismatchError: it exists, finished or not, and neither resume nor overwrite was asked for.
    """
    output = Path(output)
    check_suffix(output)
    if resume and overwrite:
        raise ConfigError("--resume continues and --overwrite starts anew: choose one of them")
    if not output.parent.is_dir():
        raise NotFoundError(f"there is no folder {output.parent} for {output.name}; create it first")
    if output.is_dir():
        raise OutputMismatchError(f"{output} is a folder: name a file in it")
    if resume or overwrite:
        return
    if journal_path(output).exists():
        raise OutputMismatchError(
            f"an earlier run of {output} is not finished: continue it with --resume, or start anew with --overwrite"
        )
    if output.exists():
        raise OutputMismatchError(
            f"{output} exists already: choose another output, replace it with --overwrite, or continue its "
            "job with --resume"
        )


def _stamp_of(image: ImageFile) -> list[int]:
    """Size in bytes and modification time in ns of a file; empty if there is none."""
    try:
        status = os.stat(image.path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _digest(values: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{value!r}\n".encode())
    return digest.hexdigest()
