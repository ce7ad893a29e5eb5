"""Filling a database is a resumable job: killed at any moment, it continues where it was.

    report = run_build(database, "street", identity, shards, embed)

Each shard's rows and vectors are staged in a file of a job beside the database (`.build/NAME/`). When all are there,
they are appended in one step, and a report takes the job's place (`builds/NAME.json`). So readers see all of a build or
nothing of it, and the finished database is the same, byte for byte, however often the job was killed. A finished build
is not done again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from geoloc import __version__
from geoloc.errors import IntegrityError, OutputMismatchError
from geoloc.files import atomic_write
from geoloc.jobs.identity import REMEDY, as_json, describe_differences
from geoloc.jobs.shards import JOB_NAME, Shard, ShardJob, remove_job
from geoloc.reference.rows import ReferenceRows

T = TypeVar("T")
Progress = Callable[[int], object]  # called with the number of inputs that are done
Batches = Iterable[tuple[ReferenceRows, ArrayLike]]

_STAGING: Final = ".build"
_REPORTS: Final = "builds"
_MAX_PROBLEMS: Final = 1000  # that a report names; all are counted
_SUMMARY: Final = b"geoloc.summary"  # key of a staged file's metadata


class BuildTarget(Protocol):
    """The database that a build fills, see `geoloc.reference.database`."""

    folder: Path

    @property
    def model_fingerprint(self) -> str: ...  # noqa: D102
    @property
    def shards(self) -> Mapping[str, range]: ...  # noqa: D102
    def append_batches(self, batches: Batches, *, shard: str | None = None) -> range: ...  # noqa: D102


@dataclass
class Embedded:
    """Embedded references of a shard.

    Attributes:
        rows: with one vector each.
        vectors: (n, dim).
        num_inputs: inputs of the shard, for progress.
        skipped: reason -> number of references left out by the settings.
        problems: name -> reason, of inputs that could not be used.
    """

    rows: ReferenceRows
    vectors: NDArray[np.float32]
    num_inputs: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BuildReport:
    """Summary of a build.

    Attributes:
        name: of the build: its source and a digest of its identity.
        num_rows: rows added.
        skipped: reason -> number of references left out by the settings.
        num_problems: inputs that could not be used.
        problems: name -> reason, of the first thousand of them.
        was_complete: an earlier run had finished it; this one did nothing.
    """

    name: str
    num_rows: int
    skipped: Mapping[str, int]
    num_problems: int
    problems: Mapping[str, str]
    was_complete: bool = False


def run_build(
    target: BuildTarget,
    source: str,
    identity: Mapping[str, Any],
    shards: Callable[[], Iterable[T]],
    embed: Callable[[T, Progress], Embedded],
    progress: Progress = lambda num_inputs: None,
    *,
    overwrite: bool = False,
) -> BuildReport:
    """Embed all shards and append them to a database; continue what an earlier run has begun.

    Args:
        target: the database.
        source: "aerial", "street" or "location".
        identity: plain JSON values that decide the rows: settings, a digest of the inputs' names.
        shards: returns the shards, always the same for the same identity.
        embed: embeds a shard; gives the same for the same shard.
        progress: called with the number of inputs that are done.
        overwrite: drop the staged work of an unfinished build.

    Raises:
        OutputMismatchError: an unfinished build of something else is there, or another process works on it.
        IntegrityError: staged work was changed.
    """
    facts = as_json({"source": source, "geoloc": __version__, "model": target.model_fingerprint, **identity})
    text = json.dumps(facts, sort_keys=True)
    name = f"{source}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    report_path = target.folder / _REPORTS / f"{name}.json"
    staging = target.folder / _STAGING
    if report_path.exists() and not (staging / name).exists():
        _remove(staging, name)  # what a kill has left of it
        return _read_report(report_path)
    staging.mkdir(exist_ok=True)
    _drop_others(staging, name, facts, overwrite)
    is_appended = name in target.shards
    if overwrite and not is_appended:
        remove_job(staging / name)
    num_shards = sum(1 for _ in shards())
    named = [Shard(f"{number:06d}.parquet", number) for number in range(num_shards)]
    with ShardJob(staging / name, named, facts, remedy=REMEDY) as job:
        pending = {shard.name for shard in job.pending}
        for shard in named:
            if shard.name not in pending:
                progress(_read_summary(job.output(shard))["num_inputs"])
        paths = [job.output(shard) for shard in named]
        if not is_appended:
            job.run(_Stage(shards, embed, progress), num_workers=0, keep_errors=True)
            target.append_batches(_staged(paths), shard=name)
        report = _report(name, [_read_summary(path) for path in paths])
        report_path.parent.mkdir(exist_ok=True)
        with atomic_write(report_path, "w") as file:
            file.write(json.dumps({"identity": facts, **asdict(report)}, indent=2, sort_keys=True) + "\n")
    _remove(staging, name)
    return report


def _remove(staging: Path, name: str) -> None:
    remove_job(staging / name)
    with suppress(OSError):  # there is another build in it, or there is none
        staging.rmdir()


def _drop_others(staging: Path, name: str, identity: Mapping[str, Any], overwrite: bool) -> None:
    """Refuse to begin a build while another one is unfinished, or drop that one."""
    for path in sorted(staging.glob(f"*/{JOB_NAME}")):
        if path.parent.name == name or path.parent.name.endswith(".removed"):
            continue
        if not overwrite:
            found = json.loads(path.read_bytes())
            found = {key: value for key, value in found.items() if key not in ("num_shards", "shards")}
            raise OutputMismatchError(
                f"{staging.parent} has an unfinished build with other settings: "
                f"{describe_differences(found, identity)}; {REMEDY}"
            )
        remove_job(path.parent)


class _Stage(Generic[T]):
    """The work of the job: embeds the shards in their order, each into a file with a summary."""

    def __init__(
        self,
        shards: Callable[[], Iterable[T]],
        embed: Callable[[T, Progress], Embedded],
        progress: Progress,
    ) -> None:
        self._following = enumerate(shards())
        self._embed, self._progress = embed, progress

    def __call__(self, payload: int, output: Path) -> None:
        embedded = next(
            self._embed(shard, self._progress) for number, shard in self._following if number == payload
        )
        rows = embedded.rows.to_table(0, len(embedded.rows), first_row_id=0)
        vectors = np.ascontiguousarray(embedded.vectors, np.float32)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        table = rows.drop_columns(["row_id", "morton"]).append_column("vector", flat)
        summary = {
            "num_inputs": embedded.num_inputs,
            "num_rows": len(embedded.rows),
            "skipped": dict(embedded.skipped),
            "problems": dict(embedded.problems),
        }
        table = table.replace_schema_metadata({_SUMMARY: json.dumps(summary)})
        with atomic_write(output, "wb") as file:
            pq.write_table(table, file, compression="none", use_dictionary=False, write_page_checksum=True)


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads(pq.read_schema(path).metadata[_SUMMARY])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        raise _changed(path) from None
    return summary


def _staged(paths: Iterable[Path]) -> Iterator[tuple[ReferenceRows, NDArray[np.float32]]]:
    for path in paths:
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException):
            raise _changed(path) from None
        if len(table):
            column = {name: table[name].to_pylist() for name in ("source", "key", "provenance", "licence")}
            number_of = {
                name: table[name].to_numpy().astype(np.float64)
                for name in ("latitude", "longitude", "gsd_m_per_px", "heading_deg")
            }
            latlon_deg = np.stack([number_of.pop("latitude"), number_of.pop("longitude")], -1)
            vectors = table["vector"].combine_chunks().flatten().to_numpy()
            yield ReferenceRows(latlon_deg, **column, **number_of), vectors.reshape(len(table), -1)


def _changed(path: Path) -> IntegrityError:
    return IntegrityError(f"{path} is missing or was changed: start the build again with overwrite")


def _report(name: str, summaries: Iterable[Mapping[str, Any]]) -> BuildReport:
    skipped: Counter[str] = Counter()
    problems: dict[str, str] = {}
    num_rows = 0
    for summary in summaries:
        skipped.update(summary["skipped"])
        problems.update(summary["problems"])
        num_rows += summary["num_rows"]
    named = dict(sorted(problems.items())[:_MAX_PROBLEMS])
    return BuildReport(name, num_rows, dict(sorted(skipped.items())), len(problems), named)


def _read_report(path: Path) -> BuildReport:
    try:
        facts = json.loads(path.read_bytes())
        return BuildReport(
            **{key: facts[key] for key in BuildReport.__dataclass_fields__} | {"was_complete": True}
        )
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{path} was changed: it is not the report of a build; delete it") from None
