"""Write a data set as webdataset shards: tars of pictures with a JSON beside each, and one index over all.

    shards = ShardSet("shards/", table, samples_per_shard=1000)
    shards.write(num_workers=8)                       # killed at any moment, the same call goes on
    open_layout("webdataset", "shards/")              # reads the index; pictures stay where they are

    00000.tar, …     000000000.jpg and 000000000.json: the samples' numbers after the mixing
    index.parquet    the table of samples, with the place of each picture
    manifest.json    sizes and checksums: the job is complete

The same table gives the same bytes, whatever the number of workers. Samples are mixed before they are cut into
shards, so a shard is a small picture of the whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from geoloc import __version__
from geoloc.data.layouts.webdataset import INDEX_NAME
from geoloc.data.sample import NUMBERS, TEXTS, Sample, SampleTable
from geoloc.errors import BadImageError
from geoloc.files import atomic_write
from geoloc.images.decode import open_header
from geoloc.jobs.shards import Engine, Shard, ShardJob
from geoloc.photos.encoded import tar_samples

_PLAN_NAME: Final = ".plan.parquet"  # the mixed table, for workers; hidden, and gone when all is done
_SUFFIXES: Final = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "TIFF": "tif",
    "GIF": "gif",
    "BMP": "bmp",
}
_OTHER_SUFFIX: Final = "heic"


class ShardSet:
    """Shards of a table in their folder.

    Args:
        folder: made if it is not there; its parent must exist.
        table: the samples; cells and their fingerprint come along in the index.
        samples_per_shard: of all shards but the last.
        seed: of the mixing.
        drop_bad: leave out pictures whose file cannot be read or whose header makes no sense; otherwise they are an
            error.

    Raises:
        OutputMismatchError: the folder holds another job's shards, or other files.
    """

    def __init__(
        self,
        folder: str | Path,
        table: SampleTable,
        *,
        samples_per_shard: int = 1000,
        seed: int = 0,
        drop_bad: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.table = table.take(np.random.default_rng(seed).permutation(len(table)))
        starts = range(0, len(table), samples_per_shard)
        shards = [
            Shard(f"{number:05}.tar", [start, min(start + samples_per_shard, len(table))])
            for number, start in enumerate(starts)
        ]
        identity = {
            "task": "shard data",
            "geoloc": __version__,
            "samples": _digest(self.table),
            "samples_per_shard": samples_per_shard,
            "seed": seed,
            "drop_bad": drop_bad,
        }
        self.job = ShardJob(self.folder, shards, identity)
        self._drop_bad = drop_bad

    def write(
        self,
        *,
        engine: Engine = "local",
        num_workers: int = 1,
        on_done: Callable[[Shard], None] = lambda shard: None,
    ) -> int:
        """Write the shards that are missing, then the index and the manifest; how many samples there are.

        Raises:
            JobError: a shard failed; names the first bad picture.
        """
        index, plan = self.folder / INDEX_NAME, self.folder / _PLAN_NAME
        if not self.job.is_complete:
            self.table.write(plan)
            self.job.run(
                _WriteShard(plan, self._drop_bad), engine=engine, num_workers=num_workers, on_done=on_done
            )
            self._placed().write(index)
            plan.unlink()
        self.job.finish()
        return len(SampleTable.read(index))

    def _placed(self) -> SampleTable:
        """The samples with their places in the shards, which are read off the tars' headers."""
        names = [shard.name for shard in self.job.shards]
        found = [(name, sample) for name in names for sample in tar_samples(self.folder / name)]
        kept = self.table.take([int(sample.key) for _, sample in found])
        columns = {name: kept.columns[name] for name in kept.columns.column_names} | {
            "image_file": pa.array([name for name, _ in found], pa.string()),
            "image_offset": pa.array([sample.picture.offset for _, sample in found], pa.int64()),
            "image_num_bytes": pa.array([sample.picture.num_bytes for _, sample in found], pa.int64()),
        }
        return SampleTable(self.folder, columns, kept.latlon_deg, kept.fingerprint)


class _WriteShard:
    """The work of the job: rows [start, stop) of the plan into one tar."""

    def __init__(self, plan: Path, drop_bad: bool) -> None:
        self._plan, self._drop_bad = plan.absolute(), drop_bad

    def __getstate__(self) -> dict[str, Any]:
        return {"_plan": self._plan, "_drop_bad": self._drop_bad}  # every process reads the table itself

    @cached_property
    def _table(self) -> SampleTable:
        return SampleTable.read(self._plan)

    def __call__(self, payload: Any, output: Path) -> None:
        with atomic_write(output, "wb") as file:
            self._write(file, *payload)

    def _write(self, file: IO[bytes], start: int, stop: int) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for row in range(start, stop):
                sample = self._table[row]
                try:
                    data = sample.image.read()
                    with open_header(data) as image:
                        suffix = _SUFFIXES.get(image.format or "", _OTHER_SUFFIX)
                except BadImageError as error:
                    if self._drop_bad:
                        continue
                    raise BadImageError(
                        f"sample {sample.key!r} ({sample.image}): {error.reason}; leave such ones out with --drop-bad"
                    ) from error
                _add(tar, f"{row:09}.{suffix}", data)
                _add(tar, f"{row:09}.json", _json(sample))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner and the time 0, so that bytes depend on contents alone
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _json(sample: Sample) -> bytes:
    """What is known of a sample, as the layout `webdataset` and others read it."""
    latitude, longitude = sample.latlon_deg
    values: dict[str, Any] = {"id": sample.key, "latitude": latitude, "longitude": longitude}
    values |= {name: getattr(sample, name) for name in (*NUMBERS, *TEXTS)} | dict(sample.targets)
    known = {name: value for name, value in values.items() if value is not None and value == value}
    return json.dumps(known, ensure_ascii=False).encode()


def _digest(table: SampleTable) -> str:
    """Of all that a table says, whatever chunks it came in."""
    digest = hashlib.sha256(f"{table.root} {table.fingerprint}".encode() + table.latlon_deg.tobytes())
    for batch in _plain(table.columns):
        sink = pa.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        digest.update(sink.getvalue())
    return digest.hexdigest()


def _plain(columns: pa.Table) -> Iterator[pa.RecordBatch]:
    """The rows in pieces of one size, without dictionaries: these may list their words in any order."""
    for start in range(0, len(columns), 2**16):
        piece = columns.slice(start, 2**16)
        arrays = [
            column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
            for column in piece.columns
        ]
        yield from pa.table(dict(zip(piece.column_names, arrays, strict=True))).combine_chunks().to_batches()
