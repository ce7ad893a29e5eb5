"""Filling a database is a job of shards: killed at any moment, it continues where it was.

    report = run_build(database, "street", identity, shards, embed)

Each shard's rows and vectors are staged in a file beside the database (`.build/`), and a record in a journal
says that they are whole; when all are there, they are appended in one step, and a report takes the journal's
place (`builds/NAME.json`). So readers see all of a build or nothing of it, and the finished database is the same,
byte for byte, however often the job was killed. A job that is finished is not done again. Knows nothing about
models or images.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from geoloc import __version__
from geoloc.errors import IntegrityError, OutputMismatchError
from geoloc.files import atomic_write, sha256_of
from geoloc.jobs.journal import REMEDY, Journal, describe_differences
from geoloc.reference.rows import ReferenceRows

if TYPE_CHECKING:
    from geoloc.reference.database import ReferenceDatabase

T = TypeVar("T")
Progress = Callable[[int], object]  # is told how many inputs are done

_STAGING: Final = ".build"
_REPORTS: Final = "builds"
_TOLD_PROBLEMS: Final = 1000  # of a report; all are counted


@dataclass
class Embedded:
    """What a shard has become.

    Attributes:
        rows: with one vector each.
        vectors: (n, dim).
        num_inputs: that the shard had, for progress.
        skipped: reason -> number of references that were left out on purpose.
        problems: name -> reason of inputs that could not be used.
    """

    rows: ReferenceRows
    vectors: NDArray[np.float32]
    num_inputs: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BuildReport:
    """What a build has added.

    Attributes:
        name: of the build: its source and a digest of all that decides it.
        num_rows: that it added.
        skipped: reason -> number of references that were left out on purpose.
        num_problems: inputs that could not be used.
        problems: name -> reason of the first thousand of them.
        was_complete: an earlier run had finished it already; this one did nothing.
    """

    name: str
    num_rows: int
    skipped: Mapping[str, int]
    num_problems: int
    problems: Mapping[str, str]
    was_complete: bool = False


def run_build(
    database: "ReferenceDatabase",
    source: str,
    identity: Mapping[str, Any],
    shards: Iterable[T],
    embed: Callable[[T, Progress], Embedded],
    progress: Progress = lambda num_inputs: None,
    *,
    overwrite: bool = False,
) -> BuildReport:
    """Embed all shards and append them to a database; continue what an earlier run has begun.

    Args:
        database: to be filled.
        source: what the rows are.
        identity: plain JSON values, all that decides the rows: settings, a digest of the inputs' names.
        shards: of the job, in an order that the identity decides.
        embed: makes a shard's rows; must give the same for the same shard, and tell how many inputs are done.
        progress: is told how many inputs are done.
        overwrite: drop the staged work of an unfinished build.

    Raises:
        OutputMismatchError: an unfinished build of something else is there, or another process is at work.
        IntegrityError: staged work was changed.
    """
    # Through JSON once, so that it is what the journal will compare.
    facts = {"source": source, "geoloc": __version__, "model": database.model_fingerprint, **identity}
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    name = f"{source}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    report_path = database.folder / _REPORTS / f"{name}.json"
    staging = database.folder / _STAGING
    if report_path.exists() and not _journal_path(staging, name).exists():
        return _read_report(report_path)
    staging.mkdir(exist_ok=True)
    _drop_others(staging, name, json.loads(text), overwrite)
    with Journal.open(
        _journal_path(staging, name), facts, afresh=overwrite and name not in database.shards
    ) as journal:
        done = [_Record(**record) for record in journal.records()]
        for record in done:
            progress(record.num_inputs)
        if name not in database.shards:
            for number, shard in enumerate(shards):
                if number >= len(done):
                    done.append(_stage(staging, number, embed(shard, progress)))
                    journal.append(asdict(done[-1]))
            database.append_batches(_staged(staging, done), shard=name)
        report = _report(name, done)
        report_path.parent.mkdir(exist_ok=True)
        with atomic_write(report_path, "w") as file:
            file.write(json.dumps({"identity": facts, **asdict(report)}, indent=2, sort_keys=True) + "\n")
        # The journal goes last: as long as it is there, a run comes here again and cleans up.
        for path in staging.glob("*.parquet"):
            path.unlink()
        journal.remove()
    shutil.rmtree(staging, ignore_errors=True)
    return report


def _journal_path(staging: Path, name: str) -> Path:
    return staging / f"{name}.journal"


def _drop_others(staging: Path, name: str, identity: Mapping[str, Any], overwrite: bool) -> None:
    """Refuse to begin a build while another one is unfinished, or drop that one."""
    for path in sorted(staging.glob("*.journal")):
        if path == _journal_path(staging, name):
            continue
        if not overwrite:
            head = path.read_text("ascii").partition("\n")[0].partition(" ")[2]
            found = json.loads(head) if head else {}
            raise OutputMismatchError(
                f"{staging.parent} has an unfinished build with other settings: "
                f"{describe_differences(found, identity)}; {REMEDY}"
            )
        with Journal.open(path, {}, afresh=True) as journal:  # refused if a process is at work on it
            journal.remove()


@dataclass(frozen=True)
class _Record:
    """What the journal says of a staged shard."""

    num_inputs: int
    num_rows: int
    sha256: str
    skipped: dict[str, int]
    problems: dict[str, str]


def _stage(staging: Path, number: int, embedded: Embedded) -> _Record:
    path = _staged_path(staging, number)
    table = embedded.rows.to_table(0, len(embedded.rows), first_row_id=0).drop_columns(["row_id", "morton"])
    vectors = np.ascontiguousarray(embedded.vectors, np.float32)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    with atomic_write(path, "wb") as file:
        pq.write_table(table.append_column("vector", flat), file, compression="none", use_dictionary=False)
    return _Record(
        embedded.num_inputs,
        len(embedded.rows),
        sha256_of(path),
        dict(embedded.skipped),
        dict(embedded.problems),
    )


def _staged(staging: Path, records: list[_Record]) -> Iterator[tuple[ReferenceRows, NDArray[np.float32]]]:
    for number, record in enumerate(records):
        path = _staged_path(staging, number)
        if not path.is_file() or sha256_of(path) != record.sha256:
            raise IntegrityError(f"{path} is missing or was changed: start the build anew with overwrite")
        table = pq.read_table(path)
        if len(table):
            column = {name: table[name].to_pylist() for name in ("source", "key", "provenance", "licence")}
            number_of = {
                name: table[name].to_numpy().astype(np.float64)
                for name in ("latitude", "longitude", "gsd_m_per_px", "heading_deg")
            }
            latlon_deg = np.stack([number_of.pop("latitude"), number_of.pop("longitude")], -1)
            vectors = table["vector"].combine_chunks().flatten().to_numpy()
            yield ReferenceRows(latlon_deg, **column, **number_of), vectors.reshape(len(table), -1)


def _staged_path(staging: Path, number: int) -> Path:
    return staging / f"{number:06d}.parquet"


def _report(name: str, records: list[_Record]) -> BuildReport:
    skipped: Counter[str] = Counter()
    problems: dict[str, str] = {}
    for record in records:
        skipped.update(record.skipped)
        problems.update(record.problems)
    told = dict(sorted(problems.items())[:_TOLD_PROBLEMS])
    num_rows = sum(record.num_rows for record in records)
    return BuildReport(name, num_rows, dict(sorted(skipped.items())), len(problems), told)


def _read_report(path: Path) -> BuildReport:
    try:
        facts = json.loads(path.read_bytes())
        return BuildReport(
            **{key: facts[key] for key in BuildReport.__dataclass_fields__} | {"was_complete": True}
        )
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{path} was changed: it is no report of a build; delete it") from None
