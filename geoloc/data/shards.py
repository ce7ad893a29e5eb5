"""Write a data set as webdataset shards: tars of images with a JSON per image, and an index.

    shards = ShardSet("shards/", table, samples_per_shard=1000)
    shards.write(num_workers=8)                       # resumable after a kill
    open_layout("webdataset", "shards/")              # reads the index and the images in the tars

    00000.tar, …     000000000.jpg and 000000000.json: numbers of the shuffled samples
    index.parquet    the table of samples, with byte ranges of the images
    manifest.json    sizes and checksums, written last

The same table gives the same bytes for any number of workers. Samples are shuffled over all shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from webdataset.writer import TarWriter

from geoloc import __version__
from geoloc.data.layouts.webdataset import INDEX_NAME
from geoloc.data.sample import NUMBERS, TEXTS, Sample, SampleTable
from geoloc.errors import BadImageError
from geoloc.files import atomic_write
from geoloc.images.decode import open_header
from geoloc.jobs.shards import Engine, Shard, ShardJob
from geoloc.photos.encoded import tar_samples

_PLAN_NAME: Final = ".plan.parquet"  # the shuffled table for the workers; removed at the end
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
    """Shards of a table in a folder.

    Args:
        folder: created if it does not exist; its parent must exist.
        table: samples; their cells are kept in the index.
        samples_per_shard: size of all shards but the last.
        seed: seed of the shuffling.
        drop_bad: leave out images that cannot be read or have a broken header, instead of raising an error.

    Raises:
        OutputMismatchError: the folder holds other files or shards of another job.
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
        """Write the missing shards, then the index and the manifest; return the number of samples.

        Raises:
            JobError: a shard failed; the message names the first bad image.
        """
        index, plan = self.folder / INDEX_NAME, self.folder / _PLAN_NAME
        if not self.job.is_complete:
            self.table.write(plan)
            self.job.run(
                _WriteShard(plan, self._drop_bad), engine=engine, num_workers=num_workers, on_done=on_done
            )
            self._located().write(index)
            plan.unlink()
        self.job.finish()
        return len(SampleTable.read(index))

    def _located(self) -> SampleTable:
        """The samples with their byte ranges in the shards, from the tars' headers."""
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
    """Work of the job: write rows [start, stop) of the plan into one tar."""

    def __init__(self, plan: Path, drop_bad: bool) -> None:
        self._plan, self._drop_bad = plan.absolute(), drop_bad

    def __getstate__(self) -> dict[str, Any]:
        return {"_plan": self._plan, "_drop_bad": self._drop_bad}  # each process reads the table itself

    @cached_property
    def _table(self) -> SampleTable:
        return SampleTable.read(self._plan)

    def __call__(self, payload: Any, output: Path) -> None:
        with atomic_write(output, "wb") as file:
            self._write(file, *payload)

    def _write(self, file: IO[bytes], start: int, stop: int) -> None:
        # Fixed time, owner and mode, so that the bytes depend on the contents only.
        with TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False) as tar:
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
                tar.write({"__key__": f"{row:09}", suffix: data, "json": _json(sample)})


def _json(sample: Sample) -> bytes:
    """Metadata of a sample, as the layout `webdataset` reads it."""
    latitude, longitude = sample.latlon_deg
    values: dict[str, Any] = {"id": sample.key, "latitude": latitude, "longitude": longitude}
    values |= {name: getattr(sample, name) for name in (*NUMBERS, *TEXTS)} | dict(sample.targets)
    known = {name: value for name, value in values.items() if value is not None and value == value}
    return json.dumps(known, ensure_ascii=False).encode()


def _digest(table: SampleTable) -> str:
    """Hash of a table's contents, independent of its chunks."""
    digest = hashlib.sha256(f"{table.root} {table.fingerprint}".encode() + table.latlon_deg.tobytes())
    for batch in _plain(table.columns):
        sink = pa.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        digest.update(sink.getvalue())
    return digest.hexdigest()


def _plain(columns: pa.Table) -> Iterator[pa.RecordBatch]:
    """The rows in batches of one size, with dictionaries decoded, because their order is arbitrary."""
    for start in range(0, len(columns), 2**16):
        piece = columns.slice(start, 2**16)
        arrays = [
            column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
            for column in piece.columns
        ]
        yield from pa.table(dict(zip(piece.column_names, arrays, strict=True))).combine_chunks().to_batches()
